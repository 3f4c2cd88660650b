"""Memory of a process: what glibc does with that of a CPU once it is freed, and how much was used."""

import ctypes
import os
import platform
import resource
import sys

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # of glibc's malloc.h
MALLOC = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def prepare_memory(device: torch.device, spare: bool) -> None:
    """On a CPU `spare_memory`, or `keep_freed_memory` for speed; other devices have their own allocators."""
    if device.type == "cpu":
        (spare_memory if spare else keep_freed_memory)()


def keep_freed_memory() -> None:
    """Have glibc keep what this process and its children free for what they ask for next.

    A training step on a CPU frees and asks for gigabytes. What is larger than 32 MiB would go back to the
    system each time and come again page by page, filled with zeros: up to a tenth of the step.
    """
    set_glibc({M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1})


def spare_memory() -> None:
    """Have glibc give every block of 4 MiB or more back once it is freed: where memory is short, not time.

    Else holes between tensors add up to a quarter of what a process holds.
    """
    set_glibc({M_MMAP_THRESHOLD: 1 << 22})


def set_glibc(values: dict[int, int]) -> None:
    """Set parameters of mallopt; not under other C libraries, or where the environment sets glibc's own."""
    if platform.libc_ver()[0] == "glibc" and not any(name in os.environ for name in MALLOC):
        for parameter, value in values.items():
            ctypes.CDLL(None).mallopt(parameter, value)


def give_back_freed_memory() -> None:
    """Give the system what is kept: before a fork, which would share it and have it copied."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def peak_memory(device: torch.device) -> float:
    """GiB that this process has used at most: of the accelerator's memory, or on a CPU of its own."""
    if device.type in ("cpu", "mps"):
        unit = 2**30 if sys.platform == "darwin" else 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    return torch.accelerator.max_memory_allocated(device) / 2**30
