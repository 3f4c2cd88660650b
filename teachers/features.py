"""Features of patches as truth: a Video Swin's, and those of timm's image networks."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from lib import Config, UserError
from teachers.base import FrameTeacher, Teacher, normalise
from video_swin import SIZES, VideoSwin
from weights.checkpoint import load_tensors
from weights.published import download, missing_weights
from weights.swin import read_video_swin, size_of
from weights.tensor_files import read_tensors


class VideoSwinTeacher(Teacher):
    """Final features of a Video Swin. ImageNet's normalisation is its own."""

    network: VideoSwin

    def __init__(self, swin: VideoSwin, **options: Any) -> None:
        super().__init__(swin, swin.width, **options)

    def compute(self, frames: Tensor) -> Tensor:
        """(B, T, 3, H, W) -> (B, T, C, h, w); a part is as many whole clips as have `batch` frames."""
        clips = max(1, self.batch // frames.shape[1])
        parts = [self.network(rearrange(part, "b t c h w -> b c t h w")) for part in frames.split(clips)]
        return rearrange(torch.cat(parts), "b c t h w -> b t c h w")

    @classmethod
    def from_config(cls, config: Config, options: dict[str, Any]) -> "VideoSwinTeacher":
        """The Video Swin of `feature_teacher`: a Video Swin checkpoint, or a VIOLET one."""
        path = config.feature_teacher
        if config.teacher_init == "random" and not Path(path).is_file():
            return cls(VideoSwin(SIZES[config.vis_backbone_size]), **options)
        if not Path(path).is_file():
            raise missing_weights(path, "feature_teacher")
        tensors = read_video_swin(Path(path))
        swin = VideoSwin(size_of(tensors, path))
        if config.teacher_init == "published":
            index = {name for name, _ in swin.named_buffers()}  # follows from the window
            load_tensors(swin, tensors, source=path, may_lack=index)
        return cls(swin, **options)


class TimmTeacher(FrameTeacher):
    """Final patch features of an image network of timm's: a Swin, or a Vision Transformer as CLIP's.

    Those of a Swin are taken before its last LayerNorm, as published: the released `fc_mvm` predicts them.
    """

    network: Any

    def __init__(self, network: nn.Module, **options: Any) -> None:
        self.mean, self.std = (network.pretrained_cfg[key] for key in ("mean", "std"))  # type: ignore[index]
        super().__init__(network, network.num_features, **options)  # type: ignore[arg-type]

    def look(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N, C, h, w)."""
        from timm.models import SwinTransformer

        pixels = normalise(pixels, self.mean, self.std)
        if isinstance(self.network, SwinTransformer):
            return self.network.layers(self.network.patch_embed(pixels)).movedim(-1, 1)
        features = self.network.forward_features(pixels)
        patches = features[:, self.network.num_prefix_tokens :]
        return rearrange(patches, "n (h w) c -> n c h w", h=pixels.shape[-2] // 32)


# what makes timm's architectures, by the beginning of their names, take other sizes than they were trained on
ANY_SIZE: dict[str, dict[str, Any]] = {"swin": {"strict_img_size": False}, "vit": {"dynamic_img_size": True}}


def timm_teacher(key: str, architecture: str) -> Callable[[Config, dict[str, Any]], Teacher]:
    """The maker of a teacher from the timm model that config key `key` names.

    That is a folder as timm saves it (config.json, model.safetensors), a file of weights of
    `architecture`, or a model of the Hugging Face hub, which is downloaded.
    """

    def from_config(config: Config, options: dict[str, Any]) -> Teacher:
        import timm

        name, random = getattr(config, key), config.teacher_init == "random"
        path = Path(name)
        if not path.exists() and not random:
            path = download(name, key, ("config.json", "model.safetensors"))
        source, kind = architecture, architecture
        if path.is_dir():
            source = f"local-dir:{path}"
            kind = architecture_in(path)
        sizes = next((value for start, value in ANY_SIZE.items() if kind.startswith(start)), {})
        network: Any = timm.create_model(source, pretrained=False, num_classes=0, **sizes)
        if not random:
            load_tensors(network, read_tensors(weights_in(path)), source=str(path))
        if network.feature_info[-1]["reduction"] != 32:
            raise UserError(f"{key} {name}: its features are not those of 32 x 32 pixels.")
        return TimmTeacher(network, **options)

    return from_config


def architecture_in(folder: Path) -> str:
    """The architecture of a model that timm saved."""
    try:
        return json.loads((folder / "config.json").read_text())["architecture"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} has no config.json that names a timm architecture.") from error


def weights_in(path: Path) -> Path:
    """The file of weights in a model's folder; a file is itself."""
    if path.is_file():
        return path
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (path / name).is_file():
            return path / name
    raise UserError(f"{path} holds neither model.safetensors nor pytorch_model.bin.")
