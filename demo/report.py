"""Write the results of `make demo` to one self-contained page.

    python -m demo.report _snapshot/demo

Reads demo.json and the runs that it names, and writes report.html beside it: scores beside chance and beside
no pre-training, losses, reconstructions, retrievals, questions with the model's answers. The
clips are those of the world that demo.json names; without it the page has no frames.
"""

import argparse
import base64
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2

from lib import NAMES, UserError, run_script
from media.frames import Frames, row_frames
from media.tsv import Videos
from tasks.retrieval.pages import best_and_worst, picture, query, render, write_page

Row = dict[str, Any]
LINES = ("from pre-training", "no pre-training")
TASKS = {  # in the page's order: what is asked
    "demo-qa": "open-ended questions",
    "demo-action": "five options",
    "demo-fib": "fill in the blank",
    "demo-retrieval": "text-to-video retrieval",
}
LABELS = {  # of the columns of a task's scores
    "accuracy": LINES[0],
    "no_pre-training": LINES[1],
    "frequent_by_type": "frequent answer, by type",
    "frequent": "frequent answer",
    "chance": "chance",
}
COLOURS = {"ours": "#3b82c4", "other": "#d98a2b"}
HERE = Path(__file__)


@dataclass(frozen=True)
class Demo:
    """What the demo left behind: its figures, its runs' folders, its clips."""

    output: Path
    result: Mapping[str, Any]

    @classmethod
    def read(cls, output: Path) -> "Demo":
        """Raises `UserError` where no demo has come to its end."""
        path = output / "demo.json"
        if not path.is_file():
            raise UserError(f"{path} does not exist: run make demo first.")
        return cls(output, json.loads(path.read_text()))

    def folder(self, start: str, task: str, what: str = "training") -> Path:
        """Of a run of a task; `start` is pretrained or encoder_only."""
        return self.output / self.result["runs"][start][task][what]

    def clips(self) -> Callable[[str], Frames]:
        """What gives the frames of a clip; raises `BadRow` or `KeyError` where they are not there."""
        path = Path(self.result["data"]) / "img_demo.tsv"
        if not path.is_file():
            return dict[str, Frames]().__getitem__
        videos = Videos(path)
        return lambda name: row_frames(videos[name], path.parent)


def rows(path: Path) -> list[Row]:
    """The objects of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def percent(share: float) -> str:
    """0.471 -> 47.1 %."""
    return f"{100 * share:.1f} %"


# ------------------------------------------------------------------------------------------------- scores


def task_scores(figures: Mapping[str, float]) -> list[tuple[str, str, float]]:
    """The label, kind and share of each bar of a task."""
    kinds = {"accuracy": "ours", "no_pre-training": "other"}
    return [
        (label, kinds.get(name, "chance"), figures[name])
        for name, label in LABELS.items()
        if name in figures and not (name == "frequent" and figures[name] == figures["frequent_by_type"])
    ]


def pretraining_scores(pretraining: Mapping[str, Mapping[str, float]]) -> list[tuple[str, list[str]]]:
    """A label and its figures before and after pre-training, and by chance."""
    names = {"mlm_acc": "hidden words named (MLM)", "vtm_acc": "own text among four (VTM)"}
    lines = []
    for key, chance in pretraining["chance"].items():
        values = (pretraining["before"][key], pretraining["after"][key], chance)
        shown = [percent(value) if key.endswith("acc") else f"{value:.3g}" for value in values]
        lines.append((names.get(key, f"{key.removeprefix('mvm_')} loss (MVM)"), shown))
    return lines


# ------------------------------------------------------------------------------------------------- curves

Points = Sequence[tuple[float, float]]


def chart(title: str, lines: Mapping[str, Points], dots: Points = (), level: float | None = None) -> str:
    """A small picture of curves over steps, as a data URI.

    lines: by their key in `COLOURS`; dots: of evaluations; level: chance.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    grey: dict[Any, str] = dict.fromkeys(
        ("text.color", "axes.edgecolor", "xtick.color", "ytick.color"), "#888888"
    )
    with rc_context({"svg.fonttype": "none", "font.size": 8, **grey}):
        figure = Figure(figsize=(3.2, 2.0), layout="constrained")
        axis = figure.add_subplot()
        for name, line in lines.items():
            axis.plot(
                [x for x, _ in line],
                [y for _, y in line],
                color=COLOURS[name],
                linewidth=1.5,
                marker="." if len(line) == 1 else "",
            )
        axis.plot([x for x, _ in dots], [y for _, y in dots], "o", color=COLOURS["ours"], markersize=5)
        if level is not None:
            axis.axhline(level, color="#888888", linestyle="--", linewidth=1)
        axis.set_title(title, loc="left", fontweight="bold")
        axis.grid(alpha=0.4)
        content = io.BytesIO()
        figure.savefig(content, format="svg", transparent=True, metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(content.getvalue()).decode()


def points(logged: Sequence[Row], name: str) -> Points:
    """Steps and values of a figure, in the rows that have it."""
    return [(row["step"], row[name]) for row in logged if name in row]


def losses(demo: Demo) -> list[tuple[str, str]]:
    """The name and the chart of each loss of pre-training."""
    folder = demo.output / demo.result["runs"]["pretraining"]
    logged, evaluated = rows(folder / "metrics.jsonl"), rows(folder / "eval.jsonl")
    levels = {"vtm": math.log(1 / demo.result["pretraining"]["chance"]["vtm_acc"])}
    levels |= demo.result["pretraining"]["chance"]
    known = ("mlm", "vtm", *(f"mvm_{name}" for name in NAMES["mvm_target"]))
    names = [name for name in logged[-1] if name in known]
    return [
        (name, chart(name, {"ours": points(logged, name)}, points(evaluated, name), levels.get(name)))
        for name in names
    ]


def task_losses(demo: Demo) -> list[tuple[str, str]]:
    """The name and the chart of each task's loss, with and without pre-training."""
    starts = {"other": "encoder_only", "ours": "pretrained"}
    charts = []
    for task, label in TASKS.items():
        logged = {name: rows(demo.folder(start, task) / "metrics.jsonl") for name, start in starts.items()}
        charts.append((label, chart(label, {name: points(part, "loss") for name, part in logged.items()})))
    return charts


# ---------------------------------------------------------------------------------------- clips and answers


def shrunk(path: Path, width: int = 900) -> str:
    """A picture file -> a data URI, no wider than `width` pixels."""
    image = cv2.imread(str(path))
    if image is None:
        raise UserError(f"{path} cannot be read as a picture: run _tools/show_mvm.py again.")
    if image.shape[1] > width:
        size = (width, round(image.shape[0] * width / image.shape[1]))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 80])[1]
    return "data:image/jpeg;base64," + base64.b64encode(jpeg.tobytes()).decode()


def world(demo: Demo, read: Callable[[str], Frames], count: int = 6) -> list[Row]:
    """The first clips of the test split with their captions."""
    path = Path(demo.result["data"]) / "txt_demo-retrieval.json"
    pairs = json.loads(path.read_text())["test"][:count] if path.is_file() else []
    return [
        {"name": pair["video"], "caption": pair["caption"], "frames": picture(read, pair["video"], 4)}
        for pair in pairs
    ]


def examples(asked: Sequence[Row], each: int = 1) -> list[Row]:
    """The first `each` questions of every type that were answered right, and as many answered wrong."""
    chosen = []
    for kind in dict.fromkeys(row.get("type", "") for row in asked):
        for right in (True, False):
            alike = [row for row in asked if row.get("type", "") == kind and row["right"] is right]
            chosen += alike[:each]
    return chosen


def answered(row: Row, read: Callable[[str], Frames]) -> Row:
    """A question with its clip, and the model's five best answers."""
    picks = []
    for place, pick in enumerate(row["best"]):
        truth = pick["answer"] == row["answer"]
        mark = " ✓" if truth else " ✗" if not place else ""
        picks.append({"answer": pick["answer"], "share": pick["probability"], "truth": truth, "mark": mark})
    if not any(pick["truth"] for pick in picks):
        picks.append({"answer": row["answer"], "share": 0.0, "truth": True, "mark": " ✓"})
    return {
        "id": row["id"],
        "frames": picture(read, row["id"], 4),
        "verdict": "right" if row["right"] else "wrong",
        "text": row["question"],
        "picks": picks,
    }


def answers(demo: Demo, read: Callable[[str], Frames]) -> list[tuple[str, list[Row]]]:
    """Examples of every task of questions, from pre-training, on test."""
    parts = []
    for task, label in TASKS.items():
        if task != "demo-retrieval":
            folder = demo.folder("pretrained", task)
            epoch = json.loads((folder / "best.json").read_text())["epoch"]
            asked = rows(folder / f"predictions_test_{epoch}.jsonl")
            chosen = examples(asked, 1 if "type" in asked[0] else 3)
            parts.append((label, [answered(row, read) for row in chosen]))
    return parts


def retrievals(demo: Demo, read: Callable[[str], Frames], queries: int = 3) -> list[tuple[str, list[Any]]]:
    """The best and the worst texts with what they found."""
    found = rows(demo.folder("pretrained", "demo-retrieval", "ranking") / "ranks.jsonl")
    titles = ("Best queries", "Worst queries")
    return [
        (title, [query(row, read) for row in texts])
        for title, texts in zip(titles, best_and_worst(found, queries), strict=True)
    ]


# --------------------------------------------------------------------------------------------------- page


def write(output: Path) -> Path:
    """Write report.html into the demo's folder; returns its path."""
    demo = Demo.read(output)
    read, result = demo.clips(), demo.result
    drawn = sorted((output / result["runs"]["pretraining"]).glob("mvm_*.png"))
    body = render(
        HERE.with_suffix(".html"),
        seed=result["seed"],
        world=world(demo, read),
        tasks=[(label, task_scores(figures)) for label, figures in result["tasks"].items()],
        pretraining=pretraining_scores(result["pretraining"]),
        losses=losses(demo),
        task_losses=task_losses(demo),
        reconstructions=[(path.stem.removeprefix("mvm_"), shrunk(path)) for path in drawn],
        answers=answers(demo, read),
        retrievals=retrievals(demo, read),
        percent=percent,
    )
    style = HERE.with_suffix(".css").read_text()
    write_page(output / "report.html", "VIOLET on a generated world", body, style)
    return output / "report.html"


def main(arguments: list[str] | None = None) -> None:
    """Write the page anew."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "output", type=Path, nargs="?", default=Path("_snapshot/demo"), help="the demo's folder"
    )
    print(write(parser.parse_args(arguments).output))


if __name__ == "__main__":
    run_script(main)
