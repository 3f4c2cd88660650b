"""The run doctor: ten faults named within 60 steps, no alarm in healthy runs, and the figures behind both."""

import base64
import json
import math
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import BertTokenizerFast

import agent
import main_pretrain_yaml
import model
import mvm_targets
from batch import Mean
from engine.doctor import Doctor, History, with_skills
from engine.figures import Balance, RunningMeans, diversity, task_gradients, word_error, word_sums
from lib import Config, UserError, World
from masking import mask_batch
from mvm_targets import make_targets
from tasks import pretraining
from teachers import make
from teachers.base import FrameTeacher
from tests.conftest import SWIN, WORDS, demo_network, masked_batch, run_script, tiny_bert
from tests.test_agent import lines

ALONE = World(torch.device("cpu"))
COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 60, 220)}
WAYS = {"left": (-2, 0), "right": (2, 0), "up": (0, -2)}  # by colour, so that flow is soon learnt too
TARGETS = [*mvm_targets.TARGETS]


# -------------------------------------------------------------------------------- a world and its teachers


def moving_texture(colour: str, way: str, seed: int, size: int = 64) -> list[bytes]:
    """Four base64 JPEGs of a coloured texture that moves."""
    coarse = np.random.default_rng(seed).integers(0, 60, (8, 8), dtype=np.uint8)
    texture = cv2.resize(coarse, (2 * size, 2 * size), interpolation=cv2.INTER_CUBIC)
    frames = []
    for number in range(4):
        x, y = (size // 2 + step * number for step in WAYS[way])
        light = 0.6 + texture[y : y + size, x : x + size, None] / 150
        picture = np.clip(np.float32(COLOURS[colour]) * light, 0, 255).astype(np.uint8)
        found = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1]
        frames.append(base64.b64encode(found.tobytes()))
    return frames


def write_world(folder: Path, rows: int = 64) -> Path:
    """A corpus whose captions name colour and direction; returns its YAML."""
    random = np.random.default_rng(5)
    images, captions = [], []
    for row in range(rows):
        colour, way = list(COLOURS)[row % 3], list(WAYS)[row % 3]
        images.append(b"\t".join([f"w{row}".encode(), *moving_texture(colour, way, row)]))
        size, shape = random.choice(["small", "large"]), random.choice(["square", "star", "circle"])
        caption = f"a {size} {colour} {shape} moves {way}"
        captions.append(f"w{row}\t" + json.dumps([{"caption": caption}]))
    (folder / "w.img.tsv").write_bytes(b"\n".join(images) + b"\n")
    (folder / "w.caption.tsv").write_text("\n".join(captions) + "\n")
    (folder / "w.linelist.tsv").write_text("\n".join(f"{row}\t0" for row in range(rows)) + "\n")
    path = folder / "w.yaml"
    path.write_text(
        "img: w.img.tsv\ncaption: w.caption.tsv\ncaption_linelist: w.linelist.tsv\nimage: false\n"
    )
    return path


class Toy(FrameTeacher):
    """Mixtures of the mean colours of each patch, or words for them."""

    def __init__(self, width: int, places: int = 1, words: int = 0) -> None:
        super().__init__(None, words or width)
        generator = torch.Generator().manual_seed(3)
        self.places, self.words = places, words
        self.mix = torch.randn(width, 3, generator=generator)
        self.bias = torch.randn(width, 1, 1, generator=generator)

    def look(self, pixels):
        size = [length // 32 * self.places for length in pixels.shape[-2:]]
        mixed = torch.einsum("cd,ndhw->nchw", self.mix, F.adaptive_avg_pool2d(pixels, size)) + self.bias
        share = (mixed - mixed.amin()) / (mixed.amax() - mixed.amin() + 1e-6)
        return (share * (self.words - 1)).long() if self.words else mixed


def toys(config: Config) -> dict:
    """Teachers that need no weights and give what can be learnt; the library's own where they are such."""
    known = {"depth": Toy(1, 32), "vq": Toy(1, 4, words=32)}
    known |= {name: Toy(24) for name in ("2d_feature", "3d_feature", "2d_clip_feature", "clip_visible")}
    own = {name: make.TEACHERS[name] for name in ("optical_flow", "latent", "random_feature")}
    return {
        name: known.get(name) or own[name](config, {"batch": 32, "device": ""})
        for name in config.mvm_target
        if name in known or name in own
    }


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> dict:
    """The config of a run of 60 steps of the demo's size, in which everything is learnt that can be."""
    folder = tmp_path_factory.mktemp("world")
    bert = folder / "bert"
    bert.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (bert / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizerFast(vocab=str(bert / "vocab.txt")).save_pretrained(bert)
    tiny_bert(len(words)).save_pretrained(bert)
    values = {"train_yaml": {"w": str(write_world(folder))}, "val_yaml": {}, **demo_network(bert)}
    values |= {"size_img": 64, "size_frame": 2, "size_txt": 12, "size_batch": 16, "p_mask": 0.3, "lr": 2e-3}
    values |= {"max_steps": 60, "size_epoch": 15, "eval_every": 100, "logging_steps": 5, "n_workers": 0}
    values |= {"teacher_init": "random", "flow_teacher": "dis", "img_transform": ["img_center_crop"]}
    return values | {"device": "cpu", "save_minutes": 1000, "mvm_target": ["pixel"]}


@pytest.fixture
def findings(monkeypatch, tmp_path, world):
    """Run 60 steps; returns the folder and the verdicts by rule."""

    def run(**values: object) -> tuple[Path, dict[str, dict]]:
        config = tmp_path / "config.json"
        config.write_text(json.dumps(world | {"path_output": str(tmp_path / "out")} | values))
        monkeypatch.setattr(model, "make_teachers", toys)
        try:
            folder = run_script(monkeypatch, main_pretrain_yaml, ["--config", str(config)])
        except FloatingPointError:
            (folder,) = (tmp_path / "out").glob("_*")
        verdicts = json.loads((folder / "doctor.json").read_text())
        assert all(verdict["step"] <= 60 for verdict in verdicts)
        log = (folder / "log.txt").read_text()
        assert all(f"WARNING doctor: {verdict['sentence']}" in log for verdict in verdicts)
        return folder, {verdict["rule"]: verdict for verdict in verdicts}

    return run


# ------------------------------------------------------------------------------------------ healthy and ill


@pytest.mark.parametrize("targets", [TARGETS[:4], TARGETS[4:8], TARGETS[8:]], ids=str)
def test_a_healthy_run_raises_no_alarm(findings, targets):
    folder, verdicts = findings(mvm_target=targets, mvm_weight="balanced")
    assert verdicts == {}
    assert "doctor: nothing found" in (folder / "log.txt").read_text()
    rows = lines(folder / "metrics.jsonl")
    assert rows[-1]["vtm_skill"] > 0.05 and rows[-1]["mlm_skill"] > 0.1
    assert {"video_rank", "video_similarity", "text_rank", "text_similarity"} <= rows[-1].keys()
    assert {"gradient_mlm", "gradient_vtm"} <= rows[0].keys()
    for target in targets:
        figures = {f"mvm_{target}_{name}" for name in ("skill", "rank", "similarity", "weight")}
        assert figures <= rows[-1].keys() and f"gradient_mvm_{target}" in rows[0]


def batches_changed(monkeypatch, change) -> None:
    """From now on batches are changed before they are masked."""
    monkeypatch.setattr(pretraining, "mask_batch", lambda batch, *a, **k: mask_batch(change(batch), *a, **k))


def dead_teacher(monkeypatch) -> None:
    monkeypatch.setattr(mvm_targets.Pixel, "truth", lambda self, frames: torch.full_like(frames, 0.3))


def constant_head(monkeypatch) -> None:
    monkeypatch.setattr(
        mvm_targets.Pixel, "predict", lambda self, tokens: self.head(torch.zeros_like(tokens))
    )


def shuffled_captions(monkeypatch) -> None:
    def change(batch):
        order = torch.randperm(len(batch["txt"]))
        return {**batch, "txt": batch["txt"][order], "mask": batch["mask"][order]}

    batches_changed(monkeypatch, change)


def one_caption(monkeypatch) -> None:
    names = ("txt", "mask")
    batches_changed(monkeypatch, lambda batch: batch | {n: batch[n][:1].expand_as(batch[n]) for n in names})


def black_frames(monkeypatch) -> None:
    batches_changed(monkeypatch, lambda batch: batch | {"img": torch.zeros_like(batch["img"])})


def frozen_text(monkeypatch) -> None:
    original = model.PretrainModel.from_config

    def made(*given):
        found = original(*given)
        found.enc_txt.requires_grad_(False)
        return found

    monkeypatch.setattr(model.PretrainModel, "from_config", made)


def swapped_labels(monkeypatch) -> None:
    monkeypatch.setattr(model, "first_option", lambda scores: scores.new_ones(len(scores), dtype=torch.long))


def overflow(monkeypatch) -> None:
    forward = model.MlmHead.forward
    monkeypatch.setattr(model.MlmHead, "forward", lambda self, x: 1e5 * forward(self, x))


def nothing(monkeypatch) -> None:
    pass


FAULTS = {
    "dead teacher": (dead_teacher, {}, "mvm_pixel_teacher", "the teacher gives the same for every patch"),
    "constant head": (constant_head, {}, "mvm_pixel_head", "the head predicts the same for every patch"),
    "rate x 30": (nothing, {"lr": 6e-2}, "video_similarity", "lr may be too high"),
    "shuffled captions": (shuffled_captions, {}, "vtm_skill", "texts are chosen by chance"),
    "frozen text": (frozen_text, {}, "grad_norm_text", "the text encoder receives no gradient"),
    "black frames": (black_frames, {}, "video_contrast", "the frames are blank"),
    "one caption for all": (
        one_caption,
        {},
        "text_repeats",
        "100% of the pairs of a batch have the same text",
    ),
    "labels of VTM swapped": (swapped_labels, {}, "vtm_margin", "the labels are those of other texts"),
    "fp16 overflow": (overflow, {"amp": "fp16"}, "overflow", "gradients are not finite with any loss scale"),
    "no masks": (
        nothing,
        {"p_mask": 0, "pretrain_masks": ["rm"]},
        "video_hidden",
        "no patch has been hidden",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_within_60_steps(monkeypatch, findings, name):
    put_in, values, rule, words = FAULTS[name]
    put_in(monkeypatch)
    _, verdicts = findings(**values)
    assert words in verdicts[rule]["sentence"]


def test_a_verdict_that_ends_says_so_and_a_resumed_run_judges_as_before(tmp_path):
    doctor = Doctor(tmp_path, ALONE, total=100)
    rows = [{"step": step, "video_contrast": 0.0 if step < 30 else 0.5} for step in range(5, 100, 5)]
    for row in rows:
        doctor.examine(row["step"], {"video_contrast": row["video_contrast"]})
    doctor.report()
    (verdict,) = json.loads((tmp_path / "doctor.json").read_text())
    assert (verdict["step"], verdict["until"]) == (5, 25)  # the mean of 20 steps is above the limit at once
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:10]))
    again = Doctor(tmp_path, ALONE, total=100)
    again.resume()
    assert again.verdicts == doctor.verdicts
    Doctor(tmp_path, World(torch.device("cpu"), rank=1, size=2), total=100).report()  # writes nothing
    assert json.loads((tmp_path / "doctor.json").read_text()) == [verdict]


def test_a_task_is_judged_once_it_had_time_and_not_while_it_improves():
    def rules(skills: list[float], total: int) -> set[str]:
        doctor = Doctor(Path(), ALONE, total)
        for number, skill in enumerate(skills, start=1):
            doctor.judge(10 * number, {"vtm": 1 - skill, "vtm_constant": 1.0, "vtm_skill": skill})
        return {verdict.rule for verdict in doctor.verdicts}

    assert rules([-0.1] * 6, total=1000) == set()  # half of the run is not over
    assert rules([-0.1] * 50, total=1000) == {"vtm_skill"}
    assert rules([-0.1] * 4, total=60) == {"vtm_skill"}
    assert rules([-0.5 + 0.01 * n for n in range(50)], total=1000) == set()
    assert rules([0.05] * 50, total=1000) == set()
    assert rules([-0.1, -0.4, -0.9], total=1000) == {"vtm_divergence"}
    assert History(10**6).due == 2000


# -------------------------------------------------------------------------------------------------- figures


def value(mean: Mean) -> float:
    return float(mean.value.detach())


def test_diversity_is_that_of_the_eigenvalues_and_of_the_pairs():
    x = torch.randn(12, 7) + 0.5
    found = diversity(x)
    unit = F.normalize(x)
    spectrum = torch.linalg.eigvalsh(torch.cov(unit.T))
    assert value(found["rank"]) == pytest.approx(
        float(spectrum.sum() ** 2 / spectrum.square().sum()), rel=1e-4
    )
    cosines = (unit @ unit.T)[~torch.eye(12, dtype=torch.bool)]
    assert value(found["similarity"]) == pytest.approx(float(cosines.mean()), abs=1e-5)
    apart = (x - x.mean(dim=0)).square().sum() / x.square().sum()
    assert value(found["variance"]) == pytest.approx(float(apart), rel=1e-4)
    same = {name: value(mean) for name, mean in diversity(x[:1].repeat(9, 1)).items()}
    assert same["similarity"] == pytest.approx(1, abs=1e-5) and same["variance"] == pytest.approx(0, abs=1e-5)
    assert {value(mean) for mean in diversity(torch.zeros(5, 3)).values()} <= {0.0, -0.25, 1.0}
    for few in (x[:1], x[:0]):
        assert all(float(mean.count) == 0 for mean in diversity(few).values())
    assert value(diversity(torch.eye(1000))["rank"]) == pytest.approx(62, abs=1)  # of at most 64 of them


@pytest.mark.parametrize("name", TARGETS)
def test_the_best_constant_of_a_target_is_that_of_what_it_has_seen(name):
    target = make_targets([name], 32, teachers=toys(Config(mvm_target=[name], flow_teacher="dis")))[name]
    if name == "vq":
        first, second = torch.randint(0, 32, (2, 50, 1, 4, 4)).unbind()
    else:
        places = 32 if target.channels <= 3 else 1
        first, second = (torch.randn(2, 50, target.channels, places, places) + 1).unbind()
    running = RunningMeans({"other": 3, name: target.channels})
    nothing = target.constant_error(running.sums(name), first)
    if name == "vq":
        assert value(nothing) == pytest.approx(math.log(32), rel=1e-5)
    else:
        assert float(nothing.count) == 0  # there is no constant before anything has been seen
    for truth in (first, second):
        running.add(name, target.sums(truth))
        running.merge(None)
    got = value(target.constant_error(running.sums(name), second))
    both = torch.cat([first, second])
    if name == "vq":
        share = (torch.bincount(both.flatten(), minlength=32) + 0.1) / (both.numel() + 3.2)
        wanted = -share.log()[second].mean()
    else:
        seen = F.normalize(both, dim=1) if name == "clip_visible" else both
        mean = seen.movedim(1, -1).flatten(0, -2).mean(dim=0)
        wanted = target.error(mean[:, None, None].expand_as(second), second).value
    assert got == pytest.approx(float(wanted), rel=1e-2)  # the memory forgets a thousandth per step
    assert float(running.get_buffer("fresh").abs().sum()) == 0


def test_flow_that_is_left_out_is_in_no_mean():
    target = make_targets(["optical_flow"], 16)["optical_flow"]
    truth = torch.ones(4, 2, 32, 32)
    truth[1:] = torch.nan
    assert target.sums(truth).tolist() == [1024, 1024, 1024]
    assert value(target.constant_error(target.sums(truth), truth)) == 0


def test_word_frequencies_begin_evenly():
    words = torch.tensor([3, 3, 5])
    sums = word_sums(words, 8)
    assert sums.tolist() == [0, 0, 0, 2, 0, 1, 0, 0, 3]
    assert value(word_error(torch.zeros(9), words)) == pytest.approx(math.log(8))
    wanted = -(2 * math.log(2.1 / 3.8) + math.log(1.1 / 3.8)) / 3
    assert value(word_error(sums, words)) == pytest.approx(wanted, rel=1e-5)


def test_skill_compares_with_the_constant():
    figures = with_skills({"mlm": 1.0, "mlm_constant": 4.0, "mvm_pixel": 0.1, "mvm_pixel_constant": 0.0})
    assert figures["mlm_skill"] == 0.75
    assert "mvm_pixel_skill" not in figures  # beside a constant truth nothing has skill


def test_gradients_are_those_of_each_loss_at_the_output_and_leave_none():
    output = torch.randn(4, 3, requires_grad=True)
    head = torch.nn.Linear(3, 1)
    losses = {
        "a": Mean(3 * output.sum(), torch.tensor(2.0)),
        "b": Mean(head(output).sum(), torch.tensor(4.0)),
    }
    losses["c"] = Mean(head.bias.sum(), torch.tensor(0.0))
    found = task_gradients(losses, output)
    assert value(found["gradient_a"]) == pytest.approx(1.5 * 12**0.5)
    assert value(found["gradient_b"]) == pytest.approx(float(head.weight.detach().norm()) / 2, rel=1e-5)
    assert float(found["gradient_c"].count) == 0  # a batch without it
    assert head.weight.grad is None and output.grad is None


def test_balanced_weights_make_gradients_a_share_of_that_of_mlm():
    def measured(**norms: float) -> dict[str, Mean]:
        return {f"gradient_{n}": Mean(torch.tensor(v), torch.tensor(float(v >= 0))) for n, v in norms.items()}

    balance = Balance("mlm", ["x", "y"], share=0.5)
    balance.measure(measured(mlm=2.0, x=0.5, y=-1.0))  # no batch for y yet
    assert {name: float(weight) for name, weight in balance.weights().items()} == {"x": 1.0, "y": 0.25}
    for _ in range(30):
        balance.measure(measured(mlm=2.0, x=4.0, y=1e-9))
    weights = {name: float(weight) for name, weight in balance.weights().items()}
    assert weights["x"] == pytest.approx(0.125, rel=1e-3)
    assert weights["y"] == 0.25 * Balance.most  # a head that starts at zero
    balance.measure(measured(mlm=2.0, x=math.nan, y=1.0))
    assert all(math.isfinite(weight) for weight in balance.weights().values())


def test_a_step_is_balanced_by_its_own_gradients_from_the_first_on(tmp_path):
    torch.manual_seed(0)
    found = model.PretrainModel(
        tiny_bert(), tiny_bert(), model.SIZES["demo"], targets=["pixel", "hog"], mvm_weight="balanced"
    )
    config = Config(path_output=str(tmp_path), device="cpu")
    loop = agent.Agent(config, ALONE, found, weigh=found.weigh, follow=found.follow)
    found.train()
    values = loop.train_step([masked_batch(frames=2)])
    for name in ("pixel", "hog"):
        share = value(values[f"gradient_mvm_{name}"]) / value(values["gradient_mlm"])
        assert share == pytest.approx(0.5, rel=1e-4) or value(values[f"mvm_{name}_weight"]) == 500
    weighted = sum(value(values[f"mvm_{n}_weight"]) * value(values[f"mvm_{n}"]) for n in ("pixel", "hog"))
    assert value(values["loss"]) == pytest.approx(
        weighted + value(values["mlm"]) + value(values["vtm"]), rel=1e-5
    )
    assert not any(re.search("running|balance", name) for name in found.state_dict())
    assert found.followers().keys() == {"running", "balance"}


def test_a_balance_needs_mlm_and_its_measurements():
    for values in ({"pretrain_tasks": ["vtm", "mvm"]}, {"doctor_every": 0}):
        with pytest.raises(UserError, match="mvm_weight balanced"):
            Config(mvm_weight="balanced", **values)


def test_hog_begins_no_worse_than_a_constant():
    target = make_targets(["hog"], 32)["hog"]
    frames = torch.rand(2, 2, 3, 64, 64)
    mask = torch.ones(2, 2, 2, 2)
    truth = target.hidden_truth(frames, (2, 2, 2), target.places(mask))
    visual = F.layer_norm(torch.randn(2, 2 * 5, 32), (32,))
    loss = target.loss(visual, frames, mask)
    assert value(loss) < 1.1 * value(target.constant_error(target.sums(truth), truth))


def test_the_state_of_the_run_goes_where_the_model_goes():
    """Before the first step processes add it up, on GPUs by NCCL, which takes no tensor of a CPU."""
    made = model.PretrainModel(tiny_bert(), tiny_bert(), SWIN, targets=["pixel"], mvm_weight="balanced")
    for device in ("cpu", "meta"):
        state = made.to(device).state_of_run.values()
        found = {name: tensor.device.type for part in state for name, tensor in part.state_dict().items()}
        assert found == dict.fromkeys(["seen", "fresh", "squares"], device)
