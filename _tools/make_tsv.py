"""Videos or pictures with captions -> the TSV files and the YAML that pre-training reads.

    python _tools/make_tsv.py _data/webvid --captions _data/webvid.csv --output _data --name webvid

In under a minute (a CSV with the columns `video` and `caption`, ten short clips beside it):

    python _tools/make_tsv.py clips/captions.csv --output _data --name clips --frames 4

Writes NAME.yaml, NAME.img.tsv and NAME.caption.tsv (each with its .lineidx), NAME.linelist.tsv,
NAME.settings.json (what they were made from) and NAME.failures.tsv (id, path, reason of what was left out).
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
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import yaml
from PIL import Image, ImageOps
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `Output.finish`, which imports from there

VIDEOS = ".3gp .avi .flv .gif .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv"
IMAGES = ".bmp .jpeg .jpg .png .tif .tiff .webp"
KINDS = dict.fromkeys(VIDEOS.split(), "video") | dict.fromkeys(IMAGES.split(), "image")
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
    """The videos and images of the folder and its sub-folders, by path; hidden files are left out."""
    paths = sorted(path for path in folder.rglob("*") if not path.name.startswith("."))
    files = [(path, KINDS[path.suffix.lower()]) for path in paths if path.suffix.lower() in KINDS]
    return items_from_files(folder, files)


def items_from_csv(table: Path) -> list[Item]:
    """The files that the columns `video` and `image` name, in the order of their first mention."""
    named = [(row[kind], kind) for row in read_csv(table) for kind in ("video", "image") if row.get(kind)]
    files = [(Path(os.path.normpath(table.parent / name)), kind) for name, kind in named]
    return items_from_files(table, files)


def items_from_files(source: Path, files: list[tuple[Path, str]]) -> list[Item]:
    """An item per file, its id the file's stem; two files of the same stem are an error."""
    items: dict[str, Item] = {}
    for path, kind in files:
        known = items.setdefault(path.stem, Item(path.stem, path, kind))
        if known.path != path:
            raise SystemExit(f"{source}: {known.path} and {path} would have the same id; rename one of them")
    return list(items.values())


def items_from_tsv(path: Path) -> list[Item]:
    """The rows of a frames TSV."""
    items: list[Item] = []
    first_row: dict[str, int] = {}
    offset = 0
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
    """Captions by id, from a JSON {id: [captions]} or from a CSV, whose files' stems are the ids."""
    captions = captions_from_json(path) if path.suffix.lower() == ".json" else captions_from_csv(path)
    return {id_: [text.strip() for text in texts if text.strip()] for id_, texts in captions.items()}


def captions_from_json(path: Path) -> Captions:
    """A JSON {id: [captions]}; a lone caption may stand without its list."""
    try:
        entries = json.loads(path.read_bytes())
        captions = {id_: [texts] if isinstance(texts, str) else texts for id_, texts in entries.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise SystemExit(f"{path}: not a JSON of {{id: [captions]}} ({error}); correct it") from error
    for id_, texts in captions.items():
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise SystemExit(f"{path}: {id_!r} has {texts!r}; give it a list of captions")
    return captions


def captions_from_csv(path: Path) -> Captions:
    """The column `caption` by the stem of the file that the row names."""
    captions: Captions = {}
    for row in read_csv(path):
        for kind in ("video", "image"):
            if row.get(kind):
                captions.setdefault(Path(row[kind]).stem, []).append(row["caption"])
    return captions


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
    """An RGB picture -> base64 JPEG, at most `sampling.size` long, a pixel being the mean of its area."""
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
            clip.end = clip.times[-1] + (float(frame.duration * (frame.time_base or 0)) or gap)
        clip.error = ""
    return clip


def promised_seconds(container: Any, stream: Any) -> float:
    """The stream's length by the header, or 0; that of the whole container may be its sound's."""
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
        damage = f"cut off or damaged {clip.error}".strip()
        raise ValueError(f"{damage}: {seconds:.2f} of {promised} seconds could be decoded")


READERS = {"video": read_video, "image": read_image, "row": read_row}


# ---- Many items, in order ----


def make_rows(items: list[Item], sampling: Sampling, workers: int) -> Iterator[Row]:
    """`make_row` of each item in the order of the items, by so many processes (by this one for 1)."""
    if workers == 1:
        yield from (make_row(item, sampling) for item in items)
        return
    window = 4 * workers  # rows that may wait in memory for a slow one before them
    done, crashed = 0, False
    while done < len(items):
        # After a crash one process takes the items singly, so that a second crash tells which it was.
        some, pool = (items[done : done + window], (1, 1)) if crashed else (items[done:], (workers, window))
        try:
            for row in rows_from_pool(some, sampling, *pool):
                done += 1
                yield row
            crashed = False
        except BrokenProcessPool:
            if crashed:
                done += 1
                yield [], "reading it ended the process: the decoder crashed, or memory ran out"
            crashed = not crashed


def rows_from_pool(items: list[Item], sampling: Sampling, workers: int, window: int) -> Iterator[Row]:
    """Keep a window of items at work, and give the row of the oldest."""
    spawn = multiprocessing.get_context("spawn")  # a fork of a process that has threads may hang
    pool = ProcessPoolExecutor(workers, mp_context=spawn, initializer=live_with_parent)
    waiting: list[Future[Row]] = []
    try:
        for item in items:
            waiting.append(pool.submit(make_row, item, sampling))
            if len(waiting) == window:
                yield waiting.pop(0).result()
        yield from (future.result() for future in waiting)
    finally:
        pool.shutdown(cancel_futures=True)


def live_with_parent() -> None:
    """Leave Ctrl-C to the parent, and end with it: a pool's processes would wait for ever after its kill."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent:
            parent.join()
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=wait, daemon=True).start()


# ---- The files ----


class Done(NamedTuple):
    """What the journal says of an item."""

    end: int  # bytes of all rows so far
    frames: int
    reason: str  # why it has no row


class Output:
    """The files of one NAME, whose rows grow in the order of the items.

    Until all is done they are NAME.img.tsv.part and NAME.part.jsonl, which has the settings, then a line per
    item that is done. NAME.settings.json comes last, so that one means: all is there.
    """

    def __init__(
        self, folder: Path, name: str, items: list[Item], captions: Captions, settings: dict[str, Any]
    ):
        """Only names the files; `opened` makes them."""
        self.folder, self.name = folder, name
        self.items, self.captions, self.settings = items, captions, settings
        self.rows, self.part, self.journal = map(self.path, ("img.tsv", "img.tsv.part", "part.jsonl"))
        self.done: list[Done] = []

    def path(self, ending: str) -> Path:
        """A file of this NAME."""
        return self.folder / f"{self.name}.{ending}"

    def is_finished(self) -> bool:
        """Whether all is there, made with these settings; files made otherwise are an error."""
        there = [self.path(ending) for ending in FINISHED if self.path(ending).exists()]
        before = next(iter(read_lines(self.path("settings.json"))), None)
        if there and before != self.settings and self.settings not in read_lines(self.journal):
            changes = differences(before, self.settings)
            raise SystemExit(f"{there[0]}: made otherwise ({changes}); give another --name or --overwrite")
        return before == self.settings and len(there) == len(FINISHED)

    @contextlib.contextmanager
    def opened(self) -> Iterator[list[Item]]:
        """Open the unfinished files, and give the items that are still to be done."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.journal.open("ab") as self._journal_file:
            try:
                fcntl.flock(self._journal_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise SystemExit(
                    f"{self.journal}: another make_tsv.py is at work on it; let it end"
                ) from error
            self._resume()
            with self.part.open("ab") as self._rows_file:
                yield self.items[len(self.done) :]

    def _resume(self) -> None:
        """Take over what earlier runs have done with the same settings, or start over."""
        before, *done = read_lines(self.journal) or [None]
        if before == self.settings:
            if len(done) == len(self.items) and self.rows.exists() and not self.part.exists():
                self.rows.replace(self.part)  # killed in `finish`
            self.part.touch()
            size = self.part.stat().st_size
            self.done = [entry for entry in itertools.starmap(Done, done) if entry.end <= size]
            os.truncate(self.journal, len("".join(map(json_line, [self.settings, *self.done]))))
            print(f"{self.part}: going on after {len(self.done)} of {len(self.items)} items")
        else:
            if before:
                print(f"{self.part}: made otherwise ({differences(before, self.settings)}); starting over")
            self.journal.write_text(json_line(self.settings))
            self.part.touch()
        os.truncate(self.part, self._size())

    def _size(self) -> int:
        """Bytes of the rows that the journal knows."""
        return self.done[-1].end if self.done else 0

    def add(self, item: Item, fields: list[bytes], reason: str) -> None:
        """Write the next item's row, if it has one, then its line of the journal."""
        row = b"" if reason else b"\t".join([item.id.encode(), *fields]) + b"\n"
        self._rows_file.write(row)
        self._rows_file.flush()
        self.done.append(Done(self._size() + len(row), row.count(b"\t" + JPEG_FIELD), reason))
        self._journal_file.write(json_line(self.done[-1]).encode())
        self._journal_file.flush()

    def finish(self) -> bool:
        """Make the finished files of the unfinished ones; False when there is not one row."""
        from lib import atomic_path
        from tsv import write_lineidx  # imports torch: not for the processes that decode

        def write(ending: str, lines: Iterable[str]) -> None:
            with atomic_path(self.path(ending)) as path:
                path.write_bytes("".join(lines).encode(errors="backslashreplace"))

        os.fsync(self._rows_file.fileno())
        write(
            "failures.tsv", (failure_line(item, entry.reason) for item, entry in self._entries(failed=True))
        )
        texts = [(item.id, self.captions[item.id]) for item, _ in self._entries()]
        pairs = [(row, number) for row, (_, some) in enumerate(texts) for number in range(len(some))]
        if texts:
            self.path("settings.json").unlink(missing_ok=True)  # until all is new
            self.part.replace(self.rows)
            write("caption.tsv", (caption_line(*pair) for pair in texts))
            write("linelist.tsv", (f"{row}\t{number}\n" for row, number in pairs))
            write_lineidx(self.rows)
            write_lineidx(self.path("caption.tsv"))
            write("yaml", self._yaml())
            write("settings.json", json_line(self.settings))
        self.journal.unlink()
        self.part.unlink(missing_ok=True)
        return bool(texts)

    def _entries(self, failed: bool = False) -> list[tuple[Item, Done]]:
        """The items that have a row, or those that have none, and what the journal says of them."""
        pairs = zip(self.items, self.done, strict=True)
        return [(item, entry) for item, entry in pairs if bool(entry.reason) == failed]

    def _yaml(self) -> str:
        """What a pre-training configuration points at; the names in it are from the YAML's folder."""
        names = {"img": "img.tsv", "caption": "caption.tsv", "caption_linelist": "linelist.tsv"}
        entries: dict[str, Any] = {key: self.path(ending).name for key, ending in names.items()}
        if all(item.kind != "video" and entry.frames == 1 for item, entry in self._entries()):
            entries["image"] = True
        return yaml.safe_dump(entries, sort_keys=False)

    def report(self) -> str:
        """What there is now, in two lines."""
        rows, failures = self._entries(), len(self._entries(failed=True))
        frames = sum(entry.frames for _, entry in rows)
        texts = sum(len(self.captions[item.id]) for item, _ in rows)
        where = f" (listed in {self.path('failures.tsv')})" if failures else ""
        counts = f"{len(rows)} rows, {frames} frames, {texts} captions, {self._size() / 1e6:.1f} MB"
        result = self.path("yaml") if rows else "nothing written: not one row could be made"
        return f"{counts}, {failures} failures{where}\n{result}"


def caption_line(id_: str, texts: list[str]) -> str:
    """A row of the caption TSV; JSON writes a tab or a line break in a caption as an escape."""
    return f"{id_}\t{json.dumps([{'caption': text} for text in texts], ensure_ascii=False)}\n"


def failure_line(item: Item, reason: str) -> str:
    """Id, path and reason, with spaces for the tabs and line breaks in them."""
    return "\t".join(re.sub(r"[\t\r\n]+", " ", text) for text in (item.id, str(item.path), reason)) + "\n"


def json_line(value: Any) -> str:
    """A line of a journal, in ASCII."""
    return json.dumps(value) + "\n"


def read_lines(path: Path) -> list[Any]:
    """The whole lines of a file of JSON lines; a kill may have left half of the last one."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def differences(before: dict[str, Any] | None, now: dict[str, Any]) -> str:
    """Which settings changed."""
    if before is None:
        return "its settings are not known"
    return ", ".join(f"{key} {before.get(key)} -> {now[key]}" for key in now if before.get(key) != now[key])


# ---- The program ----


def main(arguments: list[str] | None = None) -> int:
    """Make the files; 0 when at least one row was written."""
    args = parse_arguments(arguments)
    items, captions = read_source(args.source, args.captions)
    sampling = Sampling(args.frames, args.fps, args.max_frames, args.size, args.quality)
    settings = settings_of(args.source, sampling, items, captions)
    output = Output(args.output, args.name, items, captions, settings)
    if not args.overwrite and output.is_finished():
        print(f"{output.path('yaml')}: finished before with these settings (--overwrite makes it again)")
        return 0
    with output.opened() as left:
        rows = make_rows(left, sampling, args.workers)
        bar = tqdm(rows, initial=len(items) - len(left), total=len(items), unit="row", desc=args.name)
        for item, (fields, reason) in zip(left, bar, strict=True):
            output.add(item, fields, reason)
        written = output.finish()
    print(output.report())
    return 0 if written else 1


def settings_of(source: Path, sampling: Sampling, items: list[Item], captions: Captions) -> dict[str, Any]:
    """All that the output depends on: the same settings, the same bytes. Files count by path and size."""
    size_of = functools.cache(lambda path: path.stat().st_size if path.exists() else None)
    digest = hashlib.sha256()
    for item in items:
        digest.update(repr((item, size_of(item.path), captions.get(item.id))).encode())
    return {"source": str(source), **dataclasses.asdict(sampling), "content": digest.hexdigest()[:16]}


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw, allow_abbrev=False)
    add = parser.add_argument
    add("source", type=absolute, help=SOURCE_HELP)
    add("--captions", type=absolute, help="for a folder or TSV: a JSON {id: [captions]}, or a CSV as above")
    add("--output", type=absolute, required=True, help="folder to write to, made when missing")
    add("--name", required=True, help="what the names of the written files begin with")
    add("--frames", type=positive, default=32, help=FRAMES_HELP)
    add("--fps", type=float, help="instead of --frames: frames per second of the video")
    add("--max_frames", type=positive, help="with --fps: at most so many, thinned evenly (default: all)")
    add(
        "--size", type=positive, default=320, help="longest side, pixels (default: %(default)s); only shrinks"
    )
    add("--quality", type=positive, default=90, help="of the JPEGs, 1 to 100 (default: %(default)s)")
    add("--workers", type=positive, default=os.cpu_count(), help="processes (default: one per core)")
    add("--overwrite", action="store_true", help="make finished files again, and replace others of this name")
    args = parser.parse_args(arguments)
    if args.fps is not None and not args.fps > 0:
        parser.error(f"--fps {args.fps}: give a number above 0")
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
    if int(text) < 1:
        raise ValueError(text)
    return int(text)


SOURCE_HELP = """a folder of videos and images; or a CSV with the columns `video` or `image` (paths from the
    CSV's folder) and `caption`, a row per caption; or a frames TSV, whose frames are kept as they are"""
FRAMES_HELP = """frames per video (default: %(default)s), evenly over it with the first and the last; a video
    of fewer keeps all"""


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on from here")
