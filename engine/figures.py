"""Figures that tell a healthy run from a broken one, computed on the device within the step.

None makes the host wait. Those of a batch are means over the processes, each of which sees its own samples.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from batch import Batch, Mean
from lib import World

MOST = 64  # vectors of which rank, similarity and variance are taken
PRIOR = 0.1  # occurrences that every word has before the first is seen
HALF = 1024.0  # factor that keeps a gradient within the range of fp16


def scalar(value: float, like: Tensor) -> Tensor:
    """A number as a float32 scalar on the device of `like`, for which the host does not wait."""
    return torch.full((), float(value), device=like.device)


# ------------------------------------------------------------------------------------- outputs and inputs


@torch.no_grad()
def diversity(vectors: Tensor) -> dict[str, Mean]:
    """How much N vectors (N, ...) differ; nothing is counted where there are fewer than two.

    `rank`: effective rank of the centred unit vectors, the participation ratio (sum l)^2 / sum l^2 of the
    eigenvalues l of their covariance, from traces alone: 1 to N - 1, and 0 if all are equal.
    `similarity`: mean cosine of the pairs, -1 to 1. `variance`: share of the squared length that is no part
    of the mean vector, 0 to 1; a network that ignores its input has 0.
    """
    x = vectors[:: -(-len(vectors) // MOST) or 1].detach().flatten(1).float()
    number = len(x)
    if number < 2:
        nothing = x.new_zeros(())
        return dict.fromkeys(("rank", "similarity", "variance"), Mean(nothing, nothing))
    unit = F.normalize(x)
    mean = unit.mean(dim=0)
    centred = unit - mean
    norm = torch.linalg.vector_norm
    rank = (norm(centred).square() / norm(centred @ centred.T).clamp(min=1e-12)).square()
    similarity = (number * norm(mean).square() - 1) / (number - 1)
    variance = 1 - number * (norm(x.mean(dim=0)) / norm(x).clamp(min=1e-12)).square()
    one = torch.ones_like(rank)
    return {"rank": Mean(rank, one), "similarity": Mean(similarity, one), "variance": Mean(variance, one)}


@torch.no_grad()
def input_figures(batch: Batch) -> dict[str, Mean]:
    """Figures of a masked batch as the model receives it.

    `video_contrast`: standard deviation of the normalised pixels of a frame and channel, 0 for a blank.
    `text_repeats`: share of the pairs of samples with the same text. `text_hidden`: share of the words that
    are hidden.
    """
    txt, size = batch["txt"], len(batch["txt"])
    contrast = batch["img"][..., ::4, ::4].float().flatten(3).std(dim=-1).mean()
    same = (txt[:, None] == txt).all(dim=-1).sum() - size
    hidden = (batch["masked_txt"] != txt).sum()
    one = torch.ones_like(contrast)
    return {
        "video_contrast": Mean(contrast, one),
        "text_repeats": Mean(same / max(1, size * (size - 1)), one * (size > 1)),
        "text_hidden": Mean(hidden / batch["mask"].sum().clamp(min=1), one),
    }


@torch.no_grad()
def share_hidden(shown: Tensor, frames: Tensor) -> Mean:
    """Share of the pixels of frames (B, T, 3, H, W) that the model does not see in `shown`."""
    share = (shown[..., ::8, ::8] != frames[..., ::8, ::8]).float().mean()
    return Mean(share, torch.ones_like(share))


# --------------------------------------------------------------------------------------------- constants


class RunningMeans(nn.Module):
    """Sums over the last thousand steps of a run, by name, the same on all processes: state of the run.

    They make the best constant so far of each loss. A name's sums are (channels + 1,): a total per channel,
    or the occurrences of each word, and the number of summands.
    """

    memory = 0.999  # of the sums after each step

    def __init__(self, channels: Mapping[str, int]) -> None:
        super().__init__()
        self.lengths = {name: number + 1 for name, number in channels.items()}
        for name in ("seen", "fresh"):  # of all processes until the last step; of this one since
            self.register_buffer(name, torch.zeros(sum(self.lengths.values())))

    def part(self, sums: Tensor, name: str) -> Tensor:
        """A view of the sums of a name."""
        return dict(zip(self.lengths, sums.split(list(self.lengths.values())), strict=True))[name]

    def sums(self, name: str) -> Tensor:
        """(channels + 1,): the sums before this step."""
        return self.part(self.get_buffer("seen"), name)

    def add(self, name: str, sums: Tensor) -> None:
        """Sums (channels + 1,) of this process's batch, which count from the next step on."""
        self.part(self.get_buffer("fresh"), name).add_(sums)

    @torch.no_grad()
    def merge(self, world: World | None) -> None:
        """Called after each step: what all processes have added becomes part of the sums."""
        seen, fresh = self.get_buffer("seen"), self.get_buffer("fresh")
        seen.mul_(self.memory).add_(fresh if world is None else world.sum(fresh))
        fresh.zero_()


def word_sums(words: Tensor, vocabulary: int) -> Tensor:
    """Ids of any shape -> (vocabulary + 1,): the occurrences of each, and their number."""
    ids = words.flatten()
    sums = torch.zeros(vocabulary + 1, device=ids.device)
    sums.index_add_(0, ids, torch.ones_like(ids, dtype=torch.float32))
    sums[-1:].fill_(len(ids))
    return sums


def word_error(sums: Tensor, words: Tensor) -> Mean:
    """Cross-entropy of the frequencies in `sums` (see `word_sums`) at words of any shape.

    Before any word has been seen all are as likely.
    """
    frequency = (sums[:-1] + PRIOR) / (sums[-1] + PRIOR * (len(sums) - 1))
    error = -frequency.log().take(words.flatten()).sum()
    return Mean(error, scalar(words.numel(), error))


# --------------------------------------------------------------------------------------------- gradients


def task_gradients(losses: Mapping[str, Mean], output: Tensor) -> dict[str, Mean]:
    """`gradient_LOSS`: norm of the gradient of each unweighted loss at the transformer's output.

    The backward pass goes through the heads alone, and leaves no gradient anywhere.
    """
    scale = HALF if output.dtype == torch.float16 else 1.0
    found = {}
    for name, mean in losses.items():
        if not mean.total.requires_grad:
            continue
        (gradient,) = torch.autograd.grad(
            scale * mean.value, output, retain_graph=True, materialize_grads=True
        )
        norm = torch.linalg.vector_norm(gradient.float()) / scale
        found[f"gradient_{name}"] = Mean(norm, (mean.count.detach() >= 1).float())
    return found


class Balance(nn.Module):
    """Weights of losses whose gradients are to be as large as that of a reference: state of the run."""

    memory = 0.7  # of the squares at each measurement
    most = 1000.0  # a head that starts near zero has hardly a gradient yet

    def __init__(self, reference: str, losses: Sequence[str], share: float) -> None:
        """share: of the gradients of all `losses` together, as a multiple of that of `reference`."""
        super().__init__()
        self.names, self.share = (reference, *losses), share
        self.register_buffer("squares", torch.zeros(len(self.names)))  # means of the squared norms

    @torch.no_grad()
    def measure(self, gradients: Mapping[str, Mean]) -> None:
        """Take in what `task_gradients` has measured, over all processes."""
        squares = self.get_buffer("squares")
        means = [gradients[f"gradient_{name}"] for name in self.names]
        fresh = torch.stack([mean.value for mean in means]).square()
        counted = (torch.stack([mean.count for mean in means]) > 0) & fresh.isfinite()
        squares.copy_(squares.mul(self.memory).add(fresh).where(counted, squares))

    def weights(self) -> dict[str, Tensor]:
        """Scalars on the device."""
        squares = self.get_buffer("squares")
        ratios = (squares[0] / squares[1:]).sqrt().clamp(max=self.most).where(squares[1:] > 0, 1.0)
        return dict(zip(self.names[1:], (self.share / len(ratios) * ratios).unbind(), strict=True))
