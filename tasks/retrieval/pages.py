"""HTML pages of retrieval that need nothing but themselves: pictures are within them."""

import base64
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from media.files import atomic_path
from media.frames import Frames, even_frames
from media.tsv import BadRow

Row = Mapping[str, Any]  # of ranks.jsonl
TEMPLATES = Path(__file__).parent / "templates"


def render(template: Path, **values: Any) -> Markup:
    """A template with these values, which are escaped; it may use the templates of this package."""
    folders = FileSystemLoader([template.parent, TEMPLATES])
    environment = Environment(
        loader=folders, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    return Markup(environment.get_template(template.name).render(values))


def write_page(path: Path, title: str, body: Markup, style: str = "") -> None:
    """A page of what `render` gave, as wide as the screen; `style` is CSS beyond that of all pages."""
    page = render(TEMPLATES / "page.html", title=title, body=body, style=Markup(style))
    with atomic_path(path) as temporary:
        temporary.write_text(page)


def strip(frames: Frames, count: int = 3, height: int = 96) -> str:
    """The frames of a row -> a data URI: `count` of them, evenly, side by side."""
    pictures = []
    for frame in frames.read(even_frames(len(frames), min(count, len(frames))).tolist()):
        picture = frame.permute(1, 2, 0).numpy()[:, :, ::-1]
        width = max(1, round(picture.shape[1] * height / picture.shape[0]))
        pictures.append(cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA))
    jpeg = cv2.imencode(".jpg", np.concatenate(pictures, axis=1), [cv2.IMWRITE_JPEG_QUALITY, 75])[1]
    return "data:image/jpeg;base64," + base64.b64encode(jpeg.tobytes()).decode()


def report(
    rows: Sequence[Row],
    figures: Mapping[str, float],
    read: Callable[[str], Frames],
    queries: int = 10,
) -> Markup:
    """An evaluation's page: the figures, and the best and worst texts with their best videos.

    `read` gives the frames of a video.
    """
    titles = ("Best queries", "Worst queries")
    chosen = [
        (title, [query(row, read) for row in texts])
        for title, texts in zip(titles, best_and_worst(rows, queries), strict=True)
    ]
    return render(TEMPLATES / "retrieval.html", table=table(figures), chosen=chosen)


def best_and_worst(rows: Sequence[Row], queries: int) -> tuple[list[Row], list[Row]]:
    """The texts of ranks.jsonl that found their video best, by rank and margin; the worst, worst first."""

    def place(row: Row) -> tuple[int, float]:
        if row["score"] is None:  # the video cannot be read
            return row["rank"], 0.0
        others = [found["score"] for found in row["best"] if found["video"] != row["video"]]
        return row["rank"], max((score for score in others if score is not None), default=0.0) - row["score"]

    order = sorted((row for row in rows if row["direction"] == "t2v"), key=place)
    return order[:queries], order[queries:][::-1][:queries]


def query(row: Row, read: Callable[[str], Frames]) -> tuple[str, list[dict[str, Any]]]:
    """A text, and its best videos; its own too where it is not among them."""
    names = [(f"{place}. ", found["video"], found["score"]) for place, found in enumerate(row["best"], 1)]
    if row["video"] not in [name for _, name, _ in names]:
        names.append((f"its own, at {row['rank']}: ", row["video"], row["score"]))
    found = [
        {
            "name": name,
            "frames": picture(read, name),
            "caption": f"{place}{name} ({'no score' if score is None else f'{score:.2f}'})",
            "right": name == row["video"],
        }
        for place, name, score in names
    ]
    return f"{row['text']} (rank {row['rank']})", found


def picture(read: Callable[[str], Frames], name: str, count: int = 3) -> str:
    """A strip of a video's frames as a data URI; empty where the video cannot be read."""
    try:
        return strip(read(name), count)
    except (BadRow, KeyError):
        return ""


def table(figures: Mapping[str, float]) -> list[tuple[str, list[str]]]:
    """Recall and ranks in both directions, and by chance: a label and the cells of each row."""
    columns = ("r1", "r5", "r10", "r50", "median", "mean")
    lines = []
    for way, name, among in (("t2v", "text to video", "videos"), ("v2t", "video to text", "texts")):
        shown = [figures[f"{way}_{column}"] for column in columns]
        chance = [min(1.0, depth / figures[among]) for depth in (1, 5, 10, 50)]
        lines.append((name, [f"{x:.1%}" for x in shown[:4]] + [f"{x:.1f}" for x in shown[4:]]))
        middle = f"{(figures[among] + 1) / 2:.1f}"
        lines.append(("by chance", [f"{x:.1%}" for x in chance] + [middle] * 2))
    return lines
