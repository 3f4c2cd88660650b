"""The networks that every run of the study starts from: small ones that learn from networks of others.

    python -m study.networks --data _data/study-real

It comes after study.doom and study.material. The paper's VIOLET starts from a video encoder that was
trained on labels and from BERT, which do not fit two cores. So two small networks learn the features of
two that others trained, from the pictures and captions of the training sets. Written into --data:

    bert/          3 layers, 128 wide: learns MiniLM's token features, reduced to 128 by their principal axes
    swin_real.pth  a Video Swin of the size `demo`: learns EfficientNet's features of single pictures
    dpt/           a DPT: learns the depth that ViZDoom knows; teacher of the target depth

each with a JSON that says how much of the variance on held-out items it explains. Ten minutes on one core.
"""

import argparse
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from dataset import PretrainCorpus
from demo.backbone import optimizers
from engine.processes import seed_everything
from engine.schedule import warmup_linear
from lib import run_script
from media.files import atomic_path
from media.frames import Transform
from media.tokens import Tokens
from study.teachers import DPT
from teachers.base import normalise
from teachers.depth import DptTeacher
from video_swin import SIZES, VideoSwin

SIZE, SEEN = 64, 96  # pixels a side of what the student and the teacher of pictures see
WIDTH, LAYERS, HEADS = 128, 3, 4  # of the small BERT
WORDS = 24  # tokens of a caption
CORPORA = ("clipart", "stamps", "emoji")
AXES = 128  # of EfficientNet's 1280 channels that are learnt
HELD_OUT = 20  # every so many-th item is not learnt from
Figures = dict[str, float]


def corpora(data: Path, size: int) -> list[PretrainCorpus]:
    """The training corpora, with pictures of a size."""
    tokens, transform = Tokens(str(data / "text"), WORDS), Transform(["img_center_crop"], size)
    return [PretrainCorpus(data / f"{name}.yaml", name, tokens, transform, 2) for name in CORPORA]


def fit(name: str, model: nn.Module, loss: Callable[[], Tensor], steps: int, lr: float) -> None:
    """Train on `loss()` by the project's schedule; a `backbone` as the demo's, all else by AdamW."""
    rules: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=1e-2, fused=True)
    ]
    if hasattr(model, "backbone"):
        rules = optimizers(model, lr)
    peaks = [rule.param_groups[0]["lr"] for rule in rules]
    bar = tqdm(range(steps), name, unit="step")
    for step in bar:
        value = loss()
        model.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for rule, peak in zip(rules, peaks, strict=True):
            rule.param_groups[0]["lr"] = peak * warmup_linear(step, steps, warmup_ratio=0.05)
            rule.step()
        if step % 20 == 0:
            bar.set_postfix(loss=f"{value.item():.3f}")


def principal_axes(features: Tensor, width: int) -> Tensor:
    """(C, width): the directions in which (N, C) features vary most."""
    centred = features - features.mean(dim=0)
    return torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -width:].flip(1)


def explained(predicted: Tensor, truth: Tensor) -> float:
    """Share of the variance of (N, C) truths that predictions explain."""
    return float(1 - (predicted - truth).square().sum() / (truth - truth.mean(dim=0)).square().sum())


# -------------------------------------------------------------------------------------------------- text


def make_bert(data: Path, steps: int) -> Figures:
    """A BERT of WIDTH, with MiniLM's word embeddings on their principal axes, that learns MiniLM's output."""
    from transformers import BertForMaskedLM, BertModel

    teacher = BertModel.from_pretrained(data / "text", add_pooling_layer=False).eval()
    texts = sorted({corpus.text(i) for corpus in corpora(data, SIZE) for i in range(len(corpus))})
    tokens = Tokens(str(data / "text"), WORDS)
    ids, mask = (torch.stack(part) for part in zip(*map(tokens, texts), strict=True))
    truth = torch.cat(
        [contextual(teacher, *part) for part in zip(ids.split(128), mask.split(128), strict=True)]
    )
    seen = truth[mask.bool()][:: max(1, int(mask.sum()) // 50_000)].float()
    axes, mean = principal_axes(seen, WIDTH), seen.mean(dim=0)
    truth = (truth.float() - mean) @ axes
    scale = truth[mask.bool()].std()
    sizes = {
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": 4 * WIDTH,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    student = BertForMaskedLM(type(teacher.config)(**teacher.config.to_dict() | sizes))
    start_words(student.bert, teacher)
    learnt = torch.arange(len(ids)) % HELD_OUT != 0
    rows, random = learnt.nonzero()[:, 0], np.random.default_rng(88)
    head = nn.Linear(WIDTH, WIDTH)

    def error(picked: Tensor) -> Tensor:
        found = head(student.bert(ids[picked], mask[picked].bool()).last_hidden_state)
        there = mask[picked].bool()
        return F.mse_loss(found[there], truth[picked][there] / scale)

    model = nn.ModuleDict({"student": student.bert, "head": head})
    fit("text", model, lambda: error(rows[random.integers(len(rows), size=64)]), steps or 800, 1e-3)
    student.eval().save_pretrained(data / "bert")
    for name in ("vocab.txt", "tokenizer_config.json"):
        shutil.copyfile(data / "text" / name, data / "bert" / name)
    with torch.inference_mode():
        held = (~learnt).nonzero()[:, 0][:512]
        there = mask[held].bool()
        found = head(student.bert(ids[held], there).last_hidden_state)[there]
    return {"captions": len(texts), "variance_explained": explained(found, truth[held][there] / scale)}


@torch.inference_mode()
def contextual(teacher: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """(B, X, C) in half precision."""
    return teacher(ids, mask).last_hidden_state.half()


def start_words(student: Any, teacher: Any) -> None:
    """Word, position and type embeddings of the student: the teacher's on the axes of its words."""
    with torch.no_grad():
        words = teacher.embeddings.word_embeddings.weight
        axes = principal_axes(words, WIDTH)
        scale = student.embeddings.word_embeddings.weight.std() / ((words - words.mean(0)) @ axes).std()
        student.embeddings.word_embeddings.weight.copy_(scale * (words - words.mean(0)) @ axes)
        student.embeddings.position_embeddings.weight.copy_(
            scale * teacher.embeddings.position_embeddings.weight @ axes
        )


# ---------------------------------------------------------------------------------------------- pictures


def make_swin(data: Path, steps: int) -> Figures:
    """A Video Swin that learns EfficientNet's pooled features, and those of the four corners."""
    import timm

    teacher: Any = timm.create_model(
        f"local-dir:{data / 'image_teacher'}", pretrained=True, num_classes=0
    ).eval()
    pictures, truth = seen_pictures(data, teacher)
    axes = principal_axes(truth.flatten(2).movedim(2, 1).flatten(0, 1)[::7], AXES)
    truth = torch.einsum("nchw,cd->ndhw", truth - truth.mean(dim=(0, 2, 3), keepdim=True), axes)
    truth /= truth.std(dim=(0, 2, 3), keepdim=True)  # else a few axes would be all that is learnt
    model = nn.ModuleDict({"backbone": VideoSwin(SIZES["demo"]), "head": nn.Linear(256, AXES)})
    learnt = torch.arange(len(pictures)) % HELD_OUT != 0
    rows, random = learnt.nonzero()[:, 0], np.random.default_rng(88)

    def look(picked: Tensor, mirror: bool = False) -> Tensor:
        frames = normalise(pictures[picked].float() / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        seen = model["backbone"]((frames.flip(-1) if mirror else frames)[:, :, None])
        return model["head"](seen.movedim(1, -1)).movedim(-1, 1)[:, :, 0]

    def loss() -> Tensor:
        picked, mirror = rows[random.integers(len(rows), size=64)], bool(random.integers(2))
        wanted = truth[picked].flip(-1) if mirror else truth[picked]
        return F.mse_loss(look(picked, mirror), wanted)

    fit("pictures", model, loss, steps or 900, 1e-3)
    with atomic_path(data / "swin_real.pth") as temporary:
        torch.save(
            {
                "state_dict": {
                    f"backbone.{key}": value for key, value in model["backbone"].state_dict().items()
                }
            },
            temporary,
        )
    with torch.inference_mode():
        held = (~learnt).nonzero()[:, 0][:512]
        found, wanted = look(held), truth[held]
    return {
        "pictures": len(pictures),
        "variance_explained": explained(found.flatten(1), wanted.flatten(1)),
        "variance_of_means_explained": explained(found.mean((2, 3)), wanted.mean((2, 3))),
    }


@torch.inference_mode()
def seen_pictures(data: Path, teacher: Any) -> tuple[Tensor, Tensor]:
    """One frame of every training row: (N, 3, SIZE, SIZE) uint8, features (N, C, 2, 2) of its larger copy."""
    trained = teacher.pretrained_cfg
    pictures, features = [], []
    for corpus in corpora(data, SEEN):
        first = corpus.first_pairs
        for part in tqdm(np.array_split(first, max(1, len(first) // 32)), f"looking at {corpus.path.stem}"):
            frames = torch.stack([corpus.read(int(i), None)["img"][-1] for i in part])
            pixels = normalise(frames.float() / 255, trained["mean"], trained["std"])
            features.append(F.adaptive_avg_pool2d(teacher.forward_features(pixels), 2))
            pictures.append(F.interpolate(frames.float(), (SIZE, SIZE), mode="area").round().byte())
    return torch.cat(pictures), torch.cat(features)


# ------------------------------------------------------------------------------------------------- depth


def make_dpt(data: Path, steps: int) -> Figures:
    """A DPT that learns the depth of the training clips' frames."""
    from transformers import DPTConfig, DPTForDepthEstimation

    with np.load(data / "doom" / "depth.npz", allow_pickle=False) as stored:
        frames, depths = (torch.from_numpy(stored[key]).flatten(0, 1) for key in ("frames", "depth"))
    network = DPTForDepthEstimation(DPTConfig(**DPT))
    teacher = DptTeacher(network, width=1)
    network.requires_grad_(True).train()
    learnt = torch.arange(len(frames)) // 4 % HELD_OUT != 0  # whole clips
    rows, random = learnt.nonzero()[:, 0], np.random.default_rng(88)

    def pair(picked: Tensor) -> tuple[Tensor, Tensor]:
        pixels = frames[picked].movedim(-1, 1).float() / 255
        wanted = depths[picked, None].float() / 255
        sized = [F.interpolate(part, (SIZE, SIZE), mode="area") for part in (pixels, wanted)]
        return teacher.look(sized[0])[:, 0], sized[1][:, 0]

    def loss() -> Tensor:
        return F.mse_loss(*pair(rows[random.integers(len(rows), size=32)]))

    fit("depth", network, loss, steps or 600, 2e-3)
    network.eval().save_pretrained(data / "dpt")
    with torch.inference_mode():
        parts = [pair(part) for part in (~learnt).nonzero()[:, 0].split(64)]
    found, wanted = (torch.cat([part[i] for part in parts]).flatten(1) for i in (0, 1))
    return {
        "frames": len(frames),
        "variance_explained": explained(found.flatten()[:, None], wanted.flatten()[:, None]),
    }


MAKERS = {"bert": make_bert, "swin": make_swin, "dpt": make_dpt}


def main(arguments: list[str] | None = None) -> None:
    """Make what is not there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("_data/study-real"))
    parser.add_argument("--steps", type=int, default=0, help="of each training (default: 0, the full number)")
    options = parser.parse_args(arguments)
    for name, make in MAKERS.items():
        note = options.data / f"{name}.json"
        if note.exists():
            continue
        seed_everything(88)
        start = time.perf_counter()
        figures = make(options.data, options.steps) | {"seconds": round(time.perf_counter() - start)}
        print(f"{name}: {figures}", flush=True)
        with atomic_path(note) as temporary:
            temporary.write_text(json.dumps(figures) + "\n")


if __name__ == "__main__":
    run_script(main)
