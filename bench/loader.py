"""Samples per second of rows that hold frames and of rows that name files, of the same clips.

    python -m bench.loader videos.csv

The CSV is one that make_tsv.py takes, of `video` and `caption`. Beside them: reading the stored rows' bytes
alone, and decoding every frame of every file once, which is what one sample costs without seeking.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from bench.measure import clock
from lib import run_script
from media.decoding import read_frames
from media.frames import Transform, read_clip, row_frames
from media.tsv import Tsv

TOOL = Path(__file__).resolve().parents[1] / "_tools" / "make_tsv.py"


def rate(work: Callable[[int], object], rows: int, least: float) -> float:
    """Calls per second over all rows, again until `least` seconds are over."""
    work(0)
    core = torch.device("cpu")
    done, start = 0, clock(core)
    while (elapsed := clock(core) - start) < least or done % rows:
        work(done % rows)
        done += 1
    return done / elapsed


def main() -> None:
    """Print a line per way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="CSV of `video` and `caption`")
    parser.add_argument("--frames", type=int, default=4, help="frames per clip")
    parser.add_argument("--stored", type=int, default=32, help="stored frames per row")
    parser.add_argument("--pixels", type=int, default=224)
    parser.add_argument("--seconds", type=float, default=10.0, help="least time of each measurement")
    options = parser.parse_args()
    torch.set_num_threads(1)  # a loader process has one
    transform = Transform(["img_rand_crop"], options.pixels)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpora = {}
        for kind, more in {"stored": [], "linked": ["--link"]}.items():
            arguments = ["--output", name, "--name", kind, "--frames", str(options.stored), *more]
            command = [sys.executable, str(TOOL), str(options.source.resolve()), *arguments]
            subprocess.run(command, check=True, capture_output=True)
            corpora[kind] = Tsv(folder / f"{kind}.img.tsv")
        rows = len(corpora["stored"])

        def sample(kind: str) -> Callable[[int], object]:
            random = np.random.default_rng(0)
            tsv = corpora[kind]
            return lambda row: read_clip(tsv[row], options.frames, transform, random, folder)

        def decode_all(row: int) -> None:
            for _ in read_frames(row_frames(corpora["linked"][row], folder).path):
                pass

        ways = {
            "stored frames": sample("stored"),
            "on the fly": sample("linked"),
            "bytes of the stored rows": lambda row: corpora["stored"][row],
            "whole files decoded": decode_all,
        }
        rates = {way: rate(work, rows, options.seconds) for way, work in ways.items()}
        sizes = {kind: tsv.size / 1e6 for kind, tsv in corpora.items()}
    print(f"{rows} clips, {options.frames} of {options.stored} frames, {options.pixels} px, one process")
    for way, value in rates.items():
        print(f"{way:26}{value:10.1f} samples/s   {value / rates['stored frames']:8.2f} x stored")
    print(f"stored rows {sizes['stored']:.1f} MB, rows that name files {sizes['linked']:.3f} MB")


if __name__ == "__main__":
    run_script(main)
