"""Many runs of the entry scripts, two at a time: the common part of the studies.

A run is a condition and a seed, in a process of its own. Its result is a JSON that appears when it is
finished; a run whose result is there is not run again.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from media.files import atomic_path

Run = Callable[[str, int, argparse.Namespace], dict[str, Any]]  # condition, seed, options -> result
ROOT = Path(__file__).resolve().parents[1]


@contextlib.contextmanager
def command_line(script: str, arguments: Sequence[str]) -> Iterator[None]:
    """Inside, the program was called like this."""
    before, sys.argv = sys.argv, [script, *arguments]
    print("$ python", *sys.argv, flush=True)
    try:
        yield
    finally:
        sys.argv = before


def call(main: Callable[[], None], config: dict[str, Any], folder: Path) -> Path:
    """Run an entry script's `main` on a config; the folder of its run."""
    path = folder / f"{config['task']}.json"
    path.write_text(json.dumps(config))
    with command_line(f"{main.__module__}.py", ["--config", str(path)]):
        main()
    return max(folder.glob(f"_{config['task']}_*"))


class Clock:
    """Processor time of one stage after the other, in seconds; data-loading workers included."""

    def __init__(self) -> None:
        self.start, self.seconds = now(), dict[str, int]()

    def stop(self, stage: str) -> None:
        """This stage ends, and the next begins."""
        end = now()
        self.seconds[stage], self.start = round(end - self.start), end


def now() -> float:
    """Processor time of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def last_row(path: Path) -> dict[str, Any]:
    """The last object of a .jsonl."""
    return json.loads(path.read_text().splitlines()[-1])


def slug(condition: str, seed: int) -> str:
    """The name of a run in paths."""
    return f"{condition.replace(', ', '-').replace(' ', '-')}-{seed}"


def place(results: Path, condition: str, seed: int) -> Path:
    """Where the result of a run is, or would be."""
    return results / f"{slug(condition, seed)}.json"


def results_folder(options: argparse.Namespace, ours: Path) -> Path:
    """Where results go: where `--results` says, else to `ours`; those of quick runs count nowhere else."""
    return options.results or (options.output / "quick" if options.quick else ours)


def run_one(run: Run, options: argparse.Namespace) -> None:
    """The first named condition and seed in this process; its result is written when it is finished."""
    condition, seed = options.targets[0], options.seeds[0]
    result = run(condition, seed, options)
    with atomic_path(place(options.results, condition, seed)) as temporary:
        temporary.write_text(json.dumps(result) + "\n")


def run_all(
    program: str, options: argparse.Namespace, known: Sequence[str], summary: Callable[[Path], str]
) -> None:
    """Every run that has no result yet, `options.jobs` at a time, seed by seed.

    program: the module that a run is started from, with --one; known: names of the options that it is given.
    """
    wanted = [(condition, seed) for seed in options.seeds for condition in options.targets]
    open_runs = [pair for pair in wanted if not place(options.results, *pair).exists()]
    print(
        f"{len(wanted) - len(open_runs)} of {len(wanted)} runs are done, {len(open_runs)} remain", flush=True
    )
    threads = max(1, len(os.sched_getaffinity(0)) // options.jobs)
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "OMP_NUM_THREADS": str(threads)}
    values = {name: getattr(options, name) for name in known}
    given = [f"--{name}" if value is True else f"--{name}={value}" for name, value in values.items() if value]

    def start(pair: tuple[str, int]) -> None:
        run = ["--one", "--targets", pair[0], "--seeds", str(pair[1])]
        command = [sys.executable, "-m", program, *run, *given]
        options.output.mkdir(parents=True, exist_ok=True)
        log = options.output / f"{place(options.results, *pair).stem}.log"
        began = time.perf_counter()
        with log.open("w") as file:
            done = subprocess.run(command, env=environment, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
        state = f"failed, see {log}" if done.returncode else summary(place(options.results, *pair))
        print(f"{pair[0]}, seed {pair[1]}: {state} ({time.perf_counter() - began:.0f} s)", flush=True)

    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(start, open_runs))
