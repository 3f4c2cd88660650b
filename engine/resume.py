"""The state of a training, written beside it while it goes on, and read back.

`last.pt` is a dict that `torch.load(..., weights_only=True)` reads: model, optimiser, scaler, schedule, the
random states of every process, how far the run is, what it has logged, its config. Shards are joined, so
that it does not depend on how processes share the work. It is a zip file, whose checksums are checked.
"""

import logging
import os
import random
import zipfile
import zlib
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

from engine.processes import World
from engine.runs import BEFORE, STATE
from lib import UserError, atomic_path, log
from weights.tensor_files import UNREADABLE, load_data, reason

State = dict[str, Any]


# ----------------------------------------------------------------------------------- in and out of memory


def whole(tree: Any, keep: bool) -> Any:
    """Copies on the CPU of the tensors in dicts and lists, shards joined; None if not to `keep`."""
    if isinstance(tree, Mapping):
        return {key: whole(item, keep) for key, item in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(whole(item, keep) for item in tree)
    if isinstance(tree, int | float) and not isinstance(tree, bool):
        # a config's numbers are of classes of their own, which the restricted unpickler does not know
        return int(tree) if isinstance(tree, int) else float(tree)
    if not isinstance(tree, Tensor):
        return tree
    full = tree.full_tensor() if isinstance(tree, DTensor) else tree
    return full.detach().to("cpu", copy=True) if keep else None


def optimizer_state(optimizer: Optimizer, keep: bool) -> State:
    """As `whole`: the state of every parameter, in the layout of a plain optimiser."""
    if isinstance(optimizer, ZeroRedundancyOptimizer):
        optimizer.consolidate_state_dict(to=0)
        return whole(optimizer.state_dict(), keep) if keep else {}
    return whole(optimizer.state_dict(), keep)


def load_model(model: nn.Module, state: State) -> None:
    """Copy whole tensors into a model, in shards where its own are."""
    own = model.state_dict()
    model.load_state_dict({name: like(tensor, own[name]) for name, tensor in state.items()})


def load_optimizer(optimizer: Optimizer, state: State) -> None:
    """Copy a whole state into an optimiser; peaks and decays stay those that it has."""
    chosen = [{key: group[key] for key in ("peak", "weight_decay")} for group in optimizer.param_groups]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments = {
        number: {
            name: like(value, parameters[number]) if value.dim() else value for name, value in entry.items()
        }
        for number, entry in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": moments})
    for group, values in zip(optimizer.param_groups, chosen, strict=True):
        group.update(values)


def like(tensor: Tensor, own: Tensor) -> Tensor:
    """A whole tensor, in shards if `own` is."""
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
    """The reverse of `random_states`."""
    random.setstate(states["python"])
    numpy = states["numpy"]
    key = np.array(numpy["state"]["key"], dtype=np.uint32)
    np.random.set_state({**numpy, "state": {**numpy["state"], "key": key}})
    torch.set_rng_state(states["torch"])
    if device.type != "cpu" and "device" in states:
        torch.get_device_module(device).set_rng_state(states["device"], device)


# -------------------------------------------------------------------------------------------- on the disk


class Saver:
    """Writes files in the background, one after another.

    A file that cannot be written is reported, and the run goes on: the one before it is left as it was.
    """

    def __init__(self) -> None:
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="saver")
        self.last: Future[None] | None = None
        self.failed: dict[Path, str] = {}  # what is not as it should be on the disk, and why

    def submit(self, path: Path, write: Callable[[Path], None], before: Path | None = None) -> None:
        """Have `write(temporary)` make the file `path`; the one that it replaces becomes `before`.

        No more than one file waits: memory holds no more copies of a model than that.
        """
        self.wait()
        self.last = self.thread.submit(self._write, path, write, before)

    def wait(self) -> None:
        """Until everything is written, or has failed."""
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
            log.error("%s could not be written (%s): the run goes on; make room for the next.", path, reason)
        else:
            self.failed.pop(path, None)
            kind = "state" if path.name == STATE else "checkpoint"
            log.log(logging.INFO if path.suffix == ".pt" else logging.DEBUG, "%s: %s", kind, path)


def write_tensors(content: State, path: Path) -> None:
    """`torch.save` to the disk itself; raises `OSError` if it does not fit."""
    with path.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())


def read_state(folder: Path, world: World) -> State:
    """The state in a run's folder, on every process; the one before where the last is damaged."""
    chosen: Path | None = None
    for path in (folder / STATE, folder / BEFORE) if world.is_main else ():
        wrong = damage(path)
        if not wrong:
            chosen = path
            break
        log.warning("%s %s: the state before it is used", path, wrong)
    chosen = world.gather(chosen)[0]
    if chosen is None:
        raise UserError(f"{folder} holds no whole training state: start anew, or from a checkpoint in it.")
    return torch.load(chosen, map_location="cpu", weights_only=True)


def damage(path: Path) -> str:
    """What is wrong with a file of `torch.save`; empty if it is whole."""
    if not path.is_file():
        return "is not there"
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
        load_data(path)  # whose reader looks at what no checksum covers
    except (*UNREADABLE, zlib.error) as error:
        return f"is cut off or damaged ({reason(error)})"
    return f"is damaged (the checksum of {bad} is another)" if bad else ""
