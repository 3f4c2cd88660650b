"""Parallel training (DDP, ZeRO-1, FSDP2) and precision."""

import contextlib
import importlib.util
import inspect
from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.nn.functional import all_gather
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW, Optimizer

from lib import Config, UserError, World, log

AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}
PARTS = {"enc_img": "video", "enc_txt": "text", "trsfr": "fusion"}  # of a model; the rest are its heads

# the argument's name from torch 2.13 on, and before
ARGUMENTS = inspect.signature(DistributedDataParallel).parameters
SYNC_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in ARGUMENTS else "broadcast_buffers"


def choose_precision(config: Config, device: torch.device) -> str:
    """The value of `amp`; with `deepspeed` and amp off, half precision. A key of `AMP`, or off.

    `deepspeed` is for speed: on a processor that emulates bf16 a step would take many times as long.
    """
    if not config.deepspeed or config.amp != "off" or emulates_bf16(device):
        return config.amp
    has_bf16 = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if has_bf16 else "fp16"


def choose_parallel(config: Config, world: World) -> str:
    """The value of `parallel`, none for a single process.

    With `deepspeed` and little memory zero1 instead of ddp: its broadcasts take time in every step, for 2 GB.
    """
    short = config.deepspeed and short_of_memory(world.device)
    kind: str = "zero1" if short and config.parallel == "ddp" else config.parallel
    if world.size == 1:
        return "none"
    if kind == "fsdp" and world.device.type == "cpu" and not hasattr(torch.cpu.Stream, "record_event"):
        raise UserError(
            f"parallel fsdp: torch {torch.__version__} cannot shard on CPUs; install a newer torch, or set "
            "parallel to ddp or zero1."
        )
    if kind == "fsdp" and choose_precision(config, world.device) == "fp16":
        raise UserError("parallel fsdp with fp16: shards do not share the loss scale; set amp to bf16.")
    if kind == "fsdp" and config.compile is True:
        raise UserError("parallel fsdp with compile is not supported; set compile to false.")
    if kind == "fsdp" and config.compress_gradients:
        raise UserError("parallel fsdp with compress_gradients is not supported; set it to false.")
    return kind


def short_of_memory(device: torch.device) -> bool:
    """Whether it is a CUDA device of less than 24 GB: a published step keeps 14 GB of activations."""
    return device.type == "cuda" and torch.cuda.get_device_properties(device).total_memory < 24e9


def choose_checkpoint(config: Config, device: torch.device) -> bool:
    """The value of `use_checkpoint`; auto: on a device that is short of memory."""
    short = short_of_memory(device)
    if config.use_checkpoint is True and device.type == "cuda" and not short:
        log.info("use_checkpoint true takes a third more compute; this GPU may have the memory for false")
    return short if config.use_checkpoint == "auto" else bool(config.use_checkpoint)


def choose_compile(config: Config, kind: str, device: torch.device) -> bool:
    """The value of `compile`; auto: on CUDA, where Triton is installed, but with fsdp."""
    if config.compile != "auto":
        return bool(config.compile)
    return device.type == "cuda" and kind != "fsdp" and importlib.util.find_spec("triton") is not None


def choose_kernels(config: Config, device: torch.device) -> bool:
    """The value of `window_kernels`; auto: where they can run, AMD's GPUs left out, which are untried."""
    if config.window_kernels is False:
        return False
    lacking = None
    if device.type != "cuda":
        lacking = f"a CUDA device, not {device.type}"
    elif importlib.util.find_spec("triton") is None:
        lacking = "Triton, which is not installed"
    elif torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
        lacking = "a GPU of compute capability 8.0 or more"
    if config.window_kernels is True and lacking:
        raise UserError(f"window_kernels true needs {lacking}; set it to auto.")
    return not lacking and (config.window_kernels is True or torch.version.hip is None)


def emulates_bf16(device: torch.device) -> bool:
    """Whether it is an x86 processor without instructions for products of bf16."""
    has: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # from torch 2.11 on
    known = device.type == "cpu" and has.get("architecture") == "x86_64"
    return known and not (has.get("avx512_bf16") or has.get("amx_bf16"))


def wrap(model: nn.Module, world: World, kind: str, compress: bool = False) -> nn.Module:
    """The module to call in training, which exchanges gradients in the backward pass, `compress`ed to bf16.

    With fsdp `model` itself is changed: its parameters become shards of those of the main process.
    """
    if kind == "none":
        return model
    if kind == "fsdp":
        return shard(model, world)
    # static_graph finds the tensors of an output in tuples and dicts alone: given a dataclass, as a model's
    # `Output` is, it exchanges no gradients, and says nothing
    options: dict[str, Any] = {"gradient_as_bucket_view": True, SYNC_BUFFERS: False}
    wrapped = DistributedDataParallel(model, **options)
    if compress:
        wrapped.register_comm_hook(None, bf16_compress_hook)
    return wrapped


def shard(model: nn.Module, world: World) -> nn.Module:
    """FSDP2: a layer's parameters are gathered only while the layer computes."""
    for tensor in (*model.parameters(), *model.buffers()):
        dist.broadcast(tensor.detach(), src=0)  # each process has drawn its own
    units = cast(tuple[type[nn.Module], ...], model.fsdp_units)
    mesh = init_device_mesh(world.device.type, (world.size,))
    for module in model.modules():
        if isinstance(module, units):
            fully_shard(module, mesh=mesh)
            if hasattr(module, "attention_map"):
                register_fsdp_forward_method(module, "attention_map")
    fully_shard(model, mesh=mesh)
    if hasattr(model, "attention_received"):
        register_fsdp_forward_method(model, "attention_received")
    return model


def make_optimizer(groups: list[dict[str, Any]], lr: float, kind: str) -> Optimizer:
    """The published AdamW; with zero1 each process keeps the state of its share of the parameters."""
    options: dict[str, Any] = {"lr": lr, "betas": (0.9, 0.98), "fused": True}
    if kind == "zero1":
        options["parameters_as_bucket_view"] = True  # two broadcasts a step instead of one per parameter
        return ZeroRedundancyOptimizer(groups, optimizer_class=AdamW, **options)
    return AdamW(groups, **options)


@contextlib.contextmanager
def exchange(wrapped: nn.Module, last: bool) -> Iterator[None]:
    """Backward passes inside exchange gradients only if they are the `last` of a step."""
    if isinstance(wrapped, FSDPModule):
        wrapped.set_requires_gradient_sync(last)
        yield
    elif isinstance(wrapped, DistributedDataParallel) and not last:
        with wrapped.no_sync():
            yield
    else:
        yield


@contextlib.contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """Inside, every process holds all parameters: each may evaluate as many batches as it has."""
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.unshard()
        part.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(part is not model, recurse=False)
            part.reshard()


def gather(rows: Tensor, world: World | None) -> Tensor:
    """(N, ...) -> (processes x N, ...), in order of rank, with gradients across processes.

    Each process needs as many rows. Without a `world` the rows are this process's own.
    """
    if world is None or world.size == 1:
        return rows
    if not rows.is_floating_point():
        parts = [torch.empty_like(rows) for _ in range(world.size)]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)
    return torch.cat(all_gather(rows.contiguous()))


def clip(model: nn.Module, most: float) -> dict[str, Tensor]:
    """Clip the gradients of all processes to the norm `most` (0 or less: not at all).

    Returns the norms before: `grad_norm`, and `grad_norm_PART` of each of `PARTS` that the model has.
    """
    grads: dict[str, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        part = grads.setdefault(PARTS.get(name.partition(".")[0], "heads"), [])
        part.extend([] if parameter.grad is None else [parameter.grad])
    norms = {part: nn.utils.get_total_norm(found) for part, found in grads.items() if found}
    total = torch.linalg.vector_norm(torch.stack(list(norms.values())))
    if most > 0:
        nn.utils.clip_grads_with_norm_([p for p in model.parameters() if p.grad is not None], most, total)
    nothing = total.new_zeros(())
    every = {"grad_norm": total, **{f"grad_norm_{part}": norms.get(part, nothing) for part in grads}}
    return {name: norm.full_tensor() if isinstance(norm, DTensor) else norm for name, norm in every.items()}


def report(config: Config, kind: str, precision: str, device: torch.device) -> None:
    """Log the effect of the published key `deepspeed`, and warn if bf16 is slow on this processor."""
    if precision == "bf16" and emulates_bf16(device):
        log.warning("amp bf16: this processor lacks bf16 instructions (AVX512-BF16, AMX); float32 is faster.")
    if config.deepspeed:
        shared = "one process, nothing to share" if kind == "none" else kind
        log.info("deepspeed: precision %s, %s", precision, shared)
