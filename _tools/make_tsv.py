"""Videos or pictures with captions -> the TSV files and the YAML that pre-training reads.

    python _tools/make_tsv.py _data/webvid --captions _data/webvid.csv --output _data --name webvid

In under a minute (a CSV with the columns `video` and `caption`, and ten short clips beside it):

    python _tools/make_tsv.py clips/captions.csv --output _data --name clips --frames 4

Writes into the output folder NAME.yaml, NAME.img.tsv, NAME.caption.tsv (each with its .lineidx),
NAME.linelist.tsv, NAME.settings.json (what they were made from) and, when something could not be used,
NAME.failures.tsv (id, path, reason). `_data/README.md` defines the formats. A killed run goes on where it
was when the same command is given again, to the same bytes.
"""

import argparse
import base64
import contextlib
import csv
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
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # lib.py and dataset.py, imported in `finish`

VIDEO_SUFFIXES = set(
    ".3gp .avi .flv .gif .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv".split()
)
IMAGE_SUFFIXES = set(".bmp .jpeg .jpg .png .tif .tiff .webp".split())
JPEG_FIELD = b"/9j/"  # base64 of the three bytes that every JPEG begins with
WHOLE = 0.9  # a clip counts as whole from this share of the length that its container promises
UNREADABLE = (av.FFmpegError, OSError, ValueError, EOFError, SyntaxError, MemoryError, Image.DecompressionBombError)
Captions = dict[str, list[str]]


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
            return [int(number) for number in evenly(len(times), self.frames)]
        on_screen = frames_on_screen(times, self.fps)
        kept = evenly(len(on_screen), self.max_frames or len(on_screen))
        return [int(on_screen[number]) for number in kept]


def evenly(total: int, number: int) -> np.ndarray:
    """`number` of 0..total-1, first and last included (the middle when only one is asked for)."""
    if total <= number:
        return np.arange(total)
    if number == 1:
        return np.array([total // 2])
    return np.linspace(0, total - 1, number).round().astype(int)


def frames_on_screen(times: list[float], fps: float) -> np.ndarray:
    """The frames that a viewer sees at 0, 1/fps, 2/fps ... seconds after the first, each once."""
    if not times:
        return np.arange(0)
    since_first = np.maximum.accumulate(np.array(times) - times[0])
    moments = np.arange(0, since_first[-1] + 1e-6, 1 / fps)
    return np.unique(np.searchsorted(since_first, moments + 1e-6, side="right") - 1)


# ---- What there is to do: items and their captions ----


def read_source(source: Path, captions_path: Path | None) -> tuple[list[Item], Captions]:
    """List the items of SOURCE in the order of their rows, those that cannot be used marked as such."""
    captions = read_captions(captions_path) if captions_path else {}
    if source.is_dir():
        items = items_from_folder(source)
    elif source.suffix.lower() == ".tsv":
        items = items_from_tsv(source)
    elif source.suffix.lower() == ".csv":
        items = items_from_csv(source)
        captions = captions or captions_from_csv(source)
    else:
        raise SystemExit(f"{source}: not a folder, a .csv or a .tsv (or it does not exist); check the path")
    if not items:
        raise SystemExit(f"{source}: no video, image or row in it; check the path")
    if not captions:
        raise SystemExit(f"{source}: no captions, and pre-training needs them; give --captions FILE")
    return [marked(item, captions) for item in items], captions


def items_from_folder(folder: Path) -> list[Item]:
    """Every video and image of the folder and its sub-folders, by path; other and hidden files are left out."""
    paths = sorted(path for path in folder.rglob("*") if not path.name.startswith("."))
    kinds = {path: kind_of(path) for path in paths}
    return unique_items(str(folder), [(path, kind) for path, kind in kinds.items() if kind])


def kind_of(path: Path) -> str:
    """'video', 'image', or '' for neither."""
    suffix = path.suffix.lower()
    return "video" if suffix in VIDEO_SUFFIXES else "image" if suffix in IMAGE_SUFFIXES else ""


def items_from_csv(path: Path) -> list[Item]:
    """The files that the columns `video` and `image` name, in order of first mention."""
    files = [
        (Path(os.path.normpath(path.parent / row[kind])), kind)
        for row in read_csv(path)
        for kind in ("video", "image")
        if row.get(kind)
    ]
    return unique_items(str(path), files)


def unique_items(source: str, files: list[tuple[Path, str]]) -> list[Item]:
    """An item per file, whose id is the file's stem; two files of one stem are an error."""
    items: dict[str, Item] = {}
    for path, kind in files:
        item = items.setdefault(path.stem, Item(path.stem, path, kind))
        if item.path != path:
            raise SystemExit(
                f"{source}: {item.path} and {path} would both be id '{path.stem}'; rename one of them"
            )
    return list(items.values())


def items_from_tsv(path: Path) -> list[Item]:
    """The rows of a frames TSV; an id that an earlier row has is marked as a problem."""
    items, first_row, offset = [], {}, 0
    with path.open("rb") as file:
        for row, line in enumerate(file):
            id_ = line.split(b"\t", 1)[0].strip().decode("utf-8", "surrogateescape")
            if line.strip():
                earlier = first_row.setdefault(id_, row)
                problem = f"row {row} repeats the id of row {earlier}" if earlier != row else ""
                items.append(Item(id_, path, "row", offset, problem))
            offset += len(line)
    return items


def marked(item: Item, captions: Captions) -> Item:
    """The item, with its problem when its id or its captions make it useless."""
    problem = item.problem
    if re.search("[\t\r\n\ud800-\udfff]", item.id):
        problem = "the id has a tab, a line break or a byte that is not UTF-8; rename it"
    elif not item.id:
        problem = "the id is empty"
    elif not captions.get(item.id):
        problem = problem or "no caption"
    return Item(item.id, item.path, item.kind, item.offset, problem)


def read_captions(path: Path) -> Captions:
    """Captions from a JSON {id: [captions]} or a CSV."""
    if path.suffix.lower() != ".json":
        return captions_from_csv(path)
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise SystemExit(f"{path}: not readable as UTF-8 JSON ({error}); correct the file") from error
    if not isinstance(entries, dict):
        raise SystemExit(f"{path}: holds a {type(entries).__name__}; captions are {{id: [captions]}}")
    captions: Captions = {}
    for id_, texts in entries.items():
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise SystemExit(f"{path}: id '{id_}' has {texts!r}; it should be a list of captions")
        captions[id_] = [text.strip() for text in texts if text.strip()]
    return captions


def captions_from_csv(path: Path) -> Captions:
    """Captions by the stem of the file that a row names, in the order of the rows."""
    captions: Captions = {}
    for row in read_csv(path):
        caption = row.get("caption", "").strip()
        for kind in ("video", "image"):
            if row.get(kind) and caption:
                captions.setdefault(Path(row[kind]).stem, []).append(caption)
    return captions


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV by the names of its header; strict, as a lost quote would swallow rows silently."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True, skipinitialspace=True)
            header = [name.strip().lower() for name in next(reader, [])]
            if not {"video", "image"} & set(header):
                raise SystemExit(f"{path}: columns {header}; it needs `video` or `image`, and `caption`")
            rows = []
            for values in reader:
                if len(values) > len(header):
                    raise SystemExit(
                        f"{path} line {reader.line_num}: {len(values)} values for {len(header)} columns; "
                        'put a caption that has commas in "quotes"'
                    )
                rows.append(dict(zip(header, (value.strip() for value in values), strict=False)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SystemExit(f"{path}: not readable as UTF-8 CSV ({error}); correct the file") from error
    return rows


# ---- One item -> the fields of its row (this part runs in the worker processes) ----


def make_row(item: Item, sampling: Sampling) -> tuple[list[bytes], str]:
    """The fields of the row after the id, and '' - or no fields, and why there are none."""
    if item.problem:
        return [], item.problem
    try:
        return READERS[item.kind](item, sampling), ""
    except UNREADABLE as error:
        return [], f"{type(error).__name__}: {error}"


def read_row(item: Item, sampling: Sampling) -> list[bytes]:
    """A row of an existing TSV, as it is: its frames, perhaps after a field that readers skip."""
    with item.path.open("rb") as file:
        file.seek(item.offset)
        fields = file.readline().rstrip(b"\r\n").split(b"\t")[1:]
    frames = fields if fields and fields[0].startswith(JPEG_FIELD) else fields[1:]
    if not frames:
        raise ValueError("the row has no frames")
    for number, frame in enumerate(frames):
        check_jpeg(frame, number)
    return fields


def check_jpeg(frame: bytes, number: int) -> None:
    """Refuse what is not base64 of a whole JPEG, decoding it only when its end mark is not in its place."""
    if not frame.startswith(JPEG_FIELD):
        raise ValueError(f"frame {number} is not the base64 of a JPEG")
    jpeg = base64.b64decode(frame, validate=True)
    if not jpeg.endswith(b"\xff\xd9"):
        Image.open(io.BytesIO(jpeg)).load()


def read_image(item: Item, sampling: Sampling) -> list[bytes]:
    """A still picture, turned as its EXIF says."""
    with Image.open(item.path) as image:
        return [to_field(ImageOps.exif_transpose(image).convert("RGB"), sampling)]


def to_field(image: Image.Image, sampling: Sampling) -> bytes:
    """An RGB picture -> base64 JPEG, its longer side at most `sampling.size`, each pixel an area's mean."""
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
    """The picked frames of a clip, holding no other frame in memory.

    Which frames to keep depends on how many there are. Packets tell that without decoding and are nearly
    always right, so the clip is decoded once; where decoding shows them wrong, it is decoded again.
    """
    wanted = sampling.pick(packet_times(item.path))
    clip = decode(item.path, wanted, sampling)
    check_whole(clip)
    picked = sampling.pick(clip.times)
    return clip.pictures if picked == wanted else decode(item.path, picked, sampling).pictures


@contextlib.contextmanager
def open_video(path: Path) -> Iterator[tuple[Any, Any]]:
    """The container and its main video stream, decoded by one thread: the processes use the others."""
    # A playlist under a video's name must not make the decoder fetch what it names: local files only.
    with av.open(str(path), options={"protocol_whitelist": "file"}) as container:
        stream = container.streams.best("video")
        if stream is None:
            raise ValueError("no video stream")
        stream.codec_context.thread_count = 1
        yield container, stream


def packet_times(path: Path) -> list[float]:
    """Presentation times in seconds of the frames that should come out, from the packets' headers."""
    times = []
    with open_video(path) as (container, stream), contextlib.suppress(av.FFmpegError):
        for packet in container.demux(stream):
            if packet.pts is not None and not packet.is_discard:
                times.append(float(packet.pts * packet.time_base))
    return sorted(times)


def decode(path: Path, wanted: list[int], sampling: Sampling) -> Clip:
    """Decode every frame, keep the wanted ones; an error ends the clip there."""
    clip, keep = Clip(), set(wanted)
    with open_video(path) as (container, stream):
        clip.promised = promised_seconds(container, stream)
        usual_gap = float(1 / (stream.average_rate or 25))
        try:
            for number, frame in enumerate(container.decode(stream)):
                if number in keep:
                    clip.pictures.append(to_field(frame.to_image(), sampling))
                time = number * usual_gap if frame.time is None else frame.time
                clip.times.append(time)
                clip.end = time + (float(frame.duration * frame.time_base) or usual_gap)
        except av.FFmpegError as error:
            clip.error = error.strerror
    return clip


def promised_seconds(container: Any, stream: Any) -> float:
    """Length by the container's header, or 0. A file's length may be its sound's: used for video alone."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    alone = len(container.streams) == 1 and container.duration
    return container.duration / av.time_base if alone else 0.0


def check_whole(clip: Clip) -> None:
    """Refuse a clip without frames, or cut off: evenly taken frames of its beginning would miss the caption.

    A shortfall of less than a tenth is let pass. Where the container states no length, only an error tells.
    """
    if not clip.times:
        raise ValueError(f"no frame could be decoded {clip.error}".rstrip())
    seconds = clip.end - clip.times[0]
    if seconds < WHOLE * clip.promised or (clip.error and not clip.promised):
        promised = f" of {clip.promised:.1f}" if clip.promised else ""
        raise ValueError(f"cut off or damaged: {seconds:.1f}{promised} s could be decoded {clip.error}".rstrip())


READERS = {"video": read_video, "image": read_image, "row": read_row}


# ---- Many items, in order ----


def make_rows(items: list[Item], sampling: Sampling, workers: int) -> Iterator[tuple[list[bytes], str]]:
    """`make_row` of each item, in the order of the items, by so many processes."""
    if workers == 1:
        yield from (make_row(item, sampling) for item in items)
        return
    window = 4 * workers  # results that may wait for a slow one before them: bounds the memory
    left = deque(items)
    while left:
        try:
            for result in rows_from_pool(tuple(left), sampling, workers, window):
                left.popleft()
                yield result
        except BrokenProcessPool:
            # A decoder crashed its process, or memory ran out: go past that one, one process at a time.
            for _ in range(min(window, len(left))):
                yield row_alone(left.popleft(), sampling)


def rows_from_pool(
    items: tuple[Item, ...], sampling: Sampling, workers: int, window: int
) -> Iterator[tuple[list[bytes], str]]:
    """Keep `window` items at work, and give the result of the oldest."""
    pool, waiting, coming = new_pool(workers), deque(), iter(items)
    try:
        for item in itertools.islice(coming, window):
            waiting.append(pool.submit(make_row, item, sampling))
        while waiting:
            yield waiting.popleft().result()
            for item in itertools.islice(coming, 1):
                waiting.append(pool.submit(make_row, item, sampling))
    finally:
        pool.shutdown(cancel_futures=True)


def row_alone(item: Item, sampling: Sampling) -> tuple[list[bytes], str]:
    """`make_row` in a process of its own, whose end is one item's failure."""
    with new_pool(1) as pool:
        try:
            return pool.submit(make_row, item, sampling).result()
        except BrokenProcessPool:
            return [], "reading it ended the process: a crash of the decoder, or not enough memory"


def new_pool(workers: int) -> ProcessPoolExecutor:
    """Fresh interpreters, as forks of a process that has threads may hang."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=live_with_parent)


def live_with_parent() -> None:
    """Leave Ctrl-C to the parent, and end with it however it ends: a pool's processes outlive a kill."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


# ---- The files ----


class Output:
    """The files of one NAME: unfinished ones that grow row by row, and what becomes of them.

    NAME.img.tsv.part and NAME.failures.tsv.part grow in the order of the items; NAME.part.json says what
    they are made from. It becomes NAME.settings.json last of all, so that one means: all is there.
    """

    def __init__(self, folder: Path, name: str):
        """Nothing is opened or made yet."""
        self.folder, self.name = folder, name
        self.rows, self.rows_part = self.path("img.tsv"), self.path("img.tsv.part")
        self.failures_part = self.path("failures.tsv.part")
        self.state, self.settings = self.path("part.json"), self.path("settings.json")
        self.written: list[tuple[Item, int]] = []  # an item and its number of frames, for each row
        self.failed: dict[str, str] = {}  # id -> reason

    def path(self, ending: str) -> Path:
        """A file of this NAME."""
        return self.folder / f"{self.name}.{ending}"

    def is_finished(self, settings: dict[str, Any]) -> bool:
        """Whether everything is there, made with these settings."""
        endings = "yaml img.tsv img.lineidx caption.tsv caption.lineidx linelist.tsv".split()
        there = all(self.path(ending).exists() for ending in endings)
        return there and read_json(self.settings) == settings

    def check_free(self, settings: dict[str, Any]) -> None:
        """Refuse to replace finished files, unless this very run was already about to."""
        taken = [path for path in (self.rows, self.path("yaml")) if path.exists()]
        if taken and read_json(self.state) != settings:
            changes = differences(read_json(self.settings), settings)
            raise SystemExit(
                f"{taken[0]} exists and was made otherwise ({changes}); "
                "give another --name, or --overwrite to replace it"
            )

    @contextlib.contextmanager
    def opened(self, items: list[Item], settings: dict[str, Any]) -> Iterator[list[Item]]:
        """Open the unfinished files; give the items that are still to be done."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.state.open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise SystemExit(f"{self.state}: another make_tsv.py is writing this; wait for it") from error
            done = self._resume(items, settings)
            with self.rows_part.open("ab") as self._rows, self.failures_part.open("ab") as self._failures:
                yield items[done:]
                os.fsync(self._rows.fileno())

    def _resume(self, items: list[Item], settings: dict[str, Any]) -> int:
        """How many items earlier runs have done. Cuts off what does not follow, or starts over."""
        before = read_json(self.state)
        if before != settings:
            if before is not None:
                print(f"{self.state}: made otherwise ({differences(before, settings)}); starting over")
            self.state.write_text("")  # until the others are empty: they do not belong to these settings
            self.rows_part.write_bytes(b"")
            self.failures_part.write_bytes(b"")
            self.state.write_text(json.dumps(settings, indent=1))
            return 0
        if not self.rows_part.exists() and not self.settings.exists() and self.rows.exists():
            self.rows.replace(self.rows_part)  # killed while finishing
        self.rows_part.touch()
        self.failures_part.touch()
        done, size = self._count_done(items)
        os.truncate(self.rows_part, size)
        self._cut_failures(items[:done])
        if done:
            print(f"{self.rows_part}: goes on after {done} of {len(items)} items")
        return done

    def _count_done(self, items: list[Item]) -> tuple[int, int]:
        """Follow the items through both files, as a power cut may have cost either its last rows."""
        lines = self.failures_part.read_bytes().decode("utf-8").splitlines(keepends=True)
        failed = {line.split("\t")[0]: line.rstrip("\n").split("\t")[2] for line in lines if line[-1] == "\n"}
        size = 0
        with self.rows_part.open("rb") as file:
            line = file.readline()
            for done, item in enumerate(items):
                if item.problem or item.id in failed:
                    self.failed[item.id] = item.problem or failed[item.id]
                elif line.endswith(b"\n") and line.startswith(item.id.encode() + b"\t"):
                    self.written.append((item, line.count(b"\t" + JPEG_FIELD)))
                    size += len(line)
                    line = file.readline()
                else:
                    return done, size
        return len(items), size
