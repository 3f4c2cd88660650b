"""Train the demo's miniature Video Swin to name what moves, its shape and its colour.

    python -m demo.backbone

The real recipe starts from a Video Swin that was trained on Kinetics; this one takes its place in the demo
and is saved in the same layout. It comes after

    python -m demo.make
    python _tools/make_tsv.py _data/demo/names.csv --output _data/demo --name names --frames 8
    python _tools/make_tsv.py _data/demo/names_val.csv --output _data/demo --name names_val --frames 8

In under a minute, to see that it runs: `python -m demo.backbone --steps 20 --output /tmp/swin.pth`.
"""

import argparse
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from demo.world import BEHAVIOURS, COLOURS, OUTLINES
from engine.processes import choose_device, seed_everything
from engine.schedule import warmup_linear
from lib import UserError, run_script
from media.files import atomic_path
from media.frames import Transform, decode_frame, even_frames, normalise, random_frames
from media.tsv import Tsv
from video_swin import SIZES, VideoSwin

NAMES = {"behaviour": list(BEHAVIOURS), "shape": list(OUTLINES), "colour": list(COLOURS)}
FRAMES = 4


def swapped(*pairs: tuple[str, str]) -> list[int]:
    """Index of each behaviour -> index of the behaviour that it becomes."""
    becomes = {a: b for pair in pairs for a, b in (pair, pair[::-1])}
    return [NAMES["behaviour"].index(becomes.get(name, name)) for name in NAMES["behaviour"]]


MIRRORED = swapped(("left", "right"))
REVERSED = swapped(("left", "right"), ("up", "down"), ("grow", "shrink"))


@dataclass(frozen=True)
class Clips:
    """A set of clips with one object each, in memory."""

    frames: Tensor  # (N, T, 3, S, S) uint8, all that are stored
    labels: Tensor  # (N, 3): indices into NAMES


def read_clips(data: Path, name: str, size: int) -> Clips:
    """The frames of NAME.img.tsv and what NAME.scenes.jsonl says of them."""
    scenes = {}
    for line in (data / f"{name}.scenes.jsonl").read_text().splitlines():
        scene = json.loads(line)
        scenes[scene["id"]] = [known.index(scene["objects"][0][key]) for key, known in NAMES.items()]
    tsv, transform = Tsv(data / f"{name}.img.tsv"), Transform(["img_center_crop"], size)
    clips, labels = [], []
    for row in tqdm(range(len(tsv)), f"reading {name}", unit="clip"):
        identity, *stored = tsv[row]
        frames = [
            transform.crop(decode_frame(frame, i), np.array([0.5, 0.5])) for i, frame in enumerate(stored)
        ]
        clips.append(torch.stack(frames))
        labels.append(scenes[identity.decode()])
    if not clips:
        raise UserError(f"{tsv.path} has no rows; make it with demo/make.py and _tools/make_tsv.py.")
    return Clips(torch.stack(clips), torch.tensor(labels))


class Namer(nn.Module):
    """Mean-pooled features of a Video Swin, and a linear head for each thing to name."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = VideoSwin(SIZES["demo"])
        self.cls_head = nn.ModuleDict(
            {key: nn.Linear(self.backbone.width, len(known)) for key, known in NAMES.items()}
        )

    def forward(self, frames: Tensor) -> dict[str, Tensor]:
        """frames: (B, T, 3, S, S) uint8 -> logits (B, names) of each thing."""
        features = self.backbone(normalise(frames).transpose(1, 2)).mean(dim=(2, 3, 4))
        return {key: head(features) for key, head in self.cls_head.items()}


def augment(frames: Tensor, labels: Tensor, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Mirror half of the clips (B, T, 3, S, S), reverse half, and change their labels accordingly."""
    frames, labels = frames.clone(), labels.clone()
    for axis, swaps in ((4, MIRRORED), (1, REVERSED)):
        chosen = torch.from_numpy(random.random(len(frames)) < 0.5)
        frames[chosen] = frames[chosen].flip(axis)
        labels[chosen, 0] = torch.tensor([swaps[behaviour] for behaviour in labels[chosen, 0].tolist()])
    return frames, labels


class Muon(torch.optim.Optimizer):
    """Momentum whose step is orthogonalised (Jordan et al., 2024), in float32, with AdamW's step size.

    torch.optim.Muon computes in bfloat16, which CPUs without such instructions do a hundred times slower.
    """

    def __init__(
        self, matrices: Iterable[nn.Parameter], lr: float, decay: float, momentum: float = 0.95
    ) -> None:
        super().__init__(matrices, {"lr": lr, "decay": decay, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            for matrix in group["params"]:
                mean = self.state[matrix].setdefault("mean", torch.zeros_like(matrix))
                mean.lerp_(matrix.grad, 1 - group["momentum"])
                update = orthogonal(matrix.grad.lerp(mean, group["momentum"]))
                size = 0.2 * max(matrix.shape) ** 0.5  # the root mean square of an update of AdamW's
                matrix.mul_(1 - group["lr"] * group["decay"]).add_(update, alpha=-group["lr"] * size)


def orthogonal(matrix: Tensor, steps: int = 5) -> Tensor:
    """About U V^T of matrix = U S V^T, by Newton-Schulz iterations with Muon's coefficients."""
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def optimizers(model: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the backbone's matrices, in a third of AdamW's steps here; AdamW for the rest."""
    named = list(cast(nn.Module, model.backbone).named_parameters())
    matrices = [p for name, p in named if p.ndim == 2 and "bias_table" not in name]
    taken = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in taken]
    return [
        Muon(matrices, lr=3 * lr, decay=1e-3),
        torch.optim.AdamW(rest, lr=lr, weight_decay=1e-3, fused=True),
    ]


def train(model: nn.Module, clips: Clips, frames: int, steps: int, batch: int, lr: float, seed: int) -> None:
    """`steps` on clips of so many frames; on single pictures behaviour cannot be named and is left out."""
    device = next(model.parameters()).device
    random = np.random.default_rng(seed)
    rules = optimizers(model, lr)
    peaks = [rule.param_groups[0]["lr"] for rule in rules]
    things = [(i, key) for i, key in enumerate(NAMES) if frames > 1 or key != "behaviour"]
    bar = tqdm(range(steps), f"training on {frames} frame{'s' * (frames > 1)}", unit="step")
    for step in bar:
        rows = random.integers(len(clips.frames), size=batch)
        picked = np.stack([random_frames(clips.frames.shape[1], frames, random) for _ in rows])
        seen, labels = augment(clips.frames[rows[:, None], picked], clips.labels[rows], random)
        logits, labels = model(seen.to(device)), labels.to(device)
        loss = torch.stack([F.cross_entropy(logits[key], labels[:, i]) for i, key in things]).sum()
        model.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for rule, peak in zip(rules, peaks, strict=True):
            rule.param_groups[0]["lr"] = peak * warmup_linear(step, steps, warmup_ratio=0.1)
            rule.step()
        if step % 20 == 0:
            bar.set_postfix(loss=f"{loss.item():.2f}")


@torch.inference_mode()
def accuracies(model: Namer, clips: Clips, frames: int = FRAMES) -> dict[str, float]:
    """Share of the clips of which each thing is named right."""
    device = next(model.parameters()).device
    picked = torch.from_numpy(even_frames(clips.frames.shape[1], frames))
    logits = [model(part[:, picked].to(device)) for part in clips.frames.split(100)]
    named = {key: torch.cat([part[key] for part in logits]).argmax(dim=1).cpu() for key in NAMES}
    return {key: float((named[key] == clips.labels[:, i]).float().mean()) for i, key in enumerate(NAMES)}


def main(arguments: list[str] | None = None) -> None:
    """Read, train, save, tell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("_data/demo"), help="folder of the demo's files")
    parser.add_argument("--output", type=Path, default=Path("_snapshot/demo/swin_demo.pth"))
    parser.add_argument(
        "--steps",
        type=int,
        default=250,
        help="training steps on clips, after 8 steps on pictures for every 5",
    )
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--size_img", type=int, default=64, help="pixels a side")
    parser.add_argument("--seed", type=int, default=88)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--overwrite", action="store_true", help="train again if the result exists")
    options = parser.parse_args(arguments)
    settings = {
        key: value for key, value in vars(options).items() if key not in ("output", "overwrite", "device")
    }
    settings["data"] = (options.data / "demo.json").read_text()
    note = options.output.with_suffix(".json")
    if options.output.exists() and note.exists() and not options.overwrite:
        known = json.loads(note.read_text())
        if known["settings"] == settings:
            print(f"{options.output}: exists; {known['result']}")
            return
    seed_everything(options.seed)
    clips, held_out = (read_clips(options.data, name, options.size_img) for name in ("names", "names_val"))
    model = Namer().to(choose_device(options.device))
    # shapes take thousands of examples to learn, and a picture costs a quarter of a clip
    train(model, clips, 1, options.steps * 8 // 5, options.batch, options.lr, options.seed)
    train(model, clips, FRAMES, options.steps, options.batch, options.lr, options.seed + 1)
    scores = accuracies(model.eval(), held_out)
    result = ", ".join(
        f"{key} {score:.2f} (chance {1 / len(NAMES[key]):.2f})" for key, score in scores.items()
    )
    with atomic_path(options.output) as temporary:
        torch.save({"state_dict": {key: value.cpu() for key, value in model.state_dict().items()}}, temporary)
    with atomic_path(note) as temporary:
        temporary.write_text(json.dumps({"settings": settings, "result": result}))
    print(f"{options.output}: named right of {len(held_out.frames)} unseen clips: {result}")


if __name__ == "__main__":
    run_script(main)
