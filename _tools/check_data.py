"""Check before a run that its data is complete, readable and consistent with the config.

    python _tools/check_data.py _args/args_msrvtt-qa.json

In under a minute on a corpus of any size, by decoding a sample of its rows (`--KEY VALUE` overrides a key of
every given config):

    python _tools/check_data.py _args/args_pretrain.json --sample 200 --txt_backbone bert-base-uncased

The program prints a table of the checks with the number of faults, names the first fault of each, and draws
some clips with their text, `path_output/check_TASK.png`. Exit code 1: a run would stop or lose samples.
"""

import argparse
import json
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw
from torch import Tensor

import root  # noqa: F401
from _tools.convert.checks import Report, Sample, check_downstream, check_pretrain
from engine.arguments import load_config
from lib import Config, UserError, log, run_script
from media.files import atomic_path
from media.tokens import Tokens

SIDE = 128  # pixels of a frame on the contact sheet, its longer side
TEXT = 40  # pixels of the text below frames
FIRST = 300  # characters of the first fault


def table(report: Report) -> str:
    """A line per finding, errors marked; then the first fault of each."""
    heads = ("", "where", "what", "found", "of")
    rows = [heads]
    for f in report.findings:
        mark = ("ERROR" if f.stops else "note") if f.faults else ""
        rows.append((mark, f.where, f.what, str(len(f.faults)), str(f.total)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    firsts = [f"{f.where}, {f.what}: {shorten(f.faults[0])}" for f in report.findings if f.faults]
    return "\n".join([*lines, *(["", "The first of each:"] if firsts else []), *firsts])


def shorten(text: str) -> str:
    """A fault in one line."""
    text = " ".join(text.split())
    return text if len(text) <= FIRST else f"{text[:FIRST]} ..."


def contact_sheet(clips: Sequence[tuple[str, Sequence[Tensor]]]) -> Image.Image:
    """A row per clip: its frames, its text below."""
    columns = max(4, *(len(frames) for _, frames in clips))
    strips = [draw_clip(text, frames, columns * (SIDE + 4)) for text, frames in clips]
    sheet = Image.new("RGB", (strips[0].width, sum(strip.height for strip in strips)))
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    return sheet


def draw_clip(text: str, frames: Sequence[Tensor], width: int) -> Image.Image:
    """A clip's frames side by side, its text below."""
    pictures = [Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy()) for frame in frames]
    for picture in pictures:
        picture.thumbnail((SIDE, SIDE))
    height = max(picture.height for picture in pictures)
    strip = Image.new("RGB", (width, height + TEXT), "white")
    for column, picture in enumerate(pictures):
        strip.paste(picture, (column * (SIDE + 4), height - picture.height))
    lines = textwrap.wrap(text, width=width // 6)[:2]
    ImageDraw.Draw(strip).multiline_text((2, height + 1), "\n".join(lines), fill="black", spacing=1)
    return strip


def read_config(path: str, overrides: Sequence[str]) -> Config:
    """A config of whichever type it says it is."""
    try:
        kind = json.loads(Path(path).read_text()).get("type", "pretrain")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path} cannot be read as a config ({error}); give one of _args/.") from error
    return load_config(kind, ["--config", path, *overrides])


def look(path: str, overrides: Sequence[str], rows: int, sheet: Path | None) -> int:
    """Check one config's data, print the table, draw clips; returns the number of errors."""
    config = read_config(path, overrides)
    tokens = Tokens(config.tokenizer or config.txt_backbone, config.size_txt)
    report, sample = Report(), Sample(rows, config.seed)
    check = check_pretrain if config.type == "pretrain" else check_downstream
    log.disabled = True  # what the loaders would log is in the table
    try:
        check(config, tokens, report, sample)
    finally:
        log.disabled = False
    print(table(report))
    if report.clips:
        sheet = sheet or Path(config.path_output) / f"check_{config.task}.png"
        with atomic_path(sheet) as temporary:
            contact_sheet(report.clips).save(temporary, "PNG")
        print(f"\nsome clips: {sheet}")
    errors = sum(bool(f.faults) and f.stops for f in report.findings)
    print(f"{errors} errors" if errors else "no errors")
    return errors


def main(arguments: Sequence[str] | None = None) -> None:
    """Check the data of every config; exits with 1 if there are errors."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("config", nargs="+", help="JSON files of runs, of any type")
    parser.add_argument(
        "--sample", type=int, default=0, help="number of rows of each corpus to decode (default: 0, all)"
    )
    parser.add_argument(
        "--sheet",
        type=Path,
        help="picture to write, for a single config (default: path_output/check_TASK.png)",
    )
    options, overrides = parser.parse_known_args(arguments)
    if options.sheet and len(options.config) > 1:
        parser.error("--sheet needs a single config")
    errors = 0
    for path in options.config:
        if len(options.config) > 1:
            print(f"\n{path}")
        errors += look(path, overrides, options.sample, options.sheet)
    sys.exit(1 if errors else 0)


if __name__ == "__main__":
    run_script(main)
