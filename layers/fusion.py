"""The cross-modal transformer: BERT's encoder over [video tokens, text tokens].

Shapes: B pairs, L = V + X positions (video tokens, then text tokens), K of them that are read, D the width.
"""

from typing import Any, cast

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import BertConfig

from layers.norm import LayerNorm


class FusionLayer(nn.Module):
    """One layer of BERT's encoder (Devlin et al., NAACL 2019), its parameters under BERT's names."""

    def __init__(self, bert: BertConfig) -> None:
        super().__init__()
        width, eps = bert.hidden_size, bert.layer_norm_eps
        self.heads = bert.num_attention_heads
        self.attention_dropout = bert.attention_probs_dropout_prob
        self.hidden_dropout = bert.hidden_dropout_prob
        projections = {name: nn.Linear(width, width) for name in ("query", "key", "value")}
        self.attention = nn.ModuleDict(
            {
                "self": nn.ModuleDict(projections),
                "output": nn.ModuleDict(
                    {"dense": nn.Linear(width, width), "LayerNorm": LayerNorm(width, eps)}
                ),
            }
        )
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, bert.intermediate_size)})
        self.output = nn.ModuleDict(
            {"dense": nn.Linear(bert.intermediate_size, width), "LayerNorm": LayerNorm(width, eps)}
        )

    def project(self, name: str, x: Tensor) -> Tensor:
        """(B, L, D) -> queries, keys or values (B, heads, L, D / heads)."""
        projections: Any = self.attention["self"]
        return rearrange(projections[name](x), "b l (h d) -> b h l d", h=self.heads)

    def forward(self, x: Tensor, mask: Tensor, positions: Tensor | None = None) -> Tensor:
        """x: (B, L, D); mask: see `visible`; positions: (B, K) or None, all -> (B, L or K, D).

        The mask may be given as numbers to be added to the scores.
        """
        at = x if positions is None else take(x, positions)
        if positions is not None and mask.shape[2] > 1:
            rows = mask.expand(len(x), -1, -1, -1)
            mask = rows.gather(2, repeat(positions, "b k -> b 1 k l", l=mask.shape[3]))
        dropout = self.attention_dropout if self.training else 0.0
        query, key, value = self.project("query", at), self.project("key", x), self.project("value", x)
        seen = F.scaled_dot_product_attention(query, key, value, mask, dropout)
        output: Any = self.attention["output"]
        at = output["LayerNorm"](at + self.drop(output["dense"](rearrange(seen, "b h l d -> b l (h d)"))))
        inner = self.output["dense"](F.gelu(self.intermediate["dense"](at)))
        return self.output["LayerNorm"](at + self.drop(inner))

    def drop(self, x: Tensor) -> Tensor:
        """BERT's dropout of hidden values."""
        return F.dropout(x, self.hidden_dropout, self.training)

    def attention_map(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, heads, L, L): the share of attention that each query (row) gives to each position."""
        q, k = self.project("query", x), self.project("key", x)
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        return scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(dim=-1)


class FusionEncoder(nn.Module):
    """BERT's encoder over [video tokens, text tokens]."""

    def __init__(self, bert: BertConfig, use_checkpoint: bool = False) -> None:
        super().__init__()
        self.use_checkpoint = use_checkpoint
        self.layer = nn.ModuleList(FusionLayer(bert) for _ in range(bert.num_hidden_layers))

    def forward(self, x: Tensor, mask: Tensor, positions: Tensor | None = None) -> Tensor:
        """x: (B, L, D); mask: see `visible` -> (B, L, D), or, at `positions` (B, K) alone, (B, K, D).

        The last layer computes queries and feed-forward for those positions only: nothing reads the rest.
        """
        # to be added to the scores: each layer's attention would make this of a mask
        mask = torch.zeros_like(mask, dtype=x.dtype).masked_fill(~mask, -torch.inf)
        for layer in self.layer:
            at = positions if layer is self.layer[-1] else None
            if self.use_checkpoint and self.training:
                x = checkpoint(layer, x, mask, at, use_reentrant=False)
            else:
                x = layer(x, mask, at)
        return x

    @torch.no_grad()
    def attention_received(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, L): attention that each position receives: mean over heads, sum over layers and queries."""
        received = x.new_zeros(x.shape[:2])
        for layer in self.layer:
            received += cast(FusionLayer, layer).attention_map(x, mask).mean(dim=1).sum(dim=1)
            x = layer(x, mask) if layer is not self.layer[-1] else x
        return received

    @torch.no_grad()
    def attention_given(self, x: Tensor, mask: Tensor, place: Tensor) -> Tensor:
        """(B, L): attention of the query at `place` (B,) to each position, mean over heads and layers."""
        given = x.new_zeros(x.shape[:2])
        for layer in self.layer:
            shares = cast(FusionLayer, layer).attention_map(x, mask).mean(dim=1)
            given += shares[torch.arange(len(x), device=x.device), place] / len(self.layer)
            x = layer(x, mask) if layer is not self.layer[-1] else x
        return given


def take(x: Tensor, positions: Tensor) -> Tensor:
    """x: (B, L, D); positions: (B, K) -> (B, K, D)."""
    return x.gather(1, repeat(positions, "b k -> b k d", d=x.shape[2]))


def put(x: Tensor, positions: Tensor, length: int) -> Tensor:
    """The reverse of `take`: x: (B, K, D) at positions (B, K) of zeros (B, `length`, D)."""
    zeros = x.new_zeros(x.shape[0], length, x.shape[2])
    return zeros.scatter(1, repeat(positions, "b k -> b k d", d=x.shape[2]), x)


def visible(txt_mask: Tensor, video_length: int, seq2seq: bool = False) -> Tensor:
    """Which positions a query sees: bool (B, 1, 1, L), or with `seq2seq` (1, 1, L, L).

    txt_mask: (B, X), 1 = a token. Video tokens are always seen, padding never. In `seq2seq` a word sees
    the video and the words before it (so that padding, which comes last, needs no mask), and the video
    sees itself alone.
    """
    if not seq2seq:
        return rearrange(F.pad(txt_mask.bool(), (video_length, 0), value=True), "b l -> b 1 1 l")
    length = video_length + txt_mask.shape[1]
    order = torch.arange(length, device=txt_mask.device).clamp(min=video_length - 1)
    return (order[None, :] <= order[:, None])[None, None]


@torch.no_grad()
def initialise_bert(module: nn.Module, std: float) -> None:
    """BERT's own start: normal weights of deviation `std`, zero biases, a zero vector for [PAD]."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.normal_(part.weight, std=std)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
        if isinstance(part, nn.Embedding) and part.padding_idx is not None:
            part.weight[part.padding_idx].zero_()
