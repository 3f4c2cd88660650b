"""scikit-image's picture of the histograms of oriented gradients, batched and on the device."""

import functools
import itertools
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
    strokes = orientation_strokes(orientations, cell, frames.device).flatten(1)
    flat = frames.float().reshape(-1, *frames.shape[-3:])
    few = CACHE // (4 * height * width) if frames.device.type == "cpu" else len(flat)
    few = min(len(flat), max(1, few))
    room = torch.zeros(
        7, few, height, width, device=frames.device
    )  # used again and again: new memory is slow
    picture = torch.zeros(len(flat), height, width, device=frames.device)
    for part, drawn in zip(flat.split(few), picture.split(few), strict=True):
        lines = cell_histograms(part, room[:, : len(part)], orientations, cell) @ strokes
        lines = rearrange(lines, "n h w (i j) -> n (h i) (w j)", i=cell)
        drawn[:, : lines.shape[1], : lines.shape[2]] = lines
    return picture.view(*frames.shape[:-3], height, width)


def cell_histograms(frames: Tensor, room: Tensor, orientations: int, cell: int) -> Tensor:
    """(N, C, H, W) -> (N, H // cell, W // cell, orientations): mean gradient magnitude per bin.

    The votes beyond each border between bins are added up; a bin's are the difference of two sums. Comparing
    and multiplying goes at the speed of memory, which picking by a mask or an index does not.
    """
    rows, columns = (size // cell * cell for size in frames.shape[-2:])
    fields = (*strongest_gradient(frames, room), room[5])
    cotangent, votes, beyond = (x[:, :rows, :columns].unflatten(1, (-1, cell)) for x in fields)

    def per_cell(pixels: Tensor) -> Tensor:
        return pixels.sum(dim=2).unflatten(2, (-1, cell)).sum(dim=3)

    borders = [1 / math.tan(math.pi * number / orientations) for number in range(1, orientations)]
    sums = [per_cell(votes)]
    sums += [per_cell(torch.le(cotangent, border, out=beyond).mul_(votes)) for border in borders]
    sums.append(torch.zeros_like(sums[0]))
    return torch.stack([more - less for more, less in itertools.pairwise(sums)], dim=-1) / cell**2


def strongest_gradient(frames: Tensor, room: Tensor) -> tuple[Tensor, Tensor]:
    """(N, C, H, W) -> of the first channel with the largest gradient: its cotangent, its magnitude (N, H, W).

    The cotangent is that of the angle from rightwards to downwards: that of opposite directions is the same.
    room: (7, N, H, W), zeros at first, where all of it is made; the edges of differences stay 0.
    """
    best, other, spare = room[:3], room[3:6], room[6]
    gradient(frames[:, 0], best)
    for channel in frames.unbind(dim=1)[1:]:
        gradient(channel, other)
        torch.gt(other[2], best[2], out=spare)  # 1 or 0
        best.lerp_(other, spare)
    down, right, square = best
    torch.div(right, down, out=spare).nan_to_num_(
        math.inf, math.inf, math.inf
    )  # level, either way: an angle of 0
    return spare, square.sqrt_()


def gradient(channel: Tensor, out: Tensor) -> None:
    """(N, H, W) -> out (3, N, H, W): differences over two pixels down and right, their squares' sum.

    The edges of the differences are left as they are.
    """
    down, right, square = out
    torch.sub(channel[:, 2:], channel[:, :-2], out=down[:, 1:-1])
    torch.sub(channel[..., 2:], channel[..., :-2], out=right[..., 1:-1])
    torch.mul(down, down, out=square).addcmul_(right, right)


@functools.cache
def orientation_strokes(orientations: int, cell: int, device: torch.device) -> Tensor:
    """(orientations, cell, cell): 1 where scikit-image draws an orientation's line through a cell."""
    from skimage.draw import line

    radius, middle = cell // 2 - 1, cell // 2
    strokes = torch.zeros(orientations, cell, cell)
    for i, stroke in enumerate(strokes):
        angle = math.pi * (i + 0.5) / orientations
        down, right = radius * math.sin(angle), radius * math.cos(angle)
        stroke[line(int(middle - right), int(middle + down), int(middle + right), int(middle - down))] = 1
    return strokes.to(device)  # once: the host waits for each such copy
