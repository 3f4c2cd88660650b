"""The study's table, picture and what noise allows to say of them, from the results of its runs."""

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from scipy import stats

from _tools.convert.marked import split
from media.files import atomic_path
from study.run import CONDITIONS, CONFIGS, STEPS, TARGETS

START, END = "<!-- table -->", "<!-- end of table -->"
QUOTED = "<!-- study -->", "<!-- end of study -->"  # in docs/targets.md
# figures of a run: how they are called, where they are, and the paper's in the same place
FIGURES = {
    "questions": ("qa", "test_acc"),
    "R@1": ("retrieval", "t2v_r1"),
    "R@5": ("retrieval", "t2v_r5"),
    "R@10": ("retrieval", "t2v_r10"),
}
# WebVid2.5M: accuracy on TGIF-Frame, R@1, 5, 10 on DiDeMo (Fu et al., CVPR 2023)
PAPER = {
    "none": (68.1, 28.7, 57.0, 69.7),
    "pixel": (68.3, 29.2, 58.6, 70.1),
    "hog": (67.3, 26.6, 54.9, 68.1),
    "depth": (68.0, 27.3, 55.0, 68.3),
    "optical_flow": (67.6, 30.3, 58.0, 70.3),
    "vq": (68.4, 28.1, 56.6, 69.4),
    "3d_feature": (68.0, 32.8, 60.5, 73.0),
    "2d_feature": (68.8, 35.4, 62.4, 74.9),
    "2d_clip_feature": (67.7, 29.8, 57.8, 68.5),
    "2d_feature+pixel": (68.8, 31.8, 60.4, 73.0),
    "2d_feature+3d_feature": (69.2, 33.8, 63.0, 74.4),
}
Runs = dict[str, dict[int, dict[str, float]]]


def read_runs(folder: Path) -> Runs:
    """condition -> seed -> figures in per cent, in the order of `CONDITIONS`."""
    runs: Runs = {name: {} for name in CONDITIONS}
    for path in sorted(folder.glob("*.json")):
        result: dict[str, Any] = json.loads(path.read_text())
        if result["steps"] == STEPS:
            figures = {name: 100 * result[part][key] for name, (part, key) in FIGURES.items()}
            runs[result["condition"]][result["seed"]] = figures
    return {name: seeds for name, seeds in runs.items() if seeds}


def spread(runs: Runs, figure: str) -> tuple[float, int]:
    """Standard deviation over a condition's seeds, pooled over the conditions; its degrees of freedom."""
    squares, freedom = 0.0, 0
    for seeds in runs.values():
        values = [run[figure] for run in seeds.values()]
        squares += sum((value - statistics.mean(values)) ** 2 for value in values)
        freedom += len(values) - 1
    return (math.sqrt(squares / freedom) if freedom else math.nan), freedom


def student(freedom: int) -> float:
    """The factor of a 95 % interval: Student's t, two-sided."""
    return float(stats.t.ppf(0.975, freedom)) if freedom else math.nan


def half_width(runs: Runs, figure: str, seeds: int) -> float:
    """Of the 95 % interval of a condition's mean over so many seeds."""
    deviation, freedom = spread(runs, figure)
    return student(freedom) * deviation / math.sqrt(seeds)


def gains(runs: Runs, figure: str) -> dict[str, tuple[float, float]]:
    """Condition -> its mean minus that of `none`, and half the width of the 95 % interval.

    Over the seeds that both have: what a seed does to every condition drops out.
    """
    pairs = {
        name: [
            run[figure] - runs["none"][seed][figure] for seed, run in seeds.items() if seed in runs["none"]
        ]
        for name, seeds in runs.items()
        if name != "none"
    }
    pairs = {name: values for name, values in pairs.items() if values}
    squares = sum(sum((v - statistics.mean(values)) ** 2 for v in values) for values in pairs.values())
    freedom = sum(len(values) - 1 for values in pairs.values())
    deviation = math.sqrt(squares / freedom) if freedom else math.nan
    return {
        name: (statistics.mean(values), student(freedom) * deviation / math.sqrt(len(values)))
        for name, values in pairs.items()
    }


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's; equal values share the mean of their ranks."""

    def ranks(values: Sequence[float]) -> list[float]:
        return [sum(v < value for v in values) + (values.count(value) + 1) / 2 for value in values]

    return statistics.correlation(ranks(first), ranks(second))


def table(runs: Runs) -> str:
    """A row per condition: means with their intervals, gains over none, and the paper's figures."""
    lines = [
        "| condition | seeds | questions | R@1 | R@5 | R@10 | gain, questions | gain, R@1 "
        "| paper: TGIF-Frame | paper: DiDeMo R@1 / 5 / 10 |",
        "| --- " * 10 + "|",
    ]
    gained = {figure: gains(runs, figure) if "none" in runs else {} for figure in ("questions", "R@1")}
    for name, seeds in runs.items():
        cells = [mean_cell(runs, name, figure) for figure in FIGURES]
        cells += [signed(*gained[figure][name]) if name in gained[figure] else "" for figure in gained]
        paper = PAPER.get(name)
        cells += [f"{paper[0]}", " / ".join(map(str, paper[1:]))] if paper else ["", ""]
        lines.append(f"| {name} | {len(seeds)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def short_table(runs: Runs) -> str:
    """A row per target: means and intervals of questions and R@1, beside the paper's."""
    lines = [
        "| target | questions | R@1 | paper: TGIF-Frame | paper: DiDeMo R@1 |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in runs:
        if name in PAPER:
            cells = [mean_cell(runs, name, figure) for figure in ("questions", "R@1")]
            lines.append(f"| {name} | {' | '.join(cells)} | {PAPER[name][0]} | {PAPER[name][1]} |")
    return "\n".join(lines)


def mean_cell(runs: Runs, name: str, figure: str) -> str:
    """A condition's mean over its seeds, with its interval."""
    values = [run[figure] for run in runs[name].values()]
    return f"{statistics.mean(values):.1f}{plus_minus(half_width(runs, figure, len(values)))}"


def signed(gain: float, width: float) -> str:
    """A gain; in bold where the interval excludes none at all."""
    text = f"{gain:+.1f}{plus_minus(width)}"
    return f"**{text}**" if abs(gain) > width else text


def plus_minus(width: float) -> str:
    """Half an interval's width; nothing where one seed says nothing of it."""
    return f" ± {width:.1f}" if math.isfinite(width) else ""


def remarks(runs: Runs) -> Iterable[str]:
    """Remarks computed from the numbers."""
    runs_made = sum(map(len, runs.values()))
    deviations = {name: spread(runs, name)[0] for name in FIGURES}
    shown = ", ".join(f"{name} {value:.1f}" for name, value in deviations.items() if math.isfinite(value))
    yield f"{runs_made} runs." + f" Standard deviation between seeds, in points: {shown}." * bool(shown)
    both = [name for name in ("none", *TARGETS) if name in runs]
    if len(both) > 3:
        for number, (figure, published) in enumerate((("questions", "TGIF-Frame"), ("R@1", "DiDeMo R@1"))):
            ours = [statistics.mean(run[figure] for run in runs[name].values()) for name in both]
            theirs = [PAPER[name][number] for name in both]
            yield (
                f"Rank correlation of {figure} here with {published} there, over {len(both)} conditions: "
                f"{rank_correlation(ours, theirs):+.2f}."
            )


def draw(runs: Runs, path: Path) -> None:
    """Gains over none with their intervals, here and in the paper: questions left, R@1 right."""
    import matplotlib.pyplot as plt

    names = [name for name in runs if name != "none"]
    figure, axes = plt.subplots(1, 2, figsize=(10, 0.36 * len(names) + 1.6), sharey=True)
    for number, (axis, key) in enumerate(zip(axes, ("questions", "R@1"), strict=True)):
        gained = gains(runs, key)
        shown = [name for name in names if name in gained]
        places = [names.index(name) for name in shown]
        means, widths = zip(*(gained[name] for name in shown), strict=True)
        axis.errorbar(means, places, xerr=widths, fmt="o", color="#1f5fa8", capsize=3, label="here, 95 %")
        in_paper = [name for name in names if name in PAPER]
        values = [PAPER[name][number] - PAPER["none"][number] for name in in_paper]
        rows = [names.index(name) for name in in_paper]
        axis.plot(values, rows, "D", color="#d1782a", markersize=5, label="the paper, at its size")
        axis.axvline(0, color="#888888", linewidth=1)
        axis.set_xlabel(f"{key}: points gained over no MVM")
        axis.grid(axis="x", color="#dddddd")
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    figure.tight_layout(rect=(0, 0, 1, 0.94))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="upper center", ncols=2, frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)


def fill(page: Path, marks: tuple[str, str], content: str, text: str = "") -> None:
    """Put content between two marks of a page, of `text` if there is none; its other text stays."""
    before, _, behind = split(page.read_text() if page.exists() else text, page, *marks)
    with atomic_path(page) as temporary:
        temporary.write_text(f"{before}{marks[0]}\n{content}\n{marks[1]}{behind}")


def write_report(results: Path, page: Path, picture: Path, quoting: Path | None = None) -> None:
    """Fill the tables of a page and of the one that quotes it, and draw the picture."""
    runs = read_runs(results)
    if not runs:
        print(f"{results} has no finished run yet")
        return
    fill(page, (START, END), "\n\n".join([table(runs), *remarks(runs)]), PAGE)
    if quoting:
        fill(quoting, QUOTED, short_table(runs))
    if len(runs) > 1 and "none" in runs:
        draw(runs, picture)
    print(f"{page}\n{table(runs)}")


BASE = CONFIGS["pretrain"]
PAGE = f"""# The study in miniature, by `make study`

Every run pre-trains {STEPS["pretrain"]} steps on the demo's world from the demo's video encoder: batch 16,
masks `{BASE["pretrain_masks"][0]}`, `p_mask` {BASE["p_mask"]}, unless the condition says otherwise. Then it
fine-tunes {STEPS["qa"]} steps on open-ended questions (1024 of them test) and {STEPS["retrieval"]} on
retrieval (256 texts and videos test). Conditions differ in MVM alone; its loss is weighted so that its
gradient is {BASE["mvm_share"]} of that of MLM. `bm`, `am` and `p_mask` are with the target 2d_feature.

{START}
{END}

![](study.png)
"""
