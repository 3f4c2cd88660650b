"""Draw the clips that two retrieval runs find for the same texts, side by side.

    python -m study.picture WITH WITHOUT --frames _data/study-real/img_emoji.tsv --output bench/found.png

WITH and WITHOUT are folders of eval_retrieval_tsv.py, of a run from pre-training and of one without it. The
rows are the first texts of the split whose clip is among the five best of at least one of the two.
"""

import argparse
import json
import textwrap
from pathlib import Path
from typing import Any

from lib import UserError, run_script
from media.files import atomic_path
from media.frames import decode_frame
from media.tsv import Tsv

ROWS, BEST = 6, 5
HEADS = ("from pre-training", "without pre-training")
RIGHT = "#2a8f3c"


def ranked(folder: Path) -> dict[str, dict[str, Any]]:
    """What a run found for each text."""
    path = folder / "ranks.jsonl"
    if not path.exists():
        raise UserError(f"{folder} has no ranks.jsonl: name a folder of eval_retrieval_tsv.py.")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {row["text"]: row for row in rows if row["direction"] == "t2v"}


def draw(runs: list[dict[str, dict[str, Any]]], frames: Path, output: Path) -> None:
    """A row per text, five clips of each run; the right clip has a frame."""
    import matplotlib.pyplot as plt

    texts = [text for text in runs[0] if any(run[text]["rank"] <= BEST for run in runs)][:ROWS]
    tsv = Tsv(frames)
    rows = {tsv[number][0].decode(): number for number in range(len(tsv))}
    widths = [2.6, *[1] * BEST, 0.3, *[1] * BEST]
    size = (12, 1.05 * len(texts) + 0.4)
    figure, grid = plt.subplots(len(texts), len(widths), figsize=size, width_ratios=widths, squeeze=False)
    for axis in grid.flat:
        axis.set_axis_off()
    for line, text in zip(grid, texts, strict=True):
        line[0].text(0, 0.5, textwrap.fill(text.split(":")[0], 22), va="center", fontsize=11)
        for number, run in enumerate(runs):
            for place, found in enumerate(run[text]["best"]):
                axis = line[1 + number * (BEST + 1) + place]
                stored = tsv[rows[found["video"]]][1:]
                axis.imshow(decode_frame(stored[len(stored) // 2], len(stored) // 2).movedim(0, -1).numpy())
                if found["video"] == run[text]["video"]:
                    axis.set_axis_on()
                    axis.set(xticks=[], yticks=[])
                    axis.spines[:].set(color=RIGHT, linewidth=3)
    for number, head in enumerate(HEADS):
        grid[0, 1 + number * (BEST + 1) + BEST // 2].set_title(head, fontsize=11)
    figure.tight_layout(pad=0.3)
    with atomic_path(output) as temporary:
        figure.savefig(temporary, dpi=80, format="png")
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    """Read, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs=2, type=Path, metavar=("WITH", "WITHOUT"))
    parser.add_argument("--frames", type=Path, default=Path("_data/study-real/img_emoji.tsv"))
    parser.add_argument("--output", type=Path, default=Path("bench/found.png"))
    options = parser.parse_args(arguments)
    draw([ranked(folder) for folder in options.runs], options.frames, options.output)


if __name__ == "__main__":
    run_script(main)
