"""scikit-image's picture of the histograms of oriented gradients, batched and on the device."""

import functools
import math

import torch
from einops import rearrange
from torch import Tensor

from lib import UserError

CACHE = 1 << 20  # bytes of a channel of the frames that are worked on at a time


@torch.no_grad()
def hog_picture(frames: Tensor, orientations: int = 9, cell: int = 8) -> Tensor:
    """scikit-image's `hog(..., visualize=True)` picture: (..., 3, H, W) -> (..., H, W), float32.

    Cells of `cell` x `cell` pixels, unsigned gradients of the channel in which they are largest at that
    pixel. The picture draws the histograms before block normalisation: in each cell a line per
    orientation, as bright as its bin, so a cell's picture is a linear function of its histogram.
    Pixels beyond the last whole cell are 0.
    """
    height, width = frames.shape[-2:]
    if min(height, width) < cell:
        raise UserError(f"hog needs frames of at least {cell} px a side, not {height} x {width}.")
    strokes = orientation_strokes(orientations, cell).to(frames.device).flatten(1)
    flat = frames.float().flatten(0, -4) if frames.dim() > 3 else frames.float()[None]
    few = max(1, CACHE // (4 * height * width)) if frames.device.type == "cpu" else max(1, len(flat))
    picture = torch.zeros(len(flat), height, width, device=frames.device)
    for part, drawn in zip(flat.split(few), picture.split(few), strict=True):
        lines = cell_histograms(part, orientations, cell) @ strokes
        lines = rearrange(lines, "n h w (i j) -> n (h i) (w j)", i=cell)
        drawn[:, : lines.shape[1], : lines.shape[2]] = lines
    return picture.view(*frames.shape[:-3], height, width)


def cell_histograms(frames: Tensor, orientations: int, cell: int) -> Tensor:
    """(N, C, H, W) -> (N, H // cell, W // cell, orientations): mean gradient magnitude per bin.

    The votes beyond each border between bins are added up; a bin's are the difference of two sums. Comparing
    and multiplying goes at the speed of memory, which picking by a mask or an index does not.
    """
    rows, columns = (size // cell * cell for size in frames.shape[-2:])
    cotangent, votes = (x[:, :rows, :columns].unflatten(1, (-1, cell)) for x in strongest_gradient(frames))
    sums = votes.new_zeros(orientations + 1, *votes.shape[:2], columns)  # over the rows of each cell
    torch.sum(votes, dim=2, out=sums[0])
    beyond = torch.empty_like(votes)
    for border in range(1, orientations):
        torch.le(cotangent, 1 / math.tan(math.pi * border / orientations), out=beyond)
        torch.sum(beyond.mul_(votes), dim=2, out=sums[border])
    sums = sums.unflatten(-1, (-1, cell)).sum(dim=-1)
    return rearrange(sums[:-1] - sums[1:], "o n h w -> n h w o") / cell**2


def strongest_gradient(frames: Tensor) -> tuple[Tensor, Tensor]:
    """(N, C, H, W) -> of the first channel with the largest gradient: its cotangent, its magnitude (N, H, W).

    The cotangent is that of the angle from rightwards to downwards: that of opposite directions is the same.
    """
    channels = frames.unbind(dim=1)
    down, right, square = gradient(channels[0])
    for channel in channels[1:]:
        other = gradient(channel)
        larger = torch.gt(other[2], square, out=torch.empty_like(square))  # 1 or 0
        for best, new in zip((down, right, square), other, strict=True):
            best.lerp_(new, larger)
    cotangent = right.div_(down).nan_to_num_(math.inf, math.inf, math.inf)  # level, either way: an angle of 0
    return cotangent, square.sqrt_()


def gradient(channel: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(N, H, W) -> differences over two pixels down and right, 0 at the edges, and their squares' sum."""
    down, right = torch.zeros_like(channel), torch.zeros_like(channel)
    torch.sub(channel[:, 2:], channel[:, :-2], out=down[:, 1:-1])
    torch.sub(channel[..., 2:], channel[..., :-2], out=right[..., 1:-1])
    return down, right, down.square().addcmul_(right, right)


@functools.cache
def orientation_strokes(orientations: int, cell: int) -> Tensor:
    """(orientations, cell, cell): 1 where scikit-image draws an orientation's line through a cell."""
    from skimage.draw import line

    radius, middle = cell // 2 - 1, cell // 2
    strokes = torch.zeros(orientations, cell, cell)
    for i, stroke in enumerate(strokes):
        angle = math.pi * (i + 0.5) / orientations
        down, right = radius * math.sin(angle), radius * math.cos(angle)
        stroke[line(int(middle - right), int(middle + down), int(middle + right), int(middle - down))] = 1
    return strokes
