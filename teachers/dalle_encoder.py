"""DALL-E's discrete VAE encoder (Ramesh et al., ICML 2021): pictures into words of a visual vocabulary.

OpenAI published it as `encoder.pkl`, a pickled module. Only its tensors are read here: no class of the
file is imported and no code of it is run.
"""

import re
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib import UserError
from weights.checkpoint import load_tensors
from weights.tensor_files import read_tensors

STRIDE = 8  # pixels a side of one word
GROUPS = 4


class Convolution(nn.Module):
    """A convolution of stride 1 that keeps the size, its parameters called `w` and `b`."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        # the variance that the published initial values have
        std = (inputs * kernel**2) ** -0.5
        self.w = nn.Parameter(std * torch.randn(outputs, inputs, kernel, kernel))
        self.b = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H, W)."""
        return F.conv2d(x, self.w, self.b, padding=(self.w.shape[-1] - 1) // 2)


class Block(nn.Module):
    """A residual block: four convolutions, each after a ReLU, weighed down by the depth of the network."""

    def __init__(self, inputs: int, outputs: int, gain: float) -> None:
        super().__init__()
        self.gain, inner = gain, outputs // 4
        self.id_path = Convolution(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        widths, kernels = (inputs, inner, inner, inner, outputs), (3, 3, 3, 1)
        self.res_path = nn.Sequential()
        for i, kernel in enumerate(kernels):
            self.res_path.add_module(f"relu_{i + 1}", nn.ReLU())
            self.res_path.add_module(f"conv_{i + 1}", Convolution(widths[i], widths[i + 1], kernel))

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H, W)."""
        return self.id_path(x) + self.gain * self.res_path(x)


class DalleEncoder(nn.Module):
    """Pictures -> a score for every word of the visual vocabulary at every 8 x 8 pixels."""

    def __init__(self, hidden: int = 256, vocabulary: int = 8192, blocks_per_group: int = 2) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        gain = (GROUPS * blocks_per_group) ** -2.0
        self.blocks = nn.Sequential()
        self.blocks.add_module("input", Convolution(3, hidden, 7))
        width = hidden
        for i in range(GROUPS):
            group = nn.Sequential()
            for j in range(blocks_per_group):
                group.add_module(f"block_{j + 1}", Block(width, hidden * 2**i, gain))
                width = hidden * 2**i
            if i + 1 < GROUPS:
                group.add_module("pool", nn.MaxPool2d(2))
            self.blocks.add_module(f"group_{i + 1}", group)
        output = nn.Sequential()
        output.add_module("relu", nn.ReLU())
        output.add_module("conv", Convolution(width, vocabulary, 1))
        self.blocks.add_module("output", output)

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels: (N, 3, H, W) in [0, 1], sides divisible by 8 -> logits (N, vocabulary, H/8, W/8)."""
        return self.blocks(0.8 * pixels + 0.1)


def load_dalle(path: str | Path) -> DalleEncoder:
    """The encoder in a file of the published layout, its size read from the tensors."""
    tensors = read_tensors(path, "DALL-E's encoder")
    for key in ("blocks.input.b", "blocks.output.conv.b"):
        if key not in tensors:
            raise UserError(f"{path} lacks {key}: it is not DALL-E's encoder.")
    hidden, vocabulary = (tensors[key].numel() for key in ("blocks.input.b", "blocks.output.conv.b"))
    first = [key for key in tensors if re.fullmatch(r"blocks\.group_1\..*conv_1\.w", key)]
    sizes = (hidden, vocabulary, max(1, len(first)))
    with torch.device("meta"):  # numbers are only allocated for an encoder that the file can fill
        wanted = sum(parameter.numel() for parameter in DalleEncoder(*sizes).parameters())
    if wanted > 2 * sum(tensor.numel() for tensor in tensors.values()):
        raise UserError(f"{path} lacks most of an encoder of {hidden} channels and {vocabulary} words.")
    encoder = DalleEncoder(*sizes)
    load_tensors(encoder, tensors, source=str(path))
    return encoder
