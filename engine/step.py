"""Parts of a training step: seeds, a batch on its device, the sum of the losses, values to log, compiling."""

import logging
import logging.handlers
import math
import warnings
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.fx.experimental._config
from torch import Generator, Tensor, nn

from batch import Batch, Mean, Output
from engine.recorder import names_of, stack
from lib import World, log
from media.frames import normalise


def seeded(*numbers: int) -> Generator:
    """A generator whose draws follow from these numbers alone."""
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]
    return Generator().manual_seed(int(state >> np.uint64(1)))


def sample_seeds(batch: Batch, seed: int) -> list[Generator]:
    """A generator of each sample of an evaluation, whichever batch it is in."""
    samples = zip(batch["corpus"], batch["index"].tolist(), strict=True)
    return [seeded(seed, zlib.crc32(corpus.encode()), index) for corpus, index in samples]


def join(means: Mapping[str, Mean], world: World) -> dict[str, Mean]:
    """Each mean over the samples of every process, in one collective call; without gradients."""
    if not means:
        return {}
    here = {name: Mean(mean.total.detach().float(), mean.count.float()) for name, mean in means.items()}
    return {name: Mean(*pair) for name, pair in zip(means, world.sum(stack([here])[0]), strict=True)}


def to_device(batch: Mapping[str, Any], device: torch.device) -> Batch:
    """The batch with its tensors on `device`; frames that come as bytes are normalised there.

    The host does not wait for the copies, which are made from pinned memory.
    """
    moved = {k: send(v, device) if isinstance(v, Tensor) else v for k, v in batch.items()}
    return {k: normalise(v) if k == "img" and v.dtype == torch.uint8 else v for k, v in moved.items()}


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on `device`, for which the host does not wait."""
    if device.type == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned():
        tensor = tensor.contiguous().pin_memory()
    return tensor.to(device, non_blocking=True)


def to_host(output: Output) -> Output:
    """The output of an evaluated batch on the CPU, its predictions as lists; the host waits once."""

    def copy(means: Mapping[str, Mean]) -> dict[str, Mean]:
        return {name: Mean(fetch(mean.total), fetch(mean.count)) for name, mean in means.items()}

    def fetch_all(values: Mapping[str, Any]) -> dict[str, Any]:
        return {k: fetch(v) if isinstance(v, Tensor) else v for k, v in values.items()}

    fetched = fetch_all(output.predictions)
    here = Output(copy(output.losses), fetch_all(output.weights), copy(output.scores))
    if any(mean.total.device.type != "cpu" for mean in output.losses.values()):
        torch.accelerator.synchronize()
    here.predictions = {k: v.tolist() if isinstance(v, Tensor) else v for k, v in fetched.items()}
    return here


def fetch(tensor: Tensor) -> Tensor:
    """A copy on the CPU, which holds its values once the device has been waited for."""
    return tensor.detach().to("cpu", non_blocking=True)


def leave_out(values: Mapping[str, Mean]) -> dict[str, Mean]:
    """Values of an fp16 step, none of which counts if one is not finite; `skipped`: whether that is so."""
    finite = torch.stack([mean.total.isfinite() for mean in values.values()]).all()
    kept = {
        name: Mean(mean.total.where(finite, 0.0), mean.count.where(finite, 0.0))
        for name, mean in values.items()
    }
    return {**kept, "skipped": Mean((~finite).float(), torch.ones_like(finite, dtype=torch.float))}


def total_loss(output: Output, means: Mapping[str, Mean], processes: int) -> Tensor:
    """The weighted sum of the losses, whose gradients are averaged over the processes.

    Deviation 13: a loss is the mean over what all processes hide (`means`), not the mean of their means.
    """
    losses = [
        output.weight(name) * mean.total.float() * (processes / means[name].count.clamp(min=1e-12)).float()
        for name, mean in output.losses.items()
    ]
    return torch.stack(losses).sum()


def values_of(output: Output, means: Mapping[str, Mean]) -> dict[str, Mean]:
    """Each loss and score, counted once if the batch had anything for it, and the losses' sum `loss`."""
    totals, counts = stack([means])[0].unbind(dim=1)
    pairs = zip((totals / counts.clamp(min=1e-12)).unbind(), (counts >= 1).float().unbind(), strict=True)
    values = {name: Mean(*pair) for name, pair in zip(means, pairs, strict=True)}
    weighted = torch.stack([output.weight(name) * values[name].total for name in output.losses]).sum()
    return {"loss": Mean(weighted, torch.ones_like(weighted)), **values}


def joined_values(steps: Sequence[dict[str, Mean]]) -> dict[str, Mean]:
    """The values of several batches of one step, added up."""
    return {name: Mean(*pair) for name, pair in zip(names_of(steps), stack(steps).sum(dim=0), strict=True)}


def part_ends(batches: int, parts: int, accumulate: int) -> list[int]:
    """The batches of an epoch after which each of its parts ends, whole optimiser steps each but the last."""
    ends = [
        math.ceil(math.ceil(batches * part / parts) / accumulate) * accumulate for part in range(1, parts)
    ]
    return sorted({end for end in ends if end < batches} | {batches})


def compile_encoders(model: nn.Module) -> None:
    """Compile what nearly all of a step's time goes to; the state dict stays as it is."""
    # for clips and for pictures, training and evaluation: beyond the limit, nothing is compiled
    names = ("recompile_limit", "cache_size_limit")  # of torch 2.7 and later, and before
    setattr(torch._dynamo.config, next(name for name in names if hasattr(torch._dynamo.config, name)), 32)
    torch.fx.experimental._config.use_duck_shape = False  # as many positions as clips is a coincidence
    # DistributedDataParallel has graphs split, to exchange gradients early: older torch fails at checkpoints
    torch._dynamo.config.optimize_ddp = torch.__version__ >= "2.11"
    # einops keeps how it has read a pattern, which depends on nothing else
    warnings.filterwarnings("ignore", "Dynamo detected a call to a `functools.lru_cache`")
    model.get_submodule("enc_img").compile(fullgraph=True)
    # each step reads another number of positions, of texts of another length
    model.get_submodule("trsfr").compile(fullgraph=True, dynamic=True)


def quiet_console() -> None:
    """Keep lines for the file alone off the console: tqdm's handler forgets the level of the one before."""
    for handler in log.handlers:
        if not isinstance(handler, logging.FileHandler | logging.handlers.MemoryHandler):
            handler.setLevel(max(handler.level, logging.INFO))
