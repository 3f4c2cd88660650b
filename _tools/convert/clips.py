"""One item of a source (a video, a picture, a folder, a row of a frames TSV) -> what its row holds."""

import base64
import fractions
import hashlib
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from PIL import Image

from media.decoding import (
    SAME,
    Frame,
    is_cut_gif,
    picture_frames,
    read_frames,
    resize,
    stated_length,
    stated_times,
)
from media.files import atomic_path

CRF = 23  # x264's constant quality: 37 dB on real clips, 0.4 of the bytes of the same frames as JPEGs


@dataclass(frozen=True)
class Item:
    """One row to be."""

    id: str
    captions: tuple[str, ...]
    path: Path
    kind: str  # a key of READERS
    offset: int = 0  # of a row in its TSV, in bytes
    start: float = 0.0  # seconds after the first frame: where the clip begins in its video
    end: float | None = None  # where it ends; None: with the video


@dataclass(frozen=True)
class Sampling:
    """Which frames of a video are kept, and how they are stored."""

    frames: int | None = 32  # at most so many; None: all
    fps: float | None = None  # of those that a viewer sees at this rate; None: of all
    size: int = 320  # longest side, pixels; of proxies the shorter one
    quality: int = 90  # of the JPEGs
    rate: float = 0  # frames per second of folders of frames; 0: not known
    link: str = ""  # the folder of the TSV, if the rows are to name files instead of holding frames
    proxies: str = ""  # the folder of small copies of the videos, if the rows are to name those
    captions: bool = True  # whether a row needs one
    keep_damaged: bool = False  # frames of which the decoder says that they are


class Row(NamedTuple):
    """The fields of an item after its id, or why there are none."""

    fields: list[bytes]
    failure: str = ""
    frames: int = 0
    duration: float = 0.0
    """seconds"""
    sha256: str = ""
    """of the source"""


class Kept(NamedTuple):
    """The frames of a video that are kept: base64 JPEGs, and times in seconds; and the clip's length.

    For a proxy they are pictures, not yet encoded.
    """

    frames: list[Any]
    times: list[float]
    duration: float = 0.0


def make_row(item: Item, sampling: Sampling) -> Row:
    """Read an item; what is wrong with it comes back as the row's failure."""
    if sampling.captions and not item.captions:
        return Row([], "no caption")
    if not item.id.isprintable() or not item.id:
        return Row([], "its id is empty, or has a tab, a line break or bytes that are no UTF-8; rename it")
    try:
        kept = READERS[item.kind](item, sampling)
        fields = kept.frames
        if sampling.link:
            fields = link(item, kept, sampling)
        elif sampling.proxies and item.kind == "video":
            fields = write_proxy(item, kept, sampling)
        return Row(fields, "", len(kept.times), round(kept.duration, 6), digest(item))
    except Exception as error:  # decoders raise many kinds, and one file does not stop the others
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        return Row([], " ".join(f"{kind}{error}".split()))


def link(item: Item, kept: Kept, sampling: Sampling) -> list[bytes]:
    """A row that names its file: its path, from the TSV's folder on unless absolute; times; longest side."""
    if item.kind == "row" or item.path.is_dir():
        raise ValueError("only a video file or a picture can be linked")
    path = item.path if item.path.is_absolute() else Path(os.path.relpath(item.path, sampling.link))
    if not path.suffix or not str(path).isprintable():
        raise ValueError("a file that is linked needs an ending such as .mp4 and a printable path; rename it")
    return [os.fsencode(path), json.dumps(kept.times).encode(), str(sampling.size).encode()]


def write_proxy(item: Item, kept: Kept, sampling: Sampling) -> list[bytes]:
    """Write the kept frames as a video, each a key frame, so that any is found without decoding another.

    Returns the fields of a row that names it: its path from the TSV's folder on, and the frames' times. The
    name is a hash of the id, in one of 256 folders, since ids may have slashes and a corpus a million videos.
    """
    name = hashlib.sha256(item.id.encode()).hexdigest()[:20]
    path = Path(sampling.proxies, name[:2], f"{name}.mp4")
    rate = fractions.Fraction(sampling.fps or 1).limit_denominator(1000)
    width, height = (side + side % 2 for side in kept.frames[0].size)  # its colours have half of the size
    with atomic_path(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": str(CRF), "tune": "fastdecode"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.gop_size = 1
        stream.codec_context.thread_count = 1  # the same bytes whatever the machine
        for picture in kept.frames:
            container.mux(stream.encode(av.VideoFrame.from_image(picture.resize((width, height)))))
        container.mux(stream.encode())
    times = [round(float(number / rate), 6) for number in range(len(kept.frames))]
    return [os.fsencode(path.relative_to(Path(sampling.proxies).parent)), json.dumps(times).encode()]


def digest(item: Item) -> str:
    """SHA-256 of the source's bytes: of a file, of a row, of a folder's files in order of their names."""
    total = hashlib.sha256()
    if item.kind == "row":
        with item.path.open("rb") as file:
            file.seek(item.offset)
            return hashlib.sha256(file.readline().rstrip(b"\r\n")).hexdigest()
    for path in sorted(item.path.iterdir()) if item.path.is_dir() else [item.path]:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                total.update(block)
    return total.hexdigest()


def read_row(item: Item, sampling: Sampling) -> Kept:
    """A TSV row's frames as they are, decoded once: a damaged one is better found now than in training."""
    with item.path.open("rb") as file:
        file.seek(item.offset)
        _, *frames = file.readline().rstrip(b"\r\n").split(b"\t")
    if frames and not frames[0].startswith(b"/9j/"):  # base64 of the bytes that every JPEG begins with
        frames = frames[1:]  # a field that some published files have and readers skip
    if not frames:
        raise ValueError("the row has no frames")
    for frame in frames:
        Image.open(io.BytesIO(base64.b64decode(frame, validate=True)), formats=["JPEG"]).load()
    return Kept(frames, [0.0] * len(frames))


def read_image(item: Item, sampling: Sampling) -> Kept:
    """A picture, turned as its EXIF says."""
    return Kept([encode(next(picture_frames(item.path)), sampling)], [0.0])


def small(frame: Frame, sampling: Sampling) -> Image.Image:
    """A frame with square pixels, its shorter side that of a proxy; no side grows."""
    picture = resize(frame.picture(), frame.aspect)
    ratio = max(picture.size) / min(picture.size)
    return resize(picture, 1.0, round(sampling.size * ratio))


def keep(frame: Frame, sampling: Sampling) -> Any:
    """What is kept of a frame until the row is made."""
    if sampling.link:
        return b""
    return small(frame, sampling) if sampling.proxies else encode(frame, sampling)


def encode(frame: Frame, sampling: Sampling) -> bytes:
    """A frame -> base64 JPEG of square pixels; no side grows."""
    jpeg = io.BytesIO()
    resize(frame.picture(), frame.aspect, sampling.size).save(jpeg, "JPEG", quality=sampling.quality)
    return base64.b64encode(jpeg.getvalue())


def read_video(item: Item, sampling: Sampling) -> Kept:
    """The picked frames of a video, with no other decoded frame held in memory.

    Which to keep depends on how many there are. The packets tell that without decoding and are nearly
    always right; where decoding proves them wrong, the video is decoded again.
    """
    if item.path.is_dir() and not sampling.rate and (sampling.fps or item.start or item.end is not None):
        raise ValueError("a folder of frames has no times: say --rate, its frames per second")
    stated = stated_times(item.path, sampling.rate)
    first = stated[0] if stated else 0.0
    wanted = choose(stated, first, item, sampling)
    kept, times = decode(item, wanted, first, sampling)
    chosen = choose(times, first, item, sampling)
    return kept if chosen == wanted else decode(item, chosen, first, sampling)[0]


def choose(times: Sequence[float], first: float, item: Item, sampling: Sampling) -> list[float]:
    """Times of all frames, ascending -> those of the frames to keep, in the item's window."""
    begin, end = first + item.start - SAME, first + (float("inf") if item.end is None else item.end) - SAME
    inside = [time for time in times if begin <= time < end]
    if not inside:  # the window is shorter than a frame: that which is on screen
        inside = [time for time in times if time < begin][-1:]
    return [inside[number] for number in pick(inside, sampling)]


def pick(times: Sequence[float], sampling: Sampling) -> list[int]:
    """Presentation times of all frames, in seconds -> the numbers of the frames to keep."""
    numbers = np.arange(len(times))
    if sampling.fps and times:  # what is on screen 0, 1/fps, 2/fps ... seconds after the first, each once
        since_first = np.sort(times) - min(times)
        moments = np.arange(0, since_first[-1] + 1e-6, 1 / sampling.fps)
        numbers = np.unique(np.searchsorted(since_first, moments + 1e-6, side="right") - 1)
    if sampling.frames == 1:  # the middle one
        return numbers[len(numbers) // 2 :][:1].tolist()
    if sampling.frames and sampling.frames < len(numbers):  # evenly, the first and the last included
        numbers = numbers[np.linspace(0, len(numbers) - 1, sampling.frames).round().astype(int)]
    return numbers.tolist()


def decode(item: Item, wanted: Sequence[float], first: float, sampling: Sampling) -> tuple[Kept, list[float]]:
    """The wanted frames, encoded, and the times of all that were decoded.

    Decoding begins with the key frame before the item's window and ends after it.
    """
    frames, damaged, times, chosen = [], [], [], set(wanted)
    begin = first + item.start
    stop = float("inf") if item.end is None else first + item.end
    end = begin
    for frame in read_frames(item.path, begin if item.start else None, sampling.rate):
        times.append(frame.time)
        if frame.time >= stop:
            end = stop  # whatever is said of how long the last frame lasts
            break
        end = frame.end
        if frame.time in chosen:
            frames.append(keep(frame, sampling))
            damaged += [frame] if frame.damaged else []
    if not times:
        raise ValueError("no frame in it")
    if not sampling.keep_damaged:
        check_length(item, end - begin)
        for frame in damaged[:1]:
            frame.check()
    return Kept(frames, sorted(chosen & set(times)), min(end, stop) - begin), times


def check_length(item: Item, decoded: float) -> None:
    """Raise `ValueError` if of its window a tenth could not be decoded: its caption may be about that."""
    if item.path.is_file() and is_cut_gif(item.path):
        raise ValueError(f"cut off: a GIF without its end, {decoded:.2f} seconds could be decoded")
    stated = stated_length(item.path)
    promised = min(stated, item.end or stated) - item.start
    if stated and promised <= 0:
        raise ValueError(f"its clip begins at {item.start} seconds, and the video ends at {stated:.2f}")
    if decoded < 0.9 * promised:
        raise ValueError(f"cut off: {decoded:.2f} of {promised:.2f} seconds could be decoded")


READERS = {"video": read_video, "image": read_image, "row": read_row}
