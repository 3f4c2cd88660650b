"""Where the figures of a run go, and means over the batches of an evaluation."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from lib import Mean, World, log
from model import Output


def stack(rows: Sequence[Mapping[str, Mean]]) -> Tensor:
    """Rows of means of the same names -> (rows, names, 2): totals and counts."""
    return torch.stack([torch.stack([torch.stack([m.total, m.count]) for m in row.values()]) for row in rows])


class Recorder:
    """Where a run's figures go: progress bar, TensorBoard, `metrics.jsonl`, `eval.jsonl`.

    Losses stay on the device until they are written, so that a step never waits for one.
    """

    def __init__(self, folder: Path, world: World, total: int) -> None:
        self.folder, self.world = folder, world
        self.bar = tqdm(total=total, unit="step", disable=not world.is_main, dynamic_ncols=True)
        self.board = SummaryWriter(str(folder)) if world.is_main else None
        self.window: list[dict[str, Mean]] = []
        self.ids: list[list[str]] = []
        self.samples, self.since = 0, time.perf_counter()

    def add(self, values: dict[str, Mean], ids: list[str]) -> None:
        """One step's losses and scores (over all processes) and this process's sample ids."""
        self.window.append(values)
        self.ids.append(ids)
        self.samples += len(ids) * self.world.size
        self.bar.update()

    def flush(self, step: int, rates: dict[str, float], memory: float) -> None:
        """Write the mean of the steps since the last call; `FloatingPointError` if one is not finite.

        A loss that no step had anything for, such as that of flow on images alone, is left out.
        """
        if not self.window:
            return
        values, counts = stack(self.window).cpu().unbind(dim=2)
        names = list(self.window[0])
        for row, ids in zip(values, self.ids, strict=True):
            if not row.isfinite().all():
                wrong = [
                    name for name, value in zip(names, row.tolist(), strict=True) if not np.isfinite(value)
                ]
                raise FloatingPointError(f"{', '.join(wrong)} not finite; the batch: {', '.join(ids)}")
        now = time.perf_counter()
        seen, sums = counts.sum(dim=0).tolist(), values.sum(dim=0).tolist()
        figures = {name: total / count for name, total, count in zip(names, sums, seen, strict=True) if count}
        figures |= {**rates, "samples_per_second": self.samples / (now - self.since)}
        self._write("metrics.jsonl", {"step": step, **figures, "memory_gib": memory}, "train")
        speed = f"{figures['samples_per_second']:.1f}/s"
        self.bar.set_postfix(loss=f"{figures['loss']:.3f}", samples=speed, GiB=f"{memory:.1f}")
        self.window, self.ids, self.samples, self.since = [], [], 0, now

    def evaluation(self, step: int, epoch: int, figures: dict[str, float]) -> None:
        """Write the figures of an evaluation; the clock of the next training steps starts after it."""
        self._write("eval.jsonl", {"step": step, "epoch": epoch, **figures}, "eval")
        text = "  ".join(f"{name} {value:.4f}" for name, value in figures.items())
        log.info("evaluation, step %d: %s", step, text)
        self.since = time.perf_counter()

    def _write(self, file: str, row: dict[str, float], group: str) -> None:
        if self.board is None:
            return
        with (self.folder / file).open("a") as lines:
            lines.write(json.dumps(row) + "\n")
        for name, value in row.items():
            if name not in ("step", "epoch"):
                self.board.add_scalar(f"{group}/{name}", value, row["step"])

    def close(self) -> None:
        """End the progress bar and the TensorBoard file."""
        self.bar.close()
        if self.board is not None:
            self.board.close()


class Averages:
    """Means over the batches of an evaluation, joined in the end over its processes."""

    def __init__(self) -> None:
        self.sums: dict[str, tuple[float, float]] = {}
        self.weights: dict[str, float] = {}

    def add(self, output: Output, prefix: str = "") -> None:
        """Take in the losses and scores of a batch."""
        if not prefix:
            self.weights |= {name: output.weight(name) for name in output.losses}
        for name, mean in {**output.losses, **output.scores}.items():
            total, count = self.sums.get(prefix + name, (0.0, 0.0))
            self.sums[prefix + name] = (total + float(mean.total), count + float(mean.count))

    def figures(self, world: World) -> dict[str, float]:
        """`loss`, the weighted sum of the losses, and every mean, over the samples of all processes.

        What no batch had anything for is left out.
        """
        sums: dict[str, tuple[float, float]] = {}
        weights: dict[str, float] = {}
        for other, known in world.gather((self.sums, self.weights)):
            weights |= known
            for name, (total, count) in other.items():
                past = sums.get(name, (0.0, 0.0))
                sums[name] = (past[0] + total, past[1] + count)
        means = {name: total / count for name, (total, count) in sums.items() if count >= 1}
        return {"loss": sum(weight * means.get(name, 0.0) for name, weight in weights.items()), **means}
