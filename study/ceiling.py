"""How well could the features that all runs start from rank, and what can one set teach another?

    python -m study.ceiling --data _data/study-real

It comes after study.networks. Ridge regression maps the mean features of pictures and clips to the sentence
features of their captions, learnt from the pairs of one or more training sets; the texts of val are ranked by
the result. A trained network that ranks far below this has a fault, or was trained too little. Printed: the
mean of R@1, R@5 and R@10 in per cent. Ten minutes on two cores.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from lib import run_script
from media.frames import Transform, normalise, read_clip
from media.tokens import Tokens
from media.tsv import Videos
from study.networks import CORPORA, SEEN, SIZE, WORDS, contextual, corpora
from study.real import CONFIGS
from tasks.retrieval.ranking import ranks, recall
from teachers import base
from video_swin import SIZES, VideoSwin
from weights.swin import load_backbone

STRENGTH = 1000.0  # of the penalty, the features having a deviation of 1
TESTS = ("stamps", "emoji")
SETS = (*((name,) for name in CORPORA), CORPORA)  # that are learnt from


def ridge(features: Tensor, truth: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """(N, C) of mean 0 and (N, D) -> weights (C, D), bias (D,)."""
    bias = truth.mean(dim=0)
    inner = features.T @ features + strength * torch.eye(features.shape[1])
    return torch.linalg.solve(inner, features.T @ (truth - bias)), bias


def mean_recall(similarities: Tensor) -> float:
    """(N, N) of texts and videos, in one order -> mean of R@1, R@5 and R@10."""
    found = recall(ranks(similarities.numpy(), np.eye(len(similarities), dtype=bool)), len(similarities))
    return float(np.mean([found[key] for key in ("r1", "r5", "r10")]))


def transfer(learnt: tuple[Tensor, Tensor], tested: tuple[Tensor, Tensor]) -> float:
    """Features (N, C) and sentences (N, D) of two sets -> the recall on the second by the first."""
    mean, deviation = learnt[0].mean(dim=0), learnt[0].std(dim=0) + 1e-6
    weights, bias = ridge((learnt[0] - mean) / deviation, learnt[1], STRENGTH)
    found = (tested[0] - mean) / deviation @ weights
    return mean_recall(F.normalize(tested[1] - bias, dim=1) @ F.normalize(found, dim=1).T)


class Eyes:
    """The networks: each takes clips (B, T, 3, SEEN, SEEN) uint8 and gives their mean features (B, C)."""

    def __init__(self, data: Path) -> None:
        import timm

        self.teacher: Any = timm.create_model(
            f"local-dir:{data / 'image_teacher'}", pretrained=True, num_classes=0
        ).eval()
        self.swin = VideoSwin(SIZES["demo"]).eval()
        load_backbone(self.swin, "3d", data / "swin_real.pth")

    @torch.inference_mode()
    def __call__(self, clips: Tensor) -> dict[str, Tensor]:
        """By name of the network."""
        frames, trained = clips.flatten(0, 1).float(), self.teacher.pretrained_cfg
        pixels = base.normalise(frames / 255, trained["mean"], trained["std"])
        own = self.teacher.forward_features(pixels).mean(dim=(2, 3)).unflatten(0, clips.shape[:2]).mean(dim=1)
        small = F.interpolate(frames, (SIZE, SIZE), mode="area").unflatten(0, clips.shape[:2])
        return {
            "start": self.swin(normalise(small).transpose(1, 2)).mean(dim=(2, 3, 4)),
            "EfficientNet": own,
        }


class Sentences:
    """MiniLM's sentence features: unit vectors (N, 384), the mean of its tokens' features."""

    def __init__(self, data: Path) -> None:
        from transformers import BertModel

        self.network = BertModel.from_pretrained(data / "text", add_pooling_layer=False).eval()
        self.tokens = Tokens(str(data / "text"), WORDS)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Texts -> (N, 384)."""
        parts = []
        for start in range(0, len(texts), 128):
            ids, mask = map(torch.stack, zip(*map(self.tokens, texts[start : start + 128]), strict=True))
            words = contextual(self.network, ids, mask).float() * mask[..., None]
            parts.append(F.normalize(words.sum(dim=1), dim=1))
        return torch.cat(parts)


def pairs_for_training(data: Path, name: str) -> tuple[Sequence[Tensor], list[str]]:
    """Clips and captions of a training set: the first caption of each."""
    corpus = next(corpus for corpus in corpora(data, SEEN) if corpus.path.stem == name)
    numbers = [int(number) for number in corpus.first_pairs]
    return [corpus.read(number, None)["img"] for number in tqdm(numbers, f"reading {name}")], [
        corpus.text(number) for number in numbers
    ]


def pairs_of_val(data: Path, name: str) -> tuple[Sequence[Tensor], list[str]]:
    """Clips and captions of a task's val split."""
    items = json.loads((data / f"txt_{name}-retrieval.json").read_text())["val"]
    videos, transform = Videos(data / f"img_{name}.tsv"), Transform(["img_center_crop"], SEEN)
    frames = CONFIGS[name]["size_frame"]  # a picture has one
    clips = [read_clip(videos[item["video"]], frames, transform, None, data) for item in items]
    return clips, [item["caption"] for item in items]


def main(arguments: list[str] | None = None) -> None:
    """Print a row per network and test."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("_data/study-real"), help="folder of the material")
    data = parser.parse_args(arguments).data
    eyes, sentences = Eyes(data), Sentences(data)

    def looked_at(clips: Sequence[Tensor], texts: list[str]) -> tuple[dict[str, Tensor], Tensor]:
        parts = [
            eyes(torch.stack(list(clips[start : start + 64]))) for start in tqdm(range(0, len(clips), 64))
        ]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}, sentences(texts)

    train = {name: looked_at(*pairs_for_training(data, name)) for name in CORPORA}
    val = {name: looked_at(*pairs_of_val(data, name)) for name in TESTS}
    print(f"| features | tested on | {' | '.join(' + '.join(names) for names in SETS)} |")
    print("| --- " * (len(SETS) + 2) + "|")
    for test, (tested, wanted) in val.items():
        for network, features in tested.items():
            recalls = []
            for names in SETS:
                learnt = tuple(
                    torch.cat(part)
                    for part in zip(*((train[n][0][network], train[n][1]) for n in names), strict=True)
                )
                recalls.append(f"{100 * transfer((learnt[0], learnt[1]), (features, wanted)):.1f}")
            print(f"| {network} | {test} | {' | '.join(recalls)} |")


if __name__ == "__main__":
    run_script(main)
