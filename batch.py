"""A batch and the output of a model: every key with its shape, and means that can be summed.

Shapes: B samples, T frames of S x S pixels, h x w patches of a frame, X text tokens, O options, L all tokens.

| key | shape | from | meaning |
| --- | --- | --- | --- |
| `img` | (B, T, 3, S, S) | dataset | frames: uint8 on the CPU, normalised float32 on the device |
| `txt`, `mask` | (B, X), or (B, O, X) | dataset | token ids, and 1 at tokens, 0 at padding |
| `valid` | (B,) bool | dataset | False: the row could not be read, a blank stands in for it |
| `id`, `corpus`, `bad` | lists of B | dataset | name, corpus, and the reason why a row could not be read |
| `index` | (B,) | dataset | number of the sample in its corpus |
| `other_txt`, `other_mask` | (B, N, X) | dataset | in evaluation: texts of other samples, for VTM |
| `truth_TARGET` | (B, S, C, h k, w k) | dataset | truth of a target that the data-loading workers compute |
| `place`, `answer` | (B,) | questions | place of [MASK]; token or option to predict, -1: none |
| `video` | (B,) | dataset, captions | number of the video, the same for captions of one video |
| `masked_txt` | as `txt` | masking | hidden words are [MASK] |
| `ans_mlm` | (B, X) | masking | ids of the hidden words, -1 elsewhere |
| `mlm_at` | (M,) | masking | numbers of the hidden words among the B X |
| `mvm_mask` | (B, T, h, w) bool | masking | True: a hidden patch |
| `mvm_at_TARGET` | (M,) | masking | numbers of the patches that a target reconstructs among its B S h w |
| `negatives` | (B, N) | masking | in training: samples of the batch whose texts are the wrong ones |
| `positions` | (B, K) | masking | positions among the L whose output a loss reads |
| `probe` | bool | agent | in training: whether the gradients of the losses are measured |
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Batch = dict[str, Any]


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the special tokens."""

    pad: int
    cls: int
    sep: int
    mask: int


@dataclass(frozen=True)
class Mean:
    """A mean as total and count, so that means can be summed over batches and processes."""

    total: Tensor
    count: Tensor

    @property
    def value(self) -> Tensor:
        """The mean as a scalar; 0 if the count is 0."""
        return self.total / self.count.clamp(min=1e-12)


@dataclass
class Output:
    """The output of a task's model for a batch."""

    losses: dict[str, Mean]
    """summed, each logged under its name"""
    weights: dict[str, float | Tensor] = field(default_factory=dict)
    """weights of the losses in the sum, if not 1; logged losses are unweighted"""
    scores: dict[str, Mean] = field(default_factory=dict)
    """further figures to log"""
    predictions: dict[str, Tensor | Sequence[Any]] = field(default_factory=dict)
    """for the predictions file: one entry per sample, or per hidden word of the batch"""

    def weight(self, loss: str) -> float | Tensor:
        """A loss's share in the sum."""
        return self.weights.get(loss, 1.0)


def rank_of(scores: Tensor, own: Tensor) -> Tensor:
    """Rank (...) of the score `own` (...) among scores (..., C) that contain it, 1 the first.

    Ties count against `own`: other candidates of the same score, and NaN, rank before it. An `own` that is
    not finite ranks last.
    """
    before = (~(scores < own[..., None])).sum(dim=-1)
    return before.where(own.isfinite(), scores.shape[-1])


def best_alone(scores: Tensor, own: Tensor) -> Tensor:
    """Whether the candidate `own` (...) alone has the highest of scores (..., C).

    False if there is only one candidate: without a choice nothing counts as right.
    """
    mine = scores.gather(-1, own[..., None]).squeeze(-1)
    return (rank_of(scores, mine) == 1) & torch.full_like(own, scores.shape[-1] > 1, dtype=torch.bool)
