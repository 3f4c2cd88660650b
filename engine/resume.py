"""The training state: written in the background, read to resume a run.

`last.pt` is a dict that `torch.load(..., weights_only=True)` reads: model, networks that follow it (a moving
average), optimiser, scaler, schedule, random states of every process, progress, the figures logged so far,
the config. Shards are gathered, so that the state does not depend on `parallel`. The file is a zip file; its
checksums are verified.
"""

import logging
import os
import random
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from engine.runs import BEFORE, STATE
from lib import UserError, World, log
from media.files import atomic_path, reading, why
from weights.tensor_files import load_data

State = dict[str, Any]
MOMENTS = {"step", "exp_avg", "exp_avg_sq"}  # of AdamW, for each parameter
PARTS = {  # of a training state, and what each is
    "model": dict,
    "followers": dict,
    "optimizer": dict,
    "scaler": dict,
    "random": list,
    "progress": dict,
    "recorder": dict,
    "config": dict,
}
PROGRESS = {
    "step": int,
    "total": int,
    "epoch": int,
    "batches": int,
    "due": bool,
    "figures": dict,
    "kept": dict,
}


# ----------------------------------------------------------------------------------- in and out of memory


def gather_to_cpu(tree: Any, keep: bool) -> Any:
    """CPU copies of the tensors in dicts and lists, shards gathered; None unless `keep`."""
    if isinstance(tree, Mapping):
        return {key: gather_to_cpu(item, keep) for key, item in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(gather_to_cpu(item, keep) for item in tree)
    if isinstance(tree, int | float) and not isinstance(tree, bool):
        # a config's numbers are of classes of their own, which the restricted unpickler does not know
        return int(tree) if isinstance(tree, int) else float(tree)
    if not isinstance(tree, Tensor):
        return tree
    full = tree.full_tensor() if isinstance(tree, DTensor) else tree
    return full.detach().to("cpu", copy=True) if keep else None


def optimizer_state(optimizer: Optimizer, keep: bool) -> State:
    """As `gather_to_cpu`: the state of every parameter, in the layout of a plain optimiser."""
    if isinstance(optimizer, ZeroRedundancyOptimizer):
        optimizer.consolidate_state_dict(to=0)
        return gather_to_cpu(optimizer.state_dict(), keep) if keep else {}
    return gather_to_cpu(optimizer.state_dict(), keep)


def load_model(model: nn.Module, state: State) -> None:
    """Copy full tensors into a model, sharded as its own are. Raises `ValueError` for other shapes."""
    own = model.state_dict()
    if state.keys() != own.keys():
        raise ValueError(f"its model's tensors differ: {', '.join(sorted(state.keys() ^ own.keys())[:3])}")
    for name, tensor in state.items():
        check_tensor(f"the model's {name}", tensor, own[name])
    model.load_state_dict({name: like(tensor, own[name]) for name, tensor in state.items()})


def load_optimizer(optimizer: Optimizer, state: State) -> None:
    """Copy a full state of AdamW into an optimiser; the options of its groups are kept.

    Raises `ValueError` where the state is not of these parameters: the fused kernel trusts every shape.
    """
    chosen = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    counts = [len(group["params"]) for group in optimizer.param_groups]
    if [len(group["params"]) for group in state["param_groups"]] != counts:
        raise ValueError(f"its optimiser does not have the parameter groups of the model, {counts}")
    moments = {}
    for number, entry in state["state"].items():
        if type(number) is not int or not 0 <= number < len(parameters) or entry.keys() != MOMENTS:
            raise ValueError("its optimiser state does not fit AdamW with these parameters")
        own = parameters[number]
        for name in ("exp_avg", "exp_avg_sq"):
            check_tensor(f"the optimiser's {name} of parameter {number}", entry[name], own)
        if (
            not isinstance(entry["step"], Tensor)
            or entry["step"].dim()
            or entry["step"].dtype != torch.float32
        ):
            raise ValueError(f"the optimiser's step of parameter {number} is not a number")
        moments[number] = {
            "step": entry["step"].clone(),
            **{name: like(copied(entry[name], own), own) for name in ("exp_avg", "exp_avg_sq")},
        }
    numbers = iter(range(len(parameters)))
    groups = [
        {**values, "params": [next(numbers) for _ in range(count)]}
        for values, count in zip(chosen, counts, strict=True)
    ]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
    for group, values in zip(optimizer.param_groups, chosen, strict=True):
        group.update(values)


def check_tensor(name: str, tensor: Any, own: Tensor) -> None:
    """Raise `ValueError` if a file's tensor is not of the shape and type that this run's own has."""
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name} is not a tensor")
    if tensor.shape != own.shape or tensor.dtype != own.dtype:
        had, wanted = (f"{tuple(t.shape)} {t.dtype}" for t in (tensor, own))
        raise ValueError(f"{name} is {had}, not {wanted}")


def copied(tensor: Tensor, own: Tensor) -> Tensor:
    """A file's tensor in memory, in the order in which `own` lies there."""
    whole_own = own.full_tensor() if isinstance(own, DTensor) else own
    return torch.empty_like(whole_own, device="cpu", requires_grad=False).copy_(tensor)


def like(tensor: Tensor, own: Tensor) -> Tensor:
    """A full tensor, sharded if `own` is."""
    if not isinstance(own, DTensor):
        return tensor
    return distribute_tensor(tensor.to(own.device), own.device_mesh, own.placements)


def random_states(device: torch.device) -> State:
    """The states of this process's generators."""
    numpy = np.random.get_state(legacy=False)
    numpy["state"]["key"] = numpy["state"]["key"].tolist()
    states = {"python": random.getstate(), "numpy": numpy, "torch": torch.get_rng_state()}
    if device.type != "cpu":
        states["device"] = torch.get_device_module(device).get_rng_state(device)
    return states


def load_random_states(states: State, device: torch.device) -> None:
    """The reverse of `random_states`; raises `ValueError` and others for states that no generator has."""
    random.setstate(states["python"])
    numpy = states["numpy"]
    if len(numpy["state"]["key"]) != 624 or not 0 <= numpy["state"]["pos"] <= 624:  # NumPy trusts them
        raise ValueError("the random state of NumPy is invalid")
    key = np.array(numpy["state"]["key"], dtype=np.uint32)
    np.random.set_state({**numpy, "state": {**numpy["state"], "key": key}})
    torch.set_rng_state(states["torch"])
    if device.type != "cpu" and "device" in states:
        torch.get_device_module(device).set_rng_state(states["device"], device)


# -------------------------------------------------------------------------------------------- on the disk


class Saver:
    """Writes files in the background, one after another.

    A file that cannot be written is reported, and the run continues; the previous file stays as it was.
    """

    def __init__(self) -> None:
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="saver")
        self.last: Future[None] | None = None
        self.failed: dict[Path, str] = {}  # files that could not be written, and why

    def submit(self, path: Path, write: Callable[[Path], None], before: Path | None = None) -> None:
        """Have `write(temporary)` make the file `path`; the file that it replaces becomes `before`.

        At most one file waits, so that memory holds one copy of a model at most.
        """
        self.wait()
        self.last = self.thread.submit(self._write, path, write, before)

    def wait(self) -> None:
        """Wait until everything is written or has failed."""
        if self.last is not None:
            self.last.result()

    def close(self) -> None:
        """Write what is left and end the thread."""
        self.thread.shutdown()

    def _write(self, path: Path, write: Callable[[Path], None], before: Path | None) -> None:
        try:
            with atomic_path(path) as temporary:
                write(temporary)
                if before is not None and path.exists():
                    path.replace(before)
        except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError where a disk is full
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            self.failed[path] = reason
            log.error("%s could not be written (%s): the run continues; free disk space.", path, reason)
        else:
            self.failed.pop(path, None)
            kind = "state" if path.name == STATE else "checkpoint" if path.suffix == ".pt" else "written"
            log.log(logging.INFO if path.suffix == ".pt" else logging.DEBUG, "%s: %s", kind, path)


def write_tensors(content: State, path: Path) -> None:
    """`torch.save` to the disk itself; raises `OSError` if it does not fit."""
    with path.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())


def read_state(folder: Path, world: World) -> State:
    """The state in a run's folder, on every process; the previous one if the last is damaged."""
    chosen: Path | None = None
    for path in (folder / STATE, folder / BEFORE) if world.is_main else ():
        wrong = damage(path)
        if not wrong:
            chosen = path
            break
        log.warning("%s: %s: the previous state is used", path, wrong)
    chosen = world.gather(chosen)[0]
    if chosen is None:
        raise UserError(f"{folder} has no complete training state: start a new run, or use --path_ckpt.")
    with reading(chosen, "a training state", AGAIN):
        state = load_data(chosen)
        state = {"followers": {}, **state} if isinstance(state, dict) else state  # states of before had none
        check_state(state)
    return state


AGAIN = "start a new run; --path_ckpt loads only its weights"


def check_state(state: Any) -> None:
    """Raise `ValueError` where a part of a training state is missing or of another type."""
    state = state if isinstance(state, dict) else {}
    for part, kind in PARTS.items():
        if type(state.get(part)) is not kind:
            raise ValueError(f"its part {part!r} is missing or not a {kind.__name__}")
    for name, wanted in PROGRESS.items():
        value = state["progress"].get(name)
        if type(value) is not wanted or (isinstance(value, int) and not 0 <= value < 1 << 53):
            raise ValueError(f"its progress {name!r} is missing or not a {wanted.__name__}")
    for name in ("figures", "kept"):
        if not all(type(k) is str and type(v) in (int, float) for k, v in state["progress"][name].items()):
            raise ValueError(f"its {name} are not numbers")
    if not all(isinstance(states, dict) for states in state["random"]):
        raise ValueError("its random states are invalid")
    check_recorded(state["recorder"])


def check_recorded(recorded: dict[str, Any]) -> None:
    """Raise `ValueError` for what no `Recorder.state` gives."""
    names, window = recorded.get("names"), recorded.get("window")
    shape = list(window.shape[1:]) if isinstance(window, Tensor) and window.dim() == 3 else None
    if not isinstance(names, list) or not all(type(name) is str for name in names):
        raise ValueError("the names of its figures are invalid")
    if shape != [len(names), 2] and (window or names):
        raise ValueError("its figures are invalid")
    rates, sizes = recorded.get("rates"), recorded.get("sizes")
    if not isinstance(rates, dict) or not all(type(v) in (int, float) for v in rates.values()):
        raise ValueError("its learning rates are invalid")
    if not isinstance(sizes, dict) or not all(type(v) is int and v >= 0 for v in sizes.values()):
        raise ValueError("the sizes of its files are invalid")


def damage(path: Path) -> str:
    """The fault of a file of `torch.save`, found by its checksums too; empty if it is complete."""
    if not path.is_file():
        return "does not exist"
    try:
        load_data(path)
    except Exception as error:  # a damaged file may raise anything
        return f"cannot be read: {why(path, error)}"
    return ""
