"""Weights from files into modules: every key accounted for, and sizes fitted where that has a meaning."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib import UserError, log
from weights.tensor_files import read_tensors

BACKBONE = ("enc_img.", "enc_txt.", "trsfr.")  # what a checkpoint must hold; the rest are heads
TEACHERS = ("feature_model.", "raft.", "dpt.", "dalle.")  # which published checkpoints may hold (Deviation 5)
LAYER = re.compile(r"\.(layer|layers|blocks)\.\d+\.")
NESTED = ("enc_img.swin", "bert.embeddings", "bert.encoder")  # modules that are named by two words
TABLE, INDEX = "relative_position_bias_table", "relative_position_index"
GROWING = {"emb_len": 1, "emb_pos": 2}  # embeddings that are cut or extended, along which axis
TIED = "predictions.bias", "predictions.decoder.bias"  # one parameter under two names


@dataclass
class Report:
    """The fate of each tensor of a file and of a module: loaded, adapted, missing, unused."""

    source: str
    loaded: list[str] = field(default_factory=list)
    """taken as they are, or adapted"""
    adapted: dict[str, str] = field(default_factory=dict)
    """how their shape was changed, or under which name they were found"""
    missing: list[str] = field(default_factory=list)
    """of the module, not in the file"""
    misshapen: dict[str, str] = field(default_factory=dict)
    """of another shape, which cannot be adapted"""
    unexpected: list[str] = field(default_factory=list)
    """in the file, not in the module"""
    places: dict[str, int] = field(default_factory=dict)
    """of embeddings of positions in the file: how many it has, where the module has more"""
    ignored: list[str] = field(default_factory=list)
    """in the file and known not to be weights of the module: teachers, classifiers, indices"""

    def check(self, may_lack: Iterable[str] = ()) -> None:
        """Raise `UserError` for tensors missing beyond `may_lack`, misshapen, or of further layers."""
        missing = sorted(set(self.missing) - set(may_lack))
        further = [key for key in self.unexpected if key.startswith(BACKBONE) and LAYER.search(key)]
        wrong_size = any(
            ".swin." in key and INDEX not in key for key in (*missing, *further, *self.misshapen)
        )
        size = "; set vis_backbone_size to the size of its video encoder" if wrong_size else ""
        if missing:
            raise UserError(f"{self.source} lacks {summary(missing)}{counts(missing)}{size}.")
        if further and not self.misshapen:  # the network here would be a part of the one that was trained
            size = size or "; set fusion_encoder to the BERT whose layers it has"
            raise UserError(f"{self.source} has more layers than the network here: {summary(further)}{size}.")
        if self.misshapen:
            wrong = [f"{key} {how}" for key, how in self.misshapen.items()]
            words = [how for key, how in self.misshapen.items() if key.endswith("word_embeddings.weight")]
            hint = "its weights are those of another size, or quantised"
            hint = f"{size[2:]}." if size else f"{hint}."
            if words:
                hint = "set txt_backbone and tokenizer to the BERT whose vocabulary and width it has."
            raise UserError(f"{self.source} has {summary([*words, *wrong])}: {hint}")

    def __str__(self) -> str:
        lines = [f"{self.source}: {len(self.loaded)} tensors loaded{counts(self.loaded)}"]
        ways: dict[str, list[str]] = {}
        for key, how in self.adapted.items():
            ways.setdefault(how, []).append(key)
        lines += [f"adapted: {summary(keys, 1)}: {how}" for how, keys in ways.items()]
        for title, keys in (
            ("missing, random weights", self.missing),
            ("misshapen", list(self.misshapen)),
            ("not used", self.unexpected),
            ("ignored", self.ignored),
        ):
            if keys:
                lines.append(f"{title}: {summary(keys)}{counts(keys)}")
        return "\n  ".join(lines)


def module_of(key: str) -> str:
    """The module that a tensor is grouped under."""
    return next((name for name in NESTED if key.startswith(f"{name}.")), key.split(".")[0])


def counts(keys: Iterable[str]) -> str:
    """How many of them each module has, in brackets; empty for a few, whose names say it."""
    groups = Counter(module_of(key) for key in keys)
    if sum(groups.values()) <= MOST:
        return ""
    return " (" + ", ".join(f"{name} {number}" for name, number in groups.items()) + ")"


MOST = 5  # names that are listed


def summary(names: Sequence[str], most: int = MOST) -> str:
    """The first few of `names`, and how many there are beyond."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


# --------------------------------------------------------------------------------------------- loading


def load_checkpoint(
    model: nn.Module, path: str, adapt: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda t: t
) -> Report:
    """Load a checkpoint of VIOLET's published layout, ours, or a run's folder, into a task's model.

    `adapt` may rename or leave out tensors first. Heads that the file lacks keep their start and are named
    in the log; a missing part of an encoder or of the cross-modal transformer is an error.
    """
    tensors = adapt(read_tensors(path))
    heads = [key for key in model.state_dict() if not key.startswith(BACKBONE)]
    report = load_tensors(model, tensors, source=f"checkpoint {path}", may_lack=heads)
    lacking = [key for key in report.missing if key in heads]
    halves = {module_of(key) for key in lacking} & {module_of(key) for key in report.loaded}
    if halves:
        parts = summary([key for key in lacking if module_of(key) in halves])
        raise UserError(
            f"checkpoint {path} has only a part of {', '.join(sorted(halves))}: it lacks {parts}."
        )
    return report


def load_tensors(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    source: str,
    may_lack: Iterable[str] = (),
    ignored: Iterable[str] = (),
) -> Report:
    """Copy `tensors` into `module` and log the report; `ignored` are names that were left out before.

    Raises `UserError` naming keys that are missing (beyond `may_lack`) or of a shape that cannot be fitted;
    then nothing is copied.
    """
    report, fitting = compare(module.state_dict(), tensors, source)
    report.ignored += ignored
    report.check(may_lack)
    if spoilt := [key for key in report.loaded if not fitting[key].isfinite().all()]:
        raise UserError(
            f"{source} has values that are not finite in {summary(spoilt)}: the checkpoint is unusable."
        )
    module.load_state_dict(fitting, strict=False)
    log.info("%s", report)
    return report


def compare(
    own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], source: str
) -> tuple[Report, dict[str, Tensor]]:
    """The tensors of a file that a module's state `own` has, and those of them that fit."""
    report, fitting = Report(source), {}
    tensors = both_names(tensors, own, report)
    for key, wanted in own.items():
        if key.endswith(INDEX):  # it follows from the window, and one from a file could lead anywhere
            if key in tensors and differs(tensors[key], wanted):
                report.misshapen[key] = "numbers relative positions in another order"
            continue
        if key not in tensors:
            report.missing.append(key)
            continue
        if wanted.is_floating_point() and not tensors[key].is_floating_point():
            report.misshapen[key] = f"holds {tensors[key].dtype} numbers, not floating-point ones"
            continue
        tensor, how = fit(key, tensors, own)
        if tensor is None:
            report.misshapen[key] = how
            continue
        fitting[key] = tensor
        report.loaded.append(key)
        if how:
            report.adapted[key] = how
        if how.startswith("extended"):
            report.places[key] = tensors[key].shape[GROWING[key.rpartition(".")[2]]]
    for key in tensors.keys() - own.keys():
        (report.ignored if is_ignored(key) else report.unexpected).append(key)
    report.ignored.sort()
    report.unexpected.sort()
    return report, fitting


def is_ignored(key: str) -> bool:
    """Whether a tensor is none of VIOLET's weights, though published checkpoints hold it."""
    return key.startswith(TEACHERS) or key.endswith(("position_ids", INDEX))


def both_names(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], report: Report) -> dict[str, Tensor]:
    """With the MLM head's bias under both of its names, where a file has it under one."""
    tensors = dict(tensors)
    for name in [key for key in own if key.endswith(TIED)]:
        other = next((a for a in twins(name) if a in tensors), None)
        if name not in tensors and other:
            tensors[name] = tensors[other]
            report.adapted[name] = f"from {other}"
    return tensors


def twins(name: str) -> list[str]:
    """The names of a tied parameter, but this one."""
    stem = next(name.removesuffix(end) for end in sorted(TIED, key=len, reverse=True) if name.endswith(end))
    return [stem + end for end in TIED if stem + end != name]


def differs(index: Tensor, own: Tensor) -> bool:
    """Whether an index for the same window is another one."""
    return index.shape == own.shape and not torch.equal(index.long(), own.cpu())


# ----------------------------------------------------------------------------------------- other sizes


def fit(key: str, tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> tuple[Tensor | None, str]:
    """The file's tensor in the shape that the module has, and how it came to it; None: it cannot.

    Only sizes of the module are allocated, never one that the file claims.
    """
    tensor, wanted = tensors[key], own[key]
    if tensor.shape == wanted.shape:
        return tensor, ""
    name = key.rsplit(".", 1)[-1]
    if name in GROWING and tensor.dim() == wanted.dim():
        axis = GROWING[name]
        if all(a == b for i, (a, b) in enumerate(zip(tensor.shape, wanted.shape, strict=True)) if i != axis):
            return cut_or_extend(tensor, wanted, axis)
    if name == TABLE and tensor.dim() == 2 and tensor.shape[1] == wanted.shape[1]:
        index = key.removesuffix(TABLE) + INDEX
        windows = [window_of(state[key], state.get(index)) for state in (tensors, own)]
        if windows[0] and windows[1]:
            how = "resized (bicubic) from window {} to {}".format(*(f"{t}x{s}x{s}" for t, s in windows))  # type: ignore[misc]
            return resize_table(tensor, windows[0], windows[1]), how
    return None, f"{tuple(tensor.shape)}, not {tuple(wanted.shape)}"


def cut_or_extend(tensor: Tensor, own: Tensor, axis: int) -> tuple[Tensor, str]:
    """An embedding for fewer or more places: the first ones as they are, new ones as the module has them."""
    old, new = tensor.shape[axis], own.shape[axis]
    result, both = own.detach().clone(), min(old, new)
    result.narrow(axis, 0, both).copy_(tensor.narrow(axis, 0, both))
    return result, f"cut from {old} to {new}" if new < old else f"extended from {old} to {new}, starting anew"


def window_of(table: Tensor, index: Tensor | None) -> tuple[int, int] | None:
    """(frames, patches a side) of the window that a bias table is for; None if that is not clear.

    A window of t x s x s has (2t-1)(2s-1)^2 rows of the table, and its index t s s rows.
    """
    rows, found = len(table), []
    for side in range(2 if index is None else 1, math.isqrt(rows) // 2 + 2):
        times, rest = divmod(rows, (2 * side - 1) ** 2)
        if rest == 0 and times % 2 and (index is None or (times + 1) // 2 * side**2 == len(index)):
            found.append(((times + 1) // 2, side))
    return found[0] if len(found) == 1 else None


def resize_table(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """The bias table (places, heads) of a window (frames, side) for another one.

    Bicubic over the offsets in space, as is usual for Swin, then linear over those in time.
    """
    (old_t, old_s), (new_t, new_s) = ((2 * t - 1, 2 * s - 1) for t, s in (old, new))
    heads = table.shape[1]
    x = table.float().T.reshape(heads, old_t, old_s, old_s)
    if old_s != new_s:
        x = F.interpolate(x, (new_s, new_s), mode="bicubic", align_corners=False)
    if old_t != new_t:
        x = x.reshape(heads, old_t, -1).transpose(1, 2)
        x = F.interpolate(x, new_t, mode="linear", align_corners=False).transpose(1, 2)
    return x.reshape(heads, -1).T.to(table.dtype).contiguous()
