"""Where the time of a few steps goes."""

import resource
import sys
from pathlib import Path
from typing import Any

import torch
from torch.profiler import profile, schedule, supported_activities

from lib import log

FIRST = 2  # steps that are not profiled: they allocate, compile, start workers


class Profile:
    """Profiles `steps` training steps after the first: `trace.json` for Perfetto, `profile.txt`, a table."""

    def __init__(self, steps: int, folder: Path) -> None:
        self.folder, self.device = folder, torch.accelerator.is_available()
        self.profiler: Any = None
        if steps:
            plan = schedule(wait=FIRST - 1, warmup=1, active=steps, repeat=1)
            self.profiler = profile(
                activities=supported_activities(), schedule=plan, on_trace_ready=self.write
            )
            self.profiler.start()

    def step(self) -> None:
        """A training step has ended."""
        if self.profiler is not None:
            self.profiler.step()

    def write(self, profiler: Any) -> None:
        """Write what was measured; the ten operations that cost most by themselves go to the log as well."""
        profiler.export_chrome_trace(str(self.folder / "trace.json"))
        order = "self_device_time_total" if self.device else "self_cpu_time_total"
        operations = profiler.key_averages()
        operations[:] = [row for row in operations if not row.key.startswith("ProfilerStep")]
        table = operations.table(sort_by=order, row_limit=10, max_name_column_width=40)
        (self.folder / "profile.txt").write_text(table + "\n")
        log.info("profile: %s, and\n%s", self.folder / "trace.json", table)

    def close(self) -> None:
        """End it, though there were fewer steps."""
        if self.profiler is not None:
            self.profiler.stop()
            self.profiler = None


def peak_memory(device: torch.device) -> float:
    """GiB that this process has used at most: of the accelerator's memory, or on a CPU of its own."""
    if device.type in ("cpu", "mps"):
        unit = 2**30 if sys.platform == "darwin" else 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    return torch.get_device_module(device).max_memory_allocated(device) / 2**30
