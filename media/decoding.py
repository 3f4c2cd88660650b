"""Frames of video files, pictures and folders of pictures, upright, by PyAV and Pillow.

Times are in seconds, as the file gives them, rounded to microseconds.
"""

import bisect
import contextlib
import functools
import math
import os
import re
import struct
import time as clock
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import av
import numpy as np
from PIL import Image, ImageCms, ImageOps

from media.files import unsuitable
from media.kinds import PICTURES, explain, fault_of, kind_of

SAME = 1e-4  # seconds within which two times are one
APART = 2.0  # seconds between two wanted frames beyond which a file without an index is sought, not read on
SKIPPING = frozenset(["h264", "mpeg1video", "mpeg2video", "mpeg4"])  # decoders whose NONREF is exact
LEEWAY = 0.1  # seconds that the last frame is taken to last beyond its end
PATIENCE = 120.0  # seconds that a file may take
MAX_PIXELS = 1 << 26  # of a frame: a damaged header must not claim all memory
# a path is never an address; playlists, scripts and session descriptions name other files: they are no videos
FILES_ALONE = {
    "protocol_whitelist": "file",
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,asf,ogg,rm,mpeg,mpegts,mpegvideo,h261,"
    "h263,h264,hevc,vvc,m4v,av1,obu,ivf,vc1,vc1test,dirac,cavsvideo,dv,mxf,nut,nuv,nsv,wtv,swf,mjpeg,"
    "yuv4mpegpipe,gif,apng,webp,flic,roq,smk,bink,wc3movie,film_cpk,dnxhd,"
    "gif_pipe,png_pipe,jpeg_pipe,webp_pipe,bmp_pipe,tiff_pipe",
}
ANIMATED = frozenset(["AVIF", "PNG", "WEBP"])  # formats of pictures whose further images are frames


class Frame(NamedTuple):
    """One decoded frame; its picture is only made when asked for."""

    time: float
    end: float
    aspect: float
    """width / height of a pixel of the picture"""
    picture: Callable[[], Image.Image]
    """upright, RGB"""
    damaged: bool = False
    """whether the decoder says so of this frame, or of one since the last key frame, on which it may build"""

    def check(self) -> None:
        """Raise `ValueError` if it is damaged."""
        if self.damaged:
            raise ValueError(f"damaged: the decoder had to guess the picture at {self.time:.2f} seconds")


def read_frames(path: Path, start: float | None = None, rate: float = 0) -> Iterator[Frame]:
    """All frames in the order in which they are shown; of a video, those before `start` may be left out.

    `rate` is that of a folder's pictures, which have no times of their own (0: one per second).
    """
    with in_words(path):
        if path.is_dir():
            yield from folder_frames(path, rate or 1)
        elif is_picture(path):
            yield from picture_frames(path)
        elif start is None:
            with open_video(path) as (container, stream):
                yield from video_frames(container, stream)
        else:
            yield from frames_from(path, start)


def stated_times(path: Path, rate: float = 0) -> list[float]:
    """Times of the frames that should come out, ascending, without decoding a video."""
    if path.is_dir() or is_picture(path):
        return [frame.time for frame in read_frames(path, rate=rate)]
    with in_words(path), open_video(path) as (container, stream):
        base, packets = stream.time_base, container.demux(stream)  # not kept: they hold the whole file
        return sorted(seconds(p.pts, base) for p in packets if p.pts is not None and not p.is_discard)


def frames_at(path: Path, times: Sequence[float]) -> list[Frame]:
    """The frame on screen at each of the `times`, in ascending order, by seeking in a video.

    Raises `ValueError` where the file ends before, or cannot be read.
    """
    if is_picture(path):
        return on_screen(read_frames(path), times)
    with open_video(path) as (container, stream):
        try:
            picked: list[Frame] = []
            seek(container, stream, times[0])  # some containers read their index then
            keys = key_times(stream)
            exact = set() if stream.codec_context.has_b_frames else set(keys)  # else times of decoding
            for group in by_key_frame(times, keys):
                found = frames_between(container, stream, group, group[0] in exact)
                picked += on_screen(found, group, may_precede=False)
            return picked
        except (Late, av.FFmpegError):  # a wrong index, or none: read it from the beginning
            pass
    return on_screen(read_frames(path), times)


def is_picture(path: Path) -> bool:
    """Whether a file is read by Pillow, whatever its ending; an animated picture is one, a GIF is not."""
    return kind_of(path) == "picture"


@contextlib.contextmanager
def in_words(path: Path) -> Iterator[None]:
    """Turn exceptions of libraries into a `ValueError` that names the fault of the file and a remedy."""
    try:
        yield
    except TimeoutError:
        raise
    except (
        av.FFmpegError,
        OSError,
        SyntaxError,
        EOFError,
        struct.error,
        Image.DecompressionBombError,
    ) as error:
        raise ValueError(explain(path, error)) from error


# ------------------------------------------------------------------------------------------------- videos


@contextlib.contextmanager
def open_video(path: Path) -> Iterator[tuple[Any, Any]]:
    """The container and its main video stream, decoded by one thread: other processes use the other cores."""
    if wrong := unsuitable(path):
        raise ValueError(wrong)
    with av.open(f"file:{path}", metadata_errors="replace", options=FILES_ALONE) as container:
        stream = container.streams.best("video")
        if stream is None:
            raise ValueError(fault_of(path) or "no video stream in it")
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
        yield container, stream


def seconds(pts: int, time_base: Any) -> float:
    """A time stamp in seconds."""
    return round(pts * time_base.numerator / time_base.denominator, 6)


def seek(container: Any, stream: Any, time: float) -> None:
    """Go to the key frame at or before a time."""
    container.seek(round(time / stream.time_base), stream=stream, backward=True)


def key_times(stream: Any) -> list[float]:
    """Times of the key frames, ascending, as far as the container has an index."""
    entries = [entry.timestamp for entry in stream.index_entries if entry.is_keyframe]
    return sorted(seconds(stamp, stream.time_base) for stamp in entries)


def by_key_frame(times: Sequence[float], keys: Sequence[float]) -> list[list[float]]:
    """Ascending times in groups, each of which one seek and reading on from there will find."""
    groups: list[list[float]] = []
    for time in times:
        if not groups:
            apart = True
        elif keys:
            apart = bisect.bisect_right(keys, time + SAME) > bisect.bisect_right(keys, groups[-1][-1] + SAME)
        else:
            apart = time - groups[-1][-1] > APART
        if apart:
            groups.append([])
        groups[-1].append(time)
    return groups


def frames_between(
    container: Any, stream: Any, times: Sequence[float], at_key: bool = False
) -> Iterator[Frame]:
    """The frames on screen at the ascending `times`, and others from the key frame before on.

    Of the others those that no frame builds on are not decoded: of most H.264 half. There is none if one
    time is asked for, that of a key frame (`at_key`).
    """
    shown = None
    if stream.codec_context.name in SKIPPING and not (at_key and len(times) == 1):
        seek(container, stream, times[0])
        shown = shown_stamps(container, stream, times)
    seek(container, stream, times[0])
    yield from video_frames(container, stream, sought=True, shown=shown)


def shown_stamps(container: Any, stream: Any, times: Sequence[float]) -> set[int] | None:
    """Time stamps of the packets whose frames are on screen at the times; None where a packet has none."""
    stamps, per_second = [], 1 / stream.time_base
    wanted = [float((time + SAME) * per_second) for time in times]
    for packet in container.demux(stream):
        if not packet.size:
            continue  # it says that the file ends
        if packet.pts is None:
            return None
        if not packet.is_discard:
            stamps.append(packet.pts)
        if packet.dts is not None and packet.dts > wanted[-1]:
            break  # what is decoded later is shown later
    stamps.sort()
    return {stamps[bisect.bisect_right(stamps, stamp) - 1] for stamp in wanted} if stamps else None


def frames_from(path: Path, start: float) -> Iterator[Frame]:
    """The frames of a video from the key frame before `start` on, from the first where that is not found."""
    with open_video(path) as (container, stream), contextlib.suppress(Late):
        seek(container, stream, start)
        frames = video_frames(container, stream, sought=True)
        first = next(frames, None)
        if first is not None and first.time <= start + SAME:
            yield first
            yield from frames
            return
    yield from read_frames(path)


def video_frames(
    container: Any, stream: Any, sought: bool = False, shown: set[int] | None = None
) -> Iterator[Frame]:
    """The frames from where the container is on; a time that is missing follows from the frame rate.

    After a seek (`sought`) it cannot: then `Late` is raised. `shown` is as in `decoded`.
    """
    aspect = float(stream.sample_aspect_ratio or 1)
    step = 1 / float(stream.average_rate or stream.guessed_rate or 25)
    base = stream.time_base  # asked once: each answer is a new fraction
    latest, damaged, deadline = None, False, clock.monotonic() + PATIENCE
    for frame in decoded(container, stream, shown):
        if clock.monotonic() > deadline:
            raise TimeoutError(f"decoding took more than {PATIENCE:.0f} seconds: cut the video into clips")
        if frame.pts is not None:
            time = seconds(frame.pts, base)
        elif latest is None and sought:
            raise Late
        else:
            time = 0.0 if latest is None else latest + step
        if latest is not None and time <= latest:
            time = latest + step
        latest = round(time, 6)
        length = frame.duration * base.numerator / base.denominator if frame.duration else step
        turned = round(orientation(frame)[1]) % 180 == 90
        damaged = frame.is_corrupt or (damaged and not frame.key_frame)
        picture = functools.partial(upright, frame)
        yield Frame(latest, latest + length, 1 / aspect if turned else aspect, picture, damaged)


def decoded(container: Any, stream: Any, shown: set[int] | None) -> Iterator[Any]:
    """Frames of the decoder; with `shown`, only those time stamps and the frames that others depend on."""
    context = stream.codec_context
    for packet in container.demux(stream):
        if shown is not None:
            context.skip_frame = "DEFAULT" if packet.pts in shown else "NONREF"
        yield from packet.decode()


def upright(frame: Any) -> Image.Image:
    """The picture of a decoded frame, RGB on white, mirrored and turned as its display matrix says."""
    mirrored, turn = orientation(frame)
    alpha = any(component.is_alpha for component in frame.format.components)
    # by one thread: to start others, as `to_image` does, takes eight times as long
    pixels = frame.reformat(format="rgba" if alpha else "rgb24", threads=1).to_ndarray()
    picture = to_rgb(Image.fromarray(pixels)) if alpha else Image.fromarray(pixels)
    if mirrored:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return picture.rotate(turn, expand=True) if turn else picture


def orientation(frame: Any) -> tuple[bool, int]:
    """Whether a frame is to be mirrored, left to right, and then turned by how many degrees, anticlockwise.

    The display matrix brings column p and row q to column a p + c q and row b p + d q; its determinant is
    negative where it mirrors.
    """
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return False, 0
    a, b, _, c, d = struct.unpack("=9i", bytes(data)[:36])[:5]
    mirrored = a * d - b * c < 0
    if mirrored:
        a, b = -a, -b
    return mirrored, round(math.degrees(math.atan2(-b, a))) % 360


def is_cut_gif(path: Path) -> bool:
    """Whether a file is a GIF that ends within a block, or before its first image.

    A GIF does not say how long it is. Its last byte should be an end mark, which some writers leave out, and
    some write more behind it.
    """
    with path.open("rb") as file:
        head = file.read(13)
        if not head.startswith(b"GIF8"):
            return False
        if len(head) < 13:
            return True
        skip_colours(file, head[10])
        images = 0
        while (kind := file.read(1)) in (b"!", b","):
            if kind == b"!":
                file.seek(1, os.SEEK_CUR)  # what it extends
            else:
                place = file.read(9)
                if len(place) < 9:
                    return True
                skip_colours(file, place[8])
                file.seek(1, os.SEEK_CUR)  # the size of codes
            while length := file.read(1):  # the block's parts; the last has no bytes
                if length == b"\0":
                    break
                file.seek(length[0], os.SEEK_CUR)
            else:
                return True
            images += kind == b","
        return not images


def skip_colours(file: IO[bytes], flags: int) -> None:
    """Go on behind a GIF's table of colours, if its flags say that there is one."""
    if flags & 0x80:
        file.seek(3 << (flags & 7) + 1, os.SEEK_CUR)


def stated_length(path: Path) -> float:
    """Seconds of video that a file's header promises; 0 where it promises nothing that can be relied on."""
    if path.is_dir() or is_picture(path):
        return 0.0
    with in_words(path), open_video(path) as (container, stream):
        if container.format.name == "avi" and stream.frames:  # its duration is shortened where a file is cut
            return stream.frames / float(stream.average_rate)
        if stream.duration:
            return float(stream.duration * stream.time_base)
        clock_time = re.fullmatch(r"(\d+):(\d+):([\d.]+)", stream.metadata.get("DURATION", ""))
        if clock_time:  # of Matroska and WebM
            hours, minutes, rest = clock_time.groups()
            return int(hours) * 3600 + int(minutes) * 60 + float(rest)
        alone = len(container.streams) == 1  # else it may be the sound's that is longer
        return container.duration / 1e6 if alone and container.duration else 0.0


# ----------------------------------------------------------------------------------------------- pictures


def picture_frames(path: Path) -> Iterator[Frame]:
    """The frames of a picture, one unless it is animated; turned as its EXIF says."""
    time = 0.0
    if wrong := unsuitable(path):
        raise ValueError(wrong)
    with Image.open(path) as image:
        for number in range(getattr(image, "n_frames", 1) if image.format in ANIMATED else 1):
            image.seek(number)
            image.load()  # its duration is known after that
            end = time + max(float(image.info.get("duration") or 0), 1) / 1000
            picture = to_rgb(ImageOps.exif_transpose(image))
            yield Frame(round(time, 6), end, 1.0, picture.copy)
            time = end


def to_rgb(image: Image.Image) -> Image.Image:
    """A picture of any mode -> RGB of 8 bits: deeper ones scaled, transparency laid on white."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        return Image.fromarray(scaled(np.asarray(image, np.float64))).convert("RGB")
    if image.mode == "LAB":
        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.applyTransform(image, ImageCms.buildTransform(*profiles, "LAB", "RGB")) or image
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def scaled(levels: np.ndarray) -> np.ndarray:
    """Brightness of 32 bits -> uint8. White is the end of the range that holds them: 1 (float), 255 or 65535.

    Other values, which have no white, are stretched from their lowest to their highest.
    """
    levels = np.nan_to_num(levels, posinf=0.0, neginf=0.0)
    low, high = min(0.0, float(levels.min())), float(levels.max())
    whole = bool((levels == levels.round()).all())
    limits = (255.0, 65535.0) if whole else (1.0, 255.0, 65535.0)
    white = high if low < 0 else next((limit for limit in limits if high <= limit), high)
    return ((levels - low) * (255 / max(white - low, 1e-12))).round().astype(np.uint8)


def folder_frames(path: Path, rate: float) -> Iterator[Frame]:
    """The pictures in a folder, in the order of the numbers in their names, `rate` a second."""
    files = [f for f in path.iterdir() if f.suffix.lower() in PICTURES and not f.name.startswith(".")]
    for number, file in enumerate(sorted(files, key=natural)):
        show = functools.partial(open_picture, file)
        yield Frame(round(number / rate, 6), (number + 1) / rate, 1.0, show)


def open_picture(path: Path) -> Image.Image:
    """A picture, or the first of an animated one; the error of one in a folder names it."""
    try:
        return next(picture_frames(path)).picture()
    except Exception as error:  # Pillow raises many kinds
        raise ValueError(f"{path.name}: {error}") from error


def natural(path: Path) -> list[tuple[int, str]]:
    """A key that sorts frame 10 after frame 9."""
    return [(int(part) if part.isdecimal() else -1, part) for part in re.split(r"(\d+)", os.fspath(path))]


def resize(image: Image.Image, aspect: float, longest: int | None = None) -> Image.Image:
    """A picture whose pixels have this width / height, with square ones; no side grows."""
    width, height = image.width * min(1, aspect), image.height / max(1, aspect)
    scale = min(1, longest / max(width, height)) if longest else 1
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return image if size == image.size else image.resize(size)


# ----------------------------------------------------------------------------------------------- by time


class Late(Exception):
    """After a seek, the first frame comes after the wanted time, or does not say when it comes."""


def on_screen(frames: Iterable[Frame], times: Sequence[float], may_precede: bool = True) -> list[Frame]:
    """The last frame that begins at or before each of the ascending times.

    `may_precede`: before the first frame there is nothing, so the first stands for it; else that is `Late`.
    """
    picked: list[Frame] = []
    last: Frame | None = None
    for frame in frames:
        while len(picked) < len(times) and frame.time > times[len(picked)] + SAME:
            if last is None and not may_precede:
                raise Late
            picked.append(last or frame)
        while len(picked) < len(times) and abs(frame.time - times[len(picked)]) <= SAME:
            picked.append(frame)
        if len(picked) == len(times):
            return picked
        last = frame
    if last is None:
        raise ValueError("no frame in it") if may_precede else Late
    missing = times[len(picked) :]
    if missing and missing[-1] > last.end + LEEWAY:
        raise ValueError(f"it ends at {last.end:.2f} seconds; a frame is wanted at {missing[-1]:.2f}")
    return picked + [last] * len(missing)
