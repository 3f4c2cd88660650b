"""Weights from files into modules: tensors and nothing else, every key accounted for."""

import pickle
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lib import UserError, log

# what torch.load and safetensors raise at files that they cannot or will not read
UNREADABLE = (
    RuntimeError,
    EOFError,
    OSError,
    KeyError,
    ValueError,
    TypeError,
    AttributeError,
    pickle.UnpicklingError,
    SafetensorError,
)


@dataclass(frozen=True)
class Published:
    """Weights that others publish: what they are, how large, and where."""

    what: str
    size: str
    page: str


SWIN_RELEASES = "https://github.com/SwinTransformer/storage/releases/download"
PUBLISHED = {
    "swin_base_patch244_window877_kinetics600_22k.pth": Published(
        "Video Swin-B, Kinetics-600",
        "88 million parameters",
        f"{SWIN_RELEASES}/v1.0.4/swin_base_patch244_window877_kinetics600_22k.pth",
    ),
    "timm/swin_base_patch4_window7_224.ms_in22k": Published(
        "Swin-B, ImageNet-22K, timm's layout",
        "109 million parameters",
        "https://huggingface.co/timm/swin_base_patch4_window7_224.ms_in22k",
    ),
    "timm/vit_base_patch32_clip_224.openai": Published(
        "CLIP ViT-B/32, timm's layout",
        "88 million parameters",
        "https://huggingface.co/timm/vit_base_patch32_clip_224.openai",
    ),
    "raft_large_C_T_SKHT_V2-ff5fadd5.pth": Published(
        "RAFT-Large, torchvision's layout",
        "21 MB",
        "https://download.pytorch.org/models/raft_large_C_T_SKHT_V2-ff5fadd5.pth",
    ),
    "Intel/dpt-large": Published(
        "DPT-Large, transformers' layout", "1.37 GB", "https://huggingface.co/Intel/dpt-large"
    ),
    "encoder.pkl": Published("DALL-E's encoder", "215 MB", "https://cdn.openai.com/dall-e/encoder.pkl"),
}


def missing_weights(name: str | Path, key: str) -> UserError:
    """The error for weights that are not there: what they are, where published, and the config key."""
    for known, published in PUBLISHED.items():
        if str(name) == known or Path(name).name == Path(known).name:
            return UserError(
                f"{name} is not there. It is {published.what} ({published.size}), published at "
                f"{published.page}: put it under _snapshot/ and its path under the config key {key}."
            )
    return UserError(f"{name} is not there; it is named by the config key {key}.")


def load_checkpoint(
    model: nn.Module, path: str, adapt: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda t: t
) -> None:
    """Load a checkpoint of VIOLET's published layout, or ours, into a task's model.

    `adapt` may rename or leave out tensors first. Heads that the file lacks keep their start and are named
    in the log; a missing part of an encoder or of the cross-modal transformer is an error.
    """
    backbone = ("enc_img.", "enc_txt.", "trsfr.")
    tensors = adapt(read_tensors(path))
    wanted = model.state_dict()
    heads = {key for key in wanted if not key.startswith(backbone)}
    index = {key for key in wanted if key.endswith("relative_position_index")}
    load_tensors(model, tensors, source=path, may_lack=heads | index)
    fresh = sorted(heads - tensors.keys())
    log.info("checkpoint: %s%s", path, f"; starting anew: {summary(fresh)}" if fresh else "")


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint, and nothing else: no code in the file is run.

    Takes a flat state dict or one under "state_dict" or "model", or a .safetensors file; strips
    DistributedDataParallel's `module.`. Raises `UserError` for a file that is missing or holds anything else.
    """
    path = Path(path)
    if not path.is_file():  # Deviation 9: published, a missing checkpoint is printed and passed over
        raise UserError(f"{path} does not exist; _snapshot/README.md says where weights are published.")
    try:
        content: Any
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise UserError(f"{path} cannot be read as a checkpoint of tensors: {reason(error)}") from error
    content = content if isinstance(content, dict) else {}
    for key in ("state_dict", "model"):
        if isinstance(content.get(key), dict):
            content = content[key]
    tensors = {str(k).removeprefix("module."): v for k, v in content.items() if isinstance(v, Tensor)}
    if not tensors:
        raise UserError(f"{path} holds no tensors: it is not a state dict.")
    return tensors


def reason(error: Exception) -> str:
    """What torch's restricted unpickler has against a file, without its advice to switch it off."""
    advice = ("Weights only load failed", "Please file an issue", "Check the documentation")
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith(advice)]
    return lines[0] if lines else type(error).__name__


def load_tensors(
    module: nn.Module, tensors: dict[str, Tensor], source: str, may_lack: Iterable[str] = ()
) -> None:
    """Copy `tensors` into `module`; the log names what was not used.

    Raises `UserError` naming keys that are missing (beyond `may_lack`) or of another shape.
    """
    wanted = module.state_dict()
    missing = sorted(wanted.keys() - tensors.keys() - set(may_lack))
    if missing:
        raise UserError(f"{source} lacks {summary(missing)}.")
    shared = wanted.keys() & tensors.keys()
    wrong = [
        f"{k} {tuple(tensors[k].shape)}, not {tuple(wanted[k].shape)}"
        for k in sorted(shared)
        if tensors[k].shape != wanted[k].shape
    ]
    if wrong:
        raise UserError(f"{source} has {summary(wrong)}: its weights are those of another size.")
    unused = sorted(tensors.keys() - wanted.keys())
    if unused:
        log.info("%s: not used: %s", source, summary(unused))
    module.load_state_dict({k: tensors[k] for k in shared}, strict=False)


def summary(names: Sequence[str], most: int = 5) -> str:
    """The first few of `names`, and how many there are beyond."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
