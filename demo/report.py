"""Write the results of `make demo` to one self-contained page.

    python -m demo.report _snapshot/demo

Reads demo.json and the runs that it names, and writes report.html beside it: scores beside chance and beside
no pre-training, losses, reconstructions, retrievals, questions with the model's answers, time and memory. The
clips are those of the world that demo.json names; without it the page has no frames.
"""

import argparse
import base64
import html
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2

from lib import UserError, run_script
from media.frames import Frames, row_frames
from media.tsv import BadRow, Videos
from tasks.retrieval.pages import best_and_worst, picture, query, strip, write_page

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
STYLE = Path(__file__).with_suffix(".css")


@dataclass(frozen=True)
class Demo:
    """The results of the demo: figures, run folders, clips."""

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
        """A reader of the frames of a clip; raises `BadRow` or `KeyError` if they are missing."""
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


def score_rows(figures: Mapping[str, float]) -> Iterable[str]:
    """A row with a bar for each share that a task has."""
    for name, label in LABELS.items():
        if name in figures and not (name == "frequent" and figures[name] == figures["frequent_by_type"]):
            kind = {"accuracy": "ours", "no_pre-training": "other"}.get(name, "chance")
            share = figures[name]
            bar = f'<td class="bar {kind}" style="--share:{100 * share:.1f}%">{percent(share)}</td>'
            yield f"<tr><td>{label}</td>{bar}</tr>"


def task_scores(tasks: Mapping[str, Mapping[str, float]]) -> str:
    """A group of bars for each task."""
    groups = [
        f'<tbody><tr><th colspan="2">{html.escape(label)}</th></tr>{"".join(score_rows(figures))}</tbody>'
        for label, figures in tasks.items()
    ]
    return f'<table class="scores">{"".join(groups)}</table>'


def pretraining_scores(pretraining: Mapping[str, Mapping[str, float]]) -> str:
    """A line per figure: before and after pre-training, and that of who does not look."""
    names = {"mlm_acc": "hidden words named (MLM)", "vtm_acc": "own text among four (VTM)"}
    lines = ["<tr><th></th><th>before</th><th>after</th><th>chance</th></tr>"]
    for key, chance in pretraining["chance"].items():
        label = names.get(key, f"{key.removeprefix('mvm_')} loss (MVM)")
        values = (pretraining["before"][key], pretraining["after"][key], chance)
        shown = [percent(v) if key.endswith("acc") else f"{v:.3g}" for v in values]
        lines.append(f"<tr><td>{label}</td>{''.join(f'<td>{value}</td>' for value in shown)}</tr>")
    return f'<table class="stages">{"".join(lines)}</table>'


# ------------------------------------------------------------------------------------------------- curves

Points = Sequence[tuple[float, float]]
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 320, 190, 44, 22, 24


def ticks(low: float, high: float) -> list[float]:
    """About four round numbers from `low` to `high`."""
    step = 10.0 ** math.floor(math.log10((high - low) / 5))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= 5.001)
    return [step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def chart(title: str, lines: Mapping[str, Points], dots: Points = (), level: float | None = None) -> str:
    """A small picture of curves over steps: `lines` by class, `dots` of evaluations, `level` of chance."""
    points = [point for line in lines.values() for point in line] + list(dots)
    values = [y for _, y in points] + ([] if level is None else [level])
    low, high, end = min(values), max(values), max(x for x, _ in points) or 1
    pad = 0.05 * (high - low) or 0.5
    low, high = low - pad, high + pad

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (WIDTH - LEFT - 8) * x / end
        return round(across, 1), round(TOP + (HEIGHT - TOP - BOTTOM) * (high - y) / (high - low), 1)

    parts = [f'<text x="0" y="13" font-weight="600">{html.escape(title)}</text>']
    for value in ticks(low, high):
        y = place(0, value)[1]
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - 8}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{y + 4}" text-anchor="end">{value:.4g}</text>')
    for x, anchor in ((0, "start"), (end, "end")):
        where, said = place(x, 0)[0], f"{x:.0f} steps" if x else "0"
        parts.append(f'<text x="{where}" y="{HEIGHT - 6}" text-anchor="{anchor}">{said}</text>')
    if level is not None:
        y = place(0, level)[1]
        parts.append(f'<line class="level" x1="{LEFT}" x2="{WIDTH - 8}" y1="{y}" y2="{y}"/>')
    for name, line in lines.items():
        way = " ".join(f"{x},{y}" for x, y in (place(*point) for point in line))
        parts.append(f'<polyline class="{name}" points="{way}"/>')
    for x, y in (place(*point) for point in dots):
        parts.append(f'<circle class="ours" cx="{x}" cy="{y}" r="4"/>')
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}</svg>'


def points(logged: Sequence[Row], name: str) -> Points:
    """Steps and values of a figure, in the rows that have it."""
    return [(row["step"], row[name]) for row in logged if name in row]


def key(*entries: tuple[str, str]) -> str:
    """The legend of the charts that follow."""
    marks = [f'<b class="{kind}"></b> {html.escape(label)}' for kind, label in entries]
    return f'<p class="key">{" &emsp; ".join(marks)}</p>'


def curves(demo: Demo) -> list[str]:
    """The losses of every run."""
    folder = demo.output / demo.result["runs"]["pretraining"]
    logged, evaluated = rows(folder / "metrics.jsonl"), rows(folder / "eval.jsonl")
    levels = {"vtm": math.log(1 / demo.result["pretraining"]["chance"]["vtm_acc"])}
    levels |= demo.result["pretraining"]["chance"]
    names = [n for n in logged[-1] if n in ("mlm", "vtm") or (n.startswith("mvm_"))]
    charts = [
        chart(name, {"ours": points(logged, name)}, points(evaluated, name), levels.get(name))
        for name in names
    ]
    marks = key(("ours", "in training; dots: on unseen clips"), ("level", "guessing, or the best constant"))
    parts = ["<h3>Pre-training</h3>", marks, f'<div class="charts">{"".join(charts)}</div>']
    charts = []
    for task, label in TASKS.items():
        starts = {"other": "encoder_only", "ours": "pretrained"}
        found = {n: rows(demo.folder(s, task) / "metrics.jsonl") for n, s in starts.items()}
        charts.append(chart(label, {name: points(logged, "loss") for name, logged in found.items()}))
    parts += ["<h3>Tasks</h3>", key(("ours", LINES[0]), ("other", LINES[1]))]
    return [*parts, f'<div class="charts">{"".join(charts)}</div>']


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


def reconstructions(folder: Path) -> str:
    """The pictures that show_mvm.py has drawn."""
    figures = [
        f'<figure><img alt="{path.stem.removeprefix("mvm_")} reconstructed" src="{shrunk(path)}"></figure>'
        for path in sorted(folder.glob("mvm_*.png"))
    ]
    return f'<div class="mvm">{"".join(figures)}</div>'


def world(demo: Demo, read: Callable[[str], Frames], count: int = 6) -> str:
    """The first clips of the test split with their captions."""
    path = Path(demo.result["data"]) / "txt_demo-retrieval.json"
    pairs = json.loads(path.read_text())["test"][:count] if path.is_file() else []
    cards = [
        f"<figure>{seen(read, pair['video'])}<figcaption>{html.escape(pair['caption'])}</figcaption></figure>"
        for pair in pairs
    ]
    return f'<div class="cards">{"".join(cards)}</div>'


def seen(read: Callable[[str], Frames], video: str) -> str:
    """The four frames of a clip that the model is shown."""
    try:
        return f'<img loading="lazy" alt="frames of {html.escape(video)}" src="{strip(read(video), 4)}">'
    except (BadRow, KeyError):
        return picture(read, video)


def examples(asked: Sequence[Row], each: int = 1) -> list[Row]:
    """The first `each` questions of every type that were answered right, and as many answered wrong."""
    chosen = []
    for kind in dict.fromkeys(row.get("type", "") for row in asked):
        for right in (True, False):
            alike = [row for row in asked if row.get("type", "") == kind and row["right"] is right]
            chosen += alike[:each]
    return chosen


def answered(row: Row, read: Callable[[str], Frames]) -> str:
    """A question with its clip, and the model's five best answers."""
    answers = []
    for place, pick in enumerate(row["best"]):
        truth = pick["answer"] == row["answer"]
        mark = " ✓" if truth else " ✗" if not place else ""
        share = f"--share:{100 * pick['probability']:.1f}%"
        said = f"<span>{html.escape(pick['answer'])}{mark}</span><span>{percent(pick['probability'])}</span>"
        answers.append(f'<li{" class=truth" if truth else ""} style="{share}">{said}</li>')
    if all(pick["answer"] != row["answer"] for pick in row["best"]):
        answers.append(
            f'<li class="truth" style="--share:0%"><span>{html.escape(row["answer"])} ✓</span></li>'
        )
    verdict = "right" if row["right"] else "wrong"
    text = f'<span class="verdict">{verdict}</span>{html.escape(row["question"])}'
    return (
        f'<article class="is-{verdict}">{seen(read, row["id"])}<p class="text">{text}</p>'
        f'<ol class="answers">{"".join(answers)}</ol></article>'
    )


def answers(demo: Demo, read: Callable[[str], Frames]) -> list[str]:
    """Examples of every task of questions, from pre-training, on test."""
    parts = []
    for task, label in TASKS.items():
        if task != "demo-retrieval":
            folder = demo.folder("pretrained", task)
            epoch = json.loads((folder / "best.json").read_text())["epoch"]
            asked = rows(folder / f"predictions_test_{epoch}.jsonl")
            cards = [answered(row, read) for row in examples(asked, 1 if "type" in asked[0] else 3)]
            parts += [f"<h3>{label}</h3>", f'<div class="cards">{"".join(cards)}</div>']
    return parts


def retrievals(demo: Demo, read: Callable[[str], Frames], queries: int = 3) -> list[str]:
    """The best and the worst texts with what they found."""
    found = rows(demo.folder("pretrained", "demo-retrieval", "ranking") / "ranks.jsonl")
    parts = []
    for title, texts in zip(("Best queries", "Worst queries"), best_and_worst(found, queries), strict=True):
        parts += [f"<h3>{title}</h3>", *(query(row, read) for row in texts)]
    return parts


# --------------------------------------------------------------------------------------------------- page


def stages(result: Mapping[str, Any]) -> list[str]:
    """When each stage ran, how long, and its largest process."""
    ran = result["stages"]
    end = max(s["began"] + s["seconds"] for s in ran)
    lines = ["<tr><th>stage</th><th>seconds</th><th>GiB</th></tr>"]
    for s in ran:
        start, stop = (f"{100 * at / end:.1f}%" for at in (s["began"], s["began"] + s["seconds"]))
        colours = f"transparent {start},#3b82c455 {start} {stop},transparent {stop}"
        cells = f"<td>{s['seconds']:.0f}</td><td>{s['memory_gib']:.2f}</td>"
        bar = f"background:linear-gradient(to right,{colours})"
        lines.append(f'<tr style="{bar}"><td>{html.escape(s["name"])}</td>{cells}</tr>')
    cores = f"{result['cores']} core{'s' * (result['cores'] > 1)}"
    said = f"{end / 60:.1f} minutes on {cores}; the bars say when. GiB: the largest process."
    return [f"<p>{said}</p>", f'<table class="stages">{"".join(lines)}</table>']


def body(demo: Demo) -> list[str]:
    """All parts of the page."""
    read, result = demo.clips(), demo.result
    pretraining = demo.output / result["runs"]["pretraining"]
    return [
        "<p>A generated world of videos; a miniature VIOLET pre-trained on it, then trained on four tasks, "
        "and on the same once more without pre-training. Figures are those of clips that no training has "
        f"seen, seed {result['seed']}.</p>",
        world(demo, read),
        "<h2>Scores</h2>",
        task_scores(result["tasks"]),
        "<h2>Pre-training</h2>",
        "<p>Of losses, less is better; their chance is the best constant prediction.</p>",
        pretraining_scores(result["pretraining"]),
        "<h2>Losses</h2>",
        *curves(demo),
        "<h2>Reconstructions</h2>",
        "<p>Hidden patches are grey; a reconstruction shows what the model put there.</p>",
        reconstructions(pretraining),
        "<h2>Questions</h2>",
        "<p>The first of each type that it answered right, and the first wrong. ✓ the right answer, "
        "✗ its wrong first choice.</p>",
        *answers(demo, read),
        "<h2>Retrieval</h2>",
        "<p>Texts with the videos that they found, the right one framed.</p>",
        *retrievals(demo, read),
        "<h2>Time and memory</h2>",
        *stages(result),
    ]


def write(output: Path) -> Path:
    """Write report.html into the demo's folder; returns its path."""
    demo = Demo.read(output)
    write_page(output / "report.html", "VIOLET on a generated world", body(demo), STYLE.read_text())
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
