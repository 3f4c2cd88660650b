"""The encoders as programs that run without this repository: `torch.export` and ONNX.

Shapes: B videos or texts, T frames of S x S pixels, X text tokens.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from lib import UserError
from media.files import atomic_path
from media.frames import MEAN, STD
from model import Violet


class _Frames(nn.Module):
    """A network that takes frames of uint8 and normalises them itself."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: Violet) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", 255 * MEAN)
        self.register_buffer("std", 255 * STD)

    def normalised(self, frames: Tensor) -> Tensor:
        """uint8 -> float32 by ImageNet's mean and deviation."""
        return (frames.float() - self.mean) / self.std


class VideoFeatures(_Frames):
    """The video encoder: frames (B, T, 3, S, S) uint8 -> features (B, T, h, w, C)."""

    def forward(self, frames: Tensor) -> Tensor:
        """See the class."""
        img = rearrange(self.normalised(frames), "b t c h w -> b c t h w")
        return rearrange(self.network.enc_img.swin(img), "b c t h w -> b t h w c")


class VideoEmbedding(_Frames):
    """Frames (B, T, 3, S, S) uint8 -> unit vectors (B, 256)."""

    def forward(self, frames: Tensor) -> Tensor:
        """See the class."""
        assert self.network.fc_vtc is not None
        return self.network.fc_vtc.of_video(self.network.enc_img(self.normalised(frames)), frames.shape[1])


class TextEmbedding(nn.Module):
    """Token ids (B, X) and mask (B, X), 1 at tokens -> unit vectors (B, 256)."""

    def __init__(self, network: Violet) -> None:
        super().__init__()
        self.network = network

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """See the class."""
        return self.network.embed_text(self.network.enc_txt(ids, mask), mask)


Program = tuple[str, nn.Module, tuple[Tensor, ...]]


def programs(network: Violet, frames: int, size_img: int, size_txt: int) -> Iterator[Program]:
    """The name of each program that the network has, its module and an example of its inputs.

    The numbers of frames, pixels and text tokens are those of the config; the number of videos or texts is
    free.
    """
    clips = torch.zeros(2, frames, 3, size_img, size_img, dtype=torch.uint8)
    yield "video_features", VideoFeatures(network), (clips,)
    if network.fc_vtc is not None:
        yield "video_embedding", VideoEmbedding(network), (clips,)
        ids, mask = torch.zeros(2, size_txt, dtype=torch.long), torch.ones(2, size_txt, dtype=torch.long)
        yield "text_embedding", TextEmbedding(network), (ids, mask)


def plain_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """Attention by its formula: the memory layout of the fused kernels' outputs is not that of ONNX."""
    scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(dim=-1) @ value


def export(
    network: Violet, frames: int, size_img: int, size_txt: int, folder: Path, onnx: bool
) -> list[Path]:
    """Write NAME.pt2 of each program, with `onnx` also NAME.onnx; the network is on the CPU, in eval mode."""
    written = []
    for name, module, example in programs(network.eval(), frames, size_img, size_txt):
        batch = torch.export.Dim("batch", min=1, max=4096)
        shapes = tuple({0: batch} for _ in example)
        # without gradients: torch 2.6 cannot trace the backward pass of `video_swin.Reorder` for any batch
        with mock.patch.object(F, "scaled_dot_product_attention", plain_attention), torch.no_grad():
            program = torch.export.export(module.eval(), example, dynamic_shapes=shapes)
        buffer = io.BytesIO()  # to a file it writes under a name in .pt2 alone
        torch.export.save(program, buffer)
        with atomic_path(folder / f"{name}.pt2") as temporary:
            temporary.write_bytes(buffer.getbuffer())
        written.append(folder / f"{name}.pt2")
        if onnx:
            written.append(write_onnx(program, folder / f"{name}.onnx"))
    return written


def write_onnx(program: torch.export.ExportedProgram, path: Path) -> Path:
    """Write an exported program as ONNX. Raises `UserError` where its packages are not installed."""
    try:
        made = torch.onnx.export(program, dynamo=True, external_data=False)
    except ImportError as error:
        raise UserError(f"ONNX needs packages ({error}): pip install onnx onnxscript.") from error
    assert made is not None
    with atomic_path(path) as temporary:
        made.save(temporary)
    return path
