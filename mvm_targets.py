"""What masked visual modelling reconstructs: one class per target, and the registry `TARGETS`.

Shapes: B clips, T frames of H x W pixels in h x w patches of p x p pixels, D the width of the model,
M the number of masked patches of a batch.
"""

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from einops import rearrange, reduce
from torch import Tensor, nn
from torch.nn import functional as F

from lib import Mean, UserError

TARGETS: dict[str, type["Target"]] = {}


def register(name: str) -> Callable[[type["Target"]], type["Target"]]:
    """Enter a class into `TARGETS` under the name that configs use."""

    def enter(target: type["Target"]) -> type["Target"]:
        target.name = name
        TARGETS[name] = target
        return target

    return enter


class Target(ABC):
    """One thing to reconstruct. It owns its head; the model registers the head under its published name."""

    name: str
    heads: dict[str, nn.Module]  # published name in checkpoints -> a part of the head

    @abstractmethod
    def __init__(self, hidden_size: int, patch_size: int = 32) -> None:
        """hidden_size: D; patch_size: p."""

    @abstractmethod
    def target(self, frames: Tensor) -> Tensor:
        """frames: (B, T, 3, H, W), not masked, ImageNet-normalised -> what is to be reconstructed."""

    @abstractmethod
    def loss(self, visual: Tensor, frames: Tensor, patch_mask: Tensor) -> Mean:
        """Error at the masked patches.

        visual: (B, T(1+hw), D), the model's output at the video tokens (those of masked patches are read);
        frames: (B, T, 3, H, W) as in `target`; patch_mask: (B, T, h, w), True or 1 = masked.
        """

    @abstractmethod
    def reconstruct(self, visual: Tensor, grid: Sequence[int]) -> Tensor:
        """visual: (B, T(1+hw), D); grid: (T, h, w) -> the prediction at every patch, shaped as `target`."""


def make_targets(names: Sequence[str], hidden_size: int, patch_size: int = 32) -> dict[str, Target]:
    """The targets of these names, in their order; raises `UserError` for one that has no class."""
    missing = [name for name in names if name not in TARGETS]
    if missing:
        raise UserError(f"mvm_target {', '.join(missing)} is not built; there are {', '.join(TARGETS)}.")
    return {name: TARGETS[name](hidden_size, patch_size) for name in names}


def patch_tokens(visual: Tensor, grid: Sequence[int]) -> Tensor:
    """(B, T(1+hw), D), grid (T, h, w) -> (B, T, h, w, D): without the token before each frame."""
    frames, height, width = grid
    tokens = rearrange(visual, "b (t n) d -> b t n d", t=frames)[:, :, 1:]
    return rearrange(tokens, "b t (h w) d -> b t h w d", h=height, w=width)


class PatchHead(nn.Sequential):
    """Token -> the pixels of its patch: a 1 x 1 convolution and a pixel shuffle, computed per token."""

    def __init__(self, hidden_size: int, channels: int, patch_size: int) -> None:
        super().__init__(
            nn.Conv2d(hidden_size, channels * patch_size**2, kernel_size=1), nn.PixelShuffle(patch_size)
        )
        self.channels, self.patch_size = channels, patch_size

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., D) -> (..., channels, p, p)."""
        convolution: nn.Conv2d = self[0]  # type: ignore[assignment]
        pixels = F.linear(tokens, convolution.weight.flatten(1), convolution.bias)
        return pixels.unflatten(-1, (self.channels, self.patch_size, self.patch_size))


class PictureTarget(Target):
    """A picture of every frame, reconstructed patch by patch under an L1 loss."""

    head_name: str
    channels: int

    def __init__(self, hidden_size: int, patch_size: int = 32) -> None:
        self.patch_size = patch_size
        self.head = PatchHead(hidden_size, self.channels, patch_size)
        self.heads = {self.head_name: self.head}

    def loss(self, visual: Tensor, frames: Tensor, patch_mask: Tensor) -> Mean:
        """See `Target.loss` and `error`."""
        tokens = patch_tokens(visual, patch_mask.shape[1:])[patch_mask.bool()]
        return self.error(self.head(tokens), self.hidden_patches(frames, patch_mask))

    @torch.no_grad()
    def hidden_patches(self, frames: Tensor, patch_mask: Tensor) -> Tensor:
        """The target at the masked patches: (M, C, p, p), in float32 whatever the precision of the model."""
        with torch.autocast(frames.device.type, enabled=False):
            picture = self.target(frames.float())
        p = self.patch_size
        patches = rearrange(picture, "b t c (h p) (w q) -> b t h w c p q", p=p, q=p)
        return patches[patch_mask.bool()]

    def error(self, predicted: Tensor, target: Tensor) -> Mean:
        """Patches (M, C, p, p): sum of the absolute errors / (values + 1e-5) / C."""
        error = (predicted.float() - target).abs()
        # the published normalisation divides by the channels twice
        return Mean(error.sum(), self.channels * (error.new_tensor(error.numel()) + 1e-5))

    def reconstruct(self, visual: Tensor, grid: Sequence[int]) -> Tensor:
        """(B, T(1+hw), D) -> (B, T, C, H, W): see `Target.reconstruct`."""
        return rearrange(self.head(patch_tokens(visual, grid)), "b t h w c p q -> b t c (h p) (w q)")


@register("pixel")
class Pixel(PictureTarget):
    """Normalised RGB of the masked patches (Fu et al., CVPR 2023, section 3.2)."""

    head_name, channels = "decoder_pixel", 3

    def target(self, frames: Tensor) -> Tensor:
        """frames: (B, T, 3, H, W), ImageNet-normalised -> the same."""
        return frames


@register("hog")
class Hog(PictureTarget):
    """Picture of the histograms of oriented gradients (Dalal and Triggs, CVPR 2005)."""

    head_name, channels = "decoder_hog", 1

    def target(self, frames: Tensor) -> Tensor:
        """frames: (B, T, 3, H, W) -> (B, T, 1, H, W)."""
        return hog_picture(frames)[..., None, :, :]


# ------------------------------------------------------------------------------------------------ hog


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
    strokes = orientation_strokes(orientations, cell).to(histogram)
    picture = torch.einsum("...hwo,oij->...hiwj", histogram, strokes)
    picture = rearrange(picture, "... h i w j -> ... (h i) (w j)")
    return F.pad(picture, (0, width - picture.shape[-1], 0, height - picture.shape[-2]))


def cell_histograms(frames: Tensor, orientations: int, cell: int) -> Tensor:
    """(..., 3, H, W) -> (..., H // cell, W // cell, orientations): mean gradient magnitude per bin."""
    # differences over two pixels; the outermost ones have none
    down = F.pad(frames[..., 2:, :] - frames[..., :-2, :], (0, 0, 1, 1))
    right = F.pad(frames[..., :, 2:] - frames[..., :, :-2], (1, 1))
    down, right, magnitude = strongest_channel(down, right, torch.hypot(down, right))
    angle = torch.rad2deg(torch.atan2(down, right)) % 180
    # an angle that rounding took to 180 itself lies in no bin, as in scikit-image
    bins = (angle * (orientations / 180)).floor()
    rows, columns = (size // cell for size in frames.shape[-2:])
    histogram = []
    for orientation in range(orientations):
        votes = (magnitude * (bins == orientation))[..., : rows * cell, : columns * cell]
        histogram.append(reduce(votes, "... (h i) (w j) -> ... h w", "mean", i=cell, j=cell))
    return torch.stack(histogram, dim=-1)


def strongest_channel(down: Tensor, right: Tensor, magnitude: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients (..., C, H, W) -> those of the first channel with the largest magnitude: (..., H, W)."""
    best = tuple(x[..., 0, :, :] for x in (down, right, magnitude))
    for channel in range(1, magnitude.shape[-3]):
        other = tuple(x[..., channel, :, :] for x in (down, right, magnitude))
        larger = other[2] > best[2]
        best = tuple(torch.where(larger, new, old) for new, old in zip(other, best, strict=True))
    return best  # type: ignore[return-value]


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
