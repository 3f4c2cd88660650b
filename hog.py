"""scikit-image's picture of the histograms of oriented gradients, batched and on the device."""

import functools
import math

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from lib import UserError


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
    histogram = cell_histograms(frames.float(), orientations, cell)
    strokes = orientation_strokes(orientations, cell).to(histogram).flatten(1)
    picture = rearrange(histogram @ strokes, "... h w (i j) -> ... (h i) (w j)", i=cell)
    return F.pad(picture, (0, width - picture.shape[-1], 0, height - picture.shape[-2]))


def cell_histograms(frames: Tensor, orientations: int, cell: int) -> Tensor:
    """(..., 3, H, W) -> (..., H // cell, W // cell, orientations): mean gradient magnitude per bin."""
    # differences over two pixels; the outermost ones have none
    down, right = torch.zeros_like(frames), torch.zeros_like(frames)
    torch.sub(frames[..., 2:, :], frames[..., :-2, :], out=down[..., 1:-1, :])
    torch.sub(frames[..., :, 2:], frames[..., :, :-2], out=right[..., :, 1:-1])
    down, right, magnitude = strongest_channel(down, right)
    # unsigned: opposite directions are one
    bins = torch.atan2(down, right).mul_(orientations / math.pi).floor_().remainder_(orientations)
    rows, columns = (size // cell * cell for size in frames.shape[-2:])
    votes, bins = (
        rearrange(x[..., :rows, :columns], "... (h i) (w j) -> ... h w (i j)", i=cell, j=cell)
        for x in (magnitude, bins)
    )
    empty = votes.new_zeros(*votes.shape[:-1], orientations)
    return empty.scatter_add_(-1, bins.long(), votes) / cell**2


def strongest_channel(down: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients (..., C, H, W) -> of the first channel with the largest magnitude, and that: (..., H, W)."""
    squares = down.square().addcmul_(right, right)
    channels = zip(*(x.unbind(dim=-3) for x in (down, right, squares)), strict=True)
    best_down, best_right, best = next(channels)
    for other_down, other_right, square in channels:
        larger = square > best
        best_down = torch.where(larger, other_down, best_down)
        best_right = torch.where(larger, other_right, best_right)
        best = torch.maximum(square, best)
    return best_down, best_right, best.sqrt()


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
