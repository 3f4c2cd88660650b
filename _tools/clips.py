"""One item of a source (a video, a picture, a row of a frames TSV) -> its frames as base64 JPEGs."""

import base64
import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from PIL import Image, ImageOps


@dataclass(frozen=True)
class Item:
    """One row to be."""

    id: str
    captions: tuple[str, ...]
    path: Path
    kind: str  # a key of READERS
    offset: int = 0  # of a row in its TSV, in bytes


@dataclass(frozen=True)
class Sampling:
    """Which frames of a video are kept, and how they are stored."""

    frames: int | None = 32  # at most so many; None: all
    fps: float | None = None  # of those that a viewer sees at this rate; None: of all
    size: int = 320  # longest side, pixels
    quality: int = 90  # of the JPEGs


class Row(NamedTuple):
    """The frames of an item as base64 JPEGs, or why there are none."""

    frames: list[bytes]
    failure: str = ""


def make_row(item: Item, sampling: Sampling) -> Row:
    """Read an item; what is wrong with it comes back as the row's failure."""
    if not item.captions:
        return Row([], "no caption")
    if not item.id.isprintable():
        return Row([], "its id has a tab, a line break or bytes that are no UTF-8; rename it")
    try:
        return Row(READERS[item.kind](item, sampling))
    except Exception as error:  # decoders raise many kinds, and one file does not stop the others
        return Row([], " ".join(f"{type(error).__name__}: {error}".split()))


def read_row(item: Item, sampling: Sampling) -> list[bytes]:
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
    return frames


def read_image(item: Item, sampling: Sampling) -> list[bytes]:
    """A picture, turned as its EXIF says."""
    with Image.open(item.path) as image:
        return [encode(ImageOps.exif_transpose(image).convert("RGB"), sampling)]


def encode(image: Image.Image, sampling: Sampling, aspect: float = 1.0) -> bytes:
    """A picture whose pixels have this width / height -> base64 JPEG of square ones; no side grows."""
    width, height = image.width * min(1, aspect), image.height / max(1, aspect)
    scale = min(1, sampling.size / max(width, height))
    jpeg = io.BytesIO()
    image.resize((round(width * scale), round(height * scale))).save(jpeg, "JPEG", quality=sampling.quality)
    return base64.b64encode(jpeg.getvalue())


def read_video(item: Item, sampling: Sampling) -> list[bytes]:
    """The picked frames of a video, with no other decoded frame held in memory.

    Which to keep depends on how many there are. The packets tell that without decoding and are nearly
    always right; where decoding proves them wrong, the video is decoded again.
    """
    expected = pick(packet_times(item.path), sampling)
    frames, times = decode(item.path, expected, sampling)
    picked = pick(times, sampling)
    return frames if picked == expected else decode(item.path, picked, sampling)[0]


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


@contextlib.contextmanager
def open_video(path: Path) -> Iterator[tuple[Any, Any]]:
    """The container and its main video stream, decoded by one thread: other processes use the other cores."""
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        if stream is None:
            raise ValueError("no video stream in it")
        stream.codec_context.thread_count = 1
        yield container, stream


def packet_times(path: Path) -> list[float]:
    """Presentation times, in seconds, of the frames that should come out."""
    with open_video(path) as (container, stream):
        packets = [packet for packet in container.demux(stream) if packet.pts is not None]
        return [float(packet.pts * packet.time_base) for packet in packets if not packet.is_discard]


def decode(path: Path, wanted: list[int], sampling: Sampling) -> tuple[list[bytes], list[float]]:
    """The wanted frames, encoded, and the presentation times of all, in seconds.

    A video that lacks a tenth of its stated length is an error: its caption may be about what is missing.
    """
    frames, times, end, keep = [], [], 0.0, set(wanted)
    with open_video(path) as (container, stream):
        aspect = float(stream.sample_aspect_ratio or 1)
        stated = float((stream.duration or 0) * stream.time_base)
        for number, frame in enumerate(container.decode(stream)):
            times.append(frame.time)
            end = frame.time + float(frame.duration * frame.time_base)
            if number in keep:
                frames.append(encode(frame.to_image(), sampling, aspect))
    if not times:
        raise ValueError("not one frame in it")
    if end - times[0] < 0.9 * stated:
        raise ValueError(f"cut off: {end - times[0]:.2f} of {stated:.2f} seconds could be decoded")
    return frames, times


READERS = {"video": read_video, "image": read_image, "row": read_row}
