"""The report of the study on real material: tables, picture, and the differences that noise leaves."""

import json
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from media.files import atomic_path
from study.real import CONDITIONS, RECALLS, TASKS, score
from study.report import END, START, fill
from study.statistics import Blocks, detectable

TITLES = {
    "stamps": "pictures, mean of R@1, 5, 10",
    "emoji": "clips, mean of R@1, 5, 10",
    "doom": "questions, accuracy",
}
NONE, BASE = "none", "mlm+vtm+vtc"
MARKS = "<!-- study-real -->", "<!-- end of study-real -->"  # in README.md
Runs = dict[str, dict[int, dict[str, Any]]]


def read_runs(folder: Path, split: str = "test") -> Runs:
    """condition -> seed -> result on a split, in the order of `CONDITIONS`; trials are left out."""
    runs: Runs = {name: {} for name in CONDITIONS}
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text())
        if result["split"] == split and not result["quick"] and not result["change"]:
            runs[result["condition"]][result["seed"]] = result
    return {name: seeds for name, seeds in runs.items() if seeds}


def blocks(runs: Runs, task: str) -> Blocks:
    """Figures of a task in per cent, of the seeds that every condition has."""
    shared = sorted(set.intersection(*(set(seeds) for seeds in runs.values())))
    values = [[100 * score(seeds[seed][task]) for seed in shared] for seeds in runs.values()]
    return Blocks(list(runs), np.array(values))


def comparisons(runs: Runs, base: str) -> int:
    """Number of differences from a condition that a table holds."""
    return len(TASKS) * len([name for name in runs if name not in (base, NONE)])


def cell(gain: float, width: float) -> str:
    """A difference with its interval; bold if the interval leaves out 0."""
    text = f"{gain:+.1f} ± {width:.1f}"
    return f"**{text}**" if abs(gain) > width else text


def table(runs: Runs) -> str:
    """A row per condition: the mean of each test, the gain over no pre-training, the cost of a run."""
    heads = [f"{TITLES[task]} | gain" for task in TASKS]
    lines = [f"| pre-training | {' | '.join(heads)} | s |", "| --- " * (2 * len(TASKS) + 2) + "|"]
    found = {task: blocks(runs, task) for task in TASKS}
    count = comparisons(runs, NONE)
    for name, seeds in runs.items():
        cells = []
        for block in found.values():
            gain = cell(*block.gain(name, NONE, count)) if name != NONE else ""
            cells += [f"{block.mean(name):.1f}", gain]
        cost = statistics.mean(sum(run["seconds"].values()) for run in seeds.values())
        lines.append(f"| {name} | {' | '.join(cells)} | {cost:.0f} |")
    return "\n".join(lines)


def of_all(runs: Runs) -> str:
    """What pre-training gains whatever its target, and what MVM gains whatever its target."""
    lines = [f"| | {' | '.join(TITLES.values())} |", "| --- " * (len(TASKS) + 1) + "|"]
    found = [blocks(runs, task) for task in TASKS]
    asked = {"all with pre-training, over none": ([NONE], NONE)}
    if {NONE, BASE} < set(runs):
        asked[f"all with MVM, over {BASE}"] = ([NONE, BASE], BASE)
    for name, (bases, base) in asked.items():
        cells = [cell(*block.gain_of_all(bases, base, len(asked) * len(TASKS))) for block in found]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def target_table(runs: Runs) -> str:
    """A row per target: gains over pre-training without MVM."""
    lines = [f"| target | {' | '.join(TITLES.values())} |", "| --- " * (len(TASKS) + 1) + "|"]
    count = comparisons(runs, BASE)
    found = [blocks(runs, task) for task in TASKS]
    for name in runs:
        if name not in (NONE, BASE):
            cells = [cell(*block.gain(name, BASE, count)) for block in found]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def recall_table(runs: Runs) -> str:
    """A row per condition: R@1 / 5 / 10 of both retrieval tests, means over the seeds."""
    names = [task for task, kind in TASKS.items() if kind == "retrieval"]
    lines = [
        f"| pre-training | {' | '.join(f'{name}, R@1 / 5 / 10' for name in names)} |",
        "| --- " * (1 + len(names)) + "|",
    ]
    for name, seeds in runs.items():
        cells = [
            " / ".join(
                f"{100 * statistics.mean(run[task][key] for run in seeds.values()):.1f}" for key in RECALLS
            )
            for task in names
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def power_lines(pilot: Runs, runs: Runs, seeds: int) -> Iterable[str]:
    """The difference that the study can find, from the pilot's spread, and from its own."""
    for what, measured in (("pilot, on val", pilot), ("study, on test", runs)):
        if not measured or len(next(iter(measured.values()))) < 2:
            continue
        for task in TASKS:
            block = blocks(measured, task)
            found = [
                detectable(block.deviation, len(CONDITIONS), count, len(TASKS) * (len(CONDITIONS) - 1))
                for count in (seeds, 2 * seeds, 4 * seeds)
            ]
            shown = ", ".join(
                f"{d:.1f} with {n} seeds" for d, n in zip(found, (seeds, 2 * seeds, 4 * seeds), strict=True)
            )
            yield (
                f"- {TITLES[task]} ({what}: {len(measured)} conditions, {block.seeds} seeds): deviation of a "
                f"run {block.deviation:.1f} points; found with 80 % power: differences of {shown}."
            )


def lacking(runs: Runs) -> str:
    """Which conditions have no runs yet."""
    names = [name for name in CONDITIONS if name not in runs]
    return f" Not run yet: {', '.join(names)}; `make study-real` goes on with them." if names else ""


def chances(runs: Runs) -> str:
    """The figures of who guesses."""
    result = next(iter(runs[NONE].values()))
    parts = []
    for task, kind in TASKS.items():
        if kind == "retrieval":
            videos = result[task]["videos"]
            parts.append(f"{task} {100 * sum(d / videos for d in (1, 5, 10)) / 3:.1f}")
    return f"Chance, in per cent: {', '.join(parts)}."


def draw(runs: Runs, path: Path) -> None:
    """Gains over no pre-training on the three tests, and the learning curves of pre-training."""
    import matplotlib.pyplot as plt

    names = [name for name in runs if name != NONE]
    count = comparisons(runs, NONE)
    heights = (0.8 + 0.35 * len(names), 2.6)
    figure, axes = plt.subplots(2, 3, figsize=(12, sum(heights) + 1.2), height_ratios=heights)
    colours = dict(zip(names, plt.get_cmap("tab10").colors, strict=False))  # type: ignore[attr-defined]
    for axis, (task, title) in zip(axes[0], TITLES.items(), strict=True):
        block = blocks(runs, task)
        for row, name in enumerate(names):
            gain, width = block.gain(name, NONE, count)
            axis.errorbar(gain, row, xerr=width, fmt="o", color=colours[name], capsize=3)
            differences = (
                block.values[block.conditions.index(name)] - block.values[block.conditions.index(NONE)]
            )
            axis.plot(differences, [row + 0.25] * block.seeds, "|", color="#999999")
        axis.axvline(0, color="#888888", linewidth=1)
        axis.set_yticks(range(len(names)), names if task == "stamps" else [""] * len(names))
        axis.set_ylim(len(names) - 0.4, -0.6)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("points gained over no pre-training")
        axis.grid(axis="x", color="#dddddd")
    for axis, (key, title) in zip(axes[1], CURVES.items(), strict=True):
        for name in names:
            steps, values = curve(runs[name], key)
            if steps:  # not every condition has the task
                axis.plot(steps, values, color=colours[name], label=name, linewidth=1.2)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step of pre-training")
        axis.grid(color="#eeeeee")
        axis.set_visible(bool(axis.has_data()))
    axes[1][0].legend(fontsize=7, frameon=False)
    figure.tight_layout()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)


CURVES = {
    "mlm_acc": "MLM: hidden words found",
    "vtm_acc": "VTM: right pairs found",
    "mvm_skill": "MVM: loss saved over a constant",
}


def curve(seeds: Mapping[int, dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Steps of pre-training, and the mean of a figure over seeds; of MVM over its targets."""
    rows: dict[int, list[float]] = {}
    for run in seeds.values():
        for row in run["pretraining"]:
            keys = [key] if key in row else [k for k in row if k.startswith("mvm_") and k.endswith("_skill")]
            if keys and key in (*row, "mvm_skill"):
                rows.setdefault(row["step"], []).append(statistics.mean(row[k] for k in keys))
    return list(rows), [statistics.mean(values) for values in rows.values()]


def short_table(runs: Runs) -> str:
    """For the README: no pre-training, without MVM, and every target; means of the seeds."""
    heads = [title.split(",")[0] for title in TITLES.values()]
    lines = [f"| pre-training | {' | '.join(heads)} |", "| --- " * (len(TASKS) + 1) + "|"]
    found = [blocks(runs, task) for task in TASKS]
    count = comparisons(runs, NONE)
    for name in runs:
        cells = []
        for block in found:
            gain, width = block.gain(name, NONE, count) if name != NONE else (0.0, 1.0)
            mean = f"{block.mean(name):.1f}"
            cells.append(f"**{mean}**" if abs(gain) > width else mean)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write_report(results: Path, bench: Path) -> None:
    """Fill bench/STUDY_REAL.md and the README's table, and draw bench/study_real.png."""
    runs = read_runs(results)
    if NONE not in runs or len(runs) < 2 or min(map(len, runs.values())) < 2:
        print(f"{results}: a report needs two seeds of `{NONE}` and of another condition.")
        return
    pilot = read_runs(results / "pilot", "val") if (results / "pilot").is_dir() else {}
    seeds = blocks(runs, "doom").seeds
    parts = [
        table(runs),
        f"{len(runs)} conditions, {seeds} seeds. {chances(runs)}{lacking(runs)}",
        of_all(runs),
        target_table(runs) if {NONE, BASE} < set(runs) else "",
        recall_table(runs),
        "\n".join(power_lines(pilot, runs, seeds)),
    ]
    fill(bench / "STUDY_REAL.md", (START, END), "\n\n".join(filter(None, parts)))
    fill(bench.parent / "README.md", MARKS, short_table(runs))
    draw(runs, bench / "study_real.png")
    print(table(runs))
