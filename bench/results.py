"""Measure everything and write bench/RESULTS.md; `make bench` runs this.

    python -m bench.results
    python -m bench.results --case step_demo --amp bf16

Each measurement is a process of its own, since its peak memory is that of the process; `--case` makes one of
them here. Random weights and inputs, so nothing is downloaded.
"""

import argparse
import base64
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertModel, BertTokenizerFast

from bench.measure import ROOT, bandwidth, flops, fresh, matrix_rate, rival_seconds, seconds
from bench.train_step import make_batch
from engine.parallel import AMP
from engine.processes import choose_device
from engine.profiling import peak_memory
from lib import Config, run_script
from media.frames import Transform, normalise, read_clip
from model import PretrainModel
from mvm_targets import TARGETS, make_targets
from tasks.retrieval.model import RetrievalModel
from tasks.retrieval.scoring import PairScorer, all_pairs, pairs_at_once
from teachers.hog import hog_picture
from teachers.make import make_teachers
from video_swin import SIZES, VideoSwin

Row = dict[str, Any]
Case = Callable[[str, torch.device], Row]
PUBLISHED, DEMO = (4, 4, 224, 32), (16, 4, 64, 32)  # clips, frames, pixels, text tokens
DEMO_BERT: dict[str, Any] = {
    **{"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 512},
    **{"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
}


def few(device: torch.device) -> tuple[int, int]:
    """How often what takes up to a minute on a CPU is measured, and how often it is done before."""
    return (3, 1) if device.type == "cpu" else (5, 1)


def step(
    size: str, bert: BertConfig, shape: tuple[int, ...], amp: str, device: torch.device, **more: Any
) -> Row:
    """One training step, target pixel."""
    model = PretrainModel(bert, bert, SIZES[size], **more).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, fused=True)
    batch = make_batch(*shape, device)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, AMP.get(amp), enabled=amp in AMP):
            losses = model(batch).losses
        torch.stack([mean.value for mean in losses.values()]).sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    found = seconds(run, device, *(few(device) if size == "base" else (15, 1)))
    memory = peak_memory(device)  # of the step, not of counting
    needed = 3 * flops(lambda: model(batch))  # the backward pass is two products for each of the forward's
    return {"seconds": found, "flops": needed, "of": shape[0], "memory": memory}


def step_published(amp: str, device: torch.device) -> Row:
    """Training step, published size, batch 4"""
    return step("base", BertConfig(), PUBLISHED, amp, device)


def step_checkpointed(amp: str, device: torch.device) -> Row:
    """Training step, published size, batch 4, `use_checkpoint`"""
    return step("base", BertConfig(), PUBLISHED, amp, device, use_checkpoint=True)


def step_demo(amp: str, device: torch.device) -> Row:
    """Training step, demo size, batch 16"""
    return step("demo", BertConfig(vocab_size=30522, **DEMO_BERT), DEMO, amp, device)


def target(name: str) -> Case:
    """The cost that a target adds to a step: teacher with random weights, head and loss, both passes."""

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

        slow = device.type == "cpu" and name in ("depth", "vq")  # up to a minute
        repeats = (1, 0) if slow else (3, 1)
        return {"seconds": seconds(run, device, *repeats), "of": PUBLISHED[0]}

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
    found = rival_seconds(works, device, *few(device))
    beside = f"{found['theirs'] / found['ours']:.1f} x torchvision"
    return {"seconds": found["ours"], "flops": flops(works["ours"]), "of": 4, "beside": beside}


def backbone(amp: str, device: torch.device) -> Row:
    """Video Swin-B forward and backward, 2 clips, and torchvision's `swin3d_b` at the same stride"""
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
    found = rival_seconds(works, device, *few(device))
    needed = 3 * flops(lambda: ours(clip))
    beside = f"{found['theirs'] / found['ours']:.1f} x torchvision"
    return {"seconds": found["ours"], "flops": needed, "of": 2, "beside": beside}


def hog(amp: str, device: torch.device) -> Row:
    """HOG pictures, 64 frames of 224 px, compared with scikit-image's on one thread"""
    from skimage.feature import hog as library

    frames = F.interpolate(torch.randn(64, 3, 56, 56), 224, mode="bicubic").to(device)
    array = frames[0].cpu().permute(1, 2, 0).numpy()
    ours, theirs = [], []
    for _ in range(9):
        ours.append(seconds(lambda: hog_picture(frames), device, 1))
        start = time.perf_counter()
        library(array, 9, (8, 8), (2, 2), visualize=True, channel_axis=-1)
        theirs.append(time.perf_counter() - start)
    found = statistics.median(ours)
    beside = f"{statistics.median(theirs) / (found / 64):.0f} x scikit-image"
    return {"seconds": found, "of": 64, "beside": beside}


def jpeg_row(random: np.random.Generator, frames: int, width: int, height: int) -> list[bytes]:
    """The fields of a row of smooth random pictures."""
    small = random.integers(0, 256, (frames, height // 20, width // 20, 3), dtype=np.uint8)
    pictures = [cv2.resize(p, (width, height), interpolation=cv2.INTER_CUBIC) for p in small]
    codes = [cv2.imencode(".jpg", p, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes() for p in pictures]
    return [b"name", *map(base64.b64encode, codes)]


def loader(amp: str, device: torch.device) -> Row:
    """Rows of 5 JPEGs of 640x360, to 224 px, one worker, compared with PIL and torchvision's transforms"""
    return read_rows(640, 360)


def loader_large(amp: str, device: torch.device) -> Row:
    """The same of 1280x720, which are decoded at half of their size"""
    return read_rows(1280, 720)


def read_rows(width: int, height: int) -> Row:
    """Clips from rows of JPEGs of that size."""
    import io

    from PIL import Image
    from torchvision import transforms

    torch.set_num_threads(1)
    random = np.random.default_rng(0)
    rows = [jpeg_row(random, 5, width, height) for _ in range(8)]
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
            normalise(read_clip(row, 5, transform, random))

    found = rival_seconds({"ours": ours, "theirs": theirs}, torch.device("cpu"), 7)
    beside = f"{found['theirs'] / found['ours']:.1f} x PIL and torchvision"
    return {"seconds": found["ours"], "of": len(rows), "beside": beside}


def waiting(amp: str, device: torch.device) -> Row:
    """Training run at demo size, batch 16, targets pixel and hog, one worker"""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [
            sys.executable,
            str(ROOT / "main_pretrain_yaml.py"),
            "--config",
            str(demo_run(folder, amp)),
        ]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        (path,) = folder.glob("_pretrain_*/metrics.jsonl")
        figures = [json.loads(line) for line in path.read_text().splitlines()][1:]  # the worker starts before
    keys = ("data_wait", "samples_per_second", "memory_gib")
    wait, rate, memory = (statistics.mean(row[key] for row in figures) for key in keys)
    beside = f"{wait:.1%} of it waiting for data"
    return {"seconds": 16 / rate, "of": 16, "beside": beside, "memory": memory}


def demo_run(folder: Path, amp: str) -> Path:
    """The config of a run as the demo's pre-training, on rows as the demo's."""
    random, words = np.random.default_rng(0), [f"w{number}" for number in range(100)]
    rows = [[f"clip{row}".encode(), *jpeg_row(random, 16, 96, 96)[1:]] for row in range(192)]
    (folder / "a.img.tsv").write_bytes(b"".join(b"\t".join(row) + b"\n" for row in rows))
    captions = [json.dumps([{"caption": " ".join(random.choice(words, 12))}]) for _ in rows]
    lines = [f"clip{row}\t{caption}\n" for row, caption in enumerate(captions)]
    (folder / "a.caption.tsv").write_text("".join(lines))
    (folder / "a.yaml").write_text("img: a.img.tsv\ncaption: a.caption.tsv\n")
    (folder / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]) + "\n"
    )
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    BertConfig(vocab_size=105, **DEMO_BERT).save_pretrained(folder)
    values = json.loads((ROOT / "_args" / "demo-pretrain.json").read_text())
    values |= {"train_yaml": {"a": str(folder / "a.yaml")}, "val_yaml": {}, "mvm_target": ["pixel", "hog"]}
    values |= {"txt_backbone": str(folder), "fusion_encoder": str(folder), "vis_backbone_init": "random"}
    values |= {"path_output": str(folder), "eval_start": False, "max_steps": 60, "amp": amp, "mvm_weight": {}}
    (folder / "run.json").write_text(json.dumps(values))
    return folder / "run.json"


@torch.inference_mode()
def retrieval(amp: str, device: torch.device) -> Row:
    """Retrieval scoring: a video of 5 frames with 8 texts of 25 tokens, and plain BERT in float32"""
    bert, dtype = BertConfig(), AMP.get(amp, torch.float32)
    model = RetrievalModel(bert, bert, SIZES["demo"]).to(device).eval()
    video, text = torch.randn(1, 250, 768, device=device), torch.randn(8, 25, 768, device=device)
    mask = torch.ones(8, 25, dtype=torch.long, device=device)
    scorer, pairs = PairScorer(model, dtype), pairs_at_once(model, 275, dtype, device)
    plain = BertModel(bert, add_pooling_layer=False).encoder.to(device).eval()
    materialised = torch.cat([video.expand(8, -1, -1), text], dim=1)
    works = {
        "ours": lambda: all_pairs(scorer, video, text, mask, pairs),
        "theirs": lambda: plain(materialised),
    }
    found = rival_seconds(works, device, 3)
    beside = f"{found['theirs'] / found['ours']:.2f} x BERT"
    return {"seconds": found["ours"], "flops": flops(works["ours"]), "of": 8, "beside": beside}


CASES: dict[str, Case] = {
    **{case.__name__: case for case in (step_published, step_demo, backbone, features)},
    **{case.__name__: case for case in (hog, loader, loader_large, waiting, retrieval)},
    **{f"target_{name}": target(name) for name in TARGETS},
    step_checkpointed.__name__: step_checkpointed,
}
FLOAT32_ALONE = ("hog", "loader", "loader_large")  # what no precision changes


def one(name: str, amp: str) -> Row:
    """A measurement and the ceilings, in this process."""
    device = choose_device("auto")
    torch.manual_seed(0)
    row = CASES[name](amp, device)
    row = {"memory": peak_memory(device), **row}
    row["ceiling"] = matrix_rate(device, AMP.get(amp, torch.float32))
    return row


def ceilings() -> Row:
    """Of this machine, in GFLOP/s and GB/s."""
    device = choose_device("auto")
    kinds = {"float32": torch.float32, "bf16": torch.bfloat16}
    rates = {name: matrix_rate(device, dtype) / 1e9 for name, dtype in kinds.items()}
    return {**rates, "memory": bandwidth(device) / 1e9}


def runs() -> list[tuple[str, str]]:
    """Name and precision of every line of the table."""
    return [(name, amp) for name in CASES for amp in (("off",) if name in FLOAT32_ALONE else ("off", "bf16"))]


def line(name: str, amp: str, row: Row) -> str:
    """Of the table."""
    share = f"{row['flops'] / row['seconds'] / row['ceiling']:.0%}" if "flops" in row else ""
    time_taken = f"{row['seconds']:.2f} s" if row["seconds"] >= 1 else f"{1e3 * row['seconds']:.1f} ms"
    precision = "bf16" if amp in AMP else "float32"
    return (
        f"| {CASES[name].__doc__} | {precision} | {time_taken} | {row['of'] / row['seconds']:.3g} | {share} "
        f"| {row.get('beside', '')} | {row['memory']:.2f} |"
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
    rates = fresh(
        "bench.results", ["--ceilings"]
    )  # what this process has used counts as used by its children
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    return [
        "# Measured by `make bench`",
        "",
        f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}, "
        f"commit {commit.stdout.strip()}.",
        f"Ceilings: matrix products {rates['float32']:.0f} GFLOP/s in float32, {rates['bf16']:.0f} in bf16; "
        f"memory {rates['memory']:.0f} GB/s.",
        "",
        f"Seconds are clock time, the median of several runs; load at the start: {load}. The share is",
        "relative to the matrix ceiling, the best of several products in the process, by the FLOPs that are",
        "needed; recomputation does not count. Memory is the peak of the process, libraries included.",
        "`compared with`: how many times faster than the reference.",
        "",
        "| work | precision | time | samples/s | share of ceiling | compared with | GiB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]


def main() -> None:
    """One case, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=CASES)
    parser.add_argument("--amp", choices=["off", "bf16"], default="off")
    parser.add_argument("--ceilings", action="store_true", help="measure only the ceilings of this machine")
    options = parser.parse_args()
    if options.case or options.ceilings:
        print(json.dumps(one(options.case, options.amp) if options.case else ceilings()))
        return
    lines = head(choose_device("auto"))
    for name, amp in runs():
        lines.append(line(name, amp, fresh("bench.results", ["--case", name, "--amp", amp])))
        print(lines[-1], file=sys.stderr, flush=True)
    (ROOT / "bench" / "RESULTS.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    run_script(main)
