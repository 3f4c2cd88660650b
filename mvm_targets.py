"""Targets of masked visual modelling: one class per target, and the registry `TARGETS`.

Shapes: B clips, T frames of H x W pixels in h x w patches of p x p pixels, D the width of the model.
The truth of a target is a grid of S pictures, (B, S, C, h k, w k): one for each of the T frames, or of the
T-1 pairs of frames, with k x k places of C values in a patch. M patches of it are hidden.
"""

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torch.optim.swa_utils import get_ema_multi_avg_fn

from batch import Mean, best_alone
from engine.figures import word_error, word_sums
from lib import UserError
from masking import numbers_of
from teachers.base import Teacher
from teachers.hog import hog_picture

TARGETS: dict[str, type["Target"]] = {}


def register(name: str) -> Callable[[type["Target"]], type["Target"]]:
    """Enter a class into `TARGETS` under the name that configs use."""

    def enter(target: type["Target"]) -> type["Target"]:
        target.name = name
        TARGETS[name] = target
        return target

    return enter


def make_targets(
    names: Sequence[str],
    hidden_size: int,
    patch_size: int = 32,
    teachers: Mapping[str, Teacher] | None = None,
) -> dict[str, "Target"]:
    """The targets of these names, in their order, each with its teacher if it has one."""
    given = teachers or {}
    return {name: TARGETS[name](hidden_size, patch_size, given.get(name)) for name in names}


def name_heads(targets: Iterable["Target"]) -> dict[str, nn.Module]:
    """The heads of all targets by the names under which a model registers them.

    Those are the published ones, but where several targets have a head of the same name, each one's
    target is added: `fc_mvm_2d_feature` (Deviation 4: published, one would silently replace the other).
    """
    targets = list(targets)
    times = Counter(name for target in targets for name in target.heads)
    return {
        name if times[name] == 1 else f"{name}_{target.name}": head
        for target in targets
        for name, head in target.heads.items()
    }


class Target(ABC):
    """One thing to reconstruct.

    It owns its head, which the model registers under its published name, and its teacher, which is no
    part of any model: neither in the state dict, nor in the optimiser, nor in DistributedDataParallel
    (Deviation 5).
    """

    name: str
    heads: dict[str, nn.Module]
    """published name in checkpoints -> a part of the head"""
    channels = 1
    """values of the best constant: C, the words of a vocabulary, or 1 for the same value in every channel"""

    def __init__(self, hidden_size: int, patch_size: int = 32, teacher: Teacher | None = None) -> None:
        """hidden_size: D; patch_size: p; teacher: computes the truth, for targets that need one."""
        self.teacher = teacher

    # -- defined by each target

    def truth(self, frames: Tensor) -> Tensor:
        """frames: (B, T, 3, H, W), not masked, ImageNet-normalised -> (B, S, C, h k, w k).

        Raises `UserError` if the target needs a teacher and has none.
        """
        if self.teacher is None:
            raise UserError(f"the target {self.name} was made without its teacher.")
        return self.teacher(frames)

    @abstractmethod
    def predict(self, tokens: Tensor) -> Tensor:
        """Tokens of patches (M, D) -> the prediction that `error` compares with the truth."""

    @abstractmethod
    def error(self, predicted: Tensor, truth: Tensor) -> Mean:
        """A prediction of `predict`, and the truth (M, C, k, k) -> the loss."""

    def scores(self, predicted: Tensor, truth: Tensor) -> dict[str, Mean]:
        """As `error` -> further figures to log, by name."""
        return {}

    # -- the best constant, with which the loss is compared

    def sums(self, truth: Tensor) -> Tensor:
        """truth (M, C, k, k) -> (channels + 1,): the total of each channel, and the number of summands."""
        values = truth.float().movedim(1, -1).reshape(-1, self.channels)
        total = values.nan_to_num(posinf=0.0, neginf=0.0).sum(dim=0)
        return torch.cat([total, values[:, :1].isfinite().sum(dim=0)])

    def constant_error(self, sums: Tensor, truth: Tensor) -> Mean:
        """`error` of the mean of all truths in `sums`, see there, at the truth (M, C, k, k).

        Nothing is counted as long as nothing has been summed.
        """
        mean = sums[:-1] / sums[-1].clamp(min=1.0)
        error, known = self.error(mean[:, None, None].expand(truth.shape), truth), sums[-1] > 0
        return Mean(error.total * known, error.count * known)

    # -- defaults for targets of single frames, overridden by targets of pairs of frames

    def tokens(self, visual: Tensor, grid: Sequence[int]) -> Tensor:
        """visual: (B, T(1+hw), D); grid: (T, h, w) -> (B, S, h, w, D), what the head reads of each patch."""
        return patch_tokens(visual, grid)

    def hidden(self, patch_mask: Tensor) -> Tensor:
        """(B, T, h, w), True or 1 = masked -> bool (B, S, h, w): patches of the truth to reconstruct."""
        return patch_mask.bool()

    def reads(self, patch_mask: Tensor) -> Tensor:
        """bool (B, T, h, w) -> bool (B, T, h, w): at which patches the model's output is read."""
        return patch_mask

    def usable(self, truth: Tensor) -> Tensor | None:
        """bool (B, S): the pictures of the truth that are fit to learn from; None: all.

        The truth of the others is NaN in `error`, which has to leave it out: the host need not wait to know
        which pictures remain.
        """
        return None

    def follow(self, encoder: nn.Module, progress: float) -> None:
        """Called with the video encoder before the first step and after each; progress: 0 to 1."""
        return

    # -- shared by all targets

    def loss(self, visual: Tensor, frames: Tensor, patch_mask: Tensor) -> Mean:
        """Error at the masked patches.

        visual: (B, T(1+hw), D), the model's output at the video tokens (of which those in `reads` count);
        frames: (B, T, 3, H, W) as in `truth`; patch_mask: (B, T, h, w), True or 1 = masked.
        """
        return self.error(*self.compare(visual, frames, patch_mask.shape[1:], self.places(patch_mask)))

    def places(self, patch_mask: Tensor, valid: Tensor | None = None) -> Tensor:
        """Numbers of the patches of `hidden` among the B S h w -> (M,).

        patch_mask: (B, T, h, w), True or 1 = masked; valid: bool (B,), False where a sample is a blank.
        """
        chosen = self.hidden(patch_mask)
        return numbers_of(chosen if valid is None else chosen & valid[:, None, None, None])

    def compare(
        self,
        visual: Tensor,
        frames: Tensor,
        grid: Sequence[int],
        places: Tensor,
        truth: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Prediction and truth (M, C, k, k) at the patches to reconstruct.

        visual, frames: as in `loss`; grid: (T, h, w); places: (M,), see `places`; truth: the result of
        `truth(frames)`, where it is known already.
        """
        tokens = self.tokens(visual, grid).flatten(0, 3).index_select(0, places)
        return self.predict(tokens), self.hidden_truth(frames, grid, places, truth)

    @torch.no_grad()
    def hidden_truth(
        self, frames: Tensor, grid: Sequence[int], places: Tensor, truth: Tensor | None = None
    ) -> Tensor:
        """As `compare` -> the truth (M, C, k, k) at the patches to reconstruct."""
        truth = self.truth(frames.float()) if truth is None else truth
        if (usable := self.usable(truth)) is not None:
            truth = truth.where(usable[:, :, None, None, None], torch.nan)
        return patches(truth, grid).flatten(0, 3).index_select(0, places)

    def reconstruct(self, visual: Tensor, grid: Sequence[int]) -> Tensor:
        """visual: (B, T(1+hw), D); grid: (T, h, w) -> the prediction at every patch, shaped as `truth`."""
        return unpatch(self.predict(self.tokens(visual, grid)))


def patch_tokens(visual: Tensor, grid: Sequence[int]) -> Tensor:
    """(B, T(1+hw), D), grid (T, h, w) -> (B, T, h, w, D): without the token before each frame."""
    frames, height, width = grid
    tokens = rearrange(visual, "b (t n) d -> b t n d", t=frames)[:, :, 1:]
    return rearrange(tokens, "b t (h w) d -> b t h w d", h=height, w=width)


def patches(pictures: Tensor, grid: Sequence[int]) -> Tensor:
    """(B, S, C, h k, w k), grid (T, h, w) -> (B, S, h, w, C, k, k)."""
    return rearrange(pictures, "b s c (h k) (w l) -> b s h w c k l", h=grid[1], w=grid[2])


def unpatch(parts: Tensor) -> Tensor:
    """The reverse of `patches`."""
    return rearrange(parts, "b s h w c k l -> b s c (h k) (w l)")


def l1(predicted: Tensor, truth: Tensor, count: float, divisor: float) -> Mean:
    """Sum of the absolute errors / (count + 1e-5) / divisor, in float32."""
    error = (predicted.float() - truth.float()).abs().sum()
    return Mean(error, torch.full_like(error, (count + 1e-5) * divisor))


class PatchHead(nn.Sequential):
    """Token -> k x k values of its patch: a 1 x 1 convolution and a pixel shuffle, computed per token."""

    def __init__(self, inputs: int, channels: int, size: int) -> None:
        super().__init__(nn.Conv2d(inputs, channels * size**2, kernel_size=1), nn.PixelShuffle(size))
        self.channels, self.size = channels, size

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., inputs) -> (..., channels, k, k)."""
        convolution: nn.Conv2d = self[0]  # type: ignore[assignment]
        values = F.linear(tokens, convolution.weight.flatten(1), convolution.bias)
        return values.unflatten(-1, (self.channels, self.size, self.size))


def feature_head(hidden_size: int, inner: int, outputs: int) -> nn.Sequential:
    """`fc_mvm`: keys `fc_mvm.1`, `fc_mvm.3`."""
    return nn.Sequential(nn.Dropout(0.1), nn.Linear(hidden_size, inner), nn.ReLU(), nn.Linear(inner, outputs))


# --------------------------------------------------------------------------------- pictures of frames


class PictureTarget(Target):
    """A picture of every frame, pixel by pixel."""

    head_name: str

    def __init__(self, hidden_size: int, patch_size: int = 32, teacher: Teacher | None = None) -> None:
        super().__init__(hidden_size, patch_size, teacher)
        self.head = PatchHead(hidden_size, self.channels, patch_size)
        self.heads = {self.head_name: self.head}

    def predict(self, tokens: Tensor) -> Tensor:
        """(..., D) -> (..., C, p, p)."""
        return self.head(tokens)


@register("pixel")
class Pixel(PictureTarget):
    """Normalised RGB of the masked patches (Fu et al., CVPR 2023, section 3.2)."""

    head_name, channels = "decoder_pixel", 3

    def truth(self, frames: Tensor) -> Tensor:
        """(B, T, 3, H, W), ImageNet-normalised -> the same."""
        return frames

    def error(self, predicted: Tensor, truth: Tensor) -> Mean:
        """L1, divided by the number of values and, as published, by the channels once more."""
        return l1(predicted, truth, count=truth.numel(), divisor=3)


@register("hog")
class Hog(PictureTarget):
    """Picture of the histograms of oriented gradients (Dalal and Triggs, CVPR 2005)."""

    head_name, channels = "decoder_hog", 1

    def __init__(self, hidden_size: int, patch_size: int = 32, teacher: Teacher | None = None) -> None:
        super().__init__(hidden_size, patch_size, teacher)
        with torch.no_grad():  # Deviation 21: nearly all of a picture is 0
            for parameter in self.head.parameters():
                parameter.mul_(0.01)

    def truth(self, frames: Tensor) -> Tensor:
        """(B, T, 3, H, W) -> (B, T, 1, H, W)."""
        with torch.autocast(frames.device.type, enabled=False):
            return hog_picture(frames)[..., None, :, :]

    def error(self, predicted: Tensor, truth: Tensor) -> Mean:
        """L1."""
        return l1(predicted, truth, count=truth.numel(), divisor=1)


@register("depth")
class Depth(PictureTarget):
    """Inverse depth by DPT-Large, trained as MiDaS (Ranftl et al., ICCV 2021)."""

    head_name, channels = "decoder_depth", 1

    def error(self, predicted: Tensor, truth: Tensor) -> Mean:
        """L1; the published loss divides by three channels although there is one."""
        return l1(predicted, truth, count=truth.numel(), divisor=3)


# ------------------------------------------------------------------------------------ pairs of frames


@register("optical_flow")
class OpticalFlow(PictureTarget):
    """Displacement, in pixels, of every pixel of a frame until the next (RAFT, Teed and Deng, ECCV 2020).

    The truth of T frames is T-1 pictures of (x, y); the head reads the tokens of both frames. A one-frame
    clip has nothing to reconstruct.
    """

    head_name, channels = "decoder_flow", 2
    largest = 50.0  # pixels; what moves so far between two frames is a cut, or a failure of the teacher

    def __init__(self, hidden_size: int, patch_size: int = 32, teacher: Teacher | None = None) -> None:
        super().__init__(2 * hidden_size, patch_size, teacher)

    def tokens(self, visual: Tensor, grid: Sequence[int]) -> Tensor:
        """-> (B, T-1, h, w, 2 D)."""
        tokens = patch_tokens(visual, grid)
        return torch.cat([tokens[:, :-1], tokens[:, 1:]], dim=-1)

    def hidden(self, patch_mask: Tensor) -> Tensor:
        """-> (B, T-1, h, w): masked in the first frame or in the second."""
        masked = patch_mask.bool()
        return masked[:, :-1] | masked[:, 1:]

    def reads(self, patch_mask: Tensor) -> Tensor:
        """A masked patch, and its place in the frames before and after."""
        pairs = self.hidden(patch_mask)
        return F.pad(pairs, (0, 0, 0, 0, 0, 1)) | F.pad(pairs, (0, 0, 0, 0, 1, 0))

    def usable(self, truth: Tensor) -> Tensor:
        """(B, T-1): pairs whose largest component, as published, is below 50 px."""
        return truth.abs().flatten(2).amax(dim=2) < self.largest

    def error(self, predicted: Tensor, truth: Tensor) -> Mean:
        """L1 over the usable pairs; the published loss divides by the channels twice."""
        known = truth.isfinite()
        error = (predicted.float() - truth.float().nan_to_num()).where(known, 0.0).abs().sum()
        return Mean(error, (known.sum() + 1e-5) * 2)


# ------------------------------------------------------------------------------------- visual vocabulary


@register("vq")
class Vq(Target):
    """The words that DALL-E's encoder has for each 8 x 8 pixels (Ramesh et al., ICML 2021)."""

    default_vocabulary = 8192

    def __init__(self, hidden_size: int, patch_size: int = 32, teacher: Teacher | None = None) -> None:
        super().__init__(hidden_size, patch_size, teacher)
        self.size = patch_size // 8
        channels = 2 * hidden_size // self.size**2
        self.channels = self.default_vocabulary if teacher is None else teacher.width
        self.decoder = PatchHead(hidden_size, channels, self.size)
        self.head = feature_head(channels, 2 * channels, self.channels)
        self.heads = {"decoder_vq": self.decoder, "fc_mvm": self.head}

    def predict(self, tokens: Tensor) -> Tensor:
        """(..., D) -> logits (..., vocabulary, p/8, p/8)."""
        return self.head(self.decoder(tokens).movedim(-3, -1)).movedim(-1, -3)

    def reconstruct(self, visual: Tensor, grid: Sequence[int]) -> Tensor:
        """-> (B, T, 1, H/8, W/8): the likeliest words."""
        return unpatch(self.predict(self.tokens(visual, grid)).argmax(dim=-3, keepdim=True))

    def error(self, predicted: Tensor, truth: Tensor) -> Mean:
        """Logits (M, vocabulary, k, k), words (M, 1, k, k) -> mean cross-entropy."""
        loss = F.cross_entropy(predicted.float(), truth[:, 0], reduction="sum")
        return Mean(loss, torch.full_like(loss, truth.numel()))

    def scores(self, predicted: Tensor, truth: Tensor) -> dict[str, Mean]:
        """`acc`: the share of the words that are right; a tie is none."""
        right = best_alone(predicted.movedim(1, -1), truth[:, 0]).sum()
        return {"acc": Mean(right, torch.full_like(right, truth.numel()))}

    def sums(self, truth: Tensor) -> Tensor:
        """Words (M, 1, k, k) -> (vocabulary + 1,): the occurrences of each, and their number."""
        return word_sums(truth, self.channels)

    def constant_error(self, sums: Tensor, truth: Tensor) -> Mean:
        """Cross-entropy of the frequencies so far."""
        return word_error(sums, truth)


# --------------------------------------------------------------------------------------------- features


class FeatureTarget(Target):
    """The features that another network has for each patch of a frame."""

    default_width = 1024

    def __init__(self, hidden_size: int, patch_size: int = 32, teacher: Teacher | None = None) -> None:
        super().__init__(hidden_size, patch_size, teacher)
        self.channels = self.default_width if teacher is None else teacher.width
        self.head = feature_head(hidden_size, 2 * hidden_size, self.channels)
        self.heads = {"fc_mvm": self.head}

    def predict(self, tokens: Tensor) -> Tensor:
        """(..., D) -> (..., C, 1, 1)."""
        return self.head(tokens)[..., None, None]

    def error(self, predicted: Tensor, truth: Tensor) -> Mean:
        """L1, summed over the channels of a patch; published, it is also divided by 3."""
        return l1(predicted, truth, count=len(truth), divisor=3)


@register("3d_feature")
class VideoFeature(FeatureTarget):
    """Final features of a Video Swin (Liu et al., CVPR 2022), per patch and frame."""


@register("2d_feature")
class ImageFeature(FeatureTarget):
    """Final features of an image Swin (Liu et al., ICCV 2021), per frame."""


@register("2d_clip_feature")
class ClipFeature(FeatureTarget):
    """Patch features of CLIP's image encoder (Radford et al., ICML 2021), per frame."""

    default_width = 768


@register("random_feature")
class RandomFeature(FeatureTarget):
    """Features of an untrained Video Swin: a baseline that tells what a feature target teaches by itself."""


@register("clip_visible")
class VisibleClipFeature(FeatureTarget):
    """CLIP's features at the visible patches (unmasked token alignment, UMT: Li et al., ICCV 2023)."""

    default_width = 768

    def hidden(self, patch_mask: Tensor) -> Tensor:
        """-> (B, T, h, w): the patches that are not masked."""
        return ~patch_mask.bool()

    def reads(self, patch_mask: Tensor) -> Tensor:
        """The patches that are not masked."""
        return ~patch_mask

    def error(self, predicted: Tensor, truth: Tensor) -> Mean:
        """Squared distance of the two features, each of unit length; 0 to 4."""
        apart = F.normalize(predicted.float(), dim=1) - F.normalize(truth.float(), dim=1)
        error = apart.square().sum()
        return Mean(error, torch.full_like(error, len(truth)))

    def sums(self, truth: Tensor) -> Tensor:
        """Of features of unit length: the direction of their mean is the best constant."""
        return super().sums(F.normalize(truth.float(), dim=1))


@register("latent")
class Latent(FeatureTarget):
    """The network's own features of the whole clip, by a moving average of its video encoder.

    As in data2vec (Baevski et al., ICML 2022) and V-JEPA (Bardes et al., 2024). The average is the teacher.
    """

    momentum = 0.998  # of the first step; rises to 1 with the run, along a cosine

    def truth(self, frames: Tensor) -> Tensor:
        """-> (B, T, C, h, w), normalised over C."""
        features = super().truth(frames).movedim(2, -1)
        return F.layer_norm(features.float(), features.shape[-1:]).movedim(-1, 2)

    def error(self, predicted: Tensor, truth: Tensor) -> Mean:
        """Smooth L1, the mean over patches and channels."""
        error = F.smooth_l1_loss(predicted.float(), truth.float(), reduction="sum")
        return Mean(error, torch.full_like(error, truth.numel()))

    @torch.no_grad()
    def follow(self, encoder: nn.Module, progress: float) -> None:
        """Move the average towards the encoder, of which each process may hold a shard; 0: copy it."""
        if self.teacher is None or self.teacher.network is None:
            return
        average = list(self.teacher.network.parameters())  # on the device of the teacher
        own = [whole(p).to(mine) for p, mine in zip(encoder.parameters(), average, strict=True)]
        momentum = 1 - (1 - self.momentum) * (1 + math.cos(math.pi * progress)) / 2 if progress else 0.0
        get_ema_multi_avg_fn(momentum)(average, own, 0)


def whole(parameter: Tensor) -> Tensor:
    """A parameter, gathered from all processes if they share it out."""
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
