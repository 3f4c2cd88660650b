"""From a TSV row to a clip: which frames, from where, and their transform.

`TSV row -> frames (T, 3, H, W) uint8 -> crop -> clip (T, 3, size, size) uint8`. A row holds its frames as
base64 JPEGs, or names the file that they are decoded from; which are picked follows the same rule. A clip
travels as bytes, a quarter of what floats take, and is normalised where it is computed on (`normalise`).
"""

import base64
import binascii
import functools
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as image

from media.decoding import Frame, frames_at, resize, stated_times
from media.files import parse_json
from media.tsv import BadRow

# of published files the pixels count, not what their EXIF data say of their orientation
DECODE = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
BASE64 = re.compile(rb"[A-Za-z0-9+/=]{64}")  # the beginning of every frame, whole or damaged
JPEG_START = b"\xff\xd8"
# a path with an ending (base64 has no dots), times, longest side
FILE = re.compile(rb"([^\0\t]{0,4096}\.[A-Za-z0-9]{2,5})(?:\t(\[[^\t]*)(?:\t([1-9][0-9]{0,4}))?)?")
# with a flag of colour beside them, they give the size alone
REDUCED = {
    1: 0,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}
RATIO = 32  # of a frame's sides: no video has more
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and deviation
MEAN, STD = (torch.tensor(values)[:, None, None] for values in IMAGENET)
CENTRE = np.array([0.5, 0.5])  # shares of the way down and right


# ---------------------------------------------------------------------------------------- which frames


def even_frames(stored: int, wanted: int) -> np.ndarray:
    """Evaluation: indices of `wanted` frames, evenly from first to last of `stored`; 1: the middle."""
    if wanted == 1:
        return np.array([round((stored - 1) / 2)])
    return evenly(0, stored - 1, wanted)


def every_clip(stored: int, wanted: int) -> np.ndarray:
    """Multi-clip testing: (clips, wanted) indices, one clip for each start.

    A clip's last frame is `wanted` - 1 steps of ceil(stored / wanted) behind its start, or the last that is
    stored; its frames lie evenly between the two, as published.
    """
    step = math.ceil(stored / wanted)
    ends = [min(start + (wanted - 1) * step, stored - 1) for start in range(step)]
    return np.stack([evenly(start, end, wanted) for start, end in enumerate(ends)])


def random_frames(stored: int, wanted: int, random: np.random.Generator) -> np.ndarray:
    """Training: the frames of one of the clips of `every_clip`."""
    clips = every_clip(stored, wanted)
    return clips[random.integers(len(clips))]


def evenly(first: int, last: int, count: int) -> np.ndarray:
    """`count` indices evenly from `first` to `last`, halves rounded to even."""
    return np.round(np.linspace(first, last, count)).astype(int)


# ------------------------------------------------------------------------------------ from where they come


def jpeg_sides(jpeg: bytes) -> tuple[int, int]:
    """Height and width that its header gives; zeros where there is none that can be read."""
    place = len(JPEG_START)
    while place + 9 <= len(jpeg) and jpeg[place] == 0xFF:
        kind = jpeg[place + 1]
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):  # the start of a frame, not of tables
            return int.from_bytes(jpeg[place + 5 : place + 7]), int.from_bytes(jpeg[place + 7 : place + 9])
        place += 2 + int.from_bytes(jpeg[place + 2 : place + 4])
    return 0, 0


def reduction(jpeg: bytes, least: int) -> int:
    """By how much a JPEG is decoded smaller (1, 2, 4 or 8), which takes half of the time.

    Its shorter side keeps `least` pixels (0: it is not reduced), and its last row and column lie half a pixel
    over its edge at most.
    """
    sides = jpeg_sides(jpeg) if least else (0, 0)
    for factor in (8, 4, 2):
        if min(sides) >= max(1, factor * least) and all(-side % factor <= factor // 2 for side in sides):
            return factor
    return 1


def decode_frame(field: bytes, number: int, least: int = 0) -> Tensor:
    """A base64 JPEG -> (3, H, W) uint8; raises `BadRow` that names the frame.

    One at least twice as large as `least` is decoded at a half, a quarter or an eighth of its size.
    """
    try:
        jpeg = base64.b64decode(field, validate=True)
    except binascii.Error as error:
        raise BadRow(f"frame {number} is not base64 ({error})") from error
    flags = DECODE | REDUCED[reduction(jpeg, least)]
    picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), flags) if jpeg.startswith(JPEG_START) else None
    if picture is None:
        raise BadRow(f"frame {number} is not a JPEG, or is cut off")
    return torch.from_numpy(picture).permute(2, 0, 1)


class Stored:
    """The frames that a row holds, base64 JPEGs."""

    def __init__(self, fields: Sequence[bytes]) -> None:
        self.fields = fields

    def __len__(self) -> int:
        return len(self.fields)

    def read(self, numbers: Sequence[int], least: int = 0) -> list[Tensor]:
        """Those frames, (3, H, W) uint8 each; no other is decoded. `least`: see `decode_frame`."""
        return [decode_frame(self.fields[number], int(number), least) for number in numbers]


class Linked:
    """The frames of the video file or picture that a row names.

    `times` are those that count, a JSON list of seconds; without them all that the file has. `size` is
    their longest side at most, as that of stored frames; without it they are as large as in the file.
    """

    def __init__(self, path: Path, times: bytes | None = None, size: int | None = None) -> None:
        self.path, self.size = path, size
        try:
            if times is not None:
                self.times = [float(time) for time in parse_json(times)]
            else:
                self.times = stated_times(path)
        except Exception as error:  # decoders raise many kinds
            raise BadRow(f"{path}: {error}") from error

    def __len__(self) -> int:
        return len(self.times)

    def read(self, numbers: Sequence[int], least: int = 0) -> list[Tensor]:
        """Those frames, (3, H, W) uint8 each, by seeking to them; `least` makes no difference."""
        wanted = sorted({self.times[number] for number in numbers})
        try:
            frames = dict(zip(wanted, frames_at(self.path, wanted), strict=True))
            pictures = {time: self.picture(frame) for time, frame in frames.items()}
        except Exception as error:  # decoders raise many kinds
            raise BadRow(f"{self.path}: {error}") from error
        return [pictures[self.times[number]] for number in numbers]

    def picture(self, frame: Frame) -> Tensor:
        """(3, H, W) uint8 of square pixels; raises `ValueError` where the frame is damaged."""
        frame.check()
        picture = np.array(resize(frame.picture(), frame.aspect, self.size))
        return torch.from_numpy(picture).permute(2, 0, 1)


Frames = Stored | Linked


def row_frames(fields: Sequence[bytes], folder: Path) -> Frames:
    """The frames of a row of a TSV in `folder`; raises `BadRow` if it has none."""
    named = FILE.fullmatch(b"\t".join(fields[1:])) if len(fields) <= 4 else None
    if named:
        path, times, size = named.groups()
        frames: Frames = Linked(folder / os.fsdecode(path), times, int(size) if size else None)
    else:
        # downstream rows have one more field before the frames, which is no base64
        extra = len(fields) > 2 and not BASE64.match(fields[1])
        frames = Stored(fields[2:] if extra else fields[1:])
    if not len(frames):
        raise BadRow("it has no frames")
    return frames


def read_clip(
    fields: Sequence[bytes],
    size_frame: int,
    transform: "Transform",
    random: np.random.Generator | None,
    folder: Path = Path(),
) -> Tensor:
    """The fields of a row -> (T, 3, size, size); only the picked frames are decoded.

    `folder` is that of the TSV, from which paths in it lead on.
    """
    frames = row_frames(fields, folder)
    if random is None:
        picked = even_frames(len(frames), size_frame)
    else:
        picked = random_frames(len(frames), size_frame, random)
    return transform(frames.read(picked.tolist(), transform.size), random)


def read_clips(
    fields: Sequence[bytes], size_frame: int, transform: "Transform", folder: Path = Path()
) -> Tensor:
    """Multi-clip testing: the fields of a row -> (clips, T, 3, size, size); a frame is decoded once."""
    frames = row_frames(fields, folder)
    clips = every_clip(len(frames), size_frame)
    numbers = np.unique(clips)
    pictures = transform(frames.read(numbers.tolist(), transform.size), None)
    return pictures[torch.from_numpy(np.searchsorted(numbers, clips))]


# ------------------------------------------------------------------------------------------- transforms


def normalise(frames: Tensor) -> Tensor:
    """(..., 3, H, W) uint8 -> float32 by ImageNet's mean and deviation, on the device of the frames."""
    mean, deviation = (channels(values, frames.device) for values in IMAGENET)
    return frames.float().sub_(255 * mean).div_(255 * deviation)


@functools.cache
def channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    """(C, 1, 1): a number for each channel, copied to the device once: the host waits for each such copy."""
    with torch.inference_mode(False):
        return torch.tensor(values, device=device)[:, None, None]


def within_ratio(frame: Tensor, place: np.ndarray) -> Tensor:
    """A frame whose longer side is more than `RATIO` times its shorter one, cut at `place` to that ratio.

    Resized as a whole, a picture of 65,500 x 1 pixels would take gigabytes.
    """
    height, width = frame.shape[1:]
    longest = RATIO * min(height, width)
    if max(height, width) <= longest:
        return frame
    top, left = (
        round(share * max(0, side - longest)) for share, side in zip(place, (height, width), strict=True)
    )
    return frame[:, top : top + longest, left : left + longest]


class Transform:
    """Frames of any size -> squares, as `img_transform` names it.

    img_rand_crop: the shorter side to `size`, a random crop per frame; vid_rand_crop: one crop for the
    clip; img_center_crop; pad_resize: padded to a square with black, then resized. Of several names one is
    drawn per frame. In evaluation (no random generator) every crop is the centre one, and so is what several
    names come to.
    """

    def __init__(self, names: Sequence[str], size: int) -> None:
        self.names, self.size = list(names), size

    def __call__(self, frames: Sequence[Tensor], random: np.random.Generator | None) -> Tensor:
        """T of (3, H, W) uint8 -> (T, 3, size, size) uint8."""
        if random is None:
            name = self.names[0] if len(self.names) == 1 else "img_center_crop"
            return torch.stack([self.one(name, frame, CENTRE) for frame in frames])
        clip_place, squares = random.random(2), []
        for frame in frames:  # as published, several transforms are drawn from per frame
            name = self.names[random.integers(len(self.names))]
            places = {"img_rand_crop": random.random(2), "vid_rand_crop": clip_place}
            squares.append(self.one(name, frame, places.get(name, CENTRE)))
        return torch.stack(squares)

    def one(self, name: str, frame: Tensor, place: np.ndarray) -> Tensor:
        """(3, H, W) uint8 -> (3, size, size) uint8; `place`: see `crop`."""
        return self.pad_resize(frame) if name == "pad_resize" else self.crop(frame, place)

    def blank(self, frames: int) -> Tensor:
        """So many black frames, in place of a clip that cannot be read: (T, 3, size, size) uint8."""
        return torch.zeros(frames, 3, self.size, self.size, dtype=torch.uint8)

    def crop(self, frame: Tensor, place: np.ndarray) -> Tensor:
        """Shorter side to `size`, then the square at `place`: shares (0 to 1) of the way down and right."""
        frame = within_ratio(frame, place)
        height, width = frame.shape[1:]
        short = min(height, width)
        height, width = self.size * height // short, self.size * width // short
        frame = image.resize(frame, [height, width], antialias=True)
        top, left = (
            round(share * (side - self.size)) for share, side in zip(place, (height, width), strict=True)
        )
        return frame[:, top : top + self.size, left : left + self.size]

    def pad_resize(self, frame: Tensor) -> Tensor:
        """Black bars to a square, then that square to `size`."""
        frame = within_ratio(frame, np.array([0.5, 0.5]))
        height, width = frame.shape[1:]
        side = max(height, width)
        left, top = (side - width) // 2, (side - height) // 2
        frame = image.pad(frame, [left, top, side - width - left, side - height - top])
        return image.resize(frame, [self.size, self.size], antialias=True)
