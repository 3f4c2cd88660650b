"""Weights from files into modules: tensors and nothing else, every key accounted for."""

import pickle
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from lib import UserError, log


def load_checkpoint(model: nn.Module, path: str) -> None:
    """Load a checkpoint of VIOLET's published layout, or ours, into a task's model.

    Heads that the file lacks keep their start and are named in the log; a missing part of an encoder or
    of the cross-modal transformer is an error.
    """
    backbone = ("enc_img.", "enc_txt.", "trsfr.")
    tensors = read_tensors(path)
    wanted = model.state_dict()
    heads = {key for key in wanted if not key.startswith(backbone)}
    index = {key for key in wanted if key.endswith("relative_position_index")}
    load_tensors(model, tensors, source=path, may_lack=heads | index)
    fresh = sorted(heads - tensors.keys())
    log.info("checkpoint: %s%s", path, f"; starting anew: {summary(fresh)}" if fresh else "")


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint, and nothing else: no code in the file is run.

    Takes a flat state dict or one under "state_dict" or "model"; strips DistributedDataParallel's
    `module.`. Raises `UserError` for a file that is missing or holds anything else.
    """
    path = Path(path)
    if not path.is_file():  # Deviation 9: published, a missing checkpoint is printed and passed over
        raise UserError(f"{path} does not exist; _snapshot/README.md says where weights are published.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} cannot be read as a checkpoint of tensors: {error}") from error
    content = content if isinstance(content, dict) else {}
    for key in ("state_dict", "model"):
        if isinstance(content.get(key), dict):
            content = content[key]
    tensors = {str(k).removeprefix("module."): v for k, v in content.items() if isinstance(v, Tensor)}
    if not tensors:
        raise UserError(f"{path} holds no tensors: it is not a state dict.")
    return tensors


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
