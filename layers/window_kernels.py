"""Attention within windows with a learned bias, as Triton kernels: what PyTorch's fused attention is slow at.

PyTorch computes such a bias by its slowest fused kernel, and passes its gradient, (N, N) for each window of
each clip, through memory; here that is summed over the windows where it is computed. See bench/GPU.md.

Names in the kernels: LENGTH patches of a window, PADDED to whole tiles of TILE; WIDTH numbers of a head.
Patch n of window w of a clip is at place w * `window_step` + n * `patch_step` of the clip.
"""

# mypy: allow-untyped-defs, disable-error-code="import-untyped"
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE, WARPS = 32, 2  # the fastest of those tried on an H200
SHARES = 1024  # programs at least, over which the sum of the bias's gradient is spread


@triton.jit
def window_place(clip_window, windows, length, window_step):
    """The place of a window's first patch among those of all clips."""
    clip, window = clip_window // windows, clip_window % windows
    return clip.to(tl.int64) * windows * length + window * window_step


@triton.jit
def stand(windows, heads, window_step, LENGTH: tl.constexpr, PADDED: tl.constexpr, TILE: tl.constexpr):
    """This program's head, window of all clips' and TILE patches; places of the window, its bias and regions.

    Numbers only: torch.compile takes a tensor for written to if a function returns a pointer to it.
    """
    number, tiles = tl.program_id(0), PADDED // TILE
    head, clip_window = number // tiles % heads, number // (tiles * heads)
    patches = number % tiles * TILE + tl.arange(0, TILE)
    place = window_place(clip_window, windows, LENGTH, window_step)
    return head, clip_window, patches, place, head * PADDED * PADDED, clip_window % windows * LENGTH


@triton.jit
def tile(pointer, place, numbers, step, channels, LENGTH: tl.constexpr, WIDTH: tl.constexpr):
    """The patches `numbers` of a window, (len(numbers), WIDTH), 0 beyond its end."""
    rows = (place + numbers * step)[:, None] * channels + tl.arange(0, WIDTH)[None, :]
    return tl.load(pointer + rows, mask=numbers[:, None] < LENGTH, other=0.0)


@triton.jit
def store_tile(pointer, place, numbers, step, channels, values, LENGTH: tl.constexpr, WIDTH: tl.constexpr):
    """The reverse of `tile`."""
    rows = (place + numbers * step)[:, None] * channels + tl.arange(0, WIDTH)[None, :]
    tl.store(pointer + rows, values.to(pointer.dtype.element_ty), mask=numbers[:, None] < LENGTH)


@triton.jit
def scores(
    q, k, bias, regions, rows, columns,
    LENGTH: tl.constexpr, PADDED: tl.constexpr, WIDTH: tl.constexpr, SHIFTED: tl.constexpr,
):  # fmt: skip
    """q k^T / sqrt(D) + bias of a tile, -100 less between regions, -inf beyond the window's end."""
    found = tl.dot(q, tl.trans(k)) * (WIDTH**-0.5)
    found += tl.load(bias + rows[:, None] * PADDED + columns[None, :]).to(tl.float32)
    if SHIFTED:
        row_regions = tl.load(regions + rows, mask=rows < LENGTH, other=0)
        column_regions = tl.load(regions + columns, mask=columns < LENGTH, other=0)
        found = tl.where(row_regions[:, None] == column_regions[None, :], found, found - 100.0)
    return tl.where(columns[None, :] < LENGTH, found, float("-inf"))


@triton.jit
def score_gradients(
    q, k, v, gradient, total, delta, bias, regions, rows, columns,
    LENGTH: tl.constexpr, PADDED: tl.constexpr, WIDTH: tl.constexpr, SHIFTED: tl.constexpr,
):  # fmt: skip
    """Of a tile: the weights, and the gradients of the scores."""
    score = scores(q, k, bias, regions, rows, columns, LENGTH, PADDED, WIDTH, SHIFTED)
    weight = tl.where(rows[:, None] < LENGTH, tl.exp(score - total[:, None]), 0.0)
    return weight, weight * (tl.dot(gradient, tl.trans(v)) - delta[:, None])


@triton.jit
def forward_kernel(
    qkv, bias, regions, out, sums, windows, heads, window_step, patch_step,
    LENGTH: tl.constexpr, PADDED: tl.constexpr, WIDTH: tl.constexpr, SHIFTED: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """TILE queries of a head of a window: their results, and the logarithms of their sums of exp(scores)."""
    head, clip_window, rows, place, bias_place, regions_place = stand(
        windows, heads, window_step, LENGTH, PADDED, TILE
    )
    bias, regions = bias + bias_place, regions + regions_place
    channels, part = heads * WIDTH, qkv + head * WIDTH
    q = tile(part, place, rows, patch_step, 3 * channels, LENGTH, WIDTH)
    highest = tl.full((TILE,), float("-inf"), tl.float32)
    total = tl.zeros((TILE,), tl.float32)
    found = tl.zeros((TILE, WIDTH), tl.float32)
    for start in range(0, PADDED, TILE):
        columns = start + tl.arange(0, TILE)
        k = tile(part + channels, place, columns, patch_step, 3 * channels, LENGTH, WIDTH)
        v = tile(part + 2 * channels, place, columns, patch_step, 3 * channels, LENGTH, WIDTH)
        score = scores(q, k, bias, regions, rows, columns, LENGTH, PADDED, WIDTH, SHIFTED)
        higher = tl.maximum(highest, tl.max(score, 1))
        shrink = tl.exp(highest - higher)
        weight = tl.exp(score - higher[:, None])
        total = total * shrink + tl.sum(weight, 1)
        found = found * shrink[:, None] + tl.dot(weight.to(v.dtype), v)
        highest = higher
    result = found / total[:, None]
    store_tile(out + head * WIDTH, place, rows, patch_step, channels, result, LENGTH, WIDTH)
    tl.store(sums + (clip_window * heads + head) * PADDED + rows, highest + tl.log(total))


@triton.jit
def query_kernel(
    qkv, bias, regions, sums, gradients, deltas, qkv_gradients, out, windows, heads, window_step, patch_step,
    LENGTH: tl.constexpr, PADDED: tl.constexpr, WIDTH: tl.constexpr, SHIFTED: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """The gradients of TILE queries; and `deltas`, the products of results and their gradients."""
    head, clip_window, rows, place, bias_place, regions_place = stand(
        windows, heads, window_step, LENGTH, PADDED, TILE
    )
    bias, regions = bias + bias_place, regions + regions_place
    channels, part = heads * WIDTH, qkv + head * WIDTH
    q = tile(part, place, rows, patch_step, 3 * channels, LENGTH, WIDTH)
    result = tile(out + head * WIDTH, place, rows, patch_step, channels, LENGTH, WIDTH)
    gradient = tile(gradients + head * WIDTH, place, rows, patch_step, channels, LENGTH, WIDTH)
    delta = tl.sum(result.to(tl.float32) * gradient.to(tl.float32), 1)
    line = (clip_window * heads + head) * PADDED + rows
    tl.store(deltas + line, delta)
    total = tl.load(sums + line)
    found = tl.zeros((TILE, WIDTH), tl.float32)
    for start in range(0, PADDED, TILE):
        columns = start + tl.arange(0, TILE)
        k = tile(part + channels, place, columns, patch_step, 3 * channels, LENGTH, WIDTH)
        v = tile(part + 2 * channels, place, columns, patch_step, 3 * channels, LENGTH, WIDTH)
        _, change = score_gradients(
            q, k, v, gradient, total, delta, bias, regions, rows, columns, LENGTH, PADDED, WIDTH, SHIFTED
        )
        found += tl.dot(change.to(k.dtype), k)
    found *= WIDTH**-0.5
    store_tile(qkv_gradients + head * WIDTH, place, rows, patch_step, 3 * channels, found, LENGTH, WIDTH)


@triton.jit
def key_kernel(
    qkv, bias, regions, sums, gradients, deltas, qkv_gradients, windows, heads, window_step, patch_step,
    LENGTH: tl.constexpr, PADDED: tl.constexpr, WIDTH: tl.constexpr, SHIFTED: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """The gradients of TILE keys and values."""
    head, clip_window, columns, place, bias_place, regions_place = stand(
        windows, heads, window_step, LENGTH, PADDED, TILE
    )
    bias, regions = bias + bias_place, regions + regions_place
    channels, part = heads * WIDTH, qkv + head * WIDTH
    k = tile(part + channels, place, columns, patch_step, 3 * channels, LENGTH, WIDTH)
    v = tile(part + 2 * channels, place, columns, patch_step, 3 * channels, LENGTH, WIDTH)
    of_keys = tl.zeros((TILE, WIDTH), tl.float32)
    of_values = tl.zeros((TILE, WIDTH), tl.float32)
    for start in range(0, PADDED, TILE):
        rows = start + tl.arange(0, TILE)
        q = tile(part, place, rows, patch_step, 3 * channels, LENGTH, WIDTH)
        gradient = tile(gradients + head * WIDTH, place, rows, patch_step, channels, LENGTH, WIDTH)
        line = (clip_window * heads + head) * PADDED + rows
        weight, change = score_gradients(
            q, k, v, gradient, tl.load(sums + line), tl.load(deltas + line), bias, regions, rows, columns,
            LENGTH, PADDED, WIDTH, SHIFTED,
        )  # fmt: skip
        of_values += tl.dot(tl.trans(weight.to(v.dtype)), gradient)
        of_keys += tl.dot(tl.trans(change.to(q.dtype)), q)
    of_keys *= WIDTH**-0.5
    into = qkv_gradients + channels + head * WIDTH
    store_tile(into, place, columns, patch_step, 3 * channels, of_keys, LENGTH, WIDTH)
    store_tile(into + channels, place, columns, patch_step, 3 * channels, of_values, LENGTH, WIDTH)


@triton.jit
def bias_kernel(
    qkv, bias, regions, sums, gradients, deltas, bias_gradients,
    clip_windows, shares, windows, heads, window_step, patch_step,
    LENGTH: tl.constexpr, PADDED: tl.constexpr, WIDTH: tl.constexpr, SHIFTED: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """The gradient of a tile of a head's bias, summed over a share of the windows."""
    number = tl.program_id(0)
    tiles = (PADDED // TILE) * (PADDED // TILE)
    head, share = number // tiles % heads, number // (tiles * heads)
    rows = number % tiles // (PADDED // TILE) * TILE + tl.arange(0, TILE)
    columns = number % (PADDED // TILE) * TILE + tl.arange(0, TILE)
    channels = heads * WIDTH
    part = qkv + head * WIDTH
    bias += head * PADDED * PADDED
    found = tl.zeros((TILE, TILE), tl.float32)
    for clip_window in range(share, clip_windows, shares):
        place = window_place(clip_window, windows, LENGTH, window_step)
        q = tile(part, place, rows, patch_step, 3 * channels, LENGTH, WIDTH)
        k = tile(part + channels, place, columns, patch_step, 3 * channels, LENGTH, WIDTH)
        v = tile(part + 2 * channels, place, columns, patch_step, 3 * channels, LENGTH, WIDTH)
        gradient = tile(gradients + head * WIDTH, place, rows, patch_step, channels, LENGTH, WIDTH)
        line = (clip_window * heads + head) * PADDED + rows
        _, change = score_gradients(
            q, k, v, gradient, tl.load(sums + line), tl.load(deltas + line), bias,
            regions + clip_window % windows * LENGTH, rows, columns, LENGTH, PADDED, WIDTH, SHIFTED,
        )  # fmt: skip
        found += change
    into = bias_gradients + (share * heads + head) * PADDED * PADDED
    tl.store(into + rows[:, None] * PADDED + columns[None, :], found)


class WindowsAttend(torch.autograd.Function):
    """See `attend`."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, bias: Tensor, regions: Tensor | None, heads: int) -> Tensor:
        """Results, and what the gradients need."""
        qkv = qkv.contiguous()
        windows, length = qkv.shape[1:3] if regions is None else (qkv.shape[2], qkv.shape[1])
        steps = (length, 1) if regions is None else (1, windows)
        width, size = qkv.shape[-1] // (3 * heads), whole_tiles(length)
        out = qkv.new_empty(*qkv.shape[:-1], heads * width)
        sums = qkv.new_empty(len(qkv) * windows * heads * size, dtype=torch.float32)
        shifted = regions is not None
        regions = regions if shifted else qkv  # any tensor would do
        numbers = (windows, heads, *steps, length, size, width, shifted, TILE)
        grid = (size // TILE * heads * windows * len(qkv),)
        forward_kernel[grid](qkv, bias, regions, out, sums, *numbers, num_warps=WARPS)
        ctx.save_for_backward(qkv, bias, regions, out, sums)
        ctx.numbers, ctx.grid, ctx.clip_windows = numbers, grid, len(qkv) * windows
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Gradients of qkv and of the bias."""
        qkv, bias, regions, out, sums = ctx.saved_tensors
        gradient, numbers = gradient.contiguous(), ctx.numbers
        of_qkv, deltas = torch.empty_like(qkv), torch.empty_like(sums)
        given = (qkv, bias, regions, sums, gradient, deltas)
        query_kernel[ctx.grid](*given, of_qkv, out, *numbers, num_warps=WARPS)
        key_kernel[ctx.grid](*given, of_qkv, *numbers, num_warps=WARPS)
        tiles = bias.numel() // TILE**2
        shares = max(1, SHARES // tiles)
        of_bias = bias.new_empty(shares, *bias.shape, dtype=torch.float32)
        bias_kernel[(tiles * shares,)](*given, of_bias, ctx.clip_windows, shares, *numbers, num_warps=WARPS)
        return of_qkv, of_bias.sum(0).to(bias.dtype), None, None


def whole_tiles(length: int) -> int:
    """How many rows and columns the bias of windows of so many patches has."""
    return -(-length // TILE) * TILE


def attend(qkv: Tensor, bias: Tensor, regions: Tensor | None, heads: int) -> Tensor:
    """As `video_swin.attend`, in bf16 or fp16 on CUDA; FlashAttention-2 (Dao, 2023) with a learned bias.

    bias: (heads, P, P) for P = `whole_tiles(N)`, contiguous.
    """
    return WindowsAttend.apply(qkv, bias, regions, heads)
