"""Scores of many videos with many texts: what `RetrievalModel.scores` computes, with nothing computed twice.

What the first layer makes of a video alone is made once per video; of the last layer only [CLS] is computed,
which needs no keys and values of all tokens. Videos and texts are broadcast against each other, not copied.

Shapes: N videos, M texts, P = N x M pairs, V video tokens, X text tokens, D the width, H heads, d = D / H.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from layers.fusion import FusionLayer, visible
from tasks.retrieval.model import RetrievalModel

CPU_BYTES = 1 << 27  # of a chunk's activations: more than the caches hold only makes it wait for memory
MOST_TOKENS = 1 << 17  # of a chunk on an accelerator: more makes it no faster


@dataclass(frozen=True)
class FirstLayer:
    """What the first layer makes of videos whatever the text."""

    tokens: Tensor
    """(N, V, D)"""
    query: Tensor
    """(N, H, V, d), scaled"""
    key: Tensor
    """(N, H, V, d)"""
    value: Tensor
    """(N, H, V, d)"""
    seen: Tensor
    """(N, H, V, d): what the video's tokens see of each other"""
    weight: Tensor
    """(N, H, V, 1), float32: logarithm of the sum of the exponentials of those scores"""


class PairScorer:
    """The model's transformer and `fc`, frozen, in one precision; for inference alone."""

    def __init__(self, model: RetrievalModel, dtype: torch.dtype = torch.float32) -> None:
        parts = nn.ModuleList([model.trsfr, model.fc])
        parts = parts if dtype == torch.float32 else copy.deepcopy(parts).to(dtype)
        self.dtype = dtype
        self.layers = [cast(FusionLayer, layer) for layer in cast(Any, parts[0]).layer]
        self.fc = parts[1]

    def prepare(self, video: Tensor) -> FirstLayer:
        """video: (N, V, D) -> what the first layer makes of each alone."""
        layer, video = self.layers[0], video.to(self.dtype)
        query, key, value = project(layer, video)
        scores = (query @ key.transpose(-2, -1)).float()
        weight = scores.logsumexp(dim=-1, keepdim=True)
        seen = (scores - weight).exp().to(self.dtype) @ value
        return FirstLayer(video, query, key, value, seen, weight)

    def scores(self, videos: FirstLayer, text: Tensor, mask: Tensor) -> Tensor:
        """text: (M, X, D); mask: (M, X) -> (N, M) of every video with every text, in float32."""
        text, pairs = text.to(self.dtype), (len(videos.tokens), len(text))
        x = self.first(videos, text, mask) if len(self.layers) > 1 else beside(videos.tokens, text)
        seen = visible(repeat(mask, "m x -> (n m) x", n=pairs[0]), videos.tokens.shape[1])
        for layer in self.layers[1:-1]:
            x = layer(x, seen)
        at_cls = self.last(x, seen, videos.tokens.shape[1])
        return self.fc(at_cls).float().view(pairs)

    def first(self, videos: FirstLayer, text: Tensor, mask: Tensor) -> Tensor:
        """The first layer's output (P, V+X, D), of its two parts' attention to each other."""
        layer = self.layers[0]
        words = project(layer, text)
        hidden = ~mask.bool()[:, None, None, :]
        seen = torch.cat([video_sees(videos, words, hidden), text_sees(videos, words, hidden)], dim=2)
        return layer.finish(beside(videos.tokens, text), seen)

    def last(self, x: Tensor, seen: Tensor, place: int) -> Tensor:
        """x: (P, L, D) -> the last layer's output (P, D) at `place`, the text's [CLS].

        With one query a pair, q (W x + b) is taken as (q W) x, and sum a (W x + b) as W (sum a x) + b: keys
        and values of all tokens are never made. q b is the same for every key, and drops out of the softmax.
        """
        layer = self.layers[-1]
        parts: Any = layer.attention["self"]
        at = x[:, place]
        query = rearrange(parts["query"](at), "p (h d) -> p h d", h=layer.heads)
        query = query * query.shape[-1] ** -0.5
        weight = rearrange(parts["key"].weight, "(h d) e -> h d e", h=layer.heads)
        scores = torch.einsum("p h d, h d e -> p h e", query, weight) @ x.transpose(1, 2)
        share = scores.masked_fill(~seen[:, 0], -torch.inf).softmax(dim=-1)
        weight = rearrange(parts["value"].weight, "(h d) e -> h d e", h=layer.heads)
        value = torch.einsum("p h e, h d e -> p h d", share @ x, weight)
        value = value + rearrange(parts["value"].bias, "(h d) -> h d", h=layer.heads)
        return layer.finish(at[:, None], value[:, :, None])[:, 0]


Words = tuple[Tensor, Tensor, Tensor]  # queries, scaled, keys and values (M, H, X, d) of texts


def video_sees(videos: FirstLayer, words: Words, hidden: Tensor) -> Tensor:
    """What each video's tokens see beside each text (P, H, V, d); `hidden` (M, 1, 1, X), True = padding.

    To a token the whole video is one more word, whose score is `weight` and whose value is `seen`: the
    softmax over words and video comes out the same.
    """
    _, key, value = words
    keys = rearrange(key, "m h x d -> h d (m x)")
    scores = rearrange((videos.query @ keys).float(), "n h v (m x) -> n m h v x", m=len(key))
    weight = videos.weight[:, None].expand(*scores.shape[:-1], 1)
    share = torch.cat([weight, scores.masked_fill(hidden, -torch.inf)], dim=-1).softmax(dim=-1)
    share = share.to(value.dtype)
    return (share[..., :1] * videos.seen[:, None] + share[..., 1:] @ value).flatten(0, 1)


def text_sees(videos: FirstLayer, words: Words, hidden: Tensor) -> Tensor:
    """What each text's words see beside each video (P, H, X, d); `hidden` (M, 1, 1, X), True = padding."""
    query, key, value = words
    texts, length = len(query), videos.tokens.shape[1]
    queries = rearrange(query, "m h x d -> h (m x) d")
    scores = (queries @ videos.key.transpose(-2, -1)).float()  # the words of all texts beside each other
    scores = rearrange(scores, "n h (m x) v -> n m h x v", m=texts)
    others = (query @ key.transpose(-2, -1)).float().masked_fill(hidden, -torch.inf)
    others = others.expand(len(videos.tokens), -1, -1, -1, -1)
    share = torch.cat([scores, others], dim=-1).softmax(dim=-1).to(value.dtype)
    seen = rearrange(share[..., :length], "n m h x v -> n h (m x) v") @ videos.value
    seen = rearrange(seen, "n h (m x) d -> n m h x d", m=texts)
    return (seen + share[..., length:] @ value).flatten(0, 1)


def project(layer: FusionLayer, x: Tensor) -> Words:
    """(B, L, D) -> queries, scaled, keys and values (B, H, L, d)."""
    query, key, value = (layer.project(name, x) for name in ("query", "key", "value"))
    return query * query.shape[-1] ** -0.5, key, value


def beside(video: Tensor, text: Tensor) -> Tensor:
    """video: (N, V, D); text: (M, X, D) -> (N x M, V+X, D)."""
    pairs = len(video) * len(text)
    x = video.new_empty(pairs, video.shape[1] + text.shape[1], video.shape[2])
    parts = x.view(len(video), len(text), *x.shape[1:])
    parts[:, :, : video.shape[1]], parts[:, :, video.shape[1] :] = video[:, None], text[None]
    return x


def pairs_at_once(model: RetrievalModel, tokens: int, dtype: torch.dtype, device: torch.device) -> int:
    """How many pairs of so many tokens fit into memory at a time."""
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
) -> Tensor:
    """video: (N, V, D); text: (M, X, D); mask: (M, X) -> scores (N, M); `advance(count)` after each chunk.

    Texts are best given sorted by length: each chunk is cut to its longest.
    """
    lengths = mask.sum(dim=1).cpu()
    found = torch.empty(len(video), len(text), device=video.device)
    prepared: tuple[slice, FirstLayer] | None = None
    for rows, columns, longest in chunks(lengths, len(video), pairs):
        if prepared is None or prepared[0] != rows:
            prepared = (rows, scorer.prepare(video[rows]))
        part = scorer.scores(prepared[1], text[columns, :longest], mask[columns, :longest])
        found[rows, columns] = part
        advance(part.numel())
    return found
