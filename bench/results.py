"""Measure everything and write bench/RESULTS.md; `make bench` runs this.

    python bench/results.py
    python bench/results.py --case step_demo --amp bf16

Each measurement is a process of its own, since its peak memory is that of the process; `--case` makes one of
them here. Random weights and inputs, so nothing is downloaded.
"""

import argparse
import base64
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from measure import ROOT, bandwidth, flops, fresh, matrix_rate, rival_seconds, seconds
from torch import Tensor, nn
from torch.nn import functional as F
from train_step import make_batch
from transformers import BertConfig

from agent import peak_memory
from frames import Transform, read_clip
from hog import hog_picture
from lib import Config, choose_device
from model import PretrainModel
from mvm_targets import TARGETS, make_targets
from parallel import AMP
from retrieval import RetrievalModel
from scoring import PairScorer, all_pairs, pairs_at_once
from teachers import make_teachers
from video_swin import SIZES, VideoSwin

Row = dict[str, Any]
Case = Callable[[str, torch.device], Row]
PUBLISHED, DEMO = (4, 4, 224, 32), (16, 4, 64, 32)  # clips, frames, pixels, text tokens


def step(
    size: str, bert: BertConfig, shape: tuple[int, ...], amp: str, device: torch.device, **more: Any
) -> Row:
    """One training step, target pixel."""
    model = PretrainModel(bert, bert, SIZES[size], **more).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, fused=True)
    batch = make_batch(*shape, device)
    needed = 3 * flops(lambda: model(batch))  # the backward pass is two products for each of the forward's

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, AMP.get(amp), enabled=amp in AMP):
            losses = model(batch).losses
        torch.stack([mean.value for mean in losses.values()]).sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    repeats, warm = (1, 0) if size == "base" and device.type == "cpu" else (15, 1)  # a minute each
    return {"seconds": seconds(run, device, repeats, warm), "flops": needed, "of": shape[0]}


def step_published(amp: str, device: torch.device) -> Row:
    """Training step, published size, batch 4"""
    return step("base", BertConfig(), PUBLISHED, amp, device)


def step_checkpointed(amp: str, device: torch.device) -> Row:
    """Training step, published size, batch 4, `use_checkpoint`"""
    return step("base", BertConfig(), PUBLISHED, amp, device, use_checkpoint=True)


def step_demo(amp: str, device: torch.device) -> Row:
    """Training step, demo size, batch 16"""
    sizes = {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 512}
    dropouts = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return step("demo", BertConfig(vocab_size=30522, **sizes, **dropouts), DEMO, amp, device)


def target(name: str) -> Case:
    """What a target adds to a step: its teacher with random weights, its head and loss, both passes."""

    def case(amp: str, device: torch.device) -> Row:
        teachers = make_teachers(Config(mvm_target=[name], teacher_init="random"))
        made = make_targets([name], 768, 32, teachers)[name]
        heads = nn.ModuleList(made.heads.values()).to(device)
        batch = make_batch(*PUBLISHED, device)
        visual = torch.randn(4, 4 * 50, 768, device=device, requires_grad=True)

        def run() -> None:
            with torch.autocast(device.type, AMP.get(amp), enabled=amp in AMP):
                mean = made.loss(visual, batch["img"], batch["mvm_mask"])
            heads.zero_grad(set_to_none=True)
            mean.value.backward()

        return {"seconds": seconds(run, device, 1), "of": PUBLISHED[0]}

    case.__doc__ = f"Target {name}: teacher, head and loss"
    return case


def features(amp: str, device: torch.device) -> Row:
    """Video Swin-B's features, 4 clips, and torchvision's `swin3d_b` at the same stride"""
    from torchvision.models.video import swin3d_b

    clip = torch.randn(4, 3, 4, 224, 224, device=device)
    ours, theirs = VideoSwin(SIZES["base"]).to(device).eval(), swin3d_b().to(device).eval()
    theirs.patch_embed.proj.stride = (1, 4, 4)
    theirs.avgpool, theirs.head = nn.Identity(), nn.Identity()

    @torch.inference_mode()
    def run(network: nn.Module, frames: Tensor) -> None:
        with torch.autocast(device.type, AMP.get(amp), enabled=amp in AMP):
            network(frames)

    works = {"ours": lambda: run(ours, clip), "theirs": lambda: run(theirs, F.pad(clip, (0, 0, 0, 0, 0, 1)))}
    found = rival_seconds(works, device, 3)
    rival = ("torchvision", found["theirs"] / found["ours"])
    return {"seconds": found["ours"], "flops": flops(works["ours"]), "of": 4, "rival": rival}


def backbone(amp: str, device: torch.device) -> Row:
    """Video Swin-B forward and backward, 2 clips, beside torchvision's `swin3d_b` at the same stride"""
    from torchvision.models.video import swin3d_b

    clip = torch.randn(2, 3, 4, 224, 224, device=device)
    ours, theirs = VideoSwin(SIZES["base"]).to(device), swin3d_b().to(device)
    theirs.patch_embed.proj.stride = (1, 4, 4)
    theirs.avgpool, theirs.head = nn.Identity(), nn.Identity()

    def run(network: nn.Module, frames: Tensor) -> None:
        network.zero_grad(set_to_none=True)
        with torch.autocast(device.type, AMP.get(amp), enabled=amp in AMP):
            output = network(frames)
        output.float().square().mean().backward()

    works = {"ours": lambda: run(ours, clip), "theirs": lambda: run(theirs, F.pad(clip, (0, 0, 0, 0, 0, 1)))}
    found = rival_seconds(works, device, 2)
    needed = 3 * flops(lambda: ours(clip))
    rival = ("torchvision", found["theirs"] / found["ours"])
    return {"seconds": found["ours"], "flops": needed, "of": 2, "rival": rival}


def hog(amp: str, device: torch.device) -> Row:
    """HOG pictures, 64 frames of 224 px, beside scikit-image's"""
    from skimage.feature import hog as library

    frames = F.interpolate(torch.randn(64, 3, 56, 56), 224, mode="bicubic").to(device)
    array = frames[0].cpu().permute(1, 2, 0).numpy()
    ours = seconds(lambda: hog_picture(frames), device)
    start = time.process_time()  # one thread, whatever torch has
    for _ in range(5):
        library(array, 9, (8, 8), (2, 2), visualize=True, channel_axis=-1)
    theirs = (time.process_time() - start) / 5
    return {"seconds": ours, "of": 64, "rival": ("scikit-image", theirs / (ours / 64))}


def loader(amp: str, device: torch.device) -> Row:
    """Rows of 5 JPEGs of 640x360, to 224 px, one worker, beside PIL and torchvision's transforms"""
    import io

    from PIL import Image
    from torchvision import transforms

    torch.set_num_threads(1)
    random = np.random.default_rng(0)
    rows = []
    for _ in range(8):
        small = random.integers(0, 256, (5, 18, 32, 3), dtype=np.uint8)
        pictures = [cv2.resize(p, (640, 360), interpolation=cv2.INTER_CUBIC) for p in small]
        codes = [cv2.imencode(".jpg", p, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes() for p in pictures]
        rows.append([b"name", *map(base64.b64encode, codes)])
    transform = Transform(["img_rand_crop"], 224)
    usual = transforms.Compose(
        [
            transforms.Resize(224),
            transforms.RandomCrop(224),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )

    def theirs() -> None:
        for row in rows:
            pictures = [Image.open(io.BytesIO(base64.b64decode(field))).convert("RGB") for field in row[1:]]
            torch.stack([usual(picture) for picture in pictures])

    def ours() -> None:
        for row in rows:
            read_clip(row, 5, transform, random)

    found = rival_seconds({"ours": ours, "theirs": theirs}, torch.device("cpu"), 7)
    rival = ("PIL and torchvision", found["theirs"] / found["ours"])
    return {"seconds": found["ours"], "of": len(rows), "rival": rival}


@torch.inference_mode()
def retrieval(amp: str, device: torch.device) -> Row:
    """Retrieval scoring: a video of 5 frames with 8 texts of 25 tokens"""
    bert, dtype = BertConfig(), AMP.get(amp, torch.float32)
    model = RetrievalModel(bert, bert, SIZES["demo"]).to(device).eval()
    video, text = torch.randn(1, 250, 768, device=device), torch.randn(8, 25, 768, device=device)
    mask = torch.ones(8, 25, dtype=torch.long, device=device)
    scorer, pairs = PairScorer(model, dtype), pairs_at_once(model, 275, dtype, device)

    def run() -> None:
        all_pairs(scorer, video, text, mask, pairs)

    return {"seconds": seconds(run, device, 3), "flops": flops(run), "of": 8}


CASES: dict[str, Case] = {
    **{case.__name__: case for case in (step_published, step_demo, backbone, features)},
    **{case.__name__: case for case in (hog, loader, retrieval)},
    **{f"target_{name}": target(name) for name in TARGETS},
    step_checkpointed.__name__: step_checkpointed,
}
FLOAT32_ALONE = ("hog", "loader")  # what no precision changes


def one(name: str, amp: str) -> Row:
    """A measurement and the ceilings, in this process."""
    device = choose_device("auto")
    torch.manual_seed(0)
    row = CASES[name](amp, device)
    row["memory"] = peak_memory(device)
    row["ceiling"] = matrix_rate(device, AMP.get(amp, torch.float32))
    return row


def line(name: str, amp: str, row: Row) -> str:
    """Of the table."""
    share = f"{row['flops'] / row['seconds'] / row['ceiling']:.0%}" if "flops" in row else ""
    rival = "{1:.1f} x {0}".format(*row["rival"]) if "rival" in row else ""
    time_taken = f"{row['seconds']:.2f} s" if row["seconds"] >= 1 else f"{1e3 * row['seconds']:.1f} ms"
    precision = "bf16" if amp in AMP else "float32"
    return (
        f"| {CASES[name].__doc__} | {precision} | {time_taken} | {row['of'] / row['seconds']:.3g} | {share} "
        f"| {rival} | {row['memory']:.2f} |"
    )


def processor() -> str:
    """Its name, as the system has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(text.split(":")[1].strip() for text in lines if text.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def head(device: torch.device) -> list[str]:
    """Machine, date, commit, ceilings."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    )
    name = torch.cuda.get_device_name() if device.type == "cuda" else processor()
    rates = [matrix_rate(device, dtype) / 1e9 for dtype in (torch.float32, torch.bfloat16)]
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    return [
        "# Measured by `make bench`",
        "",
        f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}, "
        f"commit {commit.stdout.strip()}.",
        f"Ceilings: matrix products {rates[0]:.0f} GFLOP/s in float32, {rates[1]:.0f} in bf16; memory "
        f"{bandwidth(device) / 1e9:.0f} GB/s.",
        "",
        "On a CPU, seconds are the processor's, divided by the threads: what the clock shows where no",
        f"one else uses the machine (load when this began: {load}). The share is that of the matrix ceiling,",
        "measured in the same process, by the FLOPs that are needed: none for what is computed again.",
        "Memory is the peak of the process, libraries included. `beside`: so many times as fast as that.",
        "",
        "| work | precision | time | samples/s | share of ceiling | beside | GiB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]


def main() -> None:
    """One case, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=CASES)
    parser.add_argument("--amp", choices=["off", "bf16"], default="off")
    options = parser.parse_args()
    if options.case:
        print(json.dumps(one(options.case, options.amp)))
        return
    lines = head(choose_device("auto"))
    for name in CASES:
        for amp in ("off",) if name in FLOAT32_ALONE else ("off", "bf16"):
            row = fresh("results.py", ["--case", name, "--amp", amp])
            lines.append(line(name, amp, row))
            print(lines[-1], file=sys.stderr, flush=True)
            (ROOT / "bench" / "RESULTS.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
