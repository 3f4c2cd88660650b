"""HOG pictures per second, ours and scikit-image's, on the same frames.

    python -m bench.hog

scikit-image takes one frame at a time on one core, which is how data loaders run it.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from skimage.feature import hog
from torch.nn import functional as F

from engine.processes import choose_device
from lib import run_script
from teachers.hog import hog_picture


def best_time(work: Callable[[], Any], repeats: int) -> float:
    """Seconds of the fastest of some calls, after one that is not counted."""
    work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def main() -> None:
    """Print one line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=16, help="clips")
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--pixels", type=int, default=224)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    device = choose_device(options.device)
    number = options.batch * options.frames
    small = torch.randn(number, 3, options.pixels // 4, options.pixels // 4)
    frames = F.interpolate(small, options.pixels, mode="bicubic").to(device)
    arrays = frames[:4].cpu().permute(0, 2, 3, 1).numpy()

    def library() -> None:
        for array in arrays:
            hog(array, 9, (8, 8), (2, 2), visualize=True, channel_axis=-1)

    theirs = best_time(library, repeats=3) / len(arrays)
    ours = best_time(lambda: hog_picture(frames)[0, 0, 0].item(), repeats=10) / number
    print(
        f"{options.batch} x {options.frames} frames of {options.pixels} px on {device}, "
        f"{torch.get_num_threads()} threads: {1e3 * ours:.2f} ms a frame, "
        f"scikit-image {1e3 * theirs:.1f} ms: {theirs / ours:.0f} times as fast"
    )


if __name__ == "__main__":
    run_script(main)
