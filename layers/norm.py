"""Layer normalisation in the precision of its input."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Cast(torch.autograd.Function):
    """Tensors in another precision, and their gradients in their own, by one kernel for all."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        """See the class; the tensors are of one precision."""
        ctx.dtype = tensors[0].dtype
        return cast(tensors, dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of the tensors."""
        return None, *cast(gradients, ctx.dtype)


def cast(tensors: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Copies in `dtype`."""
    copies = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    torch._foreach_copy_(copies, tensors)  # underscored, but what torch.optim calls too
    return tuple(copies)


class LayerNorm(nn.LayerNorm):
    """As `nn.LayerNorm`, but under autocast a half-precision input gives a half-precision output.

    CUDA's autocast computes in float32 and returns float32: residual connections are then added in float32,
    and every product casts its input again, which is a third of the bytes that a step moves outside products.
    Mean and deviation are computed in float32 in either case (Deviation 22).
    """

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> the same."""
        if x.dtype == self.weight.dtype:
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            # a compiler joins casts itself; that of torch 2.11 would lose the gradients of `Cast`
            if torch.compiler.is_compiling():
                weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
            else:
                weight, bias = Cast.apply(x.dtype, self.weight, self.bias)
            return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)
