"""The protocol of an evaluation: on which data and by which settings its figures were measured.

It stands in each row of `eval.jsonl`, so that nobody has to guess whether two figures may be compared.
"""

from pathlib import Path
from typing import Any

from lib import Config
from media.files import digest
from weights.tensor_files import checkpoint_in

Protocol = dict[str, Any]
# the config keys that decide what is measured, for each type of config
INPUT = ("size_img", "size_frame", "size_txt", "img_transform")
DECIDE = {
    "pretrain": (*INPUT, "pretrain_masks", "p_mask"),
    "qamc": (*INPUT, "text_rules", "mask_pos", "size_option", "enable_prompt"),
    "qaoe": (*INPUT, "text_rules", "mask_pos", "enable_prompt"),
    "retrieval": (*INPUT, "text_rules"),
}


def settings(config: Config, precision: str, more: tuple[str, ...] = ()) -> Protocol:
    """The keys of `DECIDE`, and `more` that the script reads, with the precision."""
    return {name: getattr(config, name) for name in (*DECIDE[config.type], *more)} | {"precision": precision}


def checkpoint(config: Config, step: int) -> str:
    """The weights that are evaluated: before training the SHA-256 of the checkpoint, else the run's step."""
    if step:
        return f"step {step} of this run"
    return digest(checkpoint_in(Path(config.path_ckpt))) if config.path_ckpt else "none"
