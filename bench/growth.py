"""How cost grows: a plot, bench/growth.png, and a table of fitted exponents, bench/GROWTH.md.

    python -m bench.growth

Counted: FLOPs of a training step's passes at published size (Swin-B, BERT-base; on torch's meta device,
which computes nothing). Measured: seconds of a training step at demo size, on a machine without other jobs;
processes have a batch and a thread each, and wait for each other. The exponent e is that of cost ~ x^e,
fitted to the upper half of each range: 1 is linear, and of processes 0 is the best there is.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn
from transformers import BertConfig

from bench.measure import ROOT, flops, seconds
from bench.train_step import make_batch
from engine.parallel import wrap
from engine.processes import distributed
from lib import Config, run_script
from model import PretrainModel
from tasks.retrieval.model import RetrievalModel
from tasks.retrieval.scoring import PairScorer, all_pairs
from video_swin import SIZES

BASE = {"batch": 4, "frames": 4, "pixels": 224, "text": 32}
SMALL = {"batch": 8, "frames": 4, "pixels": 64, "text": 32}
RANGES: dict[str, Sequence[int]] = {
    "frames": (1, 2, 4, 8, 12, 16),
    "pixels": (96, 128, 192, 224, 320, 384),
    "text": (16, 32, 64, 128, 256),
    "batch": (4, 8, 16, 32),
}
VIDEOS = (8, 16, 32, 64)
PROCESSES = (1, 2)
CPU = torch.device("cpu")


def small_bert() -> BertConfig:
    """As the demo's."""
    sizes = {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 512}
    return BertConfig(**sizes, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def counted(batch: int, frames: int, pixels: int, text: int) -> float:
    """FLOPs of a step at published size: each video with its own text and three others."""
    with torch.device("meta"):
        bert = BertConfig()
        model = PretrainModel(bert, bert, SIZES["base"], max_frames=16)
        img, ids = torch.empty(batch, frames, 3, pixels, pixels), torch.ones(batch, text, dtype=torch.long)

        def run() -> None:
            video, words = model.encode(img, ids, ids)
            pairs = [x.repeat_interleave(4, dim=0) for x in (video, words, ids)]
            model.fuse(*pairs)

        return 3.0 * flops(run)


def small_step(
    batch: int, frames: int, pixels: int, text: int, share: Callable[[nn.Module], nn.Module] = lambda m: m
) -> Callable[[], None]:
    """A step at demo size, of the model that `share` makes of it."""
    torch.manual_seed(0)
    model = share(PretrainModel(small_bert(), small_bert(), SIZES["demo"], max_frames=16))
    data = make_batch(batch, frames, pixels, text, CPU)

    def run() -> None:
        model.zero_grad(set_to_none=True)
        torch.stack([mean.value for mean in model(data).losses.values()]).sum().backward()

    return run


def measured(**shape: int) -> float:
    """Seconds of a step at demo size."""
    return seconds(small_step(**shape), CPU, 3)


def together(processes: int) -> float:
    """Seconds of a step at demo size of processes that exchange gradients, each with its batch."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [sys.executable, *launcher, "-m", "bench.growth", "--worker"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return float(done.stdout.splitlines()[-1])


def worker() -> None:
    """One of the processes of `together`: the first prints what it found."""
    with distributed(Config(device="cpu")) as world:
        run = small_step(**SMALL, share=lambda m: wrap(m, world, "ddp" if world.size > 1 else "none"))
        found = seconds(run, CPU, repeats=20, warm=2)
        if world.is_main:
            print(found)


def candidates(number: int) -> float:
    """Seconds of scoring so many videos with as many texts, at the width of the demo."""
    model = RetrievalModel(small_bert(), small_bert(), SIZES["demo"]).eval()
    video, text = torch.randn(number, 25, 128), torch.randn(number, 25, 128)
    mask = torch.ones(number, 25, dtype=torch.long)
    return seconds(lambda: all_pairs(PairScorer(model), video, text, mask, 64), CPU, 3)


def exponent(x: Sequence[int], cost: Sequence[float]) -> float:
    """Of the power law through the upper half of the points."""
    upper = slice(len(x) // 2 - 1, None)
    return float(np.polyfit(np.log(x[upper]), np.log(cost[upper]), 1)[0])


def curves() -> dict[tuple[str, str], tuple[Sequence[int], list[float]]]:
    """(what grows, how it was found) -> its values and their costs."""
    found = {}
    ways: list[tuple[str, dict[str, int], Callable[..., float]]] = [
        ("FLOPs, published size", BASE, counted),
        ("seconds, demo size", SMALL, measured),
    ]
    for name, values in RANGES.items():
        for way, fixed, cost in ways:
            found[name, way] = (values, [cost(**{**fixed, name: value}) for value in values])
    found["candidate videos", "seconds, demo size"] = (VIDEOS, [candidates(number) for number in VIDEOS])
    found["processes", "seconds, demo size"] = (PROCESSES, [together(number) for number in PROCESSES])
    return found


def main() -> None:
    """The plot and the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worker", action="store_true", help="(internal)")
    if parser.parse_args().worker:
        worker()
        return
    found = curves()
    names = list(dict.fromkeys(name for name, _ in found))
    figure, axes = plt.subplots(1, len(names), figsize=(4 * len(names), 3.5), layout="constrained")
    lines = ["# Growth, by `python -m bench.growth`", "", "![](growth.png)", ""]
    lines += ["| what grows | from, to | cost | from, to | exponent |", "| --- | --- | --- | --- | --- |"]
    for (name, way), (x, cost) in found.items():
        power = exponent(x, cost)
        axis = axes[names.index(name)]
        axis.loglog(x, np.array(cost) / cost[0], "o-", label=f"{way}: {power:.2f}")
        axis.set(xlabel=name, ylabel="cost, the first = 1")
        axis.legend()
        lines.append(f"| {name} | {x[0]}, {x[-1]} | {way} | {cost[0]:.3g}, {cost[-1]:.3g} | {power:.2f} |")
    figure.savefig(ROOT / "bench" / "growth.png", dpi=80)
    (ROOT / "bench" / "GROWTH.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    run_script(main)
