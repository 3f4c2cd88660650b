"""Samples per second of one core, by the form in which the clips are stored.

    python -m bench.loader videos.csv

The CSV is one that make_tsv.py takes, of `video` and `caption`. The forms: rows of JPEGs, with and without
the index of fields, and of quality 60; proxies; the videos themselves (linked). The baseline reads the same
rows by Pillow and torchvision. Reading the rows' bytes alone, and decoding every frame of every video, show
where time goes. Only the processor time of this process counts: files come from the page cache, and other
programs may run.
"""

import argparse
import base64
import io
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from lib import run_script
from media.decoding import read_frames
from media.frames import Transform, random_frames, read_clip, row_frames
from media.tsv import Tsv

TOOL = Path(__file__).resolve().parents[1] / "_tools" / "make_tsv.py"
FORMS = {
    "stored": [],
    "coarse": ["--quality", "60"],
    "proxy": ["--proxy"],
    "linked": ["--link"],
}


def rate(work: Callable[[int], object], rows: int, least: float) -> float:
    """Calls per second of processor time over all rows, again until `least` seconds are over."""
    work(0)
    done, start = 0, time.process_time()
    while (elapsed := time.process_time() - start) < least or done % rows:
        work(done % rows)
        done += 1
    return done / elapsed


def by_pillow(fields: Sequence[bytes], frames: int, pixels: int, random: np.random.Generator) -> Tensor:
    """The clip of a row of JPEGs, (T, 3, pixels, pixels), by Pillow and torchvision alone."""
    crop = v2.Compose([v2.Resize(pixels, antialias=True), v2.RandomCrop(pixels), v2.PILToTensor()])
    jpegs = [
        base64.b64decode(fields[1 + number]) for number in random_frames(len(fields) - 1, frames, random)
    ]
    return torch.stack([crop(Image.open(io.BytesIO(jpeg)).convert("RGB")) for jpeg in jpegs])


def size_of(form: str, folder: Path) -> float:
    """Megabytes of a form: of its TSV and, for proxies, of their videos."""
    files = [folder / f"{form}.img.tsv", *(folder / f"{form}.proxies").rglob("*.mp4")]
    return sum(file.stat().st_size for file in files) / 1e6


def main() -> None:
    """Print a line per way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="CSV of `video` and `caption`")
    parser.add_argument("--frames", type=int, default=4, help="frames per clip")
    parser.add_argument("--fps", type=float, default=2.0, help="stored frames per second of video")
    parser.add_argument("--pixels", type=int, default=224)
    parser.add_argument("--seconds", type=float, default=10.0, help="least time of each measurement")
    options = parser.parse_args()
    torch.set_num_threads(1)  # a loader process has one
    transform = Transform(["img_rand_crop"], options.pixels)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for form, more in FORMS.items():
            arguments = ["--output", name, "--name", form, "--fps", str(options.fps), *more]
            command = [sys.executable, str(TOOL), str(options.source.resolve()), *arguments]
            subprocess.run(command, check=True, capture_output=True)
        corpora = {form: Tsv(folder / f"{form}.img.tsv") for form in FORMS}
        corpora["unindexed"] = Tsv(folder / "stored.img.tsv")
        corpora["unindexed"].indexed = False
        rows = len(corpora["stored"])
        random = np.random.default_rng(0)

        def sample(form: str) -> Callable[[int], object]:
            tsv = corpora[form]
            return lambda row: read_clip(tsv[row], options.frames, transform, random, folder)

        def decode_all(row: int) -> None:
            for _ in read_frames(row_frames(corpora["linked"][row], folder).path):
                pass

        ways = {
            "rows": sample("unindexed"),
            "rows, index of fields": sample("stored"),
            "rows of quality 60": sample("coarse"),
            "proxies": sample("proxy"),
            "linked videos": sample("linked"),
            "rows by Pillow and torchvision": lambda row: by_pillow(
                corpora["unindexed"][row], options.frames, options.pixels, random
            ),
            "bytes of the rows": lambda row: corpora["unindexed"][row],
            "every frame of the videos": decode_all,
        }
        rates = {way: rate(work, rows, options.seconds) for way, work in ways.items()}
        sizes = {form: size_of(form, folder) for form in FORMS}
    print(f"{rows} clips at {options.fps:g} frames/s, {options.frames} used, {options.pixels} px, one core")
    for way, value in rates.items():
        print(f"{way:32}{value:10.1f} samples/s   {value / rates['rows']:8.2f} x rows")
    print("MB: " + ", ".join(f"{form} {size:.2f}" for form, size in sizes.items()))


if __name__ == "__main__":
    run_script(main)
