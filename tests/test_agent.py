"""The engine: a step, a run, evaluation, and the same on two processes."""

import hashlib
import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from torch import nn

import main_pretrain_yaml
from agent import Agent, Averages
from batch import Mean, Output, SpecialTokens
from engine.processes import distributed
from engine.runs import make_run_folder
from engine.schedule import parameter_groups
from engine.step import part_ends, seeded, to_device
from lib import Config, UserError, World
from masking import mask_batch, numbers_of
from model import MVM_HEADS, PretrainModel
from tests.conftest import SWIN, run_script, tiny_bert
from weights.tensor_files import checkpoint_in

ROOT = Path(__file__).parents[1]
SPECIAL = SpecialTokens(pad=0, cls=2, sep=3, mask=4)


def tiny_config(folder: Path, **values: object) -> Config:
    return Config(**{"path_output": str(folder), "task": "tiny", "lr": 1e-3, "device": "cpu", **values})


def run(monkeypatch, arguments: list[str]) -> Path:
    """Run pre-training in this process; returns its run folder."""
    return run_script(monkeypatch, main_pretrain_yaml, arguments)


def lines(path: Path) -> list[dict]:
    """The rows of a file of figures or predictions, without the protocol of evaluations."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "protocol"} for row in rows]


def protocols(path: Path) -> list[dict]:
    """The protocols of a run's evaluations."""
    return [json.loads(line)["protocol"] for line in path.read_text().splitlines()]


def test_the_heads_of_mvm_learn_at_a_rate_of_their_own(tiny_model):
    published = parameter_groups(tiny_model, 1e-3, 0.01, 0.5)
    assert [(group["peak"], group["weight_decay"]) for group in published] == [
        (5e-4, 0.01),
        (1e-3, 0.01),
        (5e-4, 0.0),
        (1e-3, 0.0),
    ]
    groups = parameter_groups(tiny_model, 1e-3, 0.01, 0.5, {MVM_HEADS: 20.0})
    assert [(group["peak"], group["weight_decay"]) for group in groups[4:]] == [(0.02, 0.01), (0.02, 0.0)]
    heads = [name for group in groups[4:] for name in group["names"]]
    parts = ("weight", "bias")
    assert heads == [f"decoder_{target}.0.{part}" for part in parts for target in ("pixel", "hog")]
    for group, before in zip(groups, published, strict=False):
        assert group["names"] == [name for name in before["names"] if name not in heads]


def test_a_run_writes_what_its_user_looks_for(monkeypatch, arguments):
    folder = run(monkeypatch, [*arguments, "--size_epoch", "2", "--eval_start", "true"])
    assert folder.name.startswith("_pretrain_")
    metrics = lines(folder / "metrics.jsonl")
    # 12 clips in batches of 4; 12 pictures in batches of 8
    assert [row["step"] for row in metrics] == list(range(1, 2 * (3 + 1) + 1))
    for row in metrics:
        assert row["loss"] == pytest.approx(
            row["mlm"] + row["vtm"] + row["mvm_pixel"] + row["mvm_hog"], rel=1e-5
        )
        assert {"lr", "lr_swin", "samples_per_second", "mlm_acc", "vtm_acc"} <= row.keys()
    evaluations = lines(folder / "eval.jsonl")
    assert [row["epoch"] for row in evaluations] == [0, 1, 2]
    assert {"loss", "clips_mlm", "cc3m_vtm_acc"} <= evaluations[0].keys()
    predictions = lines(folder / "predictions_2.jsonl")
    assert len(predictions) == 24
    assert {"id", "text", "hidden", "named", "matched"} == predictions[0].keys()
    assert (folder / "args.json").exists()
    assert "checkpoint" in (folder / "log.txt").read_text()
    assert list(folder.glob("events.*"))
    states = [torch.load(folder / f"ckpt_violet_pretrain_{epoch}.pt", weights_only=True) for epoch in (1, 2)]
    assert not torch.equal(states[0]["fc.1.weight"], states[1]["fc.1.weight"])


def test_several_targets_are_weighted_in_the_sum_and_images_can_be_left_out(monkeypatch, arguments):
    given = [*arguments, "--mvm_target", '["pixel", "optical_flow"]', "--flow_teacher", "dis"]
    given += ["--mvm_weight", '{"pixel": 3}', "--mvm_on_images", "false", "--eval_start", "true"]
    folder = run(monkeypatch, [*given, "--max_steps", "6"])
    metrics = lines(folder / "metrics.jsonl")
    with_mvm = [row for row in metrics if "mvm_pixel" in row]  # of pictures it is not logged as zero, but not
    assert 0 < len(with_mvm) < len(metrics) == 6
    for row in metrics:
        mvm = 3 * row.get("mvm_pixel", 0) + row.get("mvm_optical_flow", 0)
        assert row["loss"] == pytest.approx(row["mlm"] + row["vtm"] + mvm, rel=1e-5)
    evaluation = lines(folder / "eval.jsonl")[0]
    assert evaluation["mvm_pixel"] == evaluation["clips_mvm_pixel"] > 0
    assert "cc3m_mvm_pixel" not in evaluation


def test_the_same_seed_gives_the_same_losses_and_evaluation_the_same_figures(monkeypatch, arguments):
    first, second = (run(monkeypatch, [*arguments, "--max_steps", "6"]) for _ in range(2))
    losses = [[row["loss"] for row in lines(folder / "metrics.jsonl")] for folder in (first, second)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 6
    other = run(monkeypatch, [*arguments, "--max_steps", "6", "--seed", "1"])
    assert [row["loss"] for row in lines(other / "metrics.jsonl")] != losses[0]
    checkpoint = str(sorted(first.glob("ckpt*.pt"))[-1])
    evaluations = []
    for _ in range(2):
        folder = run(monkeypatch, [*arguments, "--size_epoch", "0", "--path_ckpt", checkpoint])
        evaluations.append(lines(folder / "eval.jsonl"))
        assert not list(folder.glob("ckpt*.pt"))
    assert evaluations[0] == evaluations[1]
    last = lines(first / "eval.jsonl")[-1]
    assert {**evaluations[0][0], "step": 6, "epoch": last["epoch"]} == last
    (told,) = protocols(folder / "eval.jsonl")
    assert told["checkpoint"] == hashlib.sha256(Path(checkpoint).read_bytes()).hexdigest()
    assert protocols(first / "eval.jsonl")[-1] == {**told, "checkpoint": "step 6 of this run"}
    assert told["data"]["clips"]["samples"] == 12 and told["size_frame"] == 2 and told["precision"] == "off"


def test_evaluation_does_not_change_the_training_around_it(monkeypatch, arguments, tmp_path, bert_folder):
    """Dropout and the loader have numbers of their own."""
    tiny_bert(vocabulary=22, dropout=0.3).save_pretrained(tmp_path / "dropout")
    folder = str(tmp_path / "dropout")
    given = [
        *arguments,
        "--txt_backbone",
        folder,
        "--fusion_encoder",
        folder,
        "--tokenizer",
        str(bert_folder),
    ]
    given += ["--max_steps", "3"]
    losses = []
    for eval_start in ("false", "true"):
        rows = lines(run(monkeypatch, [*given, "--eval_start", eval_start]) / "metrics.jsonl")
        losses.append([row["loss"] for row in rows])
    assert losses[0] == losses[1]


def test_evaluation_needs_no_training_data_and_something_to_evaluate(monkeypatch, arguments):
    weights = str(run(monkeypatch, [*arguments, "--max_steps", "1"]) / "ckpt_violet_pretrain_1.pt")
    given = [*arguments, "--size_epoch", "0", "--train_yaml", '{"gone": "gone.yaml"}']
    run(monkeypatch, [*given, "--path_ckpt", weights])
    with pytest.raises(UserError, match="path_ckpt is empty, and size_epoch 0 trains nothing"):
        run(monkeypatch, given)
    with pytest.raises(UserError, match="size_epoch 0 evaluates only, and val_yaml is empty"):
        run(monkeypatch, [*arguments, "--size_epoch", "0", "--val_yaml", "{}"])


def test_runs_of_one_second_have_folders_of_their_own(tmp_path, monkeypatch):
    stamps = iter(["1", "1", "2"])
    monkeypatch.setattr(
        "engine.runs.time.strftime", lambda layout, *_: next(stamps) if "%Y" in layout else ""
    )
    folders = [make_run_folder(tiny_config(tmp_path), World(torch.device("cpu"))) for _ in range(2)]
    assert [folder.name for folder in folders] == ["_tiny_1", "_tiny_2"]


def test_max_steps_ends_a_run_whatever_the_epochs(monkeypatch, arguments):
    for steps in (2, 9):
        folder = run(monkeypatch, [*arguments, "--size_epoch", "1", "--max_steps", str(steps)])
        metrics = lines(folder / "metrics.jsonl")
        assert metrics[-1]["step"] == steps
        assert lines(folder / "eval.jsonl")[-1]["step"] == steps
        assert metrics[0]["lr"] == 1e-8  # the schedule is that of the whole run
        assert metrics[-1]["lr"] == pytest.approx(1e-3 / (0.9 * steps))


def test_evaluations_may_be_some_epochs_apart(monkeypatch, arguments):
    folder = run(monkeypatch, [*arguments, "--size_epoch", "5", "--eval_every", "2"])
    assert [(row["epoch"], row["step"]) for row in lines(folder / "eval.jsonl")] == [(2, 8), (4, 16), (5, 20)]
    assert {path.name for path in folder.glob("ckpt*")} == {
        f"ckpt_violet_pretrain_{epoch}.pt" for epoch in (2, 4, 5)
    }


def test_losses_fall(monkeypatch, arguments):
    folder = run(monkeypatch, [*arguments, "--max_steps", "80", "--lr", "3e-3", "--logging_steps", "10"])
    metrics = lines(folder / "metrics.jsonl")
    for name in ("loss", "mlm", "mvm_pixel"):
        assert metrics[-1][name] < 0.95 * metrics[0][name]


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_runs(monkeypatch, arguments, amp):
    folder = run(
        monkeypatch, [*arguments, "--max_steps", "2", "--amp", amp, "--pretrain_masks", '["am","rm"]']
    )
    assert len(lines(folder / "metrics.jsonl")) == 2


def test_a_vocabulary_that_does_not_hold_the_tokens_is_an_error(monkeypatch, arguments, tmp_path):
    tiny_bert(vocabulary=10).save_pretrained(tmp_path / "small")
    folders = ["--txt_backbone", str(tmp_path / "small"), "--fusion_encoder", str(tmp_path / "small")]
    tokenizer = json.loads(Path(arguments[1]).read_text())["txt_backbone"]
    with pytest.raises(UserError, match=r"the tokenizer has 2. words, txt_backbone 10"):
        run(monkeypatch, [*arguments, *folders, "--tokenizer", tokenizer])


# -- one step


class Regression(nn.Module):
    """A task whose loss is a mean over as many values as a batch has."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, batch):
        error = (batch["x"] @ self.weight - batch["y"]).square()[batch["counts"]]
        return Output(losses={"error": Mean(error.sum(), batch["counts"].sum())})


def regression_batch(size, seed=0):
    generator = seeded(seed)
    x, y = torch.randn(size, 3, generator=generator), torch.randn(size, generator=generator)
    return {"x": x, "y": y, "counts": torch.arange(size) % 3 > 0, "id": [str(i) for i in range(size)]}


def part(batch, chosen):
    return {k: [v[i] for i in chosen] if k == "id" else v[chosen] for k, v in batch.items()}


def agent_of(folder, model, world=None, **values):
    agent = Agent(tiny_config(folder, **values), world or World(torch.device("cpu")), model)
    agent.total, agent.step = 10, 1
    agent.set_rates()
    return agent


def test_gradients_are_clipped_and_accumulated(tmp_path):
    batch = {**regression_batch(8), "counts": torch.ones(8, dtype=torch.bool)}
    whole, halves = Regression(), Regression()
    agent_of(tmp_path / "a", whole, max_grad_norm=0.0).train_step([batch])
    parts = [part(batch, list(range(4))), part(batch, list(range(4, 8)))]
    values = agent_of(tmp_path / "b", halves, max_grad_norm=0.0).train_step(parts)
    torch.testing.assert_close(whole.weight, halves.weight)
    torch.testing.assert_close(whole.weight.grad, halves.weight.grad)
    assert values["loss"].value == values["error"].value
    clipped = Regression()
    agent_of(tmp_path / "c", clipped, max_grad_norm=0.01).train_step([batch])
    assert clipped.weight.grad.norm() == pytest.approx(0.01, rel=1e-3)


class Stream:
    """What the agent asks of a loader."""

    def __init__(self, batches):
        self.items = batches

    def __len__(self):
        return len(self.items)

    def epoch(self, _, skip=0):
        return iter(self.items[skip:])


def test_a_loss_that_is_not_finite_stops_with_the_sample_ids(tmp_path):
    good, bad = regression_batch(3), regression_batch(3, seed=1)
    bad["y"][1], bad["id"] = torch.nan, ["clip7", "clip8", "clip9"]
    config = tiny_config(tmp_path, size_epoch=1, logging_steps=3)
    agent = Agent(config, World(torch.device("cpu")), Regression())
    with pytest.raises(FloatingPointError, match=r"error.* not finite; the batch: clip7, clip8, clip9"):
        agent.fit(Stream([good, bad, good]), None)  # type: ignore[arg-type]
    assert not list(tmp_path.rglob("ckpt*.pt"))


def test_averages_weigh_batches_by_their_counts():
    averages = Averages()
    for total, count in [(3.0, 1), (1.0, 3), (0.0, 0)]:
        averages.add(Output({"a": Mean(torch.tensor(total), torch.tensor(count))}))
    assert averages.figures(World(torch.device("cpu"))) == {"loss": 1.0, "a": 1.0}


def test_frames_come_as_bytes_and_are_normalised_on_the_device():
    batch = {"img": torch.arange(256, dtype=torch.uint8).reshape(1, 1, 1, 16, 16).expand(1, 1, 3, -1, -1)}
    moved = to_device({**batch, "id": ["a"]}, torch.device("cpu"))
    for channel, (mean, std) in enumerate([(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)]):
        want = (torch.arange(256) / 255 - mean) / std
        torch.testing.assert_close(moved["img"][0, 0, channel].flatten(), want)
    assert to_device(moved, torch.device("cpu"))["img"] is moved["img"]  # floats are


# -- two processes


def global_batch(size=6):
    generator = seeded(3)
    txt = torch.randint(5, 128, (size, 8), generator=generator)
    txt[:, 0], txt[:, 7] = 2, 3
    batch = {
        "img": torch.randn(size, 2, 3, 64, 64, generator=generator),
        "txt": txt,
        "mask": torch.ones_like(txt),
        "valid": torch.ones(size, dtype=torch.bool),
    }
    masked = mask_batch(batch, ["rm"], 0.4, SPECIAL, 32, generator)
    # negatives within each half, which is what each of two processes can see
    third = size // 2
    masked["negatives"] = torch.tensor([[(i + 1) % third + third * (i // third)] for i in range(size)])
    return {**masked, "id": [str(i) for i in range(size)]}


def pretrain_steps(folder: Path, world: World, batch: dict) -> dict[str, torch.Tensor]:
    """The gradients of a first step and the loss of a third."""
    torch.manual_seed(0)
    model = PretrainModel(tiny_bert(), tiny_bert(), SWIN, targets=["pixel", "hog"])
    agent = agent_of(folder, model, world)
    agent.train_step([batch])
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    for agent.step in (2, 3):
        values = agent.train_step([batch])
    return {"loss": values["loss"].value, **gradients}


def train_on_one_of_two(rank: int, port: int, folder: Path) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1")
    os.environ["MASTER_PORT"] = str(port)
    torch.set_num_threads(1)
    with distributed(Config(device="cpu")) as world:
        assert (world.rank, world.size, world.is_main) == (rank, 2, rank == 0)
        whole = global_batch()
        chosen = list(range(3 * rank, 3 * rank + 3))
        batch = part(whole, chosen)
        batch["negatives"] = batch["negatives"] - 3 * rank
        batch["mlm_at"] = numbers_of(batch["ans_mlm"] >= 0)
        state = pretrain_steps(folder, world, batch)
        gathered = world.gather(float(state["loss"]))
        assert gathered[0] == gathered[1]
        if world.is_main:
            torch.save(state, folder / "two.pt")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_two_processes_train_as_one_does_on_the_same_global_batch(tmp_path):
    """Though their shares hold different numbers of hidden words and patches."""
    whole = global_batch()
    hidden = (whole["ans_mlm"] >= 0).sum(1)
    assert hidden[:3].sum() != hidden[3:].sum()
    torch.multiprocessing.start_processes(
        train_on_one_of_two, (free_port(), tmp_path), nprocs=2, start_method="spawn"
    )
    two = torch.load(tmp_path / "two.pt", weights_only=True)
    one = pretrain_steps(tmp_path, World(torch.device("cpu")), whole)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def launch(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    command += [f"--master_port={free_port()}", "main_pretrain_yaml.py", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]


def test_torchrun_evaluates_on_two_processes_as_on_one(monkeypatch, arguments, tmp_path):
    checkpoint = run(monkeypatch, [*arguments, "--max_steps", "1"]) / "ckpt_violet_pretrain_1.pt"
    arguments += ["--size_epoch", "0", "--path_ckpt", str(checkpoint)]
    one = run(monkeypatch, arguments)
    before = set((tmp_path / "out").iterdir())
    launch(arguments)
    (two,) = set((tmp_path / "out").iterdir()) - before
    (first,), (second,) = lines(one / "eval.jsonl"), lines(two / "eval.jsonl")
    assert first.keys() == second.keys()
    for name, value in first.items():
        exact = 0 if name.endswith("acc") else 1e-5
        assert second[name] == pytest.approx(value, rel=exact, abs=0)
    rows = lines(two / "predictions_0.jsonl")
    assert [row["id"] for row in rows] == [f"{name}{i}" for name in ("clips", "cc3m") for i in range(12)]
    assert rows == lines(one / "predictions_0.jsonl")


@pytest.mark.parametrize("tasks", ['["vtm"]', '["mlm","vtm","mvm"]'])
def test_figures_of_an_evaluation_do_not_hang_on_the_batch(monkeypatch, arguments, tasks):
    """VTM's texts come from the split, masks follow from the sample."""
    found = []
    for size in ("1", "2", "5", "12"):
        given = [*arguments, "--pretrain_tasks", tasks, "--size_batch", size]
        start = run(monkeypatch, [*given, "--max_steps", "1", "--seed", "1"])
        weights = found[0][0] if found else str(start / "ckpt_violet_pretrain_1.pt")
        folder = run(monkeypatch, [*given, "--size_epoch", "0", "--path_ckpt", weights])
        (row,) = lines(folder / "eval.jsonl")
        found.append((weights, row))
    assert found[0][1]["vtm"] > 0.5
    for _, row in found[1:]:
        assert row == pytest.approx(found[0][1], rel=1e-4, abs=1e-5)


def test_a_pretraining_epoch_has_as_many_evaluations_as_parts(monkeypatch, arguments):
    given = [*arguments, "--size_part", "2", "--size_epoch", "2", "--pretrain_tasks", "mlm"]
    folder = run(monkeypatch, given)
    rows = lines(folder / "eval.jsonl")
    assert [row["epoch"] for row in rows] == [1, 1, 2, 2]
    names = sorted(path.name for path in folder.glob("ckpt_*"))
    assert names == [f"ckpt_violet_pretrain_{name}.pt" for name in ("1", "1_1", "2", "2_1")]
    assert checkpoint_in(folder).name == "ckpt_violet_pretrain_2.pt"
    steps = lines(folder / "metrics.jsonl")[-1]["step"]
    assert [row["step"] for row in rows] == [
        math.ceil(steps / 4),
        steps // 2,
        steps // 2 + math.ceil(steps / 4),
        steps,
    ]


@pytest.mark.parametrize("accumulate", [1, 2, 3, 4])
@pytest.mark.parametrize("parts", [1, 2, 3, 10])
def test_parts_of_an_epoch_are_whole_steps(parts, accumulate):
    for batches in range(1, 30):
        ends = part_ends(batches, parts, accumulate)
        assert ends == sorted(set(ends)) and ends[-1] == batches and len(ends) <= parts
        assert all(end % accumulate == 0 for end in ends[:-1])
        if accumulate == 1:  # as even as can be
            assert len(ends) == min(parts, batches)


def test_a_batch_of_one_is_told_that_it_learns_no_matching(monkeypatch, arguments):
    folder = run(monkeypatch, [*arguments, "--size_batch", "1", "--max_steps", "1"])
    assert "video-text matching (vtm) learns nothing" in (folder / "log.txt").read_text()


def test_an_agent_is_of_use_without_a_run(tmp_path, tiny_model):
    config = Config(path_output=str(tmp_path / "out"), device="cpu")
    agent = Agent(config, World(torch.device("cpu")), tiny_model)
    assert not (tmp_path / "out").exists()
    path = agent.save("mine")
    assert path.is_file() and path.name == "ckpt_violet_pretrain_mine.pt"
