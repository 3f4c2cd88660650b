"""The recorder of a run's figures, and means over the batches of an evaluation."""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from batch import Batch, Mean, Output
from engine.doctor import with_skills
from lib import UserError, World, log
from media.files import atomic_path


def names_of(rows: Sequence[Mapping[str, Mean]]) -> list[str]:
    """The names of all means in the rows."""
    return list(dict.fromkeys(name for row in rows for name in row))


def stack(rows: Sequence[Mapping[str, Mean]]) -> Tensor:
    """Rows of means -> (rows, `names_of` them, 2): totals and counts, 0 where a row lacks a name."""
    names = names_of(rows)
    if any(len(row) < len(names) for row in rows):
        zero = next(iter(rows[0].values())).total.new_zeros(())
        rows = [{**dict.fromkeys(names, Mean(zero, zero)), **row} for row in rows]
    numbers = [number for row in rows for name in names for number in (row[name].total, row[name].count)]
    return torch.stack(numbers).view(len(rows), len(names), 2)


class Recorder:
    """Writes a run's figures: progress bar, TensorBoard, `metrics.jsonl`, `eval.jsonl`, an optional logger.

    Losses stay on the device until they are written, so that a step never waits for one. Resuming removes
    rows that were written after the resumed state, so that nothing is logged twice.
    """

    files = ("metrics.jsonl", "eval.jsonl")

    def __init__(self, folder: Path, world: World, total: int, logger: str = "") -> None:
        self.folder, self.world, self.logger = folder, world, logger
        self.bar = tqdm(total=total, unit="step", disable=not world.is_main, dynamic_ncols=True)
        self.board: SummaryWriter | None = None
        self.wandb: Any = None
        self.window: list[dict[str, Mean]] = []
        self.rates: dict[str, float] = {}
        self.seen: list[list[dict[str, Any]]] = []  # the samples of each step, of this process
        self.samples, self.waited, self.since = 0, 0.0, time.perf_counter()

    # -- parts of a run

    def resume(self, step: int, state: Mapping[str, Any], config: dict[str, Any]) -> None:
        """Begin at `step` with the `state` of that step, empty for a new run; `config` is for the logger."""
        self.bar.update(step)
        names, rows = state.get("names", []), state.get("window", [])
        self.window = [{n: Mean(*pair) for n, pair in zip(names, row, strict=True)} for row in rows]
        self.window = [
            {n: Mean(*(t.to(self.world.device) for t in (m.total, m.count))) for n, m in row.items()}
            for row in self.window
        ]
        self.rates, self.seen = dict(state.get("rates", {})), [[] for _ in self.window]
        if not self.world.is_main:
            return
        for file, size in state.get("sizes", {}).items():
            if file in self.files:
                cut(self.folder / file, size)
        with self._on_board():
            self.board = SummaryWriter(str(self.folder), purge_step=step + 1 if state else None)
        if self.logger == "wandb":
            self.wandb = start_wandb(self.folder, config)

    def state(self) -> dict[str, Any]:
        """The state for `resume`: the steps not yet written, and the sizes of the files."""
        with self._on_board():
            if self.board is not None:
                self.board.flush()
        paths = [self.folder / file for file in self.files]
        return {
            "names": names_of(self.window),
            "window": stack(self.window).cpu() if self.window else [],
            "rates": self.rates,
            "sizes": {path.name: path.stat().st_size if path.exists() else 0 for path in paths},
        }

    # -- training

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """The time spent inside is spent waiting for data."""
        start = time.perf_counter()
        yield
        self.waited += time.perf_counter() - start

    def add(self, values: dict[str, Mean], batches: Sequence[Batch], rates: dict[str, float]) -> None:
        """One step's losses and scores (over all processes), this process's batches, the learning rates."""
        self.window.append(values)
        self.seen.append([sample for batch in batches for sample in samples(batch)])
        self.samples += len(self.seen[-1]) * self.world.size
        self.rates = rates
        self.bar.update()

    def check(self, step: int) -> None:
        """Raise `FloatingPointError` if a value since the last call of `flush` is not finite.

        The samples of that step are written to `not_finite_RANK.json`, to be looked at or tried again.
        """
        if not self.window:
            return
        rows, names = stack(self.window).cpu()[..., 0], names_of(self.window)
        for back, (row, seen) in enumerate(zip(rows.flip(0), self.seen[::-1], strict=True)):
            wrong = [n for n, value in zip(names, row.tolist(), strict=True) if not np.isfinite(value)]
            if wrong:
                first = (step - back, wrong, seen)
        if rows.isfinite().all():
            return
        number, wrong, seen = first
        path = self.folder / f"not_finite_{self.world.rank}.json"
        with contextlib.suppress(OSError), atomic_path(path) as temporary:
            content = {"step": number, "rank": self.world.rank, "not_finite": wrong, "samples": seen}
            temporary.write_text(json.dumps(content, indent=1) + "\n")
        ids = ", ".join(str(sample["id"]) for sample in seen)
        raise FloatingPointError(f"step {number}: {', '.join(wrong)} not finite; the batch: {ids} ({path})")

    def flush(
        self, step: int, memory: float, timers: Callable[[], dict[str, float]] = dict
    ) -> dict[str, float]:
        """Write the mean of the steps since the last call; `FloatingPointError` if one is not finite.

        Returns what is written; empty if there was no step. A loss that no step had anything for, such as
        that of flow on images alone, is left out. memory: GiB; timers: what took how many seconds since they
        were last asked.
        """
        if not self.window:
            return {}
        self.check(step)
        totals, counts = stack(self.window).cpu().unbind(dim=2)
        now = time.perf_counter()
        sums = (totals.sum(dim=0).tolist(), counts.sum(dim=0).tolist())
        pairs = zip(names_of(self.window), *sums, strict=True)
        figures = with_skills({name: total / count for name, total, count in pairs if count})
        seconds = now - self.since
        figures |= {**self.rates, "samples_per_second": self.samples / seconds}
        figures |= {"data_wait": self.waited / seconds, "memory_gib": memory}
        figures |= {name: value / len(self.window) for name, value in timers().items()}
        self._write("metrics.jsonl", {"step": step, **figures}, "train")
        shown = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        log.debug("step %d: %s", step, shown)
        speed = f"{figures['samples_per_second']:.1f}/s"
        self.bar.set_postfix(loss=f"{figures.get('loss', np.nan):.3f}", samples=speed, GiB=f"{memory:.1f}")
        self.window, self.seen = [], []
        self.samples, self.waited, self.since = 0, 0.0, now
        return figures

    def evaluation(self, step: int, epoch: int, figures: dict[str, float]) -> None:
        """Write the figures of an evaluation; the clock of the next training steps starts after it."""
        self._write("eval.jsonl", {"step": step, "epoch": epoch, **figures}, "eval")
        shown = {name: value if isinstance(value, int) else f"{value:.4f}" for name, value in figures.items()}
        text = "  ".join(f"{name} {value}" for name, value in shown.items())
        log.info("evaluation, step %d: %s", step, text)
        self.since = time.perf_counter()

    def _write(self, file: str, row: dict[str, float], group: str) -> None:
        if not self.world.is_main:
            return
        named = {f"{group}/{name}": value for name, value in row.items() if name not in ("step", "epoch")}
        try:
            append(self.folder / file, json.dumps(row) + "\n")
        except OSError as error:
            log.error("%s: figures could not be written (%s): the run continues.", self.folder / file, error)
        with self._on_board():
            if self.board is not None:
                for name, value in named.items():
                    self.board.add_scalar(name, value, row["step"])
        if self.wandb is not None:
            self.wandb.log(named, step=row["step"])

    @contextlib.contextmanager
    def _on_board(self) -> Iterator[None]:
        """Inside, TensorBoard is written. A failed writer never writes again, which is logged once."""
        try:
            yield
        except OSError as error:
            board, self.board = self.board, None
            log.error(
                "TensorBoard: %s: its last figures and all later ones are missing until the run is resumed; "
                "metrics.jsonl and eval.jsonl have them.",
                error,
            )
            with contextlib.suppress(OSError):
                if board is not None:
                    board.close()

    def close(self) -> None:
        """End the progress bar, the TensorBoard file and the logger."""
        self.bar.close()
        with self._on_board():
            if self.board is not None:
                self.board.close()
        if self.wandb is not None:
            self.wandb.finish()


def samples(batch: Batch) -> list[dict[str, Any]]:
    """The names of a batch's samples: corpus, index in it, id."""
    found = {key: batch[key] for key in ("corpus", "index", "id") if key in batch}
    columns = {key: value.tolist() if isinstance(value, Tensor) else value for key, value in found.items()}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def append(path: Path, line: str) -> None:
    """Add a line to a file, or, where it does not fit, nothing."""
    size = path.stat().st_size if path.exists() else 0
    try:
        with path.open("a") as file:
            file.write(line)
    except OSError:
        cut(path, size)
        raise


def cut(path: Path, size: int) -> None:
    """Shorten a file of lines to `size` bytes; a link is not followed."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size <= size:
        return
    os.truncate(path, size)


def start_wandb(folder: Path, config: dict[str, Any]) -> Any:
    """A run of Weights & Biases under the folder's name, or what there is of it."""
    try:
        import wandb
    except ImportError as error:
        raise UserError("logger wandb: pip install wandb, or leave the key out.") from error
    return wandb.init(
        project="violet",
        name=folder.name,
        id=folder.name.strip("_"),
        dir=str(folder),
        config=config,
        resume="allow",
    )


class Averages:
    """Means over the batches of an evaluation, summed at the end over its processes."""

    def __init__(self) -> None:
        self.sums: dict[str, tuple[float, float]] = {}
        self.weights: dict[str, float] = {}

    def add(self, output: Output, prefix: str = "") -> None:
        """Take in the losses and scores of a batch."""
        if not prefix:
            self.weights |= {name: float(output.weight(name)) for name in output.losses}
        for name, mean in {**output.losses, **output.scores}.items():
            total, count = self.sums.get(prefix + name, (0.0, 0.0))
            self.sums[prefix + name] = (total + float(mean.total), count + float(mean.count))

    def figures(self, world: World) -> dict[str, float]:
        """`loss`, the weighted sum of the losses, and every mean, over the samples of all processes.

        Values that no batch had are left out.
        """
        sums: dict[str, tuple[float, float]] = {}
        weights: dict[str, float] = {}
        for other, known in world.gather((self.sums, self.weights)):
            weights |= known
            for name, (total, count) in other.items():
                past = sums.get(name, (0.0, 0.0))
                sums[name] = (past[0] + total, past[1] + count)
        means = {name: total / count for name, (total, count) in sums.items() if count >= 1}
        if not means:  # no sample has an answer, say
            return {}
        return {"loss": sum(weight * means.get(name, 0.0) for name, weight in weights.items()), **means}
