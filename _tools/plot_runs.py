"""Overlay the figures of runs in a picture: a panel per figure, a line per run.

    python _tools/plot_runs.py _snapshot/_pretrain_20260101120000 _snapshot/_pretrain_20260102120000

What is not chosen by `--figures` is what the first run logs, but for its clock; `--smooth N` averages N rows.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np

import root  # noqa: F401
from lib import UserError, run_script

CLOCK = ("step", "epoch", "samples_per_second", "data_wait", "memory_gib", "teacher_seconds")
Row = dict[str, float]


def read(folder: Path, file: str) -> list[Row]:
    """The rows of a run's file; a last one that is not whole is left out."""
    path = folder / file
    if not path.is_file():
        raise UserError(f"{path} does not exist: name the folder of a run, as its log begins with it.")
    rows = []
    for number, line in enumerate(path.read_text().splitlines(keepends=True)):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            if line.endswith("\n"):
                raise UserError(f"{path} line {number + 1} is not JSON: {error}") from error
    return rows


def series(rows: list[Row], figure: str, smooth: int) -> tuple[list[float], np.ndarray]:
    """Steps and values of a figure, each value the mean of the last `smooth`."""
    found = [(row["step"], row[figure]) for row in rows if figure in row]
    values = np.array([value for _, value in found], dtype=float)
    sums = np.concatenate([[0.0], values.cumsum()])
    starts = np.maximum(np.arange(len(values)) + 1 - smooth, 0)
    ends = np.arange(len(values)) + 1
    return [step for step, _ in found], (sums[ends] - sums[starts]) / (ends - starts)


def plot(runs: dict[str, list[Row]], figures: list[str], smooth: int, output: Path) -> None:
    """Draw the panels into `output`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = min(3, len(figures))
    rows = math.ceil(len(figures) / columns)
    picture, axes = pyplot.subplots(rows, columns, figsize=(5 * columns, 3.2 * rows), squeeze=False)
    for axis, figure in zip(axes.flat, figures, strict=False):
        for name, logged in runs.items():
            steps, values = series(logged, figure, smooth)
            axis.plot(steps, values, label=name, linewidth=1.2, marker="." if len(steps) < 20 else "")
        axis.set(title=figure, xlabel="step")
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(figures) :]:
        axis.set_visible(False)
    handles, names = axes.flat[0].get_legend_handles_labels()
    picture.legend(handles, names, loc="outside lower center", ncols=min(4, len(names)), fontsize="small")
    picture.tight_layout(rect=(0, 0.12 / rows, 1, 1))
    picture.savefig(output, dpi=120)


def main() -> None:
    """Read the runs, draw them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, help="run folders")
    parser.add_argument("--output", type=Path, default=Path("runs.png"))
    parser.add_argument("--figures", nargs="+", help="names, as metrics.jsonl has them")
    parser.add_argument("--file", default="metrics.jsonl", choices=["metrics.jsonl", "eval.jsonl"])
    parser.add_argument("--smooth", type=int, default=1, help="rows to average")
    options = parser.parse_args()
    runs = {folder.resolve().name.strip("_"): read(folder, options.file) for folder in options.runs}
    known = list(dict.fromkeys(name for rows in runs.values() for row in rows for name in row))
    figures = options.figures or [name for name in known if name not in CLOCK]
    for name in figures:
        if name not in known:
            raise UserError(f"no run has logged {name!r}; there are {', '.join(known)}.")
    if not figures:
        raise UserError("the runs have logged nothing yet.")
    plot(runs, figures, max(1, options.smooth), options.output)
    print(options.output)


if __name__ == "__main__":
    run_script(main)
