"""Features of patches as truth: a Video Swin's, and those of timm's image networks."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as image

from lib import Config, UserError
from teachers.base import FrameTeacher, Teacher, normalise
from video_swin import SIZES, VideoSwin
from weights.checkpoint import load_tensors
from weights.published import download, missing_weights
from weights.swin import read_video_swin, size_of
from weights.tensor_files import read_tensors

PATCH = 32  # pixels, height and width


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
    """Final patch features of an image network of timm's: a Swin, a Vision Transformer, a ConvNeXt, ...

    A network with a feature for each 32 x 32 pixels sees the frames as they are, as published. Any other sees
    them at the size that it was trained on, and its features are resampled to that grid. Those of a Swin are
    taken before its last LayerNorm, as published: the released `fc_mvm` predicts them.
    """

    network: Any

    def __init__(self, network: nn.Module, **options: Any) -> None:
        trained = cast(dict[str, Any], network.pretrained_cfg)
        self.mean, self.std = trained["mean"], trained["std"]
        last = cast(Any, network).feature_info[-1]  # not num_features: convolutions may follow it
        super().__init__(network, last["num_chs"], **options)
        self.size: Sequence[int] = ()
        if last["reduction"] != PATCH:
            embedding = getattr(network, "patch_embed", None)
            self.size = getattr(embedding, "img_size", None) or trained["input_size"][1:]

    def look(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N, C, h, w)."""
        from timm.models import SwinTransformer

        grid = [side // PATCH for side in pixels.shape[-2:]]
        if self.size:
            pixels = image.resize(pixels, list(self.size), InterpolationMode.BICUBIC, antialias=True).clamp(
                0, 1
            )
        pixels = normalise(pixels, self.mean, self.std)
        if isinstance(self.network, SwinTransformer):
            features = self.network.layers(self.network.patch_embed(pixels)).movedim(-1, 1)
        else:
            asked = {"norm": True, "output_fmt": "NCHW", "intermediates_only": True}
            features = self.network.forward_intermediates(pixels, indices=1, **asked)[-1]
        if list(features.shape[-2:]) == grid:
            return features
        return F.interpolate(features.float(), grid, mode="bilinear", antialias=True, align_corners=False)


def random_teacher(config: Config, options: dict[str, Any]) -> Teacher:
    """A Video Swin of the run's size with random weights, the same in every process and every run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return VideoSwinTeacher(VideoSwin(SIZES[config.vis_backbone_size]), **options)


def average_teacher(config: Config, options: dict[str, Any]) -> Teacher:
    """A Video Swin of the run's size, for the moving average of the run's own."""
    return VideoSwinTeacher(VideoSwin(SIZES[config.vis_backbone_size]), **options)


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
        if not hasattr(network, "forward_intermediates"):
            raise UserError(f"{key} {name}: this architecture of timm's has no features of patches.")
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
