"""What this code computes and takes on a GPU, in some eight minutes: `make gpu`.

    python -m bench.gpu
    python -m bench.gpu --device cpu --sections right steps     # tiny sizes, to try the program

Sections: `right`, losses and gradients of every model and target, in float32 and in bf16, beside those of the
CPU in float32; `compiled`, the same and losses of evaluations, beside those without `compile`; `steps`,
milliseconds and memory of a published pre-training step in each mode, beside one whose attention is not
fused; `waits`, how often the host waits for the device in a step; `kernels`, those of a step by kind, and the
longest; `targets`, a step with each target; `others`, HOG and the pairs of a retrieval evaluation.
Weights and inputs are random, nothing is downloaded. A section that fails is named, and the others run. All
figures go to bench/gpu.json, and a line for each to the screen.
"""

import argparse
import collections
import contextlib
import copy
import functools
import json
import tempfile
import time
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import BertConfig

from agent import Agent
from batch import Batch, SpecialTokens
from bench.measure import ROOT, bandwidth, clock, matrix_rate, seconds
from engine.parallel import choose_kernels
from engine.processes import choose_device
from engine.profiling import peak_memory
from engine.step import compile_encoders, to_device
from lib import Config, World, run_script
from media.tokens import Tokens
from model import PretrainModel
from mvm_targets import TARGETS
from tasks.pretraining import mask
from tasks.qa.model import ChoiceModel, MaskModel
from tasks.retrieval.model import RetrievalModel
from tasks.retrieval.scoring import PairScorer, all_pairs, pairs_at_once
from teachers.hog import hog_picture
from tests.conftest import small_teacher
from video_swin import SIZES, Size, use_kernels

SPECIAL = SpecialTokens(pad=0, cls=101, sep=102, mask=103)
WORDS = cast(Tokens, types.SimpleNamespace(special=SPECIAL))
# windows and heads as published, so that the device's kernels for attention are the published ones
SMALL = Size(32, (2, 2, 2, 2), (1, 2, 4, 8), drop_path=0.0, init_std=None)
SMALL_BERT = BertConfig(
    hidden_size=128,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=512,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    initializer_range=0.1,
)
# the largest differences from the CPU in float32 that pass: of a loss, of all gradients together
LIMITS = {"off": (1e-3, 5e-3), "bf16": (5e-3, 1.5e-1)}
# models whose gradients, at these weights, are small differences of those of options or pairs: of them, bf16
# is off by 0.07 to 0.35 on CPUs too
DIFFERENCES = {"multiple choice": 0.6, "retrieval": 0.6}
KINDS = {
    "attention in windows": ("query_kernel", "key_kernel", "bias_kernel", "forward_kernel"),
    "attention": ("fmha", "attention", "sdpa", "flash"),
    "products": ("gemm", "cutlass", "nvjet", "xmma", "cublas", "gemv", "wgmma", "splitk", "conv"),
    "norms": ("norm",),
    "GELU": ("gelu",),
    "dropout": ("dropout",),
    "copies and casts": ("copy", "memcpy", "memset", "cat", "roll"),
    "sums": ("reduce",),
    "indices": ("sort", "index", "scatter", "gather", "embedding", "scan"),
    "optimiser": ("adam", "multi_tensor", "foreach"),
    "compiled": ("triton",),
    "elementwise": ("elementwise", "vectorized"),
}
Figures = dict[str, Any]


# -------------------------------------------------------------------------------------------------- inputs


def batch_of(size: int, frames: int, pixels: int, words: int = 32, options: int = 0, seed: int = 0) -> Batch:
    """A batch as the loader gives it, on the CPU: clips of bytes, texts of several lengths."""
    generator = torch.Generator().manual_seed(seed)
    shape = (size, options, words) if options else (size, words)
    txt = torch.randint(1000, 30000, shape, generator=generator)
    lengths = torch.randint(words // 2, words + 1, shape[:-1], generator=generator)[..., None]
    place = torch.arange(words)
    txt = txt.masked_fill(place == 0, SPECIAL.cls).masked_fill(place == lengths - 1, SPECIAL.sep)
    txt = txt.masked_fill(place >= lengths, SPECIAL.pad)
    img = torch.randint(0, 256, (size, frames, 3, pixels, pixels), generator=generator, dtype=torch.uint8)
    numbers = torch.arange(size)
    return {
        "img": img,
        "txt": txt,
        "mask": (txt != SPECIAL.pad).long(),
        "valid": torch.ones(size, dtype=torch.bool),
        "answer": numbers % max(1, options or 100),
        "place": torch.full((size,), 3),
        "index": numbers,
        "video": numbers,
        "id": [str(number) for number in range(size)],
        "corpus": ["clips"] * size,
    }


def cases(pixels: int) -> Iterator[tuple[str, nn.Module, Batch]]:
    """Every model and target, without dropout, and a batch for each, on the CPU."""
    for name, model, batch in drawn_cases(pixels):
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        model.temperature = cast(
            Any, 1.0
        )  # the published 0.05 makes the rounding of bf16 twenty times as large
        yield name, model, batch


def drawn_cases(pixels: int) -> Iterator[tuple[str, nn.Module, Batch]]:
    """As `cases`, with the models as they are trained."""
    for name in TARGETS:
        torch.manual_seed(1)
        teacher = small_teacher(name, SMALL)
        given = {name: teacher} if teacher else {}
        model = PretrainModel(SMALL_BERT, SMALL_BERT, SMALL, targets=[name], teachers=given)
        config = Config(mvm_target=[name], p_mask=0.3)
        generator = torch.Generator().manual_seed(1)
        yield name, model, mask(batch_of(2, 4, pixels, 24), generator, model, config, WORDS)
    torch.manual_seed(1)
    bert = SMALL_BERT
    yield "multiple choice", ChoiceModel(bert, bert, SMALL), batch_of(2, 4, pixels, 24, options=3)
    yield "open-ended", MaskModel(bert, bert, SMALL), batch_of(2, 4, pixels, 24)
    yield "retrieval", RetrievalModel(bert, bert, SMALL), batch_of(3, 4, pixels, 24)


def pretraining(device: torch.device, **values: Any) -> Agent:
    """The training loop of main_pretrain_yaml.py, at published size on a GPU, else tiny."""
    published = device.type != "cpu"
    values = {"amp": "bf16", "mvm_target": ["pixel"], "compile": False, **values}
    torch.manual_seed(0)
    bert, size = (BertConfig(), SIZES["base"]) if published else (SMALL_BERT, SMALL)
    teachers = {name: small_teacher(name, size) for name in values["mvm_target"]}
    config = Config(path_output=tempfile.mkdtemp(), task="bench", device=str(device), **values)
    with device:
        model = PretrainModel(
            bert,
            bert,
            size,
            targets=config.mvm_target,
            teachers={name: teacher for name, teacher in teachers.items() if teacher},
            use_checkpoint=bool(values.get("use_checkpoint")),
        )
    prepare = functools.partial(mask, model=model, config=config, tokens=WORDS)
    agent = Agent(config, World(device), model, prepare=prepare, timers=model.teacher_seconds)
    agent.total, agent.step = 1000, 100
    agent.set_rates()
    agent.model.train()
    return agent


def batches(device: torch.device, frames: int = 4) -> list[Batch]:
    """Three batches of the published size, or tiny ones; pictures come four times as many."""
    size, pixels = (20, 224) if device.type != "cpu" else (2, 64)
    return [batch_of(size * 4 // frames, frames, pixels, seed=number) for number in range(3)]


# ------------------------------------------------------------------------------------------------ sections


def right(device: torch.device) -> Figures:
    """Differences of losses and of gradients from those of the CPU, as shares of them."""
    found: Figures = {}
    for name, model, batch in cases(224 if device.type != "cpu" else 64):
        exact = gradients_of(model, batch, torch.device("cpu"), "off")
        for amp in LIMITS:
            other = gradients_of(on_device(model, device), batch, device, amp)
            found[f"{name}, {amp}"] = compare(other, exact, amp, name)
    return found


def compiled(device: torch.device) -> Figures:
    """Differences that `compile` makes to losses and gradients, as shares of them, and its seconds."""
    if device.type == "cpu":
        return {"not measured": "minutes of compiling for steps of seconds"}
    found: Figures = {}
    for name, model, batch in cases(224):
        if name in ("pixel", "retrieval"):
            model = on_device(model, device)
            exact = {amp: gradients_of(model, batch, device, amp) for amp in LIMITS}
            evaluated = losses_of(model.eval(), batch, device, "bf16")
            compile_encoders(model)
            for amp, true in exact.items():
                begin = clock(device)
                mine = gradients_of(model, batch, device, amp)
                found[f"{name}, {amp}"] = {"s": clock(device) - begin, **compare(mine, true, amp, name)}
            loss = distance(losses_of(model.eval(), batch, device, "bf16"), evaluated)
            found[f"{name}, bf16, evaluation"] = {"loss": loss, "passed": loss < LIMITS["bf16"][0]}
    return found


def on_device(model: nn.Module, device: torch.device) -> nn.Module:
    """A copy, as a run on the device computes it."""
    copied = copy.deepcopy(model).to(device)
    if choose_kernels(Config(), device):
        use_kernels(copied)
    return copied


def compare(mine: tuple[Tensor, Tensor], true: tuple[Tensor, Tensor], amp: str, name: str) -> Figures:
    """How far a model's losses and gradients are from the true ones."""
    loss, gradient = (distance(one, other) for one, other in zip(mine, true, strict=True))
    of_loss, of_gradient = LIMITS[amp]
    if amp == "bf16":
        of_gradient = DIFFERENCES.get(name, of_gradient)
    return {"loss": loss, "gradient": gradient, "passed": loss < of_loss and gradient < of_gradient}


def gradients_of(model: nn.Module, batch: Batch, device: torch.device, amp: str) -> tuple[Tensor, Tensor]:
    """The losses of a batch, and all gradients in one row, on the CPU."""
    model.train().zero_grad(set_to_none=True)
    losses = losses_of(model, batch, device, amp)
    losses.sum().backward()
    gradients = [p.grad.flatten().cpu() for p in model.parameters() if p.grad is not None]
    return losses.detach().cpu(), torch.cat(gradients)


def losses_of(model: nn.Module, batch: Batch, device: torch.device, amp: str) -> Tensor:
    """The losses of a batch in one row; without gradients unless the model is in training."""
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=amp == "bf16")
    with torch.inference_mode(not model.training), autocast:
        losses = model(to_device(batch, device)).losses.values()
    return torch.stack([mean.value.float() for mean in losses])


def distance(mine: Tensor, true: Tensor) -> float:
    """|mine - true| / |true|."""
    return float((mine.double() - true.double()).norm() / true.double().norm())


def steps(device: torch.device) -> Figures:
    """A step of each mode."""
    tf32 = functools.partial(matmul_precision, "high")
    modes: dict[str, tuple[dict[str, Any], int, Callable[[], Any]]] = {
        "bf16": ({}, 4, contextlib.nullcontext),
        "bf16, compiled": ({"compile": True}, 4, contextlib.nullcontext),
        "bf16, window_kernels off": ({"window_kernels": False}, 4, contextlib.nullcontext),
        "bf16, pictures": ({}, 1, contextlib.nullcontext),
        "bf16, pictures, compiled": ({"compile": True}, 1, contextlib.nullcontext),
        "bf16, use_checkpoint": ({"use_checkpoint": True}, 4, contextlib.nullcontext),
        "bf16, attention not fused": ({"window_kernels": False}, 4, lambda: sdpa_kernel(SDPBackend.MATH)),
        "float32": ({"amp": "off"}, 4, contextlib.nullcontext),
        "float32 by tf32": ({"amp": "off"}, 4, tf32),
    }
    if device.type == "cpu":
        modes = {name: mode for name, mode in modes.items() if "compile" not in mode[0]}
    found: Figures = {}
    for name, (values, frames, context) in modes.items():
        with context():
            found[name] = attempt(lambda v=values, f=frames: timed(device, f, **v))
    return found


@contextlib.contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """Inside, products of float32 have this precision."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def timed(device: torch.device, frames: int = 4, **values: Any) -> Figures:
    """Milliseconds of a step where steps follow one another, of the host alone, and the memory."""
    agent, given = pretraining(device, **values), batches(device, frames)
    number = 8 if device.type != "cpu" else 1
    begin = clock(device)
    for batch in given:
        agent.train_step([batch])
    first = clock(device) - begin
    host, begin = [], clock(device)
    for place in range(number):
        start = time.perf_counter()
        agent.train_step([given[place % len(given)]])
        host.append(time.perf_counter() - start)
    each = (clock(device) - begin) / number
    return {
        "ms a step": 1e3 * each,
        "clips/s": len(given[0]["id"]) / each,
        "host ms": 1e3 * sorted(host)[number // 2],
        "s of the first three": first,
        "GiB": peak_memory(device),
    }


def waits(device: torch.device) -> Figures:
    """How often the host waits in a step with each target, and the lines that make it wait."""
    if device.type != "cuda":
        return {"not counted": f"{device.type} has no warnings of waits"}
    found: Figures = {}
    for name in TARGETS:
        agent = pretraining(device, mvm_target=[name])
        given = batches(device)[0]
        agent.train_step([given])
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                agent.train_step([given])
            finally:
                torch.cuda.set_sync_debug_mode("default")
        lines = collections.Counter(
            f"{Path(w.filename).name}:{w.lineno}" for w in seen if "called a synchronizing" in str(w.message)
        )
        found[name] = {"waits": sum(lines.values()), **lines}
    return found


def kernels(device: torch.device) -> Figures:
    """The kernels of a step, without and with `compile`."""
    if device.type != "cuda":
        return {"not counted": f"{device.type} runs no kernels"}
    return {name: attempt(lambda c=name == "compiled": profiled(device, c)) for name in ("eager", "compiled")}


def profiled(device: torch.device, compile_: bool) -> Figures:
    """How many kernels a step starts, their milliseconds by kind, and those that take longest together."""
    agent, given = pretraining(device, compile=compile_), batches(device)
    for batch in given:
        agent.train_step([batch])
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        agent.train_step([given[0]])
        clock(device)
    kinds, names = collections.Counter[str](), collections.Counter[str]()
    number = 0
    for event in profiler.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            low, taken = event.name.lower(), event.self_device_time_total / 1e3
            kinds[
                next((kind for kind, parts in KINDS.items() if any(part in low for part in parts)), "other")
            ] += taken
            names[event.name[:120]] += taken
            number += 1
    return {
        "kernels": number,
        "ms": sum(kinds.values()),
        "ms by kind": dict(kinds.most_common()),
        "ms of the longest": dict(names.most_common(25)),
    }


def targets(device: torch.device) -> Figures:
    """A step with each target; their teachers are small, so this is the cost of the rest."""
    return {name: attempt(lambda n=name: timed(device, mvm_target=[n])) for name in TARGETS}


@torch.inference_mode()
def others(device: torch.device) -> Figures:
    """HOG of a batch's frames, and pairs a second of a retrieval evaluation."""
    published = device.type != "cpu"
    frames = torch.randn(*((20, 4, 3, 224, 224) if published else (1, 2, 3, 64, 64)), device=device)
    bert, texts, video_tokens = (BertConfig(), 1000, 250) if published else (SMALL_BERT, 8, 10)
    with device:
        model = RetrievalModel(bert, bert, SIZES["demo"]).eval()
    video = torch.randn(2, video_tokens, bert.hidden_size, device=device)
    words = torch.ones(texts, 25, dtype=torch.long, device=device)
    text, found = model.enc_txt(words, words), {"HOG, ms": 1e3 * seconds(lambda: hog_picture(frames), device)}
    for name, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16)):
        scorer, most = PairScorer(model, dtype), pairs_at_once(model, video_tokens + 25, dtype, device)
        taken = seconds(lambda s=scorer, m=most: all_pairs(s, video, text, words, m), device, 3)
        found[f"pairs/s, {name}"] = len(video) * texts / taken
    return found


SECTIONS: dict[str, Callable[[torch.device], Figures]] = {
    "right": right,
    "compiled": compiled,
    "steps": steps,
    "waits": waits,
    "kernels": kernels,
    "targets": targets,
    "others": others,
}


def attempt(work: Callable[[], Figures]) -> Figures:
    """The figures, or the error that came in their place; the device's memory is free again."""
    try:
        return work()
    except Exception as error:  # the others are measured all the same
        return {"error": f"{type(error).__name__}: {str(error)[:300]}"}
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def machine(device: torch.device) -> Figures:
    """The device, its ceilings, and the versions."""
    found: Figures = {"device": str(device), "torch": torch.__version__}
    if device.type == "cuda":
        found["device"] = torch.cuda.get_device_name(device)
        found["CUDA"], found["cuDNN"] = torch.version.cuda, torch.backends.cudnn.version()
    size = 8192 if device.type != "cpu" else 512
    for name, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16)):
        found[f"TFLOP/s of products, {name}"] = matrix_rate(device, dtype, size) / 1e12
    found["GB/s of copies"] = bandwidth(device, 1 << (30 if device.type != "cpu" else 24)) / 1e9
    return found


def show(figures: Figures, depth: int = 0) -> None:
    """Print a line per figure."""
    for name, value in figures.items():
        if isinstance(value, dict):
            print("  " * depth + name)
            show(value, depth + 1)
        else:
            print(
                "  " * depth + f"{name:40}{value:.4g}"
                if isinstance(value, float)
                else "  " * depth + f"{name}: {value}"
            )


def main() -> None:
    """Measure, print, and write bench/gpu.json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="auto", help="auto, cuda, cuda:1, cpu (default: auto)")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--output", type=Path, default=ROOT / "bench" / "gpu.json")
    options = parser.parse_args()
    device = choose_device(options.device)
    figures: Figures = {"machine": attempt(lambda: machine(device))}
    for name in options.sections:
        begin = time.perf_counter()
        figures[name] = attempt(lambda n=name: SECTIONS[n](device))
        show({name: figures[name]})
        print(f"{name}: {time.perf_counter() - begin:.0f} s", flush=True)
        options.output.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    run_script(main)
