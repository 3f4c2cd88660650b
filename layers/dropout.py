"""Dropout whose mask takes a byte a value, and whose random numbers a CPU draws several times as fast.

PyTorch draws every value by itself there, and keeps the mask for the backward pass as floats.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def keep_mask(shape: Sequence[int], p: float, device: torch.device) -> Tensor:
    """uint8 of that shape: 0 with the probability `p`, below 1, else 1.

    On a CPU 64 random bits decide on four values, so that `p` is rounded to a multiple of 1 / 65536.
    """
    if device.type != "cpu":
        return torch.rand(*shape, device=device).ge_(p).byte()
    count = math.prod(shape)
    bits = torch.empty(-(-count // 4), dtype=torch.int64, device=device).random_(-(2**63), None)
    drawn = bits.view(torch.int16)[:count]
    return drawn.ge_(min(round(p * 65536), 65535) - 32768).byte().view(*shape)


def add_dropped(residual: Tensor, x: Tensor, p: float) -> Tensor:
    """`residual + dropout(x, p)`, of one shape; p: 0 where nothing is dropped."""
    if p == 0:
        return residual + x
    if x.device.type != "cpu" or torch.compiler.is_compiling():  # one kernel draws and drops there
        return residual + F.dropout(x, p)
    return AddDropped.apply(residual, x, p)


class AddDropped(torch.autograd.Function):
    """As `add_dropped`; what is kept is divided by 1 - p, whatever the mask's p was rounded to."""

    @staticmethod
    def forward(ctx: Any, residual: Tensor, x: Tensor, p: float) -> Tensor:
        """Keeps the mask alone."""
        kept = keep_mask(x.shape, p, x.device)
        ctx.save_for_backward(kept)
        ctx.p, ctx.dtypes = p, (residual.dtype, x.dtype)
        return torch.addcmul(residual, x, kept.to(x.dtype), value=1 / (1 - p))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        """Gradient of the sum -> of `residual`, of `x`."""
        (kept,) = ctx.saved_tensors
        of_x = kept.to(grad.dtype).mul_(grad).mul_(1 / (1 - ctx.p))
        return grad.to(ctx.dtypes[0]), of_x.to(ctx.dtypes[1]), None
