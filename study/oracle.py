"""True depth and motion of every pixel, from the generator of the demo world.

Shapes: frames are S x S pixels, the central square of a clip's frame, as `img_center_crop` cuts it.

`Oracle` recognises the frames of a batch by their pixels, so that what the generator knows can stand where a
teacher stands: the best that any teacher of depth or flow could say.
"""

import hashlib
import itertools
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from demo.world import Object, Pose, Scene, direction, load_scenes, visible_masks
from lib import UserError
from media.files import atomic_path
from media.frames import Transform, decode_frame
from media.tsv import Tsv
from teachers.base import Teacher, to_bytes, to_pixels

LAYERS = 4  # of depth: up to three objects', from near to far, and the background's


def square(picture: np.ndarray, size: int) -> np.ndarray:
    """(H, W) or (H, W, C) float32 -> (size, size[, C]): the shorter side to `size`, the central square."""
    height, width = picture.shape[:2]
    scale = size / min(height, width)
    shape = (size * width // min(height, width), size * height // min(height, width))
    picture = cv2.resize(picture, shape, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    top, left = (picture.shape[0] - size) // 2, (picture.shape[1] - size) // 2
    return picture[top : top + size, left : left + size]


def inverse_depth(scene: Scene, frame: int, size: int) -> np.ndarray:
    """(size, size) float32: 1 is the nearest object, and each layer behind it a quarter less."""
    masks = visible_masks(scene, frame)
    before = np.array([(LAYERS - item.depth) / LAYERS for item in scene.objects], np.float32)
    return square(1 / LAYERS + np.einsum("o,ohw->hw", before, masks), size)


def flow(scene: Scene, first: int, second: int, size: int) -> np.ndarray:
    """(2, size, size) float32, x and y in pixels: from frame `first` to `second`; 0 where nothing moves."""
    height, width = scene.height, scene.width
    at = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).astype(np.float32)
    moved = np.zeros((height, width, 2), np.float32)
    for item, mask in zip(scene.objects, visible_masks(scene, first), strict=True):
        moved[mask > 0.5] = displacement(item, first, second, at[mask > 0.5])
    return square(moved, size).transpose(2, 0, 1) * (size / min(height, width))


def displacement(item: Object, first: int, second: int, points: np.ndarray) -> np.ndarray:
    """points: (N, 2), x and y on the object at frame `first` -> where they go until `second`, (N, 2)."""
    before, after = item.pose(first), item.pose(second)
    if not after.shown:
        return np.zeros_like(points)
    change = np.linalg.inv(turned(before)) @ turned(after)
    return (points - (before.x, before.y)) @ change + (after.x, after.y) - points


def turned(pose: Pose) -> np.ndarray:
    """(2, 2): an outline's points @ this are those of the object, from its centre."""
    cosine, sine = direction(pose.angle)
    return pose.radius * np.array([[cosine, sine], [-sine, cosine]])


# ----------------------------------------------------------------------------------------- recognition


def fingerprint(frame: Tensor) -> int:
    """(3, S, S) uint8 -> 8 bytes that tell it from other frames."""
    digest = hashlib.blake2b(frame.numpy().tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def write_index(data: Path, path: Path, size: int) -> None:
    """The fingerprint of every stored frame of `train`, and of which scene and frame it is."""
    tsv, transform = Tsv(data / "train.img.tsv"), Transform(["img_center_crop"], size)
    order = {scene.id: number for number, scene in enumerate(load_scenes(data / "train.scenes.jsonl"))}
    rows = []
    for row in tqdm(range(len(tsv)), "fingerprints", unit="clip"):
        name, *stored = tsv[row]
        for number, field in enumerate(stored):
            picture = transform.crop(decode_frame(field, number), np.array([0.5, 0.5]))
            rows.append((fingerprint(picture), order[name.decode()], number))
    rows.sort()
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(
            file, prints=np.array([r[0] for r in rows], np.uint64), places=np.array(rows)[:, 1:].astype(int)
        )


class Oracle(Teacher):
    """A teacher that looks up what the generator drew. It knows the frames of `train` alone."""

    autocast = False

    def __init__(self, data: Path, index: Path, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self.scenes = load_scenes(data / "train.scenes.jsonl")
        with np.load(index, allow_pickle=False) as stored:
            self.prints, self.places = stored["prints"], stored["places"]

    def recognise(self, frames: Tensor) -> list[tuple[Scene, int]]:
        """(N, 3, S, S) uint8 -> scene and frame of each; raises `UserError` for a stranger."""
        found = []
        for frame in frames:
            wanted = np.uint64(fingerprint(frame))
            row = int(np.searchsorted(self.prints, wanted))
            if row == len(self.prints) or self.prints[row] != wanted:
                raise UserError("the oracle was shown a frame that the generator did not draw for train.")
            scene, number = self.places[row].tolist()
            found.append((self.scenes[scene], number))
        return found

    def seen(self, frames: Tensor) -> list[list[tuple[Scene, int]]]:
        """(B, T, 3, S, S), ImageNet-normalised -> scene and frame of each."""
        return [self.recognise(clip) for clip in to_bytes(to_pixels(frames)).cpu()]


class DepthOracle(Oracle):
    """The true inverse depth."""

    def compute(self, frames: Tensor) -> Tensor:
        """(B, T, 3, S, S) -> (B, T, 1, S, S)."""
        size = frames.shape[-1]
        maps = [[inverse_depth(*place, size) for place in clip] for clip in self.seen(frames)]
        return torch.from_numpy(np.array(maps)[:, :, None]).to(frames.device)


class FlowOracle(Oracle):
    """The true motion."""

    def compute(self, frames: Tensor) -> Tensor:
        """(B, T, 3, S, S) -> (B, T-1, 2, S, S)."""
        size = frames.shape[-1]
        maps = [
            [flow(scene, first, second, size) for (scene, first), (_, second) in itertools.pairwise(clip)]
            for clip in self.seen(frames)
        ]
        return torch.from_numpy(np.array(maps, np.float32)).to(frames.device)
