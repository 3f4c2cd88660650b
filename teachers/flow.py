"""Optical flow as truth: RAFT's, or without any weights OpenCV's DIS."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.data import get_worker_info
from torchvision.transforms.v2 import functional as image

from lib import Config
from media.frames import channels
from teachers.base import PairTeacher, Teacher, normalise, to_bytes
from weights.checkpoint import load_tensors
from weights.published import missing_weights
from weights.tensor_files import read_tensors


class Unwaited(TorchFunctionMode):
    """Inside, the host waits for no copy to a device: torchvision's RAFT makes coordinates on the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """A call of torch."""
        options = {"non_blocking": True} if func is Tensor.to else {}
        return func(*args, **{**(kwargs or {}), **options})


class RaftTeacher(PairTeacher):
    """RAFT-Large. Its refinements are differences of a fraction of a pixel: float32 whatever the run's."""

    autocast = False
    network: nn.Module
    least = 128  # pixels a side: below, its correlations have no fourth level

    def follow(self, first: Tensor, second: Tensor) -> Tensor:
        """See `PairTeacher.follow`."""
        with Unwaited():
            flow = self.network(self.preprocess(first), self.preprocess(second))[-1]
        height, width = first.shape[-2:]
        scale = channels((width / flow.shape[-1], height / flow.shape[-2]), flow.device)
        return scale * F.interpolate(flow, (height, width), mode="bilinear", align_corners=False)

    def preprocess(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> in [-1, 1], with sides that RAFT takes: divisible by 8, 128 at least."""
        sides = [max(self.least, -(-side // 8) * 8) for side in pixels.shape[-2:]]
        if sides != list(pixels.shape[-2:]):
            pixels = F.interpolate(pixels, sides, mode="bilinear", align_corners=False)
        return normalise(pixels, [0.5] * 3, [0.5] * 3)


class DisTeacher(PairTeacher):
    """OpenCV's DIS flow (Kroeger et al., ECCV 2016), on the CPU: real supervision without any weights."""

    autocast = False

    def follow(self, first: Tensor, second: Tensor) -> Tensor:
        """See `PairTeacher.follow`."""
        return dis_flow(to_grey(first), to_grey(second)).to(first.device)


def dis_flow(first: np.ndarray, second: np.ndarray) -> Tensor:
    """Two times grey pictures (N, H, W) uint8 -> (N, 2, H, W): x and y, in pixels."""
    import cv2

    method = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    pairs = zip(first, second, strict=True)
    flows = [method.calc(a, b, None) for a, b in pairs]  # type: ignore[call-overload]
    shape = (0, *first.shape[1:], 2)
    return torch.from_numpy(np.stack(flows) if flows else np.zeros(shape, np.float32)).movedim(-1, 1)


def dis_of_clip(clip: Tensor) -> Tensor:
    """(T, 3, H, W) uint8 -> (T-1, 2, H, W), as `DisTeacher` gives it: for data-loading workers."""
    import cv2

    if get_worker_info() is not None:
        cv2.setNumThreads(1)  # the cores are the other workers'
    grey = to_grey(clip / 255)
    return dis_flow(grey[:-1], grey[1:])


def to_grey(pixels: Tensor) -> np.ndarray:
    """(N, 3, H, W) in [0, 1] -> (N, H, W) uint8."""
    return to_bytes(image.rgb_to_grayscale(pixels)[:, 0]).cpu().numpy()


def flow_teacher(config: Config, options: dict[str, Any]) -> Teacher:
    """`flow_teacher`: "dis", or a file of RAFT-Large as torchvision publishes it."""
    if config.flow_teacher == "dis":
        return DisTeacher(width=2, **options)
    from torchvision.models.optical_flow import raft_large

    network = raft_large()
    if config.teacher_init == "published":
        if not Path(config.flow_teacher).is_file():
            raise missing_weights(config.flow_teacher, "flow_teacher")
        load_tensors(network, read_tensors(config.flow_teacher), source=config.flow_teacher)
    return RaftTeacher(network, width=2, **options)
