"""Question answering: models, metrics, and the scripts from the command line to their files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import main_qamc_tsv
import main_qamc_tsv_mlm_gen_ans_idx
import main_qaoe_tsv_lsmdc_fib
import main_qaoe_tsv_mlm_head
from agent import Agent
from batch import Mean, Output
from lib import Config, UserError, World
from model import PretrainModel
from tasks.qa.metric import accuracy, interval
from tasks.qa.model import TASK_ROWS, ChoiceModel, MaskModel
from tasks.qa.questions import without_padding
from tests.conftest import SWIN, WORDS, demo_network, run_script, tiny_bert, write_videos
from tests.test_agent import free_port, lines, protocols

ROOT = Path(__file__).parents[2]
COLORS = ["red", "blue", "green"]


# -- models


def question_batch(size=3, options=0, words=8):
    generator = torch.Generator().manual_seed(1)
    shape = (size, options, words) if options else (size, words)
    txt = torch.randint(5, 128, shape, generator=generator)
    txt[..., 0], txt[..., 6], txt[..., 7] = 2, 3, 0
    return {
        "img": torch.randn(size, 2, 3, 64, 64, generator=generator),
        "txt": txt,
        "mask": (txt > 0).long(),
        "place": torch.arange(size) + 1,
        "answer": torch.arange(size),
        "valid": torch.ones(size, dtype=torch.bool),
    }


def choice_model(**arguments):
    return ChoiceModel(tiny_bert(), tiny_bert(), SWIN, **arguments)


def mask_model(**arguments):
    return MaskModel(tiny_bert(), tiny_bert(), SWIN, **arguments)


def test_a_clip_is_encoded_once_whatever_the_options():
    model, batch = choice_model().eval(), question_batch(options=4)
    clips = []
    model.enc_img.register_forward_hook(lambda module, given, made: clips.append(len(made)))
    scores = model.scores(batch["img"], batch["txt"], batch["mask"])
    assert clips == [3] and scores.shape == (3, 4)
    for option in range(4):  # each as if it were alone
        txt, mask = batch["txt"][:, option], batch["mask"][:, option]
        video, text = model.encode(batch["img"], txt, mask)
        alone = model.fc(model.fuse(video, text, mask)[:, video.shape[1]])[:, 0]
        torch.testing.assert_close(scores[:, option], alone)


def test_the_answer_is_read_at_the_mask_alone():
    model, batch = mask_model().eval(), question_batch()
    logits = model.logits(batch["img"], batch["txt"], batch["mask"], batch["place"])
    video, text = model.encode(batch["img"], batch["txt"], batch["mask"])
    words = model.fc_mtm(model.fuse(video, text, batch["mask"]))[:, video.shape[1] :]
    torch.testing.assert_close(logits, words[torch.arange(3), batch["place"]])
    head = []
    model.fc_mtm.register_forward_hook(lambda module, given, made: head.append(tuple(made.shape)))
    model(batch)
    assert head == [(3, 128)]


@pytest.mark.parametrize("options", [0, 4])
def test_padding_of_all_texts_is_left_out_of_a_batch_and_changes_nothing(options):
    batch = question_batch(options=options)
    samples = [{name: value[i] for name, value in batch.items()} for i in range(3)]
    cut = without_padding(samples)
    assert cut["txt"].shape[-1] == cut["mask"].shape[-1] == batch["txt"].shape[-1] - 1
    model = (choice_model if options else mask_model)().eval()
    torch.testing.assert_close(model(cut).losses["answer"].value, model(batch).losses["answer"].value)


def test_the_task_token_is_used_when_asked_for():
    batch = question_batch()
    plain, token = mask_model().eval(), mask_model(task_row=1).eval()
    token.load_state_dict(plain.state_dict())
    outputs = [m.logits(batch["img"], batch["txt"], batch["mask"], batch["place"]) for m in (plain, token)]
    assert not torch.allclose(*outputs)
    token.train()(batch).losses["answer"].total.backward()
    used = token.emb_task.grad.abs().sum(dim=1) > 0
    assert used.nonzero().flatten().tolist() == [1]
    assert not plain.emb_task.requires_grad


@pytest.mark.parametrize(
    ("model", "options"), [(choice_model, 3), (mask_model, 0), (lambda: mask_model(task_row=0), 0)]
)
@pytest.mark.parametrize("answers", [[0, 1, 2], [-1, -1, -1]])
def test_every_parameter_that_trains_gets_a_gradient(model, options, answers):
    """Else DistributedDataParallel would wait for it."""
    built, batch = model(), question_batch(options=options)
    output = built({**batch, "answer": torch.tensor(answers)})
    output.losses["answer"].total.backward()
    lacking = [name for name, p in built.named_parameters() if p.requires_grad and p.grad is None]
    assert not lacking


def test_what_has_no_answer_or_no_clip_has_no_loss():
    model, batch = mask_model().eval(), question_batch()
    batch["answer"], batch["valid"] = torch.tensor([4, -1, 6]), torch.tensor([True, True, False])
    loss = model(batch).losses["answer"]
    alone = model({**{k: v[:1] for k, v in batch.items()}}).losses["answer"]
    assert loss.count == 1
    torch.testing.assert_close(loss.total, alone.total)


def test_numbers_are_sought_among_the_options_and_learnt_over_the_vocabulary():
    batch = question_batch()
    free, bound = mask_model().eval(), mask_model(choices=[40, 41, 42, 43]).eval()
    bound.load_state_dict(free.state_dict())
    logits = free.logits(batch["img"], batch["txt"], batch["mask"], batch["place"])
    output = bound(batch)
    order = logits[:, 40:44].argsort(dim=1, descending=True)
    assert torch.equal(output.predictions["best"], order)
    assert output.predictions["probabilities"][0].sum().item() == pytest.approx(1)
    torch.testing.assert_close(output.losses["answer"].total, free(batch).losses["answer"].total)
    assert torch.equal(free(batch).predictions["best"], logits.topk(5).indices)


@pytest.fixture
def pretrained(tmp_path, question_bert):
    """A pre-training checkpoint of the demo's size, and the config that reads it."""
    values = {
        **demo_network(question_bert),
    }
    model = PretrainModel.from_config(Config(mvm_target=["hog"], **values))
    torch.save(model.state_dict(), tmp_path / "pretrained.pt")
    return {**values, "path_ckpt": str(tmp_path / "pretrained.pt")}


@pytest.mark.parametrize("kind", [ChoiceModel, MaskModel])
def test_a_pretraining_checkpoint_loads_and_a_head_may_start_anew(pretrained, kind, caplog):
    caplog.set_level("INFO", "violet")
    state = torch.load(pretrained["path_ckpt"], weights_only=True)
    arguments = ["open-ended"] if kind is MaskModel else []
    (head,) = kind.heads
    for reinit in (False, True):
        model = kind.from_config(Config(reinit_head=reinit, **pretrained), *arguments)
        for key, value in model.state_dict().items():
            if key.startswith(head) and value.ndim > 1:
                assert torch.equal(value, state[key]) != reinit
            elif not key.startswith((head, "emb_task")):
                assert torch.equal(value, state[key])
    assert (kind is MaskModel) == ("missing, random weights: emb_task" in caplog.text)
    assert f"reinit_head: {head} starts from random weights" in caplog.text


def test_freezing_leaves_the_head(pretrained):
    model = ChoiceModel.from_config(Config(freeze_violet=True, **pretrained))
    assert {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad} == {"fc"}
    given = Config(freeze_violet=True, enable_task_token=True, **pretrained)
    model = MaskModel.from_config(given, "open-ended")
    assert model.task_row == TASK_ROWS["published"]["open-ended"] == 2
    assert {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad} == {"fc_mtm", "emb_task"}


def test_a_missing_checkpoint_is_an_error(pretrained):
    with pytest.raises(UserError, match=r"none.pt does not exist"):
        ChoiceModel.from_config(Config(**{**pretrained, "path_ckpt": "none.pt"}))


# -- metrics


def rows_of(right, **more):
    common = {"unanswerable": "", "shortened": False}
    return [{"id": f"clip{i}", **common, "right": bool(r), **more} for i, r in enumerate(right)]


def test_accuracy_counts_every_question():
    rows = rows_of([1, 0, 1, 1], right_5=True)
    rows[1]["unanswerable"], rows[1]["right_5"] = "video", False
    rows[0]["type"], rows[1]["type"], rows[2]["type"], rows[3]["shortened"] = "who", "who", "what", True
    figures = accuracy(rows, "test", size_test=6)
    assert figures["acc"] == 3 / 4 and figures["acc_5"] == 3 / 4 and figures["questions"] == 4
    assert figures["acc_type_who"] == 1 / 2 and figures["acc_type_what"] == 1
    assert figures["unanswerable"] == figures["unanswerable_video"] == figures["shortened"] == 1 / 4
    # accuracy over the found x found / size_test
    assert figures["acc_found"] == 1 and figures["acc_adjusted"] == figures["acc_found"] * 3 / 6
    assert "acc_adjusted" not in accuracy(rows, "val", size_test=6)
    assert "acc_5" not in accuracy(rows_of([1, 0]), "test")


def test_the_interval_is_that_of_a_mean_and_wider_for_questions_about_one_video():
    right = [i % 2 for i in range(400)]
    low, high = interval([str(i) for i in range(400)], right, seed=1)
    assert (high - low) / 2 == pytest.approx(1.96 * 0.5 / 20, rel=0.1)
    assert (low, high) == interval([str(i) for i in range(400)], right, seed=1)
    right = [(i // 20) % 2 for i in range(400)]
    wide = interval([str(i // 20) for i in range(400)], right, seed=1)
    assert wide[1] - wide[0] > 3 * (high - low)


# -- the choice of an epoch


class Steps(nn.Module):
    """A model that counts its training steps."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, batch):
        return Output(losses={"error": Mean((self.weight - 1000).abs(), torch.ones(()))})


class Stream:
    """What the agent asks of a loader."""

    class batches:
        sizes = ("one",)

    def __len__(self):
        return 1

    def epoch(self, _, skip=0):
        return iter([{"id": ["clip"], "corpus": ["one"]}])

    def sources(self):
        return {}


def test_the_best_epoch_is_that_of_val_and_kept_beside_the_last(tmp_path):  # Deviation 10
    found = {"val": iter([0.9, 0.2, 0.5, 0.5, 0.4]), "test": iter([0.0, 0.9, 0.1, 0.2, 0.3])}
    config = Config(
        path_output=str(tmp_path), task="tiny", size_epoch=4, device="cpu", eval_start=True, lr=1.0
    )
    agent = Agent(
        config,
        World(torch.device("cpu")),
        Steps(),
        describe=lambda batch, output: [{"id": "clip"}],
        metric=lambda rows, split: {"acc": next(found[split]), "seen": float(len(rows))},
    )
    states = []
    keep = agent.save
    agent.save = lambda name: (states.append((name, agent.step)), keep(name))[1]
    figures = agent.fit(Stream(), Stream(), Stream(), best="acc")
    assert (figures["epoch"], figures["val_acc"], figures["test_acc"]) == (2, 0.5, 0.1)
    assert states == [("last", 1), ("best", 1), ("last", 2), ("best", 2), ("last", 3), ("last", 4)]
    assert json.loads((agent.folder / "best.json").read_text()) == figures
    names = [f"ckpt_violet_tiny_{name}.pt" for name in ("best", "last")]
    assert sorted(p.name for p in agent.folder.glob("ckpt*.pt")) == names
    best, last = (torch.load(agent.folder / name, weights_only=True)["weight"] for name in names)
    assert 0 < best < last == agent.model.weight
    evaluations = lines(agent.folder / "eval.jsonl")
    assert [row["val_acc"] for row in evaluations] == [0.9, 0.2, 0.5, 0.5, 0.4]
    assert len(list(agent.folder.glob("predictions_*_*.jsonl"))) == 10


# -- the scripts


SCRIPTS = {
    "qamc": main_qamc_tsv,
    "gen": main_qamc_tsv_mlm_gen_ans_idx,
    "open": main_qaoe_tsv_mlm_head,
    "fib": main_qaoe_tsv_lsmdc_fib,
}


def asked(kind: str, number: int) -> dict:
    """A question as the published files of its task have it."""
    item = {"video": f"clip{number % 6}"}
    options = {f"option_{i}": f"moves {w}" for i, w in enumerate(["left", "right", "up", "down", "grows"])}
    if kind == "qamc":  # as msrvtt-mc: no question
        return {**item, **options, "answer": number % 5}
    if kind == "gen":  # as tgif-action: the question first, the video last
        return {"question": "What is the star ?", **options, "answer": number % 5, **item}
    if kind == "open":  # as msvd-qa: a number into `vocab`
        return {**item, "question": "what color is the star?", "answer": number % 3, "type": "what"}
    return {
        **item,
        "question": "the [MASK] star moves up",
        "answer": number % 3,
        "answer_text": COLORS[number % 3],
    }


@pytest.fixture
def arguments(tmp_path, question_bert):
    """Writes a task of a kind; returns the command line of a run on it."""

    def make(kind: str, **more) -> list[str]:
        write_videos(tmp_path)
        splits = {"train": 8, "val": 7, "test": 7, **more}
        content = {s: [asked(kind, i) for i in range(n)] for s, n in splits.items() if n}
        content |= {"vocab": COLORS} if kind == "open" else {}
        (tmp_path / "txt_asked.json").write_text(json.dumps(content))
        values = {
            "type": "qamc" if kind in ("qamc", "gen") else "qaoe",
            "data_dir": str(tmp_path),
            "dataset": "clips",
            "task": "asked",
            **demo_network(question_bert),
            "size_img": 32,
            "size_frame": 2,
            "size_txt": 40,
            "size_batch": 2,
            "size_test": 10,
            "n_workers": 0,
            "logging_steps": 1,
            "path_output": str(tmp_path / "out"),
            "device": "cpu",
        }
        (tmp_path / "config.json").write_text(json.dumps(values))
        return ["--config", str(tmp_path / "config.json")]

    return make


@pytest.mark.parametrize("kind", SCRIPTS)
def test_a_script_trains_evaluates_and_keeps_the_best(monkeypatch, arguments, kind):
    folder = run_script(monkeypatch, SCRIPTS[kind], [*arguments(kind), "--max_steps", "2"])
    assert [row["step"] for row in lines(folder / "metrics.jsonl")] == [1, 2]
    (evaluation,) = lines(folder / "eval.jsonl")
    rows = lines(folder / "predictions_test_1.jsonl")
    assert [row["id"] for row in rows] == [f"clip{i % 6}" for i in range(7)]
    assert evaluation["test_acc"] == sum(row["right"] for row in rows) / 7
    assert evaluation["test_acc_adjusted"] == sum(row["right"] for row in rows) / 10
    assert evaluation["test_questions"] == evaluation["val_questions"] == 7
    for row in rows:
        assert {"id", "question", "answer", "best", "right", "unanswerable", "shortened"} <= row.keys()
        shares = [pick["probability"] for pick in row["best"]]
        assert len(shares) == 5 and shares == sorted(shares, reverse=True)
        assert row["right"] == (row["best"][0]["answer"] == row["answer"])
    assert ("test_acc_5" in evaluation) == (kind in ("open", "fib"))
    assert ("test_acc_type_what" in evaluation) == (kind == "open")
    kept = {f"ckpt_violet_asked_{name}.pt" for name in ("best", "last")}
    assert {path.name for path in folder.glob("ckpt*.pt")} == kept
    assert json.loads((folder / "best.json").read_text())["epoch"] == 1


def hinted(kind: str, number: int) -> dict:
    """A question whose answer its text gives away."""
    item = {"video": f"clip{number % 6}", "answer": number % 5}
    if kind == "qamc":
        options = ["left", "right", "down", "left"]
        options.insert(number % 5, "up")
        return {**item, "question": "?", **{f"option_{i}": word for i, word in enumerate(options)}}
    if kind == "gen":
        return {**item, "question": WORDS[number % 5], **{f"option_{i}": "up" for i in range(5)}}
    color = COLORS[number % 3]
    mask = "[MASK] " if kind == "fib" else ""
    return {**item, "question": f"is the {mask}star {color}?", "answer": color}


@pytest.mark.parametrize(("kind", "steps"), [("qamc", 40), ("gen", 140), ("open", 60), ("fib", 60)])
def test_a_script_learns_what_a_text_gives_away(monkeypatch, arguments, tmp_path, kind, steps):
    given = [*arguments(kind), "--size_batch", "8", "--max_steps", str(steps), "--lr", "4e-3"]
    content = {"train": [hinted(kind, i) for i in range(200)], "val": [hinted(kind, i) for i in range(15)]}
    (tmp_path / "txt_asked.json").write_text(json.dumps(content))
    folder = run_script(monkeypatch, SCRIPTS[kind], [*given, "--eval_start", "true"])
    first, *_, last = lines(folder / "eval.jsonl")
    assert last["val_acc"] > 0.7 and last["val_loss"] < 0.3 * first["val_loss"]


def test_a_checkpoint_is_evaluated_before_training_or_alone(monkeypatch, arguments):
    given = arguments("open")
    first = run_script(monkeypatch, main_qaoe_tsv_mlm_head, [*given, "--max_steps", "1", "--lr", "1e-3"])
    given += ["--path_ckpt", str(first / "ckpt_violet_asked_last.pt")]
    again = run_script(monkeypatch, main_qaoe_tsv_mlm_head, [*given, "--max_steps", "1"])
    alone = run_script(monkeypatch, main_qaoe_tsv_mlm_head, [*given, "--size_epoch", "0"])
    trained, zero, only = (
        lines(first / "eval.jsonl")[-1],
        lines(again / "eval.jsonl"),
        lines(alone / "eval.jsonl"),
    )
    assert [row["epoch"] for row in zero] == [0, 1]
    assert only == zero[:1]
    assert {**only[0], "step": 1, "epoch": 1} == trained
    told = protocols(alone / "eval.jsonl")[0]
    assert told["text_rules"] == "published" and told["data"].keys() == {"val", "test"}
    assert told["data"]["test"]["missing_videos"] == told["data"]["test"]["videos"] - 6
    assert not list(alone.glob("ckpt*.pt"))
    assert (again / "predictions_val_0.jsonl").exists()


def test_splits_may_be_missing(monkeypatch, arguments):
    folder = run_script(monkeypatch, main_qamc_tsv, [*arguments("qamc", test=0), "--max_steps", "1"])
    assert not any(key.startswith("test_") for key in lines(folder / "eval.jsonl")[0])
    assert (folder / "ckpt_violet_asked_best.pt").exists()
    folder = run_script(monkeypatch, main_qamc_tsv, [*arguments("qamc", val=0), "--max_steps", "1"])
    assert "test_acc" in lines(folder / "eval.jsonl")[0]
    assert [p.name for p in folder.glob("ckpt*.pt")] == ["ckpt_violet_asked_last.pt"]  # no best without val
    weights = str(folder / "ckpt_violet_asked_last.pt")
    given = [*arguments("qamc", train=0), "--size_epoch", "0", "--path_ckpt", weights]
    folder = run_script(monkeypatch, main_qamc_tsv, given)
    assert "val_acc" in lines(folder / "eval.jsonl")[0]


def test_a_config_of_another_task_and_a_wrong_number_of_options(monkeypatch, arguments):
    with pytest.raises(UserError, match="runs configs of type 'qamc'; this one is of type 'qaoe'"):
        run_script(monkeypatch, main_qamc_tsv, arguments("open"))
    with pytest.raises(UserError, match="runs configs of type 'qaoe'; this one is of type 'qamc'"):
        run_script(monkeypatch, main_qaoe_tsv_lsmdc_fib, arguments("gen"))
    with pytest.raises(UserError, match="it has 5 options, not 4; set size_option"):
        run_script(monkeypatch, main_qamc_tsv, [*arguments("qamc"), "--size_option", "4"])
    with pytest.raises(UserError, match="it has 0 options"):  # an open-ended file
        arguments("open")
        given = arguments("gen")
        content = {s: [asked("open", i) for i in range(4)] for s in ("train", "val")}
        (Path(given[1]).parent / "txt_asked.json").write_text(json.dumps(content))
        run_script(monkeypatch, main_qamc_tsv_mlm_gen_ans_idx, given)


def test_two_processes_and_one_give_the_same_accuracy(monkeypatch, arguments):
    """On seven questions in batches of two, which two processes cannot share evenly."""
    given = arguments("open")
    first = run_script(monkeypatch, main_qaoe_tsv_mlm_head, [*given, "--max_steps", "1"])
    given += ["--size_epoch", "0", "--path_ckpt", str(first / "ckpt_violet_asked_last.pt")]
    one = run_script(monkeypatch, main_qaoe_tsv_mlm_head, given)
    before = set(one.parent.iterdir())
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    command += [f"--master_port={free_port()}", "main_qaoe_tsv_mlm_head.py", *given]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    (two,) = set(one.parent.iterdir()) - before
    (single,), (double,) = lines(one / "eval.jsonl"), lines(two / "eval.jsonl")
    assert single["test_questions"] == 7
    exact = {key for key in single if not key.endswith(("_loss", "_answer"))}
    assert {key: single[key] for key in exact} == {key: double[key] for key in exact}
    assert single["val_loss"] == pytest.approx(double["val_loss"], rel=1e-5)
    for split in ("val", "test"):
        name = f"predictions_{split}_0.jsonl"
        assert lines(one / name) == lines(two / name)
