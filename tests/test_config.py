"""What a config accepts, and what it says of the rest."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine.arguments import load_config
from engine.processes import choose_device
from lib import MISTAKE, Config, UserError
from media.files import atomic_path

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "_args").rglob("*.json"))


PUBLISHED = json.loads((Path(__file__).parent / "fixtures" / "published_args.json").read_text())


def write(folder: Path, **values: object) -> list[str]:
    (folder / "config.json").write_text(json.dumps(values))
    return ["--config", str(folder / "config.json")]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_config_of_ours_loads(path):
    values = json.loads(path.read_text())
    load_config(values["type"], ["--config", str(path)])


@pytest.mark.parametrize("name", PUBLISHED["configs"])
def test_every_published_config_loads_as_it_is(tmp_path, name):
    values = PUBLISHED["configs"][name]
    config = load_config(values["type"], write(tmp_path, **values))
    for key, value in values.items():
        loaded = getattr(config, key)
        assert loaded == ([value] if isinstance(loaded, list) and isinstance(value, str) else value)


TASKS = ["msrvtt-mc", "lsmdc-mc", "tgif-action", "tgif-transition"]
TASKS += ["tgif-frame", "msrvtt-qa", "msvd-qa", "lsmdc-fib"]
TASKS += ["msrvtt-retrieval", "didemo-retrieval", "lsmdc-retrieval"]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("folder", ["", "_best/"])
def test_our_configs_of_tasks_are_the_published_ones(task, folder):
    """With paths here, and of the two TGIF tasks the transform that ran (Deviation 6)."""
    values = dict(PUBLISHED["configs"][f"args_{task}.json"])
    values |= PUBLISHED["best_differs"][f"_best/args_{task}.json"] if folder else {}
    values |= {"data_dir": "_data", "path_ckpt": f"_snapshot/{Path(values['path_ckpt']).name}"}
    if "img_transform" in values:
        values["img_transform"] = ["img_rand_crop"]
    assert json.loads((ROOT / "_args" / f"{folder}args_{task}.json").read_text()) == values


def test_command_line_wins_over_the_file(tmp_path):
    given = write(tmp_path, size_batch=3, mvm_target="hog", p_mask=0.3)
    config = load_config("pretrain", [*given, "--size_batch", "4", "--mvm_target", '["pixel","hog"]'])
    assert (config.size_batch, config.mvm_target, config.p_mask) == (4, ["pixel", "hog"], 0.3)
    config = load_config("pretrain", [*given, "--train_yaml", '{"a": "b.yaml"}', "--use_checkpoint", "true"])
    assert (config.train_yaml, config.use_checkpoint) == ({"a": "b.yaml"}, True)


def test_one_name_is_a_list_of_one_and_mtm_is_mlm(tmp_path):
    config = load_config(
        "pretrain", write(tmp_path, img_transform="pad_resize", pretrain_tasks=["mtm", "vtm"])
    )
    assert config.img_transform == ["pad_resize"]
    assert config.pretrain_tasks == ["mlm", "vtm"]


def test_the_argument_that_the_launcher_adds_is_accepted():
    assert load_config("pretrain", ["--local-rank=1", "--seed", "3"]).seed == 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size_bacth": 3}, "did you mean 'size_batch'"),
        ({"size_batch": 0}, "size_batch"),
        ({"size_batch": "many"}, "size_batch"),
        ({"size_frame": 2.5}, "size_frame"),
        ({"p_mask": 1.5}, "p_mask"),
        ({"lr": -1}, "lr"),
        ({"amp": "fp8"}, "amp"),
        ({"use_checkpoint": "perhaps"}, "use_checkpoint"),
        ({"mvm_target": "pixl"}, "did you mean 'pixel'"),
        ({"mvm_target": ["pixel", "pixel"]}, "none twice"),
        ({"mvm_weight": {"pixl": 2}}, "did you mean 'pixel'"),
        ({"mvm_weight": {"pixel": -2}}, "mvm_weight"),
        ({"teacher_init": "none"}, "teacher_init"),
        ({"teacher_batch": 0}, "teacher_batch"),
        ({"mvm_target": []}, "at least one"),
        ({"pretrain_masks": ["random"]}, "Known: am, bm, rm"),
        ({"train_yaml": "a.yaml"}, "train_yaml"),
        ({"size_img": 100}, "multiple of size_patch"),
        ({"size_frame": 7}, "max_size_frame"),
        ({"size_img": 512}, "max_size_patch"),
        ({"size_txt": 2}, "size_txt"),
        ({"type": "qamc"}, "this script runs configs of type 'pretrain'"),
    ],
    ids=str,
)
def test_a_wrong_value_is_named(tmp_path, values, message):
    with pytest.raises(UserError, match=message):
        load_config("pretrain", write(tmp_path, **values))


def test_unknown_argument_and_missing_file_are_named(tmp_path):
    with pytest.raises(UserError, match="did you mean 'size_batch'"):
        load_config("pretrain", ["--size_bacth", "3"])
    with pytest.raises(UserError, match="does not exist"):
        load_config("pretrain", ["--config", str(tmp_path / "none.json")])
    (tmp_path / "config.json").write_text("{'type': ")
    with pytest.raises(UserError, match="config"):
        load_config("pretrain", ["--config", str(tmp_path / "config.json")])


def test_a_saved_config_is_read_back_equal(tmp_path):
    config = Config(mvm_target=["hog"], train_yaml={"a": "b"}, lr=3e-4)
    (tmp_path / "args.json").write_text(config.to_json())
    assert load_config("pretrain", ["--config", str(tmp_path / "args.json")]) == config
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.lr = 1.0  # type: ignore[misc]


def test_an_error_ends_a_script_with_its_message_alone():
    run = subprocess.run(
        [sys.executable, "main_pretrain_yaml.py", "--size_bacth", "3"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == MISTAKE
    assert run.stderr.startswith("config key 'size_bacth' is unknown; did you mean 'size_batch'")


def test_devices():
    assert choose_device("cpu", local_rank=1) == torch.device("cpu")
    assert choose_device("cuda", local_rank=1) == torch.device("cuda:1")
    assert choose_device("cuda:0", local_rank=1) == torch.device("cuda:0")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]
    with atomic_path(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"
