"""HTML pages of retrieval that need nothing but themselves: pictures are within them."""

import base64
import html
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from media.files import atomic_path
from media.frames import Frames, even_frames
from media.tsv import BadRow

Row = Mapping[str, Any]  # of ranks.jsonl
STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.45 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 70rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
td, th { padding: .2rem .7rem .2rem 0; text-align: right; }
td:first-child, th:first-child { text-align: left; }
article { border-top: 1px solid #8886; padding: .8rem 0; }
.text { font-weight: 600; margin: 0 0 .5rem; overflow-wrap: anywhere; }
.row { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 12.5rem), 1fr)); gap: .6rem; }
figure { margin: 0; padding: .25rem; border: 2px solid transparent; border-radius: .4rem; }
figure.right { border-color: #2a9d4a; }
img, video { width: 100%; display: block; border-radius: .2rem; background: #8883; }
figcaption { font-size: .85rem; overflow-wrap: anywhere; }
.plays { position: relative; }
.plays::after { content: "\\25b6"; position: absolute; top: .4rem; left: .4rem; padding: .1rem .45rem;
  border-radius: .2rem; background: #000a; color: #fff; font-size: .8rem; pointer-events: none; }
.plays:hover::after, .plays:focus-within::after { display: none; }
@media (max-width: 30rem) { table { font-size: .78rem; } td, th { padding-right: .35rem; } }
"""
# controls hide the lower half of a small picture: they come with the pointer, a touch or the keyboard
SCRIPT = """
for (const video of document.querySelectorAll("video")) {
  video.controls = false;
  for (const sign of ["pointerenter", "focus", "click"])
    video.addEventListener(sign, () => { video.controls = true; });
  video.addEventListener("pointerleave", () => { video.controls = !video.paused; });
}
"""


def strip(frames: Frames, count: int = 3, height: int = 96) -> str:
    """The frames of a row -> a data URI: `count` of them, evenly, side by side."""
    pictures = []
    for frame in frames.read(even_frames(len(frames), min(count, len(frames))).tolist()):
        picture = frame.permute(1, 2, 0).numpy()[:, :, ::-1]
        width = max(1, round(picture.shape[1] * height / picture.shape[0]))
        pictures.append(cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA))
    jpeg = cv2.imencode(".jpg", np.concatenate(pictures, axis=1), [cv2.IMWRITE_JPEG_QUALITY, 75])[1]
    return "data:image/jpeg;base64," + base64.b64encode(jpeg.tobytes()).decode()


def figure(media: str, caption: str, right: bool = False) -> str:
    """A picture or video (its tag) with what is said under it; `right` frames it."""
    mark = ' class="right"' if right else ""
    return f"<figure{mark}>{media}<figcaption>{html.escape(caption)}</figcaption></figure>"


def player(source: str, poster: str) -> str:
    """A video at an address, with a picture (a data URI) until it plays; the page needs `SCRIPT` once."""
    return (
        '<div class="plays"><video controls muted loop playsinline tabindex="0" preload="none" '
        f'poster="{poster}" src="{html.escape(source)}"></video></div>'
    )


def article(text: str, figures: Sequence[str]) -> str:
    """A query and what was found."""
    return (
        f'<article><p class="text">{html.escape(text)}</p><div class="row">{"".join(figures)}</div></article>'
    )


def write_page(path: Path, title: str, body: Sequence[str], style: str = "") -> None:
    """A page of these parts, as wide as the screen that shows it; `style` is CSS beyond that of all pages."""
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"<title>{html.escape(title)}</title><style>{STYLE}{style}</style>"
    parts = "\n".join([f"<h1>{html.escape(title)}</h1>", *body])
    with atomic_path(path) as temporary:
        temporary.write_text(
            f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{parts}\n</body></html>\n'
        )


def report(
    rows: Sequence[Row],
    figures: Mapping[str, float],
    read: Callable[[str], Frames],
    queries: int = 10,
) -> list[str]:
    """The parts of an evaluation's page: the figures, and the best and worst texts with their best videos.

    `read` gives the frames of a video.
    """
    parts = [table(figures)]
    parts.append("<p>Under each text the videos that score highest, with the score; its own is framed.</p>")
    for title, chosen in zip(("Best queries", "Worst queries"), best_and_worst(rows, queries), strict=True):
        if chosen:
            parts.append(f"<h2>{title}</h2>")
            parts += [query(row, read) for row in chosen]
    return parts


def best_and_worst(rows: Sequence[Row], queries: int) -> tuple[list[Row], list[Row]]:
    """The texts of ranks.jsonl that found their video best, by rank and margin; the worst, worst first."""

    def place(row: Row) -> tuple[int, float]:
        if row["score"] is None:  # the video cannot be read
            return row["rank"], 0.0
        others = [found["score"] for found in row["best"] if found["video"] != row["video"]]
        return row["rank"], max((score for score in others if score is not None), default=0.0) - row["score"]

    order = sorted((row for row in rows if row["direction"] == "t2v"), key=place)
    return order[:queries], order[queries:][::-1][:queries]


def query(row: Row, read: Callable[[str], Frames]) -> str:
    """A text, its best videos, and its own where that is not among them."""
    names = [(f"{place}. ", found["video"], found["score"]) for place, found in enumerate(row["best"], 1)]
    if row["video"] not in [name for _, name, _ in names]:
        names.append((f"its own, at {row['rank']}: ", row["video"], row["score"]))
    figures = [
        figure(
            picture(read, name),
            f"{place}{name} ({'no score' if score is None else f'{score:.2f}'})",
            right=name == row["video"],
        )
        for place, name, score in names
    ]
    return article(f"{row['text']} (rank {row['rank']})", figures)


def picture(read: Callable[[str], Frames], name: str) -> str:
    """A strip of a video's frames, or that there is none."""
    try:
        frames = strip(read(name))
        return f'<img loading="lazy" alt="frames of {html.escape(name)}" src="{frames}">'
    except (BadRow, KeyError):
        return "<p>it cannot be read</p>"


def table(figures: Mapping[str, float]) -> str:
    """Recall and ranks both ways, beside chance."""
    columns = ("r1", "r5", "r10", "r50", "median", "mean")
    lines = ["".join(f"<th>{name}</th>" for name in ("", "R@1", "R@5", "R@10", "R@50", "median", "mean"))]
    for way, name, among in (("t2v", "text to video", "videos"), ("v2t", "video to text", "texts")):
        shown = [figures[f"{way}_{column}"] for column in columns]
        chance = [min(1.0, depth / figures[among]) for depth in (1, 5, 10, 50)]
        cells = [f"{value:.1%}" for value in shown[:4]] + [f"{value:.1f}" for value in shown[4:]]
        lines.append(f"<td>{name}</td>" + "".join(f"<td>{cell}</td>" for cell in cells))
        middle = f"{(figures[among] + 1) / 2:.1f}"
        cells = [f"{value:.1%}" for value in chance] + [middle] * 2
        lines.append("<td>by chance</td>" + "".join(f"<td>{cell}</td>" for cell in cells))
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"
