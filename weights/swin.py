"""Video Swin's published weights: where they are, under which names, and image Swins inflated over time."""

import math
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor

from lib import UserError
from video_swin import SIZES, Size, VideoSwin
from weights.checkpoint import INDEX, TABLE, Report, load_tensors, resize_table, window_of
from weights.tensor_files import read_tensors


def weights_path(size: str, init: str, kinetics: int) -> Path:
    """Where the published weights of a size are looked for; `UserError` if none were published."""
    if init == "2d":
        return Path(f"_snapshot/swin_{size}_patch4_window7_224_22k.pth")
    kinetics = 600 if kinetics == -1 else kinetics
    editions = {"tiny": (400,), "small": (400,), "base": (400, 600)}.get(size, ())
    if kinetics not in editions:
        there = f"there are some for --kinetics {editions[0]}" if editions else "there are none of that size"
        raise UserError(
            f"no Video Swin weights were published for vis_backbone_size {size} and kinetics {kinetics}: "
            f"{there}. vis_backbone_path names a file of your own, vis_backbone_init random needs none."
        )
    data = "22k" if size == "base" else "1k"
    return Path(f"_snapshot/swin_{size}_patch244_window877_kinetics{kinetics}_{data}.pth")


def load_backbone(swin: VideoSwin, init: str, path: str | Path) -> Report:
    """Load published weights: a Video Swin's (`init` "3d") or an image Swin's, inflated over time ("2d")."""
    tensors = read_tensors(path)
    taken = inflate(tensors, swin) if init == "2d" else of_video_swin(tensors, path)
    left = {key.removeprefix("backbone.").removeprefix("enc_img.swin.") for key in tensors} - taken.keys()
    return load_tensors(swin, taken, source=f"video encoder {path}", ignored=sorted(left))


def read_video_swin(path: Path) -> dict[str, Tensor]:
    """A Video Swin's tensors, under our names; see `of_video_swin`."""
    return of_video_swin(read_tensors(path), path)


def of_video_swin(tensors: dict[str, Tensor], path: str | Path) -> dict[str, Tensor]:
    """A Video Swin's tensors, under our names.

    From "backbone.*" (beside "cls_head.*"), as published, or from a VIOLET checkpoint.
    """
    for prefix in ("backbone.", "enc_img.swin."):
        found = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        if found:
            return found
    raise UserError(
        f"{path} has no key under 'backbone.' or 'enc_img.swin.': it is neither a Video Swin checkpoint nor "
        "one of VIOLET."
    )


def size_of(tensors: dict[str, Tensor], source: str) -> Size:
    """Which of `SIZES` a Video Swin's tensors are of; raises `UserError` if none."""
    norm = tensors.get("patch_embed.norm.weight", torch.empty(0))
    blocks = {tuple(key.split(".")[1:4:2]) for key in tensors if ".blocks." in key}  # layers.S.blocks.B.
    depths = Counter(stage for stage, _ in blocks)
    found = (len(norm), tuple(depths[stage] for stage in sorted(depths)))
    for size in SIZES.values():
        if (size.embed_dim, size.depths) == found:
            return size
    raise UserError(
        f"{source} is {found[0]} wide with {'-'.join(map(str, found[1]))} blocks: "
        f"not one of {', '.join(SIZES)}."
    )


def inflate(tensors: dict[str, Tensor], swin: VideoSwin) -> dict[str, Tensor]:
    """An image Swin's tensors -> tensors of a Video Swin that treats a still clip like its picture.

    The patch kernel is shared out over time; the bias of a place, resized to the window's places, is
    repeated for every distance in time. Tensors of another shape are left for the report to name.
    """
    own, taken = swin.state_dict(), {}
    for name, tensor in tensors.items():
        if name.startswith("head.") or name.endswith(("attn_mask", INDEX)):
            continue
        if name == "patch_embed.proj.weight" and tensor.dim() == 4:
            depth = own[name].shape[2]
            tensor = (tensor[:, :, None] / depth).expand(-1, -1, depth, -1, -1)
        elif name.endswith(TABLE) and name in own and tensor.dim() == 2:
            window = window_of(own[name], own[name.removesuffix(TABLE) + INDEX])
            side = (math.isqrt(len(tensor)) + 1) // 2
            if window and (2 * side - 1) ** 2 == len(tensor) and tensor.shape[1] == own[name].shape[1]:
                tensor = resize_table(tensor, (1, side), (1, window[1])).repeat(2 * window[0] - 1, 1)
        taken[name] = tensor
    return taken
