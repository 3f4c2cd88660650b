"""Video Swin Transformer (Liu et al., CVPR 2022, "Video Swin Transformer") as VIOLET uses it.

Time is never down-sampled: one zero frame is appended and the patch embedding steps one frame at a time.
Parameter names are those of the published weights.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from layers.norm import LayerNorm

Dims = tuple[int, int, int]  # time, height, width


@dataclass(frozen=True)
class Size:
    """The numbers that tell one Video Swin from another."""

    embed_dim: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    window: Dims = (8, 7, 7)
    drop_path: float = 0.2
    init_std: float | None = 0.02  # None: 1 / sqrt(fan-in), without which a miniature hardly learns


SIZES = {
    "demo": Size(32, (1, 1, 2, 1), (2, 4, 8, 16), window=(4, 4, 4), drop_path=0.0, init_std=None),
    "tiny": Size(96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "small": Size(96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "base": Size(128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "large": Size(192, (2, 2, 18, 2), (6, 12, 24, 48)),
}


# ------------------------------------------------------------------------------------------- windows

KEPT: dict[tuple["Plan", Dims, Dims, Dims, torch.device], Tensor] = {}  # of the sizes of clips met so far


def fit_window(dims: Dims, window: Dims, shifted: bool) -> tuple[Dims, Dims]:
    """(window, shift) in use: a dimension not larger than its window is covered whole and not shifted."""
    used = tuple(min(d, w) for d, w in zip(dims, window, strict=True))
    shift = tuple(w // 2 if shifted and d > w else 0 for d, w in zip(dims, window, strict=True))
    return used, shift  # type: ignore[return-value]


def relative_position_index(window: Dims) -> Tensor:
    """(N, N) rows of the bias table for every pair of the N positions of a window, time outermost."""
    axes = torch.meshgrid(*(torch.arange(w) for w in window), indexing="ij")
    positions = torch.stack(axes).flatten(1)  # (3, N)
    offsets = positions[:, :, None] - positions[:, None, :]
    index = torch.zeros_like(offsets[0])
    for offset, width in zip(offsets, window, strict=True):
        index = index * (2 * width - 1) + offset + width - 1
    return index


Plan = Callable[[Dims, Dims, Dims, torch.device], Tensor]


def kept(make: Plan, dims: Dims, window: Dims, shift: Dims, device: torch.device) -> Tensor:
    """`make(dims, window, shift, device)`, from an earlier call if there was one."""
    if torch.compiler.is_compiling():  # its tensors are stand-ins
        return make(dims, window, shift, device)
    key = (make, cast(Dims, tuple(dims)), window, shift, device)
    found = KEPT.get(key)
    if found is None:
        with torch.inference_mode(False):  # kept for later calls, which may train
            found = make(dims, window, shift, device)
        if type(found) is Tensor:  # not a tracer's stand-in
            KEPT[key] = found
    return found


def shift_regions(dims: Dims, window: Dims, shift: Dims, device: torch.device) -> Tensor:
    """(windows, N) numbers of regions; patches of different ones must not see each other.

    `dims` are the padded ones. Rolling by `shift` brings the clip's start behind its end in the last
    windows; patches that were not neighbours are in different regions there.
    """
    regions = torch.zeros(1, 1, 1, dtype=torch.long, device=device)
    for axis, (size, width, step) in enumerate(zip(dims, window, shift, strict=True)):
        position = torch.arange(size, device=device)
        region = (position >= size - width).long() + (position >= size - step) if step else 0 * position
        regions = regions * 3 + region.view([-1 if a == axis else 1 for a in range(3)])
    t, h, w = window
    return rearrange(regions, "(nt t) (nh h) (nw w) -> (nt nh nw) (t h w)", t=t, h=h, w=w).contiguous()


def window_order(dims: Dims, window: Dims, shift: Dims, device: torch.device) -> Tensor:
    """(2, L): which of the L patches of a clip of `dims` each place of its windows holds, and the reverse.

    The places are W windows of N patches, or, if the clip is rolled by `shift`, N x W: see `WindowAttention`.
    """
    names = dict(zip(("t", "h", "w"), window, strict=True))
    numbers = dict(zip(("nt", "nh", "nw"), (d // w for d, w in zip(dims, window, strict=True)), strict=True))
    clip = "(nt t) (nh h) (nw w)"
    places = "(t h w nt nh nw)" if any(shift) else "(nt nh nw t h w)"
    patches = torch.arange(math.prod(dims), device=device)
    rolled = patches.view(dims).roll([-s for s in shift], dims=(0, 1, 2))
    back = rearrange(patches, f"{places} -> {clip}", **names, **numbers).roll(shift, dims=(0, 1, 2))
    return torch.stack([rearrange(rolled, f"{clip} -> {places}", **names), back.flatten()])


class Reorder(torch.autograd.Function):
    """x (B, L, C) at `there` (L,), of which `back` (L,) is the reverse.

    Its gradient is read at `back`; `index_select` alone would add it up, as if a place might be read twice.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, there: Tensor, back: Tensor) -> Tensor:
        """See the class."""
        ctx.save_for_backward(there, back)
        return x.index_select(1, there)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """The gradient in the order of x."""
        there, back = ctx.saved_tensors
        return Reorder.apply(gradient, back, there), None, None


class WindowAttention(nn.Module):
    """Multi-head self-attention within a window, with a learned bias per head and relative position."""

    relative_position_index: Tensor
    kernels = False  # see `use_kernels`

    def __init__(self, dim: int, heads: int, window: Dims) -> None:
        super().__init__()
        self.heads = heads
        places = [2 * width - 1 for width in window]
        self.relative_position_bias_table = nn.Parameter(
            torch.zeros(places[0] * places[1] * places[2], heads)
        )
        self.register_buffer("relative_position_index", relative_position_index(window))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, regions: Tensor | None) -> Tensor:
        """x: (B, W, N, C) for W windows of N patches -> the same; with regions (W, N): (B, N, W, C)."""
        qkv = self.qkv(x)
        length = x.shape[2] if regions is None else x.shape[1]
        if self.kernels and qkv.dtype in (torch.bfloat16, torch.float16):
            from layers import window_kernels  # needs Triton

            size = window_kernels.whole_tiles(length)
            bias = self.bias(length, size, size, qkv.dtype)
            return self.proj(window_kernels.attend(qkv, bias, regions, self.heads))
        # rows a multiple of 8 apart, as the attention kernels of CUDA want them
        bias = self.bias(length, length, length + -length % 8, qkv.dtype)
        return self.proj(attend(qkv, bias, regions, self.heads))

    def bias(self, length: int, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        """(heads, rows, columns) for windows of N = `length` patches; beyond N it means nothing."""
        index = self.relative_position_index[:length, :length]
        index = F.pad(index, (0, columns - length, 0, rows - length))
        bias = F.embedding(index, self.relative_position_bias_table.to(dtype))
        return rearrange(bias, "n m h -> h n m").contiguous()


def use_kernels(model: nn.Module) -> None:
    """From now on layers/window_kernels.py computes attention within windows, where it fits the heads."""
    for module in model.modules():
        if isinstance(module, WindowAttention):
            module.kernels = module.qkv.in_features // module.heads in (16, 32, 64, 128)


def attend(qkv: Tensor, bias: Tensor, regions: Tensor | None, heads: int) -> Tensor:
    """Attention within windows by PyTorch.

    qkv: (B, W, N, 3 heads D), queries, keys and values; bias: (heads, N, N or more), added to the scores;
    regions: those of `shift_regions` (W, N), or None -> (B, W, N, heads D). With regions the mask differs
    from window to window: qkv and the result are (B, N, W, ...), so that windows lie beside the heads and the
    mask is not copied for every clip.
    """
    outside, inside = ("b w n", "(b w) h n d") if regions is None else ("b n w", "b (w h) n d")
    windows, length = qkv.shape[1:3] if regions is None else (qkv.shape[2], qkv.shape[1])
    parts = qkv.chunk(3, dim=-1)
    q, k, v = (rearrange(part, f"{outside} (h d) -> {inside}", h=heads) for part in parts)
    if regions is not None:
        of_columns = F.pad(regions, (0, bias.shape[-1] - length))
        apart = regions[:, None, :, None] != of_columns[:, None, None, :]
        bias = torch.add(bias, apart, alpha=-100).flatten(0, 1)
    seen = F.scaled_dot_product_attention(q, k, v, bias[None, ..., :length])
    return rearrange(seen, f"{inside} -> {outside} (h d)", w=windows, h=heads)


# -------------------------------------------------------------------------------------------- network


class Mlp(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm window attention, the windows shifted by half of their size or not, and an MLP."""

    def __init__(self, dim: int, heads: int, window: Dims, shifted: bool) -> None:
        super().__init__()
        self.window, self.shifted = window, shifted
        self.norm1 = LayerNorm(dim)
        self.attn = WindowAttention(dim, heads, window)
        self.norm2 = LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """x: (B, T, H, W, C); keep: what `VideoSwin.draw` gives for a block -> (B, T, H, W, C)."""
        first, second = (None, None) if keep is None else (keep[0], keep[1])
        x = add(x, self.attend(self.norm1(x)), first)
        return add(x, self.mlp(self.norm2(x)), second)

    def attend(self, x: Tensor) -> Tensor:
        """Attention within the windows of the clip, which is padded to whole windows."""
        dims: Dims = x.shape[1:4]  # type: ignore[assignment]
        window, shift = fit_window(dims, self.window, self.shifted)
        pad = [-d % w for d, w in zip(dims, window, strict=True)]
        if any(pad):
            x = F.pad(x, (0, 0, 0, pad[2], 0, pad[1], 0, pad[0]))
        padded: Dims = x.shape[1:4]  # type: ignore[assignment]
        there, back = kept(window_order, padded, window, shift, x.device)
        regions = kept(shift_regions, padded, window, shift, x.device) if any(shift) else None
        length = math.prod(window)
        x = Reorder.apply(x.flatten(1, 3), there, back)
        x = self.attn(x.unflatten(1, (-1, length) if regions is None else (length, -1)), regions)
        x = Reorder.apply(x.flatten(1, 2), back, there).unflatten(1, padded)
        return x[:, : dims[0], : dims[1], : dims[2]]


def add(x: Tensor, change: Tensor, keep: Tensor | None) -> Tensor:
    """x + change, each clip's change times its `keep`."""
    return x + change if keep is None else torch.addcmul(x, change, keep)


class PatchMerging(nn.Module):
    """Join 2 x 2 neighbouring patches of a frame; half the resolution, twice the width."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, H, W, C) -> (B, T, ceil(H/2), ceil(W/2), 2C)."""
        x = F.pad(x, (0, 0, 0, x.shape[3] % 2, 0, x.shape[2] % 2))
        x = rearrange(x, "b t (h dh) (w dw) c -> b t h w (dw dh c)", dh=2, dw=2)
        return self.reduction(self.norm(x))


class Stage(nn.Module):
    """Blocks of one resolution, every second one shifted, then the merging of patches."""

    def __init__(self, dim: int, depth: int, heads: int, window: Dims, merge: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(dim, heads, window, shifted=i % 2 == 1) for i in range(depth))
        self.downsample = PatchMerging(dim) if merge else None

    def forward(self, x: Tensor, keep: Iterator[Tensor | None], use_checkpoint: bool) -> Tensor:
        """x: (B, T, H, W, C); keep: see `draw` -> (B, T, H/2, W/2, 2C), in the last stage as x."""
        for block in self.blocks:
            given = (x, next(keep))
            x = checkpoint(block, *given, use_reentrant=False) if use_checkpoint else block(*given)
        return x if self.downsample is None else self.downsample(x)


class PatchEmbed(nn.Module):
    """Patches of 4 x 4 pixels and 2 frames, one frame apart."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(3, dim, kernel_size=(2, 4, 4), stride=(1, 4, 4))
        self.norm = LayerNorm(dim)

    def forward(self, frames: Tensor) -> Tensor:
        """(B, 3, T, H, W) -> (B, T, ceil(H/4), ceil(W/4), C)."""
        height, width = frames.shape[-2:]
        frames = F.pad(frames, (0, -width % 4, 0, -height % 4, 0, 1))  # the last 1: a zero frame
        return self.norm(rearrange(self.proj(frames), "b c t h w -> b t h w c"))


class VideoSwin(nn.Module):
    """Video Swin Transformer: (B, 3, T, H, W) -> (B, C, T, H/32, W/32)."""

    drop_paths: Tensor

    def __init__(self, size: Size, use_checkpoint: bool = False) -> None:
        super().__init__()
        self.use_checkpoint = use_checkpoint
        self.width = size.embed_dim * 2 ** (len(size.depths) - 1)
        self.patch_embed = PatchEmbed(size.embed_dim)
        self.layers = nn.ModuleList()
        for i, (depth, heads) in enumerate(zip(size.depths, size.heads, strict=True)):
            merge = i + 1 < len(size.depths)
            self.layers.append(Stage(size.embed_dim * 2**i, depth, heads, size.window, merge))
        self.drops = size.drop_path > 0
        rates = torch.linspace(0, size.drop_path, sum(size.depths))  # rising to the last block
        self.register_buffer("drop_paths", rates, persistent=False)
        self.norm = LayerNorm(self.width)
        self.initialise(size.init_std)

    @torch.no_grad()
    def initialise(self, std: float | None) -> None:
        """Truncated normal weights of deviation `std` (None: 1 / sqrt(fan-in)), zero biases."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=std or module.in_features**-0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, WindowAttention):
                nn.init.trunc_normal_(module.relative_position_bias_table, std=0.02)

    def draw(self, x: Tensor) -> Sequence[Tensor | None]:
        """For each block (2, B, 1, 1, 1, 1): by what its two changes of the B clips in x are multiplied.

        In training a change is dropped at the block's rate, else scaled so that its mean stays (stochastic
        depth, Huang et al., ECCV 2016). None: all changes are kept as they are.
        """
        if not self.training or not self.drops:
            return [None] * len(self.drop_paths)
        rates = (1 - self.drop_paths).view(-1, 1, 1, 1, 1, 1, 1).expand(-1, 2, len(x), -1, -1, -1, -1)
        return (torch.bernoulli(rates) / rates).to(x.dtype).unbind()

    def forward(self, frames: Tensor) -> Tensor:
        """frames: (B, 3, T, H, W), normalised -> features (B, C, T, ceil(H/32), ceil(W/32))."""
        x = self.patch_embed(frames)
        keep = iter(self.draw(x))
        for stage in self.layers:
            x = stage(x, keep, self.use_checkpoint and self.training)
        return rearrange(self.norm(x), "b t h w c -> b c t h w")
