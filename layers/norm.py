"""Layer normalisation in the precision of its input."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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
            weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
            return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)
