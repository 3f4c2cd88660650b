"""Scores of many videos with many texts, as `RetrievalModel.scores`, a chunk of pairs at a time.

Shapes: N videos, M texts, V video tokens, X text tokens, D the width.
"""

import copy
from collections.abc import Callable
from typing import Any, cast

import torch
from einops import repeat
from torch import Tensor, nn

from layers.fusion import FusionEncoder, visible
from model import Violet

CPU_BYTES = 1 << 27  # of a chunk's activations: more than the caches hold only makes it wait for memory
MOST_TOKENS = 1 << 17  # of a chunk on an accelerator: more makes it no faster


class PairScorer:
    """The model's transformer and `fc`, frozen, in one precision; for inference alone."""

    def __init__(self, model: Violet, dtype: torch.dtype = torch.float32) -> None:
        parts = nn.ModuleList([model.trsfr, cast(nn.Module, model.fc)])
        parts = parts if dtype == torch.float32 else copy.deepcopy(parts).to(dtype)
        self.dtype, self.trsfr, self.fc = dtype, cast(FusionEncoder, parts[0]), parts[1]

    def scores(self, video: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """video: (N, V, D); text: (M, X, D); mask: (M, X) -> (N, M) of every video with every text, float32.

        Of the last layer only the output at the text's [CLS] is computed.
        """
        x = pairs_of(video.to(self.dtype), text.to(self.dtype))
        seen = visible(repeat(mask, "m x -> (n m) x", n=len(video)), video.shape[1])
        cls = torch.full((len(x), 1), video.shape[1], device=x.device)
        return self.fc(self.trsfr(x, seen, cls)).float().view(len(video), len(text))


def pairs_of(video: Tensor, text: Tensor) -> Tensor:
    """video: (N, V, D); text: (M, X, D) -> (N x M, V+X, D)."""
    videos, texts = (
        repeat(video, "n v d -> (n m) v d", m=len(text)),
        repeat(text, "m x d -> (n m) x d", n=len(video)),
    )
    return torch.cat([videos, texts], dim=1)


def pairs_at_once(model: Violet, tokens: int, dtype: torch.dtype, device: torch.device) -> int:
    """The number of pairs of so many tokens that fit into memory at a time."""
    layer: Any = model.trsfr.layer[0]
    width, inner = layer.output["dense"].out_features, layer.output["dense"].in_features
    pair = tokens * (8 * width + 2 * inner) * dtype.itemsize  # activations that are there at the same time
    if device.type == "cpu":
        return max(1, CPU_BYTES // pair)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 1 << 31
    return max(1, min(free // 2 // pair, MOST_TOKENS // tokens))


def chunks(lengths: Tensor, videos: int, pairs: int) -> list[tuple[slice, slice, int]]:
    """(videos, texts, tokens of the longest of these texts) of each chunk of at most `pairs` pairs.

    lengths: (M,), in order. One video with as many texts as there is room for; several videos where the texts
    are fewer.
    """
    texts = min(pairs, len(lengths))
    rows = min(videos, max(1, pairs // max(1, texts)))
    return [
        (slice(i, i + rows), slice(j, j + texts), int(lengths[j : j + texts].max()))
        for i in range(0, videos, rows)
        for j in range(0, len(lengths), texts)
    ]


@torch.inference_mode()
def all_pairs(
    scorer: PairScorer,
    video: Tensor,
    text: Tensor,
    mask: Tensor,
    pairs: int,
    advance: Callable[[int], object] = lambda _: None,
    lengths: Tensor | None = None,
) -> Tensor:
    """video: (N, V, D); text: (M, X, D); mask: (M, X) -> scores (N, M); `advance(count)` after each chunk.

    Texts are best given sorted by length: each chunk is cut to its longest. `lengths` (M,), if they are known
    on the CPU, spare the host a wait for the device.
    """
    lengths = mask.sum(dim=1).cpu() if lengths is None else lengths
    found = torch.empty(len(video), len(text), device=video.device)
    for rows, columns, longest in chunks(lengths, len(video), pairs):
        part = scorer.scores(video[rows], text[columns, :longest], mask[columns, :longest])
        found[rows, columns] = part
        advance(part.numel())
    return found
