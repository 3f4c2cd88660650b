"""Pictures of masked visual modelling and of attention: targets and reconstructions in colours.

Shapes: B clips, T frames, S pictures of a target (T or T-1), h x w patches of a frame.
"""

from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from engine.step import seeded, to_device
from lib import Config
from masking import hide_patches, mask_batch
from media.tokens import Tokens
from model import PretrainModel
from teachers.base import to_pixels

Pair = tuple[Tensor, Tensor]  # the reconstruction at hidden patches (elsewhere the truth), and the truth
Colours = tuple[np.ndarray, np.ndarray]  # the same as pictures (B, S, H, W, 3) in [0, 1]


# ------------------------------------------------------------------------------------------------ colours
# A colour means the same in both pictures: colour scales are fitted to the truth and used for both.


def natural(made: Tensor, truth: Tensor) -> Colours:
    """Normalised RGB."""
    return channels_last(to_pixels(made)), channels_last(to_pixels(truth))


def grey(made: Tensor, truth: Tensor) -> Colours:
    """One channel, white at the 99.5th percentile of the truth."""
    top = truth.flatten().kthvalue(max(1, int(0.995 * truth.numel()))).values.clamp(min=1e-6)
    return tuple(channels_last((x / top).clamp(0, 1).expand(-1, -1, 3, -1, -1)) for x in (made, truth))  # type: ignore[return-value]


def colour_map(made: Tensor, truth: Tensor) -> Colours:
    """One channel, dark to bright over the range of each clip's truth."""
    from matplotlib import colormaps

    low, high = truth.amin(dim=(1, 2, 3, 4), keepdim=True), truth.amax(dim=(1, 2, 3, 4), keepdim=True)

    def colour(values: Tensor) -> np.ndarray:
        share = ((values - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)
        return colormaps["inferno"](share[:, :, 0].numpy())[..., :3]

    return colour(made), colour(truth)


def wheel(made: Tensor, truth: Tensor) -> Colours:
    """Flow: hue is the direction (right red, down green-yellow), saturation the length; still is white."""
    from matplotlib.colors import hsv_to_rgb

    longest = truth.norm(dim=2).amax().clamp(min=1.0)
    pictures = []
    for flow in (made, truth):
        hue = torch.atan2(flow[:, :, 1], flow[:, :, 0]) / (2 * torch.pi) % 1
        saturation = (flow.norm(dim=2) / longest).clamp(0, 1)
        pictures.append(hsv_to_rgb(torch.stack([hue, saturation, torch.ones_like(hue)], dim=-1).numpy()))
    return pictures[0], pictures[1]


def components(made: Tensor, truth: Tensor) -> Colours:
    """Features: the first three principal components of the truth as red, green and blue."""
    points = truth.movedim(2, -1).flatten(0, -2).double()
    mean = points.mean(dim=0)
    axes = torch.linalg.svd(points - mean, full_matrices=False).Vh[:3].T
    seen = (points - mean) @ axes
    low, high = seen.amin(dim=0), seen.amax(dim=0)
    pictures = []
    for features in (made, truth):
        places = (features.movedim(2, -1).double() - mean) @ axes
        places = ((places - low) / (high - low).clamp(min=1e-9)).clamp(0, 1)
        pictures.append(torch.nn.functional.pad(places, (0, 3 - places.shape[-1])).numpy())
    return pictures[0], pictures[1]


def words(made: Tensor, truth: Tensor) -> Colours:
    """Words of a visual vocabulary: a colour each, drawn at random once and for all."""
    count = int(max(made.max(), truth.max())) + 1
    palette = np.random.default_rng(0).random((max(count, 8192), 3))
    return palette[made[:, :, 0].long().numpy()], palette[truth[:, :, 0].long().numpy()]


COLOURS: dict[str, Callable[[Tensor, Tensor], Colours]] = {
    "pixel": natural,
    "hog": grey,
    "depth": colour_map,
    "optical_flow": wheel,
    "vq": words,
}


def colours_of(name: str, truth: Tensor) -> Callable[[Tensor, Tensor], Colours]:
    """The colours of a target: those of `COLOURS`, or else those that its truth's channels suggest."""
    by_channels = {1: grey, 2: wheel, 3: natural}
    kind = by_channels.get(truth.shape[2], components) if truth.is_floating_point() else words
    return COLOURS.get(name, kind)


def channels_last(pictures: Tensor) -> np.ndarray:
    """(B, S, 3, H, W) -> (B, S, H, W, 3)."""
    return pictures.movedim(2, -1).numpy()


# --------------------------------------------------------------------------------------------- reconstruction


def make_batch(
    config: Config, tokens: Tokens, samples: list[dict[str, Any]], masks: Sequence[str], p: float, seed: int
) -> dict[str, Any]:
    """Samples as a batch, masked by one of `masks` (rm, bm); `p` is the share that `rm` hides."""
    batch = to_device(default_collate([{**sample, "valid": True} for sample in samples]), torch.device("cpu"))
    return mask_batch(batch, masks, p, tokens.special, config.size_patch, seeded(seed))


@torch.inference_mode()
def reconstruct(model: PretrainModel, batch: dict[str, Any]) -> dict[str, Pair]:
    """For each target: the reconstruction at hidden patches (elsewhere the truth), and the truth."""
    shown = hide_patches(batch["img"], batch["mvm_mask"])
    video, text = model.encode(shown, batch["masked_txt"], batch["mask"])
    visual = model.fuse(video, text, batch["mask"])[:, : video.shape[1]]
    grid = batch["mvm_mask"].shape[1:]
    pictures = {}
    for name, target in model.targets.items():
        truth = target.truth(batch["img"])
        places = truth.shape[-1] // grid[-1]
        hidden = target.hidden(batch["mvm_mask"]).repeat_interleave(places, 2).repeat_interleave(places, 3)
        pictures[name] = (torch.where(hidden[:, :, None], target.reconstruct(visual, grid), truth), truth)
    return pictures


def coloured(model: PretrainModel, batch: dict[str, Any]) -> dict[str, Colours]:
    """For each target the reconstruction and the truth as pictures; see `reconstruct`."""
    pairs = reconstruct(model, batch)
    on_cpu = {name: (made.cpu().float(), truth.cpu().float()) for name, (made, truth) in pairs.items()}
    return {name: colours_of(name, pair[1])(*pair) for name, pair in on_cpu.items()}


def hide_and_rebuild(
    model: PretrainModel, config: Config, tokens: Tokens, clip: Tensor, mask: str, p: float, seed: int = 0
) -> list[tuple[str, np.ndarray]]:
    """Rows of pictures (T or T-1, H, W, 3) in [0, 1], each with its label, of a clip (T, 3, H, W) of uint8.

    The frames, the hidden frames, and of each target the reconstruction and the truth.
    """
    txt, seen = tokens("")
    batch = make_batch(config, tokens, [{"img": clip, "txt": txt, "mask": seen}], [mask], p, seed)
    batch = to_device(batch, model.enc_img.emb_cls.device)
    frames = [("frames", batch["img"]), ("hidden", hide_patches(batch["img"], batch["mvm_mask"]))]
    rows = [(label, channels_last(to_pixels(img.cpu()))[0]) for label, img in frames]
    for name, (made, truth) in coloured(model, batch).items():
        rows += [(f"{name}, reconstructed", made[0]), (f"{name}, target", truth[0])]
    return rows


def strip(pictures: np.ndarray, height: int = 0) -> np.ndarray:
    """(T, H, W, 3) in [0, 1] -> them side by side, uint8, enlarged to about `height` pixels."""
    times = max(1, round(height / pictures.shape[1]))
    side_by_side = np.concatenate(list(pictures), axis=1).repeat(times, 0).repeat(times, 1)
    return (255 * side_by_side.clip(0, 1)).astype(np.uint8)


# ------------------------------------------------------------------------------------------------- attention


def over_frames(frames: Tensor, attention: np.ndarray) -> list[np.ndarray]:
    """frames: (T, 3, H, W) uint8; attention: (T, h, w) -> (H, W, 3) uint8 each, bright where it is large.

    The largest value of all frames is the brightest.
    """
    top, pictures = max(float(attention.max()), 1e-12), []
    for frame, weights in zip(frames.permute(0, 2, 3, 1).numpy(), attention / top, strict=True):
        size = (frame.shape[1], frame.shape[0])
        share = cv2.resize(weights.astype(np.float32), size, interpolation=cv2.INTER_LINEAR)[..., None]
        heat = cv2.applyColorMap((255 * share).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
        pictures.append((0.45 * frame + 0.55 * heat).astype(np.uint8))
    return pictures
