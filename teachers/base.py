"""The frozen networks that say what hidden patches hold, their own preprocessing and their weights.

Shapes: B clips, T frames of H x W pixels, h x w = H/32 x W/32 patches. Every teacher is called with the
batch's frames (B, T, 3, H, W), not masked and ImageNet-normalised, and makes of them what its network
was trained on (Deviation 3: published, all but Video Swin are fed ImageNet-normalised frames).
"""

import contextlib
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as image

from engine.processes import choose_device
from lib import Config, UserError, log
from media.frames import MEAN, STD
from video_swin import SIZES, VideoSwin
from weights.checkpoint import load_tensors, summary
from weights.published import missing_weights
from weights.swin import read_video_swin, size_of
from weights.tensor_files import read_tensors

Maker = Callable[[Config, dict[str, Any]], "Teacher"]
BICUBIC = image.InterpolationMode.BICUBIC


class Stopwatch:
    """Seconds that a device works on something, by its own clock where the program does not wait for it."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.events: list[tuple[torch.Event, torch.Event]] = []

    @contextlib.contextmanager
    def running(self, device: torch.device) -> Iterator[None]:
        """Inside, it runs."""
        if device.type == "cpu":
            start = time.perf_counter()
            yield
            self.seconds += time.perf_counter() - start
            return
        first, last = (torch.Event(device, enable_timing=True) for _ in range(2))
        first.record()
        yield
        last.record()
        self.events.append((first, last))

    def take(self) -> float:
        """The seconds since the last time."""
        for first, last in self.events:
            last.synchronize()
            self.seconds += first.elapsed_time(last) / 1000
        seconds, self.seconds, self.events = self.seconds, 0.0, []
        return seconds


class Teacher(ABC):
    """A frozen function of the frames, computed in parts of a bounded size, on a device of its own."""

    autocast = True
    """whether the run's precision is safe for it; where it is not, the class says why"""

    def __init__(
        self, network: nn.Module | None = None, width: int = 0, batch: int = 32, device: str = ""
    ) -> None:
        """network: what is asked; width: channels of the truth, or words of its vocabulary.

        batch: frames (or pairs of them) at a time; device: empty, where the frames are.
        """
        self.network = None if network is None else network.eval().requires_grad_(False)
        self.width, self.batch, self.device = width, batch, device
        self.stopwatch = Stopwatch()

    def __call__(self, frames: Tensor) -> Tensor:
        """frames: (B, T, 3, H, W), ImageNet-normalised -> the truth, (B, S, C, h k, w k)."""
        device = choose_device(self.device) if self.device else frames.device
        if self.network is not None:
            self.network.to(device)
        mixed = torch.autocast(device.type, enabled=self.mixed(device))
        with self.stopwatch.running(device), torch.inference_mode(), mixed:
            truth = self.compute(frames.to(device, torch.float32))
        return truth.to(frames.device, copy=True)  # the copy is no inference tensor: autograd may keep it

    def mixed(self, device: torch.device) -> bool:
        """Whether it computes in the precision of the run."""
        return self.autocast and torch.is_autocast_enabled(device.type)

    @abstractmethod
    def compute(self, frames: Tensor) -> Tensor:
        """As `__call__`, on the teacher's device, in parts."""


class FrameTeacher(Teacher):
    """A teacher that looks at each frame alone."""

    def compute(self, frames: Tensor) -> Tensor:
        """(B, T, 3, H, W) -> (B, T, C, h k, w k)."""
        parts = [self.look(part) for part in to_pixels(frames).flatten(0, 1).split(self.batch)]
        return torch.cat(parts).unflatten(0, frames.shape[:2])

    @abstractmethod
    def look(self, pixels: Tensor) -> Tensor:
        """pixels: (N, 3, H, W) in [0, 1] -> (N, C, h k, w k)."""


def to_pixels(frames: Tensor) -> Tensor:
    """ImageNet-normalised frames (..., 3, H, W) -> the same in [0, 1]."""
    return (frames * STD.to(frames) + MEAN.to(frames)).clamp(0, 1)


def to_bytes(pixels: Tensor) -> Tensor:
    """Pixels in [0, 1] -> uint8."""
    return (pixels * 255).round().to(torch.uint8)


def normalise(pixels: Tensor, mean: Any, std: Any) -> Tensor:
    """Pixels (N, 3, H, W) in [0, 1] -> with a network's own mean and standard deviation."""
    return image.normalize(pixels, list(mean), list(std))


# --------------------------------------------------------------------------------------------- features


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
        from timm.models import SwinTransformer

        if isinstance(network, SwinTransformer):
            network.norm = nn.Identity()
        super().__init__(network, network.num_features, **options)  # type: ignore[arg-type]

    def look(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N, C, h, w)."""
        features = self.network.forward_features(normalise(pixels, self.mean, self.std))
        if features.ndim == 4:  # Swin: (N, h, w, C)
            return features.movedim(-1, 1)
        patches = features[:, self.network.num_prefix_tokens :]
        return rearrange(patches, "n (h w) c -> n c h w", h=pixels.shape[-2] // 32)


# what makes timm's architectures, by the beginning of their names, take other sizes than they were trained on
ANY_SIZE: dict[str, dict[str, Any]] = {"swin": {"strict_img_size": False}, "vit": {"dynamic_img_size": True}}


def timm_teacher(key: str, architecture: str) -> Maker:
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


# --------------------------------------------------------------------------------------------- pictures


class DptTeacher(FrameTeacher):
    """Inverse depth by a DPT (MiDaS), larger = nearer, at the size of the frames."""

    network: Any

    def look(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N, 1, H, W)."""
        depth = self.network(pixel_values=self.preprocess(pixels)).predicted_depth[:, None]
        return F.interpolate(depth.float(), pixels.shape[-2:], mode="bilinear", align_corners=False)

    def preprocess(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N, 3, S, S), S = 384, as transformers' DPTImageProcessor does it."""
        side = self.network.config.image_size
        resized = image.resize(to_bytes(pixels), [side, side], BICUBIC, antialias=True)
        return normalise(resized / 255, [0.5] * 3, [0.5] * 3)

    @classmethod
    def from_config(cls, config: Config, options: dict[str, Any]) -> "DptTeacher":
        """The DPT of `depth_teacher`: a folder in transformers' layout, or a model of the hub."""
        from transformers import DPTConfig, DPTForDepthEstimation

        name, path = config.depth_teacher, Path(config.depth_teacher)
        if config.teacher_init == "random":
            sizes = DPTConfig.from_pretrained(path) if path.is_dir() else DPTConfig(**DPT_LARGE)
            return cls(DPTForDepthEstimation(sizes), width=1, **options)
        if not path.is_dir():
            path = download(name, "depth_teacher", ("*.json", "*.safetensors", "pytorch_model.bin"))
        network, report = cast(Any, DPTForDepthEstimation).from_pretrained(path, output_loading_info=True)
        # the first fusion layer has nothing to join: what would do it is in no file and never read
        unread = "fusion_stage.layers.0.residual_layer1"
        missing = sorted(key for key in report["missing_keys"] if unread not in key)
        if missing:
            raise UserError(f"{path} lacks {summary(missing)}.")
        return cls(network, width=1, **options)


DPT_LARGE: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "backbone_out_indices": [5, 11, 17, 23],
    "neck_hidden_sizes": [256, 512, 1024, 1024],
}


class PairTeacher(Teacher):
    """Optical flow: a teacher that looks at a frame and the next."""

    def compute(self, frames: Tensor) -> Tensor:
        """(B, T, 3, H, W) -> (B, T-1, 2, H, W): x and y, in pixels."""
        pixels = to_pixels(frames)
        first, second = pixels[:, :-1].flatten(0, 1), pixels[:, 1:].flatten(0, 1)
        if not len(first):
            return pixels.new_zeros(len(frames), 0, 2, *frames.shape[-2:])
        pairs = zip(first.split(self.batch), second.split(self.batch), strict=True)
        return torch.cat([self.follow(*pair) for pair in pairs]).unflatten(0, (len(frames), -1))

    @abstractmethod
    def follow(self, first: Tensor, second: Tensor) -> Tensor:
        """Two times pixels (N, 3, H, W) in [0, 1] -> (N, 2, H, W)."""


class RaftTeacher(PairTeacher):
    """RAFT-Large. Its refinements are differences of a fraction of a pixel: float32 whatever the run's."""

    autocast = False
    network: nn.Module
    least = 128  # pixels a side: below, its correlations have no fourth level

    def follow(self, first: Tensor, second: Tensor) -> Tensor:
        """See `PairTeacher.follow`."""
        flow = self.network(self.preprocess(first), self.preprocess(second))[-1]
        height, width = first.shape[-2:]
        scale = flow.new_tensor([width / flow.shape[-1], height / flow.shape[-2]])
        flow = F.interpolate(flow, (height, width), mode="bilinear", align_corners=False)
        return flow * scale[:, None, None]

    def preprocess(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> in [-1, 1], with sides that RAFT takes: divisible by 8, 128 at least."""
        sides = [max(self.least, -(-side // 8) * 8) for side in pixels.shape[-2:]]
        if sides != list(pixels.shape[-2:]):
            pixels = F.interpolate(pixels, sides, mode="bilinear", align_corners=False)
        return normalise(pixels, [0.5] * 3, [0.5] * 3)


class DisTeacher(PairTeacher):
    """OpenCV's DIS flow (Kroeger et al., ECCV 2016), on the CPU: real supervision without any weights."""

    autocast = False

    def follow(self, first: Tensor, second: Tensor) -> Tensor:
        """See `PairTeacher.follow`."""
        import cv2

        method = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        pairs = zip(to_grey(first), to_grey(second), strict=True)
        flows = np.stack([method.calc(a, b, None) for a, b in pairs])  # type: ignore[call-overload]
        return torch.from_numpy(flows).movedim(-1, 1).to(first.device)


def to_grey(pixels: Tensor) -> np.ndarray:
    """(N, 3, H, W) in [0, 1] -> (N, H, W) uint8."""
    return to_bytes(image.rgb_to_grayscale(pixels)[:, 0]).cpu().numpy()


def flow_teacher(config: Config, options: dict[str, Any]) -> Teacher:
    """`flow_teacher`: "dis", or a file of RAFT-Large as torchvision publishes it."""
    if config.flow_teacher == "dis":
        return DisTeacher(width=2, **options)
    from torchvision.models.optical_flow import raft_large

    network = raft_large()
    if config.teacher_init == "published":
        if not Path(config.flow_teacher).is_file():
            raise missing_weights(config.flow_teacher, "flow_teacher")
        load_tensors(network, read_tensors(config.flow_teacher), source=config.flow_teacher)
    return RaftTeacher(network, width=2, **options)


# ------------------------------------------------------------------------------------- visual vocabulary


class DalleTeacher(FrameTeacher):
    """The words of DALL-E's encoder. They are the arg max of 8192 near equals: float32 whatever the run's."""

    autocast = False
    network: nn.Module

    def look(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N, 1, H/8, W/8), whole numbers."""
        return self.network(pixels).argmax(dim=1, keepdim=True)

    @classmethod
    def from_config(cls, config: Config, options: dict[str, Any]) -> "DalleTeacher":
        """DALL-E's encoder as published, in `dalle_model_path`."""
        from teachers.dalle_encoder import DalleEncoder, load_dalle

        if config.teacher_init == "random":
            network = DalleEncoder()
        elif Path(config.dalle_model_path).is_file():
            network = load_dalle(config.dalle_model_path)
        else:
            raise missing_weights(config.dalle_model_path, "dalle_model_path")
        return cls(network, width=network.vocabulary, **options)


# ---------------------------------------------------------------------------------------------- weights

TEACHERS: dict[str, Maker] = {
    "3d_feature": VideoSwinTeacher.from_config,
    "2d_feature": timm_teacher("image_teacher", "swin_base_patch4_window7_224"),
    "2d_clip_feature": timm_teacher("clip_teacher", "vit_base_patch32_clip_224"),
    "optical_flow": flow_teacher,
    "depth": DptTeacher.from_config,
    "vq": DalleTeacher.from_config,
}


def make_teachers(config: Config) -> Mapping[str, Teacher]:
    """The teachers of the chosen targets, and of no other, with their weights.

    Raises `UserError` where weights are missing: `teacher_init` "random" has to be asked for.
    """
    options = {"batch": config.teacher_batch, "device": config.teacher_device}
    wanted = [name for name in config.mvm_target if name in TEACHERS]
    teachers = {name: TEACHERS[name](config, options) for name in wanted}
    random = [name for name, teacher in teachers.items() if teacher.network is not None]
    if config.teacher_init == "random" and random:
        log.warning(
            "teacher_init random: %s learnt from networks that know nothing, which tries the plumbing alone",
            ", ".join(random),
        )
    return teachers


def download(name: str, key: str, files: tuple[str, ...]) -> Path:
    """A model of the Hugging Face hub -> the folder where its files now are."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(files)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise missing_weights(name, key) from error


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
