"""The config: published command lines and files, which source wins, and which script reads which key."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from engine.arguments import FIELDS, FLAGS, LEGACY, LISTS, SYNONYMS, TASKS, load_config
from engine.processes import join_mpi
from lib import KEYS, SCRIPTS, Config, UserError

ROOT = Path(__file__).parents[2]
PUBLISHED = json.loads((Path(__file__).parents[1] / "fixtures" / "published_args.json").read_text())[
    "configs"
]


def write(folder: Path, name: str = "config.json", **values: object) -> list[str]:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(values))
    return ["--config", str(folder / name)]


def other_value(name: str) -> object:
    """A value of a key that is valid and not its default."""
    default = getattr(Config(), name)
    special = {
        "type": "pretrain", "pretrain_tasks": ["mlm"], "pretrain_masks": ["am"], "mvm_target": ["hog"],
        "img_transform": ["pad_resize"], "train_yaml": {"a": "b.yaml"}, "val_yaml": {"a": "b.yaml"},
        "mvm_weight": {"hog": 2.0}, "mask_pos": "insert", "text_rules": "fixed", "eval_split": "val",
        "size_img": 128, "size_patch": 32, "vis_backbone": "vidswin", "vis_backbone_size": "large",
        "vis_backbone_init": "2d", "kinetics": 400, "amp": "bf16", "parallel": "zero1", "logger": "wandb",
        "teacher_init": "random", "device": "cpu", "use_checkpoint": True, "compile": True,
        "window_kernels": False,
        "vtm_negatives": "hard",
    }  # fmt: skip
    if name in special:
        return special[name]
    if isinstance(default, bool):
        return not default
    return default + 1 if isinstance(default, int) else default / 2 if isinstance(default, float) else "other"


# -- an option wins, wherever it stands


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("name", KEYS)
def test_every_option_wins_before_and_after_the_config(tmp_path, name, before):
    value = other_value(name)
    option = [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
    stored = dataclasses.asdict(Config())
    stored.pop("mvm_weight")  # else it names a target
    file = write(tmp_path, **{key: stored[key] for key in KEYS if key in stored})
    config = load_config("pretrain", [*option, *file] if before else [*file, *option])
    assert getattr(config, name) == value
    assert load_config("pretrain", file) == Config()


@pytest.mark.parametrize("name", LISTS)
def test_lists_are_separated_by_spaces_or_are_json(name):
    values = {
        "pretrain_tasks": ["mtm", "vtm"],
        "pretrain_masks": ["rm", "am"],
        "mvm_target": ["pixel", "hog"],
        "img_transform": ["pad_resize", "vid_rand_crop"],
    }[name]
    wanted = ["mlm" if value == "mtm" else value for value in values]
    for words in (values, [json.dumps(values)]):
        assert getattr(load_config("pretrain", [f"--{name}", *words, "--seed", "3"]), name) == wanted
    assert getattr(load_config("pretrain", ["--seed", "3", f"--{name}", values[0]]), name) == wanted[:1]


@pytest.mark.parametrize("name", sorted(FLAGS))
@pytest.mark.parametrize(
    ("words", "value"),
    [([], True), *(([word], True) for word in ("1", "t", "True", "yes")),
     *(([word], False) for word in ("0", "f", "F", "False", "no"))],
)  # fmt: skip
def test_booleans_are_bare_or_any_of_the_published_words(tmp_path, name, words, value):
    assert getattr(load_config("pretrain", [f"--{name}", *words, "--seed", "3"]), name) is value
    if words:
        assert getattr(load_config("pretrain", write(tmp_path, **{name: words[0]})), name) is value


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--data_ratio", "100"], "data_ratio", 100),
        (["--max_grad_norm", "-1"], "max_grad_norm", -1),
        (["--size_vocab", "-1"], "size_vocab", -1),
        (["--kinetics", "-1"], "kinetics", -1),
        (["--size_part", "8"], "parts", 8),
        (["--size_part", '{"a": 3, "b": 5}'], "parts", 5),
        (["--size_part", "{}"], "parts", 1),
        (["--local_rank", "0"], "seed", 88),
        (["--local-rank=1"], "seed", 88),
        (["--deepspeed", "0"], "deepspeed", False),
        (["--deepspeed", "f"], "deepspeed", False),
    ],
)
def test_values_of_published_command_lines(words, name, value):
    for given in ([*words, "--size_batch", "3"], ["--size_batch", "3", *words]):
        config = load_config("pretrain", given)
        assert (getattr(config, name), config.size_batch) == (value, 3)


@pytest.mark.parametrize("name", LEGACY)
def test_keys_of_the_published_parser_are_named_and_ignored(tmp_path, name, caplog):
    assert load_config("pretrain", [f"--{name}", "mean", "--seed", "4"]).seed == 4
    assert name in caplog.text or name == "local_rank"
    stored = {"type": "retrieval", "task": "didemo-retrieval", name: 3, "made_up": None, "seed": 5}
    config = load_config("retrieval", write(tmp_path, multi_clip_testing=False, **stored))
    # the args.json of a published run: its evaluation always averages all clips
    assert (config.seed, config.multi_clip_testing) == (5, True)
    assert "made_up" in caplog.text


def test_an_unknown_key_stays_an_error(tmp_path):
    with pytest.raises(UserError, match="'made_up' is unknown"):
        load_config("pretrain", write(tmp_path, made_up=3))
    for synonym, name in SYNONYMS.items():
        with pytest.raises(UserError, match=f"did you mean '{name}'"):
            load_config("pretrain", [f"--{synonym}", "1"])
    for words in (["seed", "3"], ["--lr"], ["--lr", "1", "2"], ["--config", "a", "b"]):
        with pytest.raises(UserError):
            load_config("pretrain", words)


# -- the checkpoint's own args.json


@pytest.mark.parametrize("script", ["main_qaoe_tsv_mlm_head", "eval_retrieval_tsv"])
@pytest.mark.parametrize("epochs", [0, 3])
def test_args_beside_the_checkpoint_decide_the_network_and_in_evaluation_the_input(
    tmp_path, script, epochs, caplog
):
    kind = SCRIPTS[script]
    of_network = {
        "mask_pos": "insert",
        "vis_backbone_size": "tiny",
        "txt_backbone": "mine",
        "tokenizer": "its",
    }
    of_input = {"size_frame": 3, "size_txt": 17, "size_img": 64, "img_transform": ["pad_resize"]}
    write(tmp_path / "run", "args.json", type=kind, lr=1.0, size_batch=77, **of_network, **of_input)
    given = write(
        tmp_path, type=kind, size_epoch=epochs, path_ckpt=str(tmp_path / "run" / "a.pt"), size_batch=5
    )
    config = load_config(script, given)
    assert {name: getattr(config, name) for name in of_network} == of_network
    evaluates = not epochs or script == "eval_retrieval_tsv"
    for name, value in of_input.items():
        assert getattr(config, name) == (value if evaluates else getattr(Config(), name))
    assert (config.size_batch, config.lr) == (5, Config().lr)
    assert "size_txt: using 17" in caplog.text or not evaluates
    options = ["--mask_pos", "replace", "--size_frame", "2"]
    config = load_config(script, [*options, *given])
    assert (config.mask_pos, config.size_frame, config.vis_backbone_size) == ("replace", 2, "tiny")


def test_of_pretraining_no_text_rules_are_taken_and_of_a_bare_name_no_transform(tmp_path):
    write(tmp_path / "run", "args.json", type="pretrain", text_rules="published", accumulate=1)
    given = write(tmp_path, type="qaoe", path_ckpt=str(tmp_path / "run"), text_rules="fixed")
    assert load_config("qaoe", given).text_rules == "fixed"
    write(
        tmp_path / "run",
        "args.json",
        type="qaoe",
        img_transform="pad_resize",
        size_frame=8,
        max_size_frame=16,
    )
    config = load_config("qaoe", [*given, "--size_epoch", "0"])
    assert (config.img_transform, config.size_frame) == (["img_rand_crop"], 8)


def test_the_args_of_a_run_are_what_it_ran_with(tmp_path):
    write(tmp_path / "start", "args.json", type="pretrain", mask_pos="append", vis_backbone_size="base")
    run = {"type": "qaoe", "path_ckpt": str(tmp_path / "start"), "mask_pos": "insert", "text_rules": "fixed"}
    config = load_config("qaoe", write(tmp_path / "run", "args.json", **run))
    assert (config.mask_pos, config.text_rules) == ("insert", "fixed")


def test_folders_that_the_published_parser_writes_are_names(tmp_path):
    folder = "./models/huggingface_transformers/bert-base-uncased/"
    published = {"type": "qaoe", "temporal_fusion": "vidswin", "txt_backbone": folder, "tokenizer": folder}
    config = load_config("qaoe", write(tmp_path / "run", "args.json", **published))
    assert (config.txt_backbone, config.tokenizer) == ("bert-base-uncased", "bert-base-uncased")
    given = write(tmp_path, type="qaoe", path_ckpt=str(tmp_path / "run"))
    assert load_config("qaoe", given).txt_backbone == "bert-base-uncased"


def test_a_run_from_before_text_rules_keeps_its_rules(tmp_path):
    write(tmp_path / "run", "args.json", type="qaoe", accumulate=1)
    given = write(tmp_path, type="qaoe", path_ckpt=str(tmp_path / "run"))
    assert load_config("qaoe", given).text_rules == "fixed"
    assert load_config("qaoe", [*given, "--text_rules", "published"]).text_rules == "published"
    write(tmp_path / "run", "args.json", type="qaoe", temporal_fusion="mean")  # of a published run
    assert load_config("qaoe", given).text_rules == "published"


def test_a_bert_that_is_here_stays_where_the_checkpoints_own_is_not(tmp_path):
    (tmp_path / "bert").mkdir()
    write(tmp_path / "run", "args.json", type="qaoe", txt_backbone="/elsewhere/bert")
    given = write(tmp_path, type="qaoe", path_ckpt=str(tmp_path / "run"), txt_backbone=str(tmp_path / "bert"))
    assert load_config("qaoe", given).txt_backbone == str(tmp_path / "bert")


@pytest.mark.parametrize(
    ("script", "epochs", "own"),
    [("eval_retrieval_tsv", 20, True), ("main_retrieval_tsv", 0, True), ("main_retrieval_tsv", 20, False)],
)
def test_an_evaluation_with_the_args_of_a_run_is_of_its_own_checkpoint(tmp_path, script, epochs, own):
    run = tmp_path / "_task_1"
    given = write(run, "args.json", type="retrieval", path_ckpt="start.pt", size_epoch=epochs)
    (run / "ckpt_violet_task_best.pt").touch()
    assert load_config(script, given).path_ckpt == (str(run) if own else "start.pt")
    assert load_config(script, [*given, "--path_ckpt", "x.pt"]).path_ckpt == "x.pt"
    (run / "ckpt_violet_task_best.pt").unlink()
    assert load_config(script, given).path_ckpt == "start.pt"


# -- scripts and their keys


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_warns_of_each_key_that_it_does_not_read_and_of_no_other(tmp_path, script, caplog):
    kind = SCRIPTS[script]
    for name in KEYS:
        caplog.clear()
        if name == "type" or other_value(name) == getattr(Config(), name):
            continue
        value = other_value(name)
        load_config(
            script, ["--type", kind, f"--{name}={value if isinstance(value, str) else json.dumps(value)}"]
        )
        assert ("ignored by this script" in caplog.text) == (
            script not in FIELDS[name].metadata["scripts"]
        ), name


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_runs_with_its_own_script_alone(tmp_path, name):
    values = PUBLISHED[name]
    given = write(tmp_path, **values)
    for script, kind in SCRIPTS.items():
        right = kind == values["type"] and TASKS.get(values["task"], script) == script
        if right:
            assert load_config(script, given).task == values["task"]
        else:
            with pytest.raises(UserError, match=r"_tsv|_yaml"):
                load_config(script, given)


def test_a_config_shared_by_training_and_ranking_is_no_reason_to_warn(tmp_path, caplog):
    given = write(tmp_path, **PUBLISHED["args_msrvtt-retrieval.json"])
    load_config("eval_retrieval_tsv", given)
    assert "ignored" not in caplog.text
    load_config("eval_retrieval_tsv", [*given, "--lr", "1"])
    assert "ignored by this script: lr=1.0" in caplog.text


@pytest.mark.parametrize("task", ["tgif-action", "tgif-transition"])
def test_the_tgif_configs_that_ran_otherwise_are_told(tmp_path, task, caplog):
    values = PUBLISHED[f"args_{task}.json"]
    config = load_config("main_qamc_tsv_mlm_gen_ans_idx", write(tmp_path, **values))
    assert config.img_transform == ["pad_resize"] and "ran with img_rand_crop" in caplog.text
    caplog.clear()
    load_config("main_qamc_tsv_mlm_gen_ans_idx", ["--config", str(ROOT / "_args" / f"args_{task}.json")])
    assert "img_rand_crop" not in caplog.text


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_shows_the_keys_that_a_script_reads_without_importing_torch(script):
    program = f"import sys; sys.argv = ['{script}.py', '--help']\nimport {script}\ntry: {script}.main()\n"
    program += "except SystemExit: pass\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in KEYS:
        assert (f"--{name} " in done.stdout) == (script in FIELDS[name].metadata["scripts"]), name


# -- mpirun


@pytest.mark.parametrize("kind", ["openmpi", "mpich"])
def test_mpirun_makes_a_process_group(monkeypatch, kind):
    names = {
        "openmpi": [f"OMPI_COMM_WORLD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")],
        "mpich": ["PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"],
    }[kind]
    torch_names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

    def place(*values):
        environment = dict(zip(names, values, strict=True))
        monkeypatch.setattr("os.environ", environment)
        join_mpi()
        return [environment.get(name) for name in torch_names]

    assert place("1", "2", "1", "2") == ["1", "2", "1", "2", "127.0.0.1", "29500"]
    with pytest.raises(UserError, match="set MASTER_ADDR"):
        place("3", "4", "1", "2")
    monkeypatch.setattr("os.environ", environment := {"WORLD_SIZE": "1", names[1]: "8", names[0]: "3"})
    join_mpi()
    assert "RANK" not in environment
