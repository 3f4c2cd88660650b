"""DALL-E's discrete VAE encoder (Ramesh et al., ICML 2021): pictures into words of a visual vocabulary.

OpenAI published it as `encoder.pkl`, a pickled module. Only its tensors are read here: no class of the
file is imported and no code of it is run.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib import UserError
from weights.checkpoint import load_tensors
from weights.tensor_files import UNREADABLE, load_data, oddity, reason

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
    tensors = read_pickled_module(path)
    try:
        hidden = len(tensors["blocks.input.b"])
        vocabulary = len(tensors["blocks.output.conv.b"])
    except KeyError as key:
        raise UserError(f"{path} lacks {key.args[0]}: it is not DALL-E's encoder.") from None
    per_group = len(
        {key for key in tensors if key.startswith("blocks.group_1.") and key.endswith("conv_1.w")}
    )
    encoder = DalleEncoder(hidden, vocabulary, max(1, per_group))
    load_tensors(encoder, tensors, source=str(path))
    return encoder


# ------------------------------------------------------------------------------------- pickled modules


class Inert:
    """Stands in for every class of a pickled module: takes what is stored of an object and does nothing."""


STOOD_IN = (
    "dall_e.encoder.Encoder",
    "dall_e.encoder.EncoderBlock",
    "dall_e.utils.Conv2d",
    "torch.nn.modules.container.Sequential",
    "torch.nn.modules.activation.ReLU",
    "torch.nn.modules.pooling.MaxPool2d",
    "torch.nn.modules.linear.Identity",
)


def read_pickled_module(path: str | Path) -> dict[str, Tensor]:
    """The state dict of a pickled DALL-E module, by torch's restricted unpickler.

    Raises `UserError` for a file that names any other class or function: it might run code.
    """
    # a class each: the unpickler tells them apart by identity
    known: list[Any] = [(type("Inert", (Inert,), {}), name) for name in STOOD_IN]
    try:
        with torch.serialization.safe_globals(known):
            root = load_data(Path(path))
    except UNREADABLE as error:
        raise UserError(f"{path} cannot be read as DALL-E's encoder: {reason(error)}") from error
    if not isinstance(root, Inert):
        raise UserError(f"{path} holds a {type(root).__name__}, not a pickled module.")
    tensors = dict(_walk(root))
    for name, tensor in tensors.items():
        if wrong := oddity(tensor):
            raise UserError(f"{path}: {name} {wrong}.")
    return tensors


def _walk(module: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """The parameters and buffers of a stand-in and of those within it, by their names in a state dict."""
    content = vars(module)
    for name, value in {**content.get("_parameters", {}), **content.get("_buffers", {})}.items():
        if isinstance(value, Tensor):
            yield prefix + name, value.detach()
    for name, part in content.get("_modules", {}).items():
        if isinstance(part, Inert):
            yield from _walk(part, f"{prefix}{name}.")
