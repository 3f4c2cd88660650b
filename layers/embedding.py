"""The dual encoder's heads: videos and texts as unit vectors whose inner product says how well they match.

Shapes: B pairs of a process, P processes, D the width, E the size of an embedding.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIZE = 256  # of an embedding, as in ALBEF and ALPRO
TEMPERATURE = 0.07  # at the start, as in CLIP and ALBEF
LARGEST_SCALE = 100.0  # of similarities, as in CLIP: a smaller temperature makes training unstable


class Embedding(nn.Module):
    """Projections of a video and of a text to a shared space, and the temperature of their similarities.

    As in ALBEF (Li et al., NeurIPS 2021) and ALPRO (Li et al., CVPR 2022).
    """

    def __init__(self, width: int, size: int = SIZE) -> None:
        super().__init__()
        self.video, self.text = nn.Linear(width, size), nn.Linear(width, size)
        # of one dimension, which FSDP asks for; a logarithm, so that no step makes the temperature negative
        self.log_scale = nn.Parameter(torch.full((1,), -math.log(TEMPERATURE)))

    def of_video(self, tokens: Tensor, frames: int) -> Tensor:
        """Video tokens (B, T(1+hw), D) of T `frames` -> unit vectors (B, E) of the mean of their patches."""
        patches = tokens.unflatten(1, (frames, -1))[:, :, 1:]  # without the learned token before each frame's
        return unit(self.video(patches.mean(dim=(1, 2))))

    def of_text(self, cls: Tensor) -> Tensor:
        """The outputs (B, D) at the [CLS] of texts that were fused with no video -> unit vectors (B, E)."""
        return unit(self.text(cls))

    def logits(self, own: Tensor, others: Tensor) -> Tensor:
        """Unit vectors (B, E) and (N, E) -> their similarities over the temperature (B, N), in float32."""
        with torch.autocast(own.device.type, enabled=False):
            return self.log_scale.exp().clamp(max=LARGEST_SCALE) * (own @ others.T)


def unit(x: Tensor) -> Tensor:
    """(..., E) -> the same at length 1, in float32 at least."""
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)


def info_nce(by_video: Tensor, by_text: Tensor, own: Tensor) -> Tensor:
    """The symmetric InfoNCE loss, summed over the pairs.

    by_video: (B, P B), logits of each video with all texts, -inf where a text is no negative; by_text: the
    same of each text with all videos; own: (B,), where the right one is.
    """
    losses = [F.cross_entropy(logits, own, reduction="sum") for logits in (by_video, by_text)]
    return (losses[0] + losses[1]) / 2


@torch.no_grad()
def draw_hard(logits: Tensor, same: Tensor, number: int) -> Tensor:
    """For each of B videos `number` wrong texts, drawn without replacement in proportion to exp(logits).

    logits: (B, B) of the videos with the texts of the batch; same: bool (B, B), True at texts of the same
    video, which are drawn only where there are too few others. -> (B, `number`).
    """
    # the largest of logits with Gumbel noise are such a draw (Kool et al., ICML 2019), at any temperature
    noise = -torch.empty_like(logits).exponential_().log()
    order = (logits.detach() + noise).masked_fill(same, torch.finfo(logits.dtype).min)
    order = order.masked_fill(torch.eye(len(logits), dtype=torch.bool, device=logits.device), -torch.inf)
    return order.topk(number, dim=1).indices
