"""Shared by the benchmarks: clocks, the machine's ceilings, counted work, a process per measurement."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[1]
Work = Callable[[], Any]


def clock(device: torch.device) -> float:
    """Seconds, once the device has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def seconds(work: Work, device: torch.device, repeats: int = 5, warm: int = 1) -> float:
    """Of one call: the median of some, after `warm` that are not counted."""
    return rival_seconds({"": work}, device, repeats, warm)[""]


def rival_seconds(
    works: dict[str, Work], device: torch.device, repeats: int = 5, warm: int = 1
) -> dict[str, float]:
    """As `seconds`, of several: they take turns, so that what else the machine does falls on all alike."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for number in range(warm + repeats):
        for name, work in works.items():
            start = clock(device)
            work()
            if number >= warm:
                found[name].append(clock(device) - start)
    return {name: statistics.median(values) for name, values in found.items()}


def matrix_rate(device: torch.device, dtype: torch.dtype, size: int = 3072) -> float:
    """FLOP/s of the fastest of some square matrix products: the ceiling of this machine."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / min(seconds(lambda: a @ b, device, 1, warm=0) for _ in range(12))


def bandwidth(device: torch.device, size: int = 1 << 28) -> float:
    """Bytes/s that are read and written in copying what no cache holds."""
    a = torch.ones(size, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    return 2 * size / seconds(lambda: b.copy_(a), device)


def flops(work: Work) -> int:
    """Of the matrix products and convolutions of a call; attention in its plain form, which is counted."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        work()
    return counter.get_total_flops()


def fresh(program: str, arguments: Sequence[str], limit: float = 3600) -> dict[str, Any]:
    """Run a module here in a process of its own; the JSON object that is the last line it prints."""
    command = [sys.executable, "-m", program, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])
