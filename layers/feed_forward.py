"""The second half of a transformer's feed-forward network; it keeps its input alone for the backward pass."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def gelu_linear(x: Tensor, linear: nn.Linear) -> Tensor:
    """`linear(gelu(x))`, (..., I) -> (..., O); the backward pass makes gelu(x) again.

    In training it reads the weights of `linear` and does not call it: hooks on it would not run.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():  # a compiler decides itself what to keep
        return linear(F.gelu(x))
    return GeluLinear.apply(x, linear.weight, linear.bias)


class GeluLinear(torch.autograd.Function):
    """As `gelu_linear`, x (..., I), weight (O, I), bias (O) or None."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """In the precision of x: autocast would keep its casts of the weights, made without a gradient."""
        ctx.save_for_backward(x, weight)
        return F.linear(F.gelu(x), weight.to(x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradient of the output -> of x, weight and bias, those that learn."""
        x, weight = ctx.saved_tensors
        of_x = of_weight = of_bias = None
        rows = grad.reshape(-1, grad.shape[-1])
        if ctx.needs_input_grad[1]:
            inner = F.gelu(x).to(grad.dtype).reshape(-1, x.shape[-1])
            of_weight = (rows.t() @ inner).to(weight.dtype)
            del inner  # of all tensors here this one and the next are the largest
        if ctx.needs_input_grad[0]:
            of_x = (grad @ weight.to(grad.dtype)).to(x.dtype)
            torch.ops.aten.gelu_backward(of_x, x, grad_input=of_x)
        if ctx.needs_input_grad[2]:
            of_bias = rows.sum(dim=0).to(weight.dtype)
        return of_x, of_weight, of_bias
