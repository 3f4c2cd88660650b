"""Attention that keeps no attention matrix for the backward pass, with a learned bias and dropout too.

Shapes: B rows, H heads, N queries, M keys, d the width of a head.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from layers.dropout import keep_mask

CACHE = 1 << 23  # bytes of float32 scores made at a time: the next steps find them in 32 MiB of shared cache
Part = tuple[slice, slice]  # of the rows, of the heads


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout: float = 0.0) -> Tensor:
    """`scaled_dot_product_attention` that keeps no attention matrix for the backward pass.

    q: (B, H, N, d); k, v: (B, H, M, d); mask: 4 dimensions that broadcast to (B, H, N, M), bool (True = seen,
    and every query sees something) or added to the scores -> (B, H, N, d).
    """
    # But for CUDA's, the fused kernels know neither dropout nor a mask that learns. A compiler would write a
    # kernel for every part, and all of them anew for other sizes.
    plain = q.device.type == "cuda" or torch.compiler.is_compiling()
    if not plain and (dropout > 0 or mask.requires_grad) and torch.is_grad_enabled():
        return Attention.apply(q, k, v, mask, dropout)
    return F.scaled_dot_product_attention(q, k, v, mask, dropout)


class Attention(torch.autograd.Function):
    """As `attention`; the backward pass makes the scores again, no more at a time than the cache holds."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout: float) -> Tensor:
        """Without dropout by the fused kernel, which a mask that asks for no gradient does not rule out."""
        kept = keep_mask((*q.shape[:3], k.shape[2]), dropout, q.device) if dropout else None
        if kept is None:
            out = F.scaled_dot_product_attention(q.detach(), k.detach(), v.detach(), mask.detach())
        else:
            out = torch.empty_like(q)
            for part in parts(q, k):
                seen = shares(q[part], k[part], cut(mask, part)).mul_(kept[part].to(q.dtype))
                out[part] = seen @ (v[part] / (1 - dropout))
        ctx.save_for_backward(q, k, v, mask, out, kept)
        ctx.dropout = dropout
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradient of the output -> of q, k, v and, where it learns, of the mask."""
        q, k, v, mask, out, kept = ctx.saved_tensors
        of_q, of_k, of_v = (torch.empty_like(x) for x in (q, k, v))
        exact = torch.promote_types(mask.dtype, torch.float)  # many parts are added up
        of_mask = torch.zeros_like(mask, dtype=exact) if ctx.needs_input_grad[3] else None
        scale = q.shape[-1] ** -0.5
        for part in parts(q, k):
            share = shares(q[part], k[part], cut(mask, part))
            # the softmax's gradient needs, per query, the sum over keys of share x gradient: here as output x
            # gradient, which dropout leaves as it is
            mean = (grad[part] * out[part]).sum(dim=-1, keepdim=True)
            scaled = grad[part] / (1 - ctx.dropout)
            of_score = scaled @ v[part].transpose(-2, -1)
            seen = share
            if kept is not None:
                drawn = kept[part].to(q.dtype)  # products of two types are several times as slow
                of_score.mul_(drawn)
                seen = drawn.mul_(share)
            of_score.sub_(mean).mul_(share)
            of_v[part] = seen.transpose(-2, -1) @ scaled
            of_q[part] = of_score @ (k[part] * scale)
            of_k[part] = of_score.transpose(-2, -1) @ (q[part] * scale)
            if of_mask is not None:
                place = cut(of_mask, part)
                place.add_(of_score.sum_to_size(place.shape))
        return of_q, of_k, of_v, of_mask if of_mask is None else of_mask.to(mask.dtype), None


def parts(q: Tensor, k: Tensor) -> Iterator[Part]:
    """All rows and heads, so many at a time that their scores take `CACHE` bytes at most, if one's do."""
    fit = max(1, CACHE // (4 * q.shape[2] * k.shape[2]))
    rows, heads = max(1, fit // q.shape[1]), min(fit, q.shape[1])
    for row in range(0, q.shape[0], rows):
        for head in range(0, q.shape[1], heads):
            yield slice(row, row + rows), slice(head, head + heads)


def cut(mask: Tensor, part: Part) -> Tensor:
    """The part of a mask; all of it along what it is broadcast along."""
    rows, heads = (
        index if size > 1 else slice(None) for index, size in zip(part, mask.shape[:2], strict=True)
    )
    return mask[rows, heads]


def shares(q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    """-> (B, H, N, M), the share of attention that each query gives to each key."""
    if mask.dtype == torch.bool:  # to add is several times as fast as to fill by a mask, bytes as bools
        mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(~mask, -torch.inf)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    return scores.add_(mask).softmax(dim=-1)
