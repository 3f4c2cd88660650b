"""The processes of a run: group, devices, seeds, logs."""

import contextlib
import datetime
import os
import random
import time
import uuid
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from lib import Config, UserError, World, log, start_log
from media.files import writing


@contextlib.contextmanager
def distributed(config: Config) -> Iterator[World]:
    """Join the processes of torchrun or torch.distributed.launch (plain python: a world of one); seed them.

    NCCL on CUDA devices, gloo on CPUs: the backend that torch names for the device.
    """
    join_mpi()
    size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", size))
    device = choose_device(config.device, local_rank=int(os.environ.get("LOCAL_RANK", 0)))
    if device.type != "cpu":
        if not torch.accelerator.is_available():
            raise UserError(f"device {device} is not available; --device cpu runs on the processor.")
        torch.accelerator.set_device_index(device.index or 0)
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)  # not measured yet; other kernels take every mask here
        torch.backends.cuda.matmul.allow_tf32 = config.tf32
    if config.deterministic:
        be_deterministic()
    control: Any = None
    if size > 1:
        found: dist.Store = next(rendezvous("env://"))[0]
        store = dist.PrefixStore(agree_on_name(dist.PrefixStore("violet", found), rank, size), found)
        dist.init_process_group(
            dist.get_default_backend_for_device(device), store=store, rank=rank, world_size=size
        )
        control = dist.new_group(backend="gloo") if device.type != "cpu" else None
    world = World(device, rank, size, nodes=size // here if size % here == 0 else 1, control=control)
    begun = time.monotonic()
    start_log(world)
    seed_everything(config.seed + rank)  # Deviation 8: published, every rank draws the same numbers
    try:
        with writing("a file of this run"):
            yield world
        log.info("finished in %s", datetime.timedelta(seconds=round(time.monotonic() - begun)))
    except BaseException as error:
        asked = isinstance(error, SystemExit | KeyboardInterrupt)  # a traceback would say nothing
        log.debug("stopped by %s: %s", type(error).__name__, error, exc_info=not asked)  # to the run's file
        raise
    finally:
        if size > 1:
            dist.destroy_process_group()


OPENMPI: tuple[str, ...] = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")
OPENMPI += ("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE")
MPICH = ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")


def join_mpi() -> None:
    """Take rank and world size from mpirun's variables, unless a launcher of torch has set them.

    Without MASTER_ADDR all processes must be on one machine; else `UserError`.
    """
    kinds: list[tuple[str, ...]] = [OPENMPI, MPICH]
    given = next((names for names in kinds if all(name in os.environ for name in names)), None)
    if "WORLD_SIZE" in os.environ or given is None:
        return
    rank, size, local_rank, local_size = (os.environ[name] for name in given)
    if "MASTER_ADDR" not in os.environ and size != local_size:
        raise UserError(
            f"mpirun has started {size} processes, {local_size} of them here: set MASTER_ADDR to the machine "
            "of rank 0, and MASTER_PORT to a free port there (mpirun -x MASTER_ADDR=... -x MASTER_PORT=...)."
        )
    place = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": local_rank, "LOCAL_WORLD_SIZE": local_size}
    os.environ.update(place)
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29500")


def agree_on_name(store: dist.Store, rank: int, size: int) -> str:
    """A name for the process group, agreed on by its processes and used by no earlier group.

    torchrun restarts a group on the same store, which still holds the addresses of dead processes under the
    old names; processes that read them would wait for half an hour.
    """
    mine = uuid.uuid4().hex
    if rank == 0:
        store.set("group", mine)
        others = [store.get(f"{mine}/{other}").decode() for other in range(1, size)]
        store.set(f"{mine}/met", " ".join(others))
        return mine
    while True:
        group = store.get("group").decode()  # maybe the dead group's, which does not list this process
        store.set(f"{group}/{rank}", mine)
        if store.check([f"{group}/met"]) and mine in store.get(f"{group}/met").decode().split():
            return group
        time.sleep(0.02)


class Agreement:
    """A decision of all processes, exchanged every few seconds: at each exchange all wait for the slowest.

    Every process has to ask equally often.
    """

    def __init__(self, world: World, seconds: float = 2.0) -> None:
        self.world, self.seconds = world, seconds
        self.every, self.left, self.since = 1, 1, time.monotonic()  # questions between two exchanges

    def most(self, value: int) -> int:
        """The largest value of all processes, or 0 between two exchanges."""
        if self.world.size == 1:
            return value
        self.left -= 1
        if self.left:
            return 0
        passed = max(time.monotonic() - self.since, 1e-3)
        mine = min(max(1, int(self.every * self.seconds / passed)), 2 * self.every)
        self.every = self.left = -self.world.most(-mine)
        self.since = time.monotonic()
        return self.world.most(value)


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """`auto`, a type or a full device name -> the device of this process."""
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        name = accelerator.type if accelerator else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device {name!r} is unknown: auto, cpu, cuda, cuda:1, mps and so on.") from error
    if device.type != "cpu" and device.index is None:
        device = torch.device(device.type, local_rank)
    return device


def be_deterministic() -> None:
    """Use deterministic operations; an operation without a deterministic version raises an error."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA's matrix library starts
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's generators of this process."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
