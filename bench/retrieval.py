"""Pairs per second of the retrieval evaluation, compared with a plain pass, and its memory.

    python -m bench.retrieval
    python -m bench.retrieval --memory

Published size: 5 frames of 224 px, texts of 25 tokens, BERT-base. The plain pass is transformers' BERT
encoder with its default attention over materialised pairs, in float32, and in bf16 too. Ours scores all
pairs of one video and `--texts` texts, with what is made once per video counted in: once with every text 25
tokens long, once with lengths as captions have them. Random weights and inputs, so nothing is downloaded.
Rounds of both alternate and the best of each counts. Where others use the machine too, `--cpu_time` counts
the time that the processor spent on this process instead of what passed.

`--memory` gives the peak memory of a small model's evaluation of 100 x 100 and of 1000 x 1000 pairs, each in
a process of its own.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import BertConfig, BertModel

from bench.measure import matrix_rate
from engine.processes import choose_device
from engine.profiling import peak_memory
from lib import run_script
from tasks.retrieval.model import RetrievalModel
from tasks.retrieval.scoring import PairScorer, all_pairs, pairs_at_once
from video_swin import SIZES

FRAMES, PATCHES, WORDS = 5, 49, 25
VIDEO = FRAMES * (1 + PATCHES)


def seconds(run: Callable[[], Tensor], clock: Callable[[], float]) -> float:
    """Of one call, to its result on the CPU."""
    start = clock()
    run().float().sum().item()
    return clock() - start


def lengths_of_captions(texts: int) -> Tensor:
    """Sorted token counts: normal around 12 with deviation 4, as MSR-VTT's captions, 5 to 25."""
    generator = torch.Generator().manual_seed(0)
    return (12 + 4 * torch.randn(texts, generator=generator)).round().clamp(5, WORDS).long().sort().values


@torch.inference_mode()
def speed(texts: int, rounds: int, device: torch.device, clock: Callable[[], float]) -> None:
    """Print a line per precision."""
    bert = BertConfig()
    model = RetrievalModel(bert, bert, SIZES["demo"]).to(device).eval()
    plain = BertModel(bert, add_pooling_layer=False).encoder.to(device).eval()
    plain.load_state_dict(model.trsfr.state_dict())
    video, text = torch.randn(1, VIDEO, 768, device=device), torch.randn(texts, WORDS, 768, device=device)
    full = torch.ones(texts, WORDS, dtype=torch.long, device=device)
    trimmed = (torch.arange(WORDS) < lengths_of_captions(texts)[:, None]).long().to(device)
    pairs = torch.cat([video.expand(texts, -1, -1), text], dim=1)
    runs: dict[str, Callable[[], Tensor]] = {}
    for name, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16)):
        scorer, batch = PairScorer(model, dtype), pairs_at_once(model, VIDEO + WORDS, dtype, device)
        other = (
            plain if dtype == torch.float32 else BertModel(bert, add_pooling_layer=False).encoder.to(device)
        )
        other, given = other.to(dtype).eval(), pairs.to(dtype)
        unseen = torch.zeros(texts, 1, 1, pairs.shape[1], dtype=dtype, device=device)
        runs[f"plain {name}"] = lambda m=other, x=given, u=unseen: m(x, attention_mask=u).last_hidden_state
        for kind, mask in (("25 tokens", full), ("captions", trimmed)):
            runs[f"ours {name}, {kind}"] = lambda s=scorer, m=mask, b=batch: all_pairs(s, video, text, m, b)
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(rounds):
        for name, run in runs.items():
            best[name] = min(best[name], seconds(run, clock))
    for dtype in (torch.float32, torch.bfloat16):
        print(f"matrix ceiling {dtype}: {matrix_rate(device, dtype) / 1e9:.0f} GFLOP/s")
    for name, time_taken in best.items():
        precision = name.split()[1].rstrip(",")
        ratios = [best[f"plain {p}"] / time_taken for p in ("float32", precision)]
        print(
            f"{name:24} {texts / time_taken:7.2f} pairs/s  {ratios[0]:.2f} x plain float32  "
            f"{ratios[1]:.2f} x plain {precision}"
        )


@torch.inference_mode()
def memory(size: int) -> None:
    """Print the peak memory of scoring so many videos with so many texts, block by block, and its growth."""
    bert = BertConfig(
        vocab_size=100, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    model = RetrievalModel(bert, bert, SIZES["demo"]).eval()
    mask = torch.ones(size, 5, dtype=torch.long)
    text = model.enc_txt(mask, mask)
    scorer, device = PairScorer(model), torch.device("cpu")
    scores = torch.empty(size, size)
    all_pairs(scorer, torch.randn(8, 5, 16), text[:100], mask[:100], 500)  # what any run needs
    before = peak_memory(device)
    for start in range(0, size, 8):  # as evaluation.py goes: a block of videos, all texts
        video = torch.randn(min(8, size - start), 5, 16)
        scores[start : start + 8] = all_pairs(scorer, video, text, mask, 500)
    peak = 1024 * peak_memory(device)
    print(f"{size} x {size}: {peak:.0f} MiB at most, {peak - 1024 * before:.1f} MiB of it for the pairs")


def main() -> None:
    """Print speed, or memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--cpu_time", action="store_true", help="measure processor time instead of clock time"
    )
    parser.add_argument(
        "--memory", action="store_true", help="measure the memory of 100 x 100 and 1000 x 1000 pairs instead"
    )
    parser.add_argument("--size", type=int, default=0, help="(internal)")
    options = parser.parse_args()
    if options.size:
        memory(options.size)
    elif options.memory:
        for size in (100, 1000):
            subprocess.run([sys.executable, "-m", "bench.retrieval", "--size", str(size)], check=True)
    else:
        clock = time.process_time if options.cpu_time else time.perf_counter
        speed(options.texts, options.rounds, choose_device(options.device), clock)


if __name__ == "__main__":
    run_script(main)
