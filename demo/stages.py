"""Programs that need each other's results, side by side on the cores there are; time and memory of each."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

# Runs a program and says what it used: a child of this process would begin with its peak of memory.
MEASURED = """
import os, sys
pid = os.posix_spawn(sys.executable, [sys.executable, *sys.argv[2:]], os.environ)
_, status, usage = os.wait4(pid, 0)
os.write(int(sys.argv[1]), f"{usage.ru_maxrss} {usage.ru_utime + usage.ru_stime}".encode())
sys.exit(os.waitstatus_to_exitcode(status))
"""
SHOWN = 80  # characters of what a program says last; the last lines of one that failed


class Failed(SystemExit):
    """A program that ended with an error: the others are ended too."""


@dataclass
class Stage:
    """Runs the programs of one stage, and notes what they took."""

    name: str
    threads: int
    log: Path
    """what the programs print"""
    began: float = 0.0
    """seconds from the beginning of all stages"""
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    memory_gib: float = 0.0
    """of the largest process: pages that it shares with others count in each"""
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    ended: bool = False
    """no further program is to be started"""

    def run(self, *command: str) -> None:
        """Run a script of this project; raises `Failed` if it does."""
        if self.ended:
            raise Failed(f"{self.name}: not run")
        tqdm.write(f"[{self.name}] $ python {shlex.join(command)}")
        # threads that wait asleep: where another process wants the cores, waiting awake is many times slower
        threads = {"OMP_NUM_THREADS": str(self.threads), "OMP_WAIT_POLICY": "PASSIVE"}
        ours, theirs = os.pipe()
        with self.log.open("ab") as log, open(ours) as usage:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", MEASURED, str(theirs), *command],
                env={**os.environ, **threads},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=(theirs,),
                start_new_session=True,  # to be ended with all that it starts
            )
            os.close(theirs)
            code = self.process.wait()
            memory, seconds = map(float, usage.read().split() or (0, 0))
        self.memory_gib = max(self.memory_gib, memory / (2**30 if sys.platform == "darwin" else 2**20))
        self.cpu_seconds += seconds
        if code:
            last = "\n".join(self.log.read_text(errors="replace").splitlines()[-SHOWN:])
            raise Failed(f"{last}\n{self.name}: exit code {code}; all of it: {self.log}")

    def end(self) -> None:
        """End the program that runs, and start no other."""
        self.ended = True
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)

    def said(self) -> str:
        """The last line of its program."""
        if not self.log.exists():
            return ""
        with self.log.open("rb") as log:
            log.seek(max(0, self.log.stat().st_size - 1000))
            lines = log.read().decode(errors="replace").replace("\r", "\n").strip().splitlines()
        return lines[-1].strip()[:SHOWN] if lines else ""

    def figures(self) -> dict[str, float | str]:
        """For a JSON file."""
        names = ("name", "began", "seconds", "cpu_seconds", "memory_gib", "threads")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Job:
    """A stage, the stages that must be done before, and its share of the cores."""

    name: str
    work: Callable[[Stage], None]
    after: tuple[str, ...] = ()
    share: float = 1.0


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_all(jobs: Sequence[Job], logs: Path, available: int | None = None) -> list[Stage]:
    """Run every job once those that it comes after are done, side by side where cores are free.

    A job gets its share of the cores and one at least; of those that could start, the earlier goes first.
    When one fails the others are ended, and its error raised. Returns the stages in the order of the jobs.
    """
    logs.mkdir(parents=True, exist_ok=True)
    free = total = available or cores()
    start = time.perf_counter()
    stages = {
        job.name: Stage(
            job.name,
            max(1, int(job.share * total)),
            logs / f"{re.sub(r'[^a-z0-9]+', '_', job.name.lower())}.log",
        )
        for job in jobs
    }
    waiting, done = list(jobs), set[str]()
    running: dict[Future[None], Stage] = {}
    with ThreadPoolExecutor(len(jobs)) as pool, Status() as status:
        try:
            while waiting or running:
                for job in [job for job in waiting if done.issuperset(job.after)]:
                    stage = stages[job.name]
                    if stage.threads > free:
                        break
                    stage.began = time.perf_counter() - start
                    stage.log.unlink(missing_ok=True)
                    running[pool.submit(job.work, stage)] = stage
                    free -= stage.threads
                    waiting.remove(job)
                for future in wait(running, timeout=1.0, return_when=FIRST_COMPLETED).done:
                    stage = running.pop(future)
                    stage.seconds = time.perf_counter() - start - stage.began
                    future.result()
                    free += stage.threads
                    done.add(stage.name)
                    tqdm.write(f"[{stage.name}] {stage.seconds:.0f} s, {stage.memory_gib:.1f} GiB")
                status.show(running, time.perf_counter() - start)
        finally:
            for stage in running.values():
                stage.end()
    return list(stages.values())


class Status:
    """A line per running stage at the bottom of a terminal."""

    def __init__(self) -> None:
        self.lines: dict[str, tqdm] = {}

    def __enter__(self) -> "Status":
        return self

    def __exit__(self, *error: object) -> None:
        for line in self.lines.values():
            line.close()

    def show(self, running: Mapping[Future[None], Stage], now: float) -> None:
        """Say what each is at."""
        names = {stage.name for stage in running.values()}
        for name in set(self.lines) - names:
            self.lines.pop(name).close()
        for stage in running.values():
            if stage.name not in self.lines:
                self.lines[stage.name] = tqdm(bar_format="{desc}", leave=False, disable=None)
            self.lines[stage.name].set_description_str(
                f"{stage.name}, {now - stage.began:.0f} s: {stage.said()}"
            )
