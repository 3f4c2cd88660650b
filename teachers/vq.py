"""Words of a visual vocabulary as truth: those of DALL-E's encoder."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lib import Config
from teachers.base import FrameTeacher
from teachers.dalle_encoder import DalleEncoder, load_dalle
from weights.published import missing_weights


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
        if config.teacher_init == "random":
            network = DalleEncoder()
        elif Path(config.dalle_model_path).is_file():
            network = load_dalle(config.dalle_model_path)
        else:
            raise missing_weights(config.dalle_model_path, "dalle_model_path")
        return cls(network, width=network.vocabulary, **options)
