"""Depth as truth: a DPT's."""

from pathlib import Path
from typing import Any, cast

from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as image

from lib import Config, UserError
from teachers.base import FrameTeacher, normalise, to_bytes
from weights.checkpoint import summary
from weights.published import download


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
        resized = image.resize(to_bytes(pixels), [side, side], InterpolationMode.BICUBIC, antialias=True)
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
