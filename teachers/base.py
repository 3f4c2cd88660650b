"""A teacher: a frozen network that computes the truth of a target from the frames of a batch.

Shapes: B clips, T frames of H x W pixels, h x w = H/32 x W/32 patches. Every teacher is called with the
batch's frames (B, T, 3, H, W), not masked and ImageNet-normalised, and applies the preprocessing that its
network was trained with (Deviation 3: published, all but Video Swin are fed ImageNet-normalised frames).
"""

import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from engine.processes import choose_device
from media.frames import IMAGENET, channels


class Stopwatch:
    """Seconds that a device works on something, by its own clock where the program does not wait for it."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.events: list[tuple[torch.Event, torch.Event]] = []

    @contextlib.contextmanager
    def running(self, device: torch.device) -> Iterator[None]:
        """Inside, it runs."""
        if device.type == "cpu":
            start = time.perf_counter()
            yield
            self.seconds += time.perf_counter() - start
            return
        first, last = (torch.Event(device, enable_timing=True) for _ in range(2))
        first.record()
        yield
        last.record()
        self.events.append((first, last))

    def take(self) -> float:
        """The seconds since the last time."""
        for first, last in self.events:
            last.synchronize()
            self.seconds += first.elapsed_time(last) / 1000
        seconds, self.seconds, self.events = self.seconds, 0.0, []
        return seconds


class Teacher(ABC):
    """A frozen function of the frames, computed in parts of a bounded size, on a device of its own."""

    autocast = True
    """whether the run's precision is safe for it; where it is not, the class says why"""

    def __init__(
        self, network: nn.Module | None = None, width: int = 0, batch: int = 32, device: str = ""
    ) -> None:
        """network: what is asked; width: channels of the truth, or words of its vocabulary.

        batch: frames (or pairs of them) at a time; device: empty, where the frames are.
        """
        self.network = None if network is None else network.eval().requires_grad_(False)
        self.width, self.batch, self.device = width, batch, device
        self.stopwatch = Stopwatch()

    def __call__(self, frames: Tensor) -> Tensor:
        """frames: (B, T, 3, H, W), ImageNet-normalised -> the truth, (B, S, C, h k, w k)."""
        device = choose_device(self.device) if self.device else frames.device
        if self.network is not None:
            self.network.to(device)
        mixed = torch.autocast(device.type, enabled=self.mixed(device))
        with self.stopwatch.running(device), torch.inference_mode(), mixed:
            truth = self.compute(frames.to(device, torch.float32))
        return truth.to(frames.device, copy=True)  # the copy is no inference tensor: autograd may keep it

    def mixed(self, device: torch.device) -> bool:
        """Whether it computes in the precision of the run."""
        return self.autocast and torch.is_autocast_enabled(device.type)

    @abstractmethod
    def compute(self, frames: Tensor) -> Tensor:
        """As `__call__`, on the teacher's device, in parts."""


class FrameTeacher(Teacher):
    """A teacher that looks at each frame alone."""

    def compute(self, frames: Tensor) -> Tensor:
        """(B, T, 3, H, W) -> (B, T, C, h k, w k)."""
        parts = [self.look(part) for part in to_pixels(frames).flatten(0, 1).split(self.batch)]
        return torch.cat(parts).unflatten(0, frames.shape[:2])

    @abstractmethod
    def look(self, pixels: Tensor) -> Tensor:
        """pixels: (N, 3, H, W) in [0, 1] -> (N, C, h k, w k)."""


class PairTeacher(Teacher):
    """Optical flow: a teacher that looks at a frame and the next."""

    def compute(self, frames: Tensor) -> Tensor:
        """(B, T, 3, H, W) -> (B, T-1, 2, H, W): x and y, in pixels."""
        pixels = to_pixels(frames)
        first, second = pixels[:, :-1].flatten(0, 1), pixels[:, 1:].flatten(0, 1)
        if not len(first):
            return pixels.new_zeros(len(frames), 0, 2, *frames.shape[-2:])
        pairs = zip(first.split(self.batch), second.split(self.batch), strict=True)
        return torch.cat([self.follow(*pair) for pair in pairs]).unflatten(0, (len(frames), -1))

    @abstractmethod
    def follow(self, first: Tensor, second: Tensor) -> Tensor:
        """Two times pixels (N, 3, H, W) in [0, 1] -> (N, 2, H, W)."""


def to_pixels(frames: Tensor) -> Tensor:
    """ImageNet-normalised frames (..., 3, H, W) -> the same in [0, 1]."""
    mean, deviation = (channels(values, frames.device) for values in IMAGENET)
    return (frames * deviation + mean).clamp(0, 1)


def to_bytes(pixels: Tensor) -> Tensor:
    """Pixels in [0, 1] -> uint8."""
    return (pixels * 255).round().to(torch.uint8)


def normalise(pixels: Tensor, mean: Any, std: Any) -> Tensor:
    """Pixels (N, 3, H, W) in [0, 1] -> with a network's own mean and standard deviation."""
    return (pixels - channels(tuple(mean), pixels.device)) / channels(tuple(std), pixels.device)
