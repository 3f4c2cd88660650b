"""Videos or pictures with captions -> the TSV files and the YAML that pre-training reads.

    python _tools/make_tsv.py _data/webvid --captions _data/webvid.csv --output _data --name webvid

In under a minute (a CSV with the columns `video` and `caption`, ten short clips beside it):

    python _tools/make_tsv.py clips/captions.csv --output _data --name clips --frames 4

Writes NAME.yaml, NAME.img.tsv, NAME.caption.tsv (each with its .lineidx), NAME.linelist.tsv, NAME.settings.json
(what they were made from) and, when something could not be used, NAME.failures.tsv (id, path, reason).
_data/README.md defines the formats. After a kill, the same command goes on where it was, to the same bytes.
"""

import argparse
import base64
import contextlib
import csv
import dataclasses
import fcntl
import functools
import hashlib
import io
import itertools
import json
import multiprocessing
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
import yaml
from PIL import Image, ImageOps
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `Output.finish`, which imports from there

VIDEO_SUFFIXES = {
    ".3gp",
    ".avi",
    ".flv",
    ".gif",
    ".m4v",
    ".mkv",
    ".mov",
    ".mp4",
    ".mpeg",
    ".mpg",
    ".mts",
    ".ogv",
}
VIDEO_SUFFIXES |= {".ts", ".webm", ".wmv"}
IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
JPEG_FIELD = b"/9j/"  # base64 of the three bytes that every JPEG begins with
WHOLE = 0.9  # the share of its promised length from which a clip that breaks off is kept
UNREADABLE = (av.FFmpegError, OSError, ValueError, SyntaxError, MemoryError, Image.DecompressionBombError)
FINISHED = ("img.tsv", "img.lineidx", "caption.tsv", "caption.lineidx", "linelist.tsv", "yaml")

Captions = dict[str, list[str]]
Row = tuple[list[bytes], str]  # the fields after the id and '', or none and the reason


@dataclass(frozen=True)
class Item:
    """One row to be: a video or image file, or a row of an existing frames TSV."""

    id: str
    path: Path
    kind: str  # a key of READERS
    offset: int = 0  # of the row in its TSV, in bytes
    problem: str = ""  # why it cannot be used, when that is known before it is opened


@dataclass(frozen=True)
class Sampling:
    """Which frames of a clip are kept, and how they are stored."""

    frames: int = 32
    fps: float | None = None
    max_frames: int | None = None
    size: int = 320
    quality: int = 90

    def pick(self, times: list[float]) -> list[int]:
        """Presentation times of a clip's frames, in seconds -> the numbers of the frames to keep."""
        if self.fps is None:
            return evenly(len(times), self.frames)
        on_screen = frames_on_screen(times, self.fps)
        return [on_screen[number] for number in evenly(len(on_screen), self.max_frames or len(on_screen))]


def evenly(total: int, number: int) -> list[int]:
    """`number` of 0..total-1, first and last included (the middle one when only one is asked for)."""
    if total <= number:
        return list(range(total))
    return np.linspace(0, total - 1, number).round().astype(int).tolist() if number > 1 else [total // 2]


def frames_on_screen(times: list[float], fps: float) -> list[int]:
    """The frames that a viewer sees 0, 1/fps, 2/fps ... seconds after the first, each once."""
    if not times:
        return []
    since_first = np.maximum.accumulate(np.array(times) - times[0])
    moments = np.arange(0, since_first[-1] + 1e-6, 1 / fps)
    return np.unique(np.searchsorted(since_first, moments + 1e-6, side="right") - 1).tolist()


# ---- What there is to do: items and their captions ----


def read_source(source: Path, captions_path: Path | None) -> tuple[list[Item], Captions]:
    """List the items of SOURCE in the order of their rows-to-be, marking those that cannot be used."""
    if source.is_dir():
        items = items_from_folder(source)
    elif source.suffix.lower() in (".csv", ".tsv") and source.is_file():
        items = items_from_csv(source) if source.suffix.lower() == ".csv" else items_from_tsv(source)
    else:
        raise SystemExit(f"{source}: not a folder, .csv or .tsv; check the path")
    if not items:
        raise SystemExit(f"{source}: no video, image or row in it; check the path")
    if captions_path is None and source.suffix.lower() != ".csv":
        raise SystemExit(f"{source}: no captions, and pre-training needs them; give --captions FILE")
    captions = read_captions(captions_path or source)
    return [dataclasses.replace(item, problem=problem_of(item, captions)) for item in items], captions


def items_from_folder(folder: Path) -> list[Item]:
    """The videos and images of the folder and its sub-folders, by path; not other and not hidden files."""
    paths = sorted(path for path in folder.rglob("*") if not path.name.startswith("."))
    videos = [(path, "video") for path in paths if path.suffix.lower() in VIDEO_SUFFIXES]
    return items_from_files(
        folder, videos + [(p, "image") for p in paths if p.suffix.lower() in IMAGE_SUFFIXES]
    )


def items_from_csv(path: Path) -> list[Item]:
    """The files that the columns `video` and `image` name, in the order of their first mention."""
    named = [(row[kind], kind) for row in read_csv(path) for kind in ("video", "image") if row.get(kind)]
    return items_from_files(
        path, [(Path(os.path.normpath(path.parent / name)), kind) for name, kind in named]
    )


def items_from_files(source: Path, files: list[tuple[Path, str]]) -> list[Item]:
    """An item per file, its id the file's stem; two files of the same stem are an error."""
    items: dict[str, Item] = {}
    for path, kind in files:
        known = items.setdefault(path.stem, Item(path.stem, path, kind))
        if known.path != path:
            raise SystemExit(
                f"{source}: {known.path} and {path} share the id {path.stem!r}; rename one of them"
            )
    return list(items.values())


def items_from_tsv(path: Path) -> list[Item]:
    """The rows of a frames TSV."""
    items, first_row, offset = [], {}, 0
    with path.open("rb") as file:
        for row, line in enumerate(file):
            if line.strip():
                id_ = line.rstrip(b"\r\n").split(b"\t", 1)[0].decode("utf-8", "surrogateescape")
                earlier = first_row.setdefault(id_, row)
                repeated = f"row {row} repeats the id of row {earlier}" if earlier != row else ""
                items.append(Item(id_, path, "row", offset, repeated))
            offset += len(line)
    return items


def problem_of(item: Item, captions: Captions) -> str:
    """Why the item cannot have a row, or ''."""
    if not item.id or re.search("[\t\r\n\ud800-\udfff]", item.id):
        return "the id is empty, or has a tab, a line break or a byte that is not UTF-8; rename it"
    return item.problem or ("" if captions.get(item.id) else "no caption")


def read_captions(path: Path) -> Captions:
    """Captions by id from a JSON {id: [captions]}, or from a CSV: by the stem of the file that a row names."""
    captions: Captions = {}
    if path.suffix.lower() != ".json":
        for row in read_csv(path):
            for name in filter(None, (row.get("video"), row.get("image"))):
                captions.setdefault(Path(name).stem, []).append(row.get("caption", ""))
    else:
        try:
            captions = {
                id_: [t] if isinstance(t, str) else [*t] for id_, t in json.loads(path.read_bytes()).items()
            }
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise SystemExit(
                f"{path}: not a JSON of {{id: [captions]}} ({error}); correct the file"
            ) from error
    return {id_: [text.strip() for text in texts if text.strip()] for id_, texts in captions.items()}


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV with a header. Strict, as a forgotten quote would swallow the rows after it."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True, skipinitialspace=True)
            header = [name.strip().lower() for name in next(reader, [])]
            rows = [(reader.line_num, [value.strip() for value in values]) for values in reader if values]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SystemExit(f"{path}: not readable as UTF-8 CSV ({error}); correct the file") from error
    if "caption" not in header or not {"video", "image"} & set(header):
        raise SystemExit(f"{path}: has columns {header}; it needs `video` or `image`, and `caption`")
    for line, values in rows:
        if len(values) != len(header):
            wrong = f"{path} line {line}: {len(values)} values for {len(header)} columns"
            raise SystemExit(f'{wrong}; put a caption that has commas in "double quotes"')
    return [dict(zip(header, values, strict=True)) for _, values in rows]


# ---- One item -> the fields of its row: what the worker processes run ----


def make_row(item: Item, sampling: Sampling) -> Row:
    """The fields of the item's row, or the reason why it has none: nothing in one file stops the others."""
    if item.problem:
        return [], item.problem
    try:
        return READERS[item.kind](item, sampling), ""
    except UNREADABLE as error:
        return [], getattr(error, "strerror", "") or str(error) or type(error).__name__


def read_row(item: Item, sampling: Sampling) -> list[bytes]:
    """A row of an existing TSV as it is: its frames, perhaps after a field that readers skip."""
    with item.path.open("rb") as file:
        file.seek(item.offset)
        fields = file.readline().rstrip(b"\r\n").split(b"\t")[1:]
    frames = fields if fields and fields[0].startswith(JPEG_FIELD) else fields[1:]
    if not frames:
        raise ValueError("the row has no frames")
    for number, frame in enumerate(frames):
        try:
            check_jpeg(frame)
        except (OSError, ValueError) as error:
            raise ValueError(f"frame {number} is not base64 of a whole JPEG: {error}") from error
    return fields


def check_jpeg(frame: bytes) -> None:
    """Raise for a damaged one; decodes it only when the mark of its end is not in its place."""
    jpeg = base64.b64decode(frame, validate=True)
    if not (jpeg.startswith(b"\xff\xd8\xff") and jpeg.endswith(b"\xff\xd9")):
        Image.open(io.BytesIO(jpeg), formats=["JPEG"]).load()


def read_image(item: Item, sampling: Sampling) -> list[bytes]:
    """A still picture, turned as its EXIF says."""
    with Image.open(item.path) as image:
        return [to_field(ImageOps.exif_transpose(image).convert("RGB"), sampling)]


def to_field(image: Image.Image, sampling: Sampling) -> bytes:
    """An RGB picture -> base64 JPEG, its longer side at most `sampling.size`, each pixel the mean of its area."""
    image.thumbnail((sampling.size, sampling.size), Image.Resampling.BOX)
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", quality=sampling.quality)
    return base64.b64encode(jpeg.getvalue())


@dataclass
class Clip:
    """What decoding a video gave."""

    pictures: list[bytes] = field(default_factory=list)  # the wanted frames, as fields of the row
    times: list[float] = field(default_factory=list)  # of every frame, in seconds
    end: float = 0.0  # of the last frame
    promised: float = 0.0  # length that the container states; 0 when it states none
    error: str = ""  # what stopped the decoder before the end


def read_video(item: Item, sampling: Sampling) -> list[bytes]:
    """The picked frames of a clip, with no other decoded frame held in memory.

    Which frames to keep depends on how many there are. The packets tell that without decoding and are nearly
    always right, so a clip is decoded once; where decoding proves them wrong, it is decoded again.
    """
    wanted = sampling.pick(packet_times(item.path))
    clip = decode(item.path, wanted, sampling)
    check_whole(clip)
    picked = sampling.pick(clip.times)
    return clip.pictures if picked == wanted else decode(item.path, picked, sampling).pictures


@contextlib.contextmanager
def open_video(path: Path) -> Iterator[tuple[Any, Any]]:
    """The container and its main video stream, decoded by one thread: other processes use the other cores."""
    # Local files only: a playlist under a video's name must not fetch what it lists.
    with av.open(str(path), options={"protocol_whitelist": "file"}) as container:
        stream = container.streams.best("video")
        if stream is None:
            raise ValueError("no video stream in it")
        stream.codec_context.thread_count = 1
        yield container, stream


def packet_times(path: Path) -> list[float]:
    """Presentation times, in seconds, of the frames that should come out."""
    times = []
    with open_video(path) as (container, stream), contextlib.suppress(av.FFmpegError):
        for packet in container.demux(stream):
            if packet.pts is not None and not packet.is_discard:
                times.append(float(packet.pts * packet.time_base))
    return sorted(times)


def decode(path: Path, wanted: list[int], sampling: Sampling) -> Clip:
    """Decode all frames and keep the wanted ones; an error ends the clip there."""
    clip, keep = Clip(), set(wanted)
    with open_video(path) as (container, stream), contextlib.suppress(av.FFmpegError):
        gap = float(1 / (stream.average_rate or 25))
        clip.promised = promised_seconds(container, stream)
        clip.error = "(the decoder stopped at an error)"
        for number, frame in enumerate(container.decode(stream)):
            if number in keep:
                clip.pictures.append(to_field(frame.to_image(), sampling))
            clip.times.append(number * gap if frame.time is None else frame.time)
            clip.end = clip.times[-1] + (float(frame.duration * frame.time_base) or gap)
        clip.error = ""
    return clip


def promised_seconds(container: Any, stream: Any) -> float:
    """The stream's length by the container's header, or 0: a container's own length may be that of its sound."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration and len(container.streams) == 1 else 0.0


def check_whole(clip: Clip) -> None:
    """Refuse a clip without frames, and a cut one: its caption may be about what is missing.

    A shortfall under a tenth is let pass. Where the container states no length, only a decoding error tells.
    """
    if not clip.times:
        raise ValueError(f"not one frame could be decoded {clip.error}".strip())
    seconds = clip.end - clip.times[0]
    if seconds < WHOLE * clip.promised or (clip.error and not clip.promised):
        promised = f"{clip.promised:.2f}" if clip.promised else "an unknown number of"
        raise ValueError(
            f"cut off: {seconds:.2f} of {promised} seconds could be decoded {clip.error}".strip()
        )


READERS = {"video": read_video, "image": read_image, "row": read_row}


# ---- Many items, in order ----


def make_rows(items: list[Item], sampling: Sampling, workers: int) -> Iterator[Row]:
    """`make_row` of each item in the order of the items, by so many processes (by this one for 1)."""
    if workers == 1:
        yield from (make_row(item, sampling) for item in items)
        return
    window, done = 4 * workers, 0  # a slow item holds up at most a window of rows in memory
    while done < len(items):
        try:
            for row in rows_from_pool(items[done:], sampling, workers, window):
                done += 1
                yield row
        except BrokenProcessPool:  # a decoder crashed its process, or memory ran out: get past it
            for item in items[done : done + window]:
                done += 1
                yield row_alone(item, sampling)


def rows_from_pool(items: list[Item], sampling: Sampling, workers: int, window: int) -> Iterator[Row]:
    """Keep a window of items at work, and give the row of the oldest."""
    pool = new_pool(workers)
    waiting: list[Future[Row]] = []
    try:
        for item in items:
            waiting.append(pool.submit(make_row, item, sampling))
            if len(waiting) == window:
                yield waiting.pop(0).result()
        yield from (future.result() for future in waiting)
    finally:
        pool.shutdown(cancel_futures=True)


def row_alone(item: Item, sampling: Sampling) -> Row:
    """`make_row` in a process of its own, which may crash."""
    try:
        return next(rows_from_pool([item], sampling, workers=1, window=1))
    except BrokenProcessPool:
        return [], "reading it ended the process: the decoder crashed, or memory ran out"


def new_pool(workers: int) -> ProcessPoolExecutor:
    """Worker processes that start as fresh interpreters, as a fork of a process with threads may hang."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=live_with_parent)


def live_with_parent() -> None:
    """Leave Ctrl-C to the parent, and end with it: a pool's processes would wait for ever after its kill."""

    def wait(parent: Any = multiprocessing.parent_process()) -> None:
        parent.join()
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=wait, daemon=True).start()


# ---- The files ----


class Output:
    """The files of one NAME: unfinished ones that grow in the order of the items, and the finished ones.

    NAME.img.tsv.part and NAME.failures.tsv.part grow; NAME.part.json says what they are made from. It becomes
    NAME.settings.json last of all, so that one means: all is there.
    """

    def __init__(self, folder: Path, name: str):
        """Only names the files; `opened` makes them."""
        self.folder, self.name = folder, name
        self.rows, self.rows_part = self.path("img.tsv"), self.path("img.tsv.part")
        self.failures, self.failures_part = self.path("failures.tsv"), self.path("failures.tsv.part")
        self.settings, self.settings_part = self.path("settings.json"), self.path("part.json")
        self.written: list[tuple[Item, int]] = []  # the item and the number of frames of each row
        self.failed: list[tuple[Item, str]] = []  # the item and the reason

    def path(self, ending: str) -> Path:
        """A file of this NAME."""
        return self.folder / f"{self.name}.{ending}"

    def is_finished(self, settings: dict[str, Any]) -> bool:
        """Whether all is there with these settings. Other files of this NAME are an error: they are not ours."""
        there = [self.path(ending) for ending in FINISHED if self.path(ending).exists()]
        before = read_json(self.settings)
        if before == settings and len(there) == len(FINISHED):
            return True
        if there and settings not in (before, read_json(self.settings_part)):
            made = f"{there[0]} is there, made otherwise ({differences(before, settings)})"
            raise SystemExit(f"{made}; give another --name, or --overwrite to replace it")
        return False

    @contextlib.contextmanager
    def opened(self, items: list[Item], settings: dict[str, Any]) -> Iterator[list[Item]]:
        """Open the unfinished files, and give the items that are still to be done."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.settings_part.open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise SystemExit(
                    f"{lock.name}: another make_tsv.py is at work on it; wait for its end"
                ) from error
            done = self._resume(items, settings)
            with (
                self.rows_part.open("ab") as self._rows_file,
                self.failures_part.open("ab") as self._failures_file,
            ):
                yield items[done:]

    def _resume(self, items: list[Item], settings: dict[str, Any]) -> int:
        """Take over what earlier runs have done, or start over; returns the number of items done."""
        before = read_json(self.settings_part)
        if before != settings:
            if before is not None:
                print(f"{self.rows_part}: made otherwise ({differences(before, settings)}); starting over")
            self.settings_part.write_text(
                ""
            )  # a kill in the middle of this must not leave rows that seem ours
            self.rows_part.write_bytes(b"")
            self.failures_part.write_bytes(b"")
            self.settings_part.write_text(json.dumps(settings, indent=1))
            return 0
        if self.rows.exists() and not self.rows_part.exists() and not self.settings.exists():
            self.rows.replace(self.rows_part)  # killed in `finish`
        self.rows_part.touch()
        self.failures_part.touch()
        done, size = self._count_done(items)
        os.truncate(self.rows_part, size)
        self.failures_part.write_bytes(
            b"".join(failure_line(*pair) for pair in self.failed if not pair[0].problem)
        )
        print(f"{self.rows_part}: going on after {done} of {len(items)} items")
        return done

    def _count_done(self, items: list[Item]) -> tuple[int, int]:
        """How many items are done, and the bytes of their whole rows.

        Follows the items through both files, as a power cut may have cost either its last lines.
        """
        *lines, _ = self.failures_part.read_bytes().decode().split("\n")
        reasons = {line.split("\t")[0]: line.split("\t")[2] for line in lines}
        size = 0
        with self.rows_part.open("rb") as file:
            row = file.readline()
            for done, item in enumerate(items):
                if reason := item.problem or reasons.get(item.id):
                    self.failed.append((item, reason))
                elif row.endswith(b"\n") and row.startswith(item.id.encode() + b"\t"):
                    self.written.append((item, count_frames(row)))
                    size += len(row)
                    row = file.readline()
                else:
                    return done, size
        return len(items), size

    def add(self, item: Item, fields: list[bytes], reason: str) -> None:
        """Write the next item's row, or the reason why it has none."""
        if reason:
            self.failed.append((item, reason))
            file, line = self._failures_file, failure_line(item, reason)
        else:
            file, line = self._rows_file, b"\t".join([item.id.encode(), *fields]) + b"\n"
            self.written.append((item, count_frames(line)))
        if not item.problem:  # `_count_done` goes by ids, and the problem may be an id that is there twice
            file.write(line)
            file.flush()

    def finish(self, captions: Captions) -> bool:
        """Make the finished files of the unfinished ones; False when there is not one row."""
        from dataset import write_lineidx  # imports torch: not for the processes that decode
        from lib import atomic_path

        os.fsync(self._rows_file.fileno())
        with atomic_path(self.failures) as path:
            path.write_bytes(b"".join(itertools.starmap(failure_line, self.failed)))
        if not self.failed:
            self.failures.unlink()
        if self.written:
            self.settings.unlink(missing_ok=True)  # until all is new
            self.rows_part.replace(self.rows)
            write_lineidx(self.rows)
            for ending, content in self._texts(captions).items():
                with atomic_path(self.path(ending)) as path:
                    path.write_text(content, encoding="utf-8")
            write_lineidx(self.path("caption.tsv"))
            self.settings_part.replace(self.settings)
        for path in (self.settings_part, self.rows_part, self.failures_part):
            path.unlink(missing_ok=True)
        return bool(self.written)

    def _texts(self, captions: Captions) -> dict[str, str]:
        """Content of the files beside the frames, by ending."""
        texts = [captions[item.id] for item, _ in self.written]
        pairs = [(row, number) for row, some in enumerate(texts) for number in range(len(some))]
        names = {"img": "img.tsv", "caption": "caption.tsv", "caption_linelist": "linelist.tsv"}
        entries: dict[str, Any] = {key: self.path(ending).name for key, ending in names.items()}
        if all(item.kind == "image" or (item.kind == "row" and n == 1) for item, n in self.written):
            entries["image"] = True
        return {
            "caption.tsv": "".join(
                caption_line(self.written[row][0].id, some) for row, some in enumerate(texts)
            ),
            "linelist.tsv": "".join(f"{row}\t{number}\n" for row, number in pairs),
            "yaml": yaml.safe_dump(entries, sort_keys=False),
        }

    def report(self, captions: Captions) -> str:
        """What there is now, in one line."""
        frames, texts = (
            sum(n for _, n in self.written),
            sum(len(captions[item.id]) for item, _ in self.written),
        )
        size = self.rows.stat().st_size / 1e6 if self.written else 0.0
        where = f" (listed in {self.failures})" if self.failed else ""
        counts = f"{len(self.written)} rows, {frames} frames, {texts} captions, {len(self.failed)} failures"
        return f"{counts}{where}, {size:.1f} MB"


def count_frames(row: bytes) -> int:
    """Number of JPEGs in a row."""
    return row.count(b"\t" + JPEG_FIELD)


def caption_line(id_: str, texts: list[str]) -> str:
    """A row of the caption TSV; JSON writes a tab or a line break in a caption as an escape."""
    return f"{id_}\t{json.dumps([{'caption': text} for text in texts], ensure_ascii=False)}\n"


def failure_line(item: Item, reason: str) -> bytes:
    """Id, path and reason, with spaces for the tabs and line breaks in them."""
    fields = [re.sub(r"[\t\r\n]+", " ", text) for text in (item.id, str(item.path), reason)]
    return ("\t".join(fields) + "\n").encode(errors="backslashreplace")


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON file, or None when there is none or a kill left half of it."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None


def differences(before: dict[str, Any] | None, now: dict[str, Any]) -> str:
    """Which settings changed."""
    if before is None:
        return "from what, is not known"
    return ", ".join(f"{key} {before.get(key)} -> {now[key]}" for key in now if before.get(key) != now[key])


# ---- The program ----


def main(arguments: list[str] | None = None) -> int:
    """Make the files; 0 when at least one row was written."""
    args = parse_arguments(arguments)
    items, captions = read_source(args.source, args.captions)
    sampling = Sampling(args.frames, args.fps, args.max_frames, args.size, args.quality)
    settings = settings_of(args.source, sampling, items, captions)
    output = Output(args.output, args.name)
    if not args.overwrite and output.is_finished(settings):
        print(f"{output.path('yaml')}: finished before with these settings (--overwrite makes it again)")
        return 0
    with output.opened(items, settings) as left:
        rows = make_rows(left, sampling, args.workers)
        bar = tqdm(rows, initial=len(items) - len(left), total=len(items), unit="row", desc=args.name)
        for item, (fields, reason) in zip(left, bar, strict=True):
            output.add(item, fields, reason)
        finished = output.finish(captions)
    print(output.report(captions))
    print(output.path("yaml") if finished else "nothing written, as not one row could be made")
    return 0 if finished else 1


def settings_of(source: Path, sampling: Sampling, items: list[Item], captions: Captions) -> dict[str, Any]:
    """All that the output depends on: the same settings, the same bytes. Files count by path and size."""
    size_of = functools.cache(lambda path: path.stat().st_size if path.exists() else None)
    digest = hashlib.sha256()
    for item in items:
        facts = (item.id, str(item.path), item.kind, item.offset, item.problem, size_of(item.path))
        digest.update(repr((facts, captions.get(item.id))).encode())
    return {
        "source": str(source),
        **dataclasses.asdict(sampling),
        "files_and_captions": digest.hexdigest()[:16],
    }


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add, pick = parser.add_argument, parser.add_mutually_exclusive_group()
    source = """a folder of videos and images; or a CSV with columns `video` or `image` (paths from the CSV's folder)
        and `caption`, several rows of a file being several captions; or a frames TSV, kept as it is"""
    frames = """frames per video (default: %(default)s), evenly over it, the first and the last among them; a video
        that has fewer keeps all"""
    add("source", type=absolute, help=source)
    add("--captions", type=absolute, help="for a folder or TSV: a JSON {id: [captions]}, or a CSV as above")
    add("--output", type=absolute, required=True, help="folder to write to, made where missing")
    add("--name", required=True, help="what the names of the written files begin with")
    pick.add_argument("--frames", type=positive, default=32, help=frames)
    pick.add_argument("--fps", type=positive_float, help="instead of --frames: frames per second of video")
    add("--max_frames", type=positive, help="with --fps: at most so many, thinned evenly (default: all)")
    add(
        "--size",
        type=positive,
        default=320,
        help="longest side in pixels (default: %(default)s); never enlarged",
    )
    add("--quality", type=positive, default=90, help="of the JPEGs, 1 to 100 (default: %(default)s)")
    add(
        "--workers",
        type=positive,
        default=os.cpu_count(),
        help="processes (default: %(default)s, one per core)",
    )
    add("--overwrite", action="store_true", help="make finished files again, and replace others of this name")
    args = parser.parse_args(arguments)
    if args.max_frames and not args.fps:
        parser.error("--max_frames goes with --fps")
    if args.captions and args.source.suffix.lower() == ".csv":
        parser.error(f"--captions is for a folder or a TSV; {args.source} has captions of its own")
    if args.source == args.output / f"{args.name}.img.tsv":
        parser.error(f"{args.source} would be replaced by what is made of it; give another --name")
    return args


def absolute(text: str) -> Path:
    """A path that means the same from every folder."""
    return Path(os.path.abspath(os.path.expanduser(text)))


def positive(text: str) -> int:
    """A whole number from 1; argparse names the argument when it is not."""
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def positive_float(text: str) -> float:
    """A number above 0."""
    number = float(text)
    if not 0 < number < float("inf"):
        raise ValueError(text)
    return number


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on from here")
