"""The engine: optimiser and schedule, one step, one run, evaluation, checkpoints."""

import contextlib
import itertools
import json
import math
import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from dataset import Loader
from lib import Config, Mean, World, atomic_path, log, make_run_folder
from model import Batch, Output
from recorder import Averages, Recorder, stack

MIN_LR = 1e-8
Row = dict[str, Any]  # of the predictions file
AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}


# ------------------------------------------------------------------------------------ optimiser, schedule


def parameter_groups(model: nn.Module, lr: float, decay: float, swin_lr_mul: float) -> list[dict[str, Any]]:
    """The published groups: (swin, decay), (other, decay), (swin, no decay), (other, no decay).

    No decay for names with "bias" (the bias tables among them) or "LayerNorm.weight"; Swin's norms decay.
    """
    groups = [
        {"params": [], "names": [], "peak": lr * (swin_lr_mul if swin else 1), "weight_decay": weight_decay}
        for weight_decay in (decay, 0.0)
        for swin in (True, False)
    ]
    for name, parameter in model.named_parameters():
        free = "bias" in name or "LayerNorm.weight" in name
        group: dict[str, Any] = groups[2 * free + ("swin" not in name)]
        group["params"].append(parameter)
        group["names"].append(name)
    return groups


def warmup_linear(step: int, total: int, warmup_ratio: float) -> float:
    """Factor of the learning rate: from 0 up over the warm-up, then in a line to 0 at `total`."""
    warmup = total * warmup_ratio
    if step < warmup:
        return step / warmup
    return max(0.0, (total - step) / max(1e-9, total - warmup))


def seeded(*numbers: int) -> Generator:
    """A generator whose draws follow from these numbers alone."""
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]
    return Generator().manual_seed(int(state >> np.uint64(1)))


def join(means: Mapping[str, Mean], world: World) -> dict[str, Mean]:
    """Each mean over the samples of every process, in one collective call; without gradients."""
    if not means:
        return {}
    here = {name: Mean(mean.total.detach().float(), mean.count.float()) for name, mean in means.items()}
    return {name: Mean(*pair) for name, pair in zip(means, world.sum(stack([here])[0]), strict=True)}


def to_device(batch: Mapping[str, Any], device: torch.device) -> Batch:
    """The batch with its tensors on `device`."""
    return {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}


def peak_memory(device: torch.device) -> float:
    """GiB that this process has used at most: of the accelerator's memory, or on a CPU of its own."""
    if device.type in ("cpu", "mps"):
        unit = 2**30 if sys.platform == "darwin" else 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    return torch.accelerator.max_memory_allocated(device) / 2**30


# ------------------------------------------------------------------------------------------------- agent


class Agent:
    """Trains and evaluates one model: the loop of every script.

    `prepare(batch, generator)` adds to a batch on the device what the model asks for beyond the data, such
    as masks. `describe(batch, output)` gives a JSON object per sample for the predictions file; `metric(rows,
    split)` makes figures of those of all processes, so that they are the same on any number of them.
    """

    def __init__(
        self,
        config: Config,
        world: World,
        model: nn.Module,
        prepare: Callable[[Batch, Generator], Batch] = lambda batch, _: batch,
        describe: Callable[[Batch, Output], Sequence[Row]] = lambda *_: [],
        metric: Callable[[Sequence[Row], str], dict[str, float]] = lambda *_: {},
    ) -> None:
        self.config, self.world, self.prepare = config, world, prepare
        self.describe, self.metric = describe, metric
        self.model = model.to(world.device)
        self.wrapped: nn.Module = self.model
        if world.size > 1:
            self.wrapped = DistributedDataParallel(
                self.model, forward_sync_buffers=False, gradient_as_bucket_view=True
            )
        groups = parameter_groups(self.model, config.lr, config.decay, config.vis_backbone_lr_mul)
        self.optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98), fused=True)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=config.amp == "fp16")
        self.folder = make_run_folder(config, world)
        self.step, self.total = 0, 0  # optimiser steps done, and of the whole run

    def fit(
        self, train: Loader | None, val: Loader | None, test: Loader | None = None, best: str = ""
    ) -> dict[str, float]:
        """Train for `max_steps` steps, or else `size_epoch` epochs, evaluating and saving after each epoch.

        `best` is the figure of `val` that tells the best epoch: its weights and the last's are kept, and what
        is started from a checkpoint is evaluated first. Returns the figures of the last evaluation, or of the
        best epoch. Without `train` it evaluates only.
        """
        config = self.config
        if train is not None:
            steps = math.ceil(len(train) / config.accumulate)
            self.total = config.max_steps or config.size_epoch * steps
        self.recorder = Recorder(self.folder, self.world, self.total)
        splits = {"val": val, "test": test} if best else {"": val}
        loaders = {name: loader for name, loader in splits.items() if loader}
        figures: dict[str, float] = {}
        kept: dict[str, float] = {}
        loggers = [log] if self.world.is_main else []  # lines of the log above the bar, not through it
        with logging_redirect_tqdm(loggers), contextlib.closing(self.recorder):
            if config.eval_start or not self.total or (best and config.path_ckpt):
                figures = self.evaluate_all(loaders, epoch=0)
            epoch = 0
            while train is not None and self.step < self.total:
                epoch += 1
                self.train_epoch(train, epoch)
                figures = self.evaluate_all(loaders, epoch)
                self.save("last" if best else str(epoch))
                if figures.get(f"val_{best}", -1.0) > kept.get(f"val_{best}", -1.0):  # Deviation 10
                    kept = {"epoch": epoch, **figures}
                    self.keep_best(kept, best)
        return kept or figures

    def train_epoch(self, loader: Loader, epoch: int) -> None:
        """One epoch, or what is left of the run's steps."""
        self.model.train()
        stream = loader.epoch(epoch)
        while batches := list(itertools.islice(stream, self.config.accumulate)):
            rates = self.set_rates()
            values = self.train_step(batches)
            self.step += 1
            self.recorder.add(values, [name for batch in batches for name in batch["id"]])
            if self.step % self.config.logging_steps == 0 or self.step == self.total:
                self.recorder.flush(self.step, rates, peak_memory(self.world.device))
            if self.step == self.total:
                break
        self.recorder.flush(self.step, rates, peak_memory(self.world.device))

    def set_rates(self) -> dict[str, float]:
        """Set the learning rates of the coming step; returns those of the video encoder and of the rest."""
        factor = warmup_linear(self.step, self.total, self.config.warmup_ratio)
        for group in self.optimizer.param_groups:
            group["lr"] = max(MIN_LR, group["peak"] * factor)
        swin, other = self.optimizer.param_groups[:2]
        return {"lr": other["lr"], "lr_swin": swin["lr"]}

    def train_step(self, batches: Sequence[Batch]) -> dict[str, Mean]:
        """One optimiser step on the mean gradient of `batches`; returns its losses and scores."""
        self.optimizer.zero_grad(set_to_none=True)
        steps = []
        for number, batch in enumerate(batches):
            generator = seeded(self.config.seed, self.world.rank, self.step, number)
            torch.manual_seed(generator.initial_seed())  # dropout too follows from the step alone
            with self.autocast():
                batch = self.prepare(to_device(batch, self.world.device), generator)
            steps.append(self.backward(batch, share=1 / len(batches), last=number + 1 == len(batches)))
        self.scaler.unscale_(self.optimizer)
        if self.config.max_grad_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return {name: Mean(*pair) for name, pair in zip(steps[0], stack(steps).sum(dim=0), strict=True)}

    def backward(self, batch: Batch, share: float, last: bool) -> dict[str, Mean]:
        """Add `share` of the gradient of the summed losses; processes exchange gradients at the `last`.

        Returns the value of each loss and score, counted once if the batch had anything for it, else not.
        """
        waits = isinstance(self.wrapped, DistributedDataParallel) and not last
        with self.wrapped.no_sync() if waits else contextlib.nullcontext():  # type: ignore[operator]
            with self.autocast():
                output: Output = self.wrapped(batch)
            joined = join({**output.losses, **output.scores}, self.world)
            # Deviation 13: a loss is the mean over what all processes hide, not the mean of their means. The
            # gradients that they exchange are averaged, hence the number of processes.
            loss = torch.stack(
                [
                    output.weight(name)
                    * mean.total.float()
                    * (self.world.size / joined[name].count.clamp(min=1e-12)).float()
                    for name, mean in output.losses.items()
                ]
            ).sum()
            self.scaler.scale(loss * share).backward()
        values = {name: Mean(mean.value, (mean.count >= 1).float()) for name, mean in joined.items()}
        weighted = torch.stack([output.weight(name) * values[name].total for name in output.losses]).sum()
        return {"loss": Mean(weighted, torch.ones_like(weighted)), **values}

    def autocast(self) -> torch.autocast:
        """Mixed precision as the config says."""
        kind = self.config.amp
        return torch.autocast(self.world.device.type, AMP.get(kind), enabled=kind in AMP)

    def evaluate_all(self, loaders: Mapping[str, Loader], epoch: int) -> dict[str, float]:
        """Evaluate each split of `loaders`; the figures of all go to one row of `eval.jsonl`."""
        figures: dict[str, float] = {}
        for split, loader in loaders.items():
            prefix = f"{split}_" if split else ""
            found = self.evaluate(loader, epoch, split)
            figures |= {prefix + name: value for name, value in found.items()}
        if figures:
            self.recorder.evaluation(self.step, epoch, figures)
        return figures

    @torch.inference_mode()
    def evaluate(self, loader: Loader, epoch: int, split: str = "") -> dict[str, float]:
        """Every sample once, on one process or many: the mean of each loss and score, per corpus too.

        Writes what was predicted to `predictions_EPOCH.jsonl`, or `predictions_SPLIT_EPOCH.jsonl`.
        """
        self.model.eval()
        averages = Averages()
        predictions: list[tuple[int, Sequence[Row]]] = []
        quiet = not self.world.is_main
        for number, batch in enumerate(
            tqdm(loader.epoch(0), "evaluation", len(loader), leave=False, disable=quiet)
        ):
            place = number * self.world.size + self.world.rank  # among the batches of all processes
            with self.autocast():
                batch = self.prepare(to_device(batch, self.world.device), seeded(self.config.seed, place))
                output: Output = self.model(batch)
            averages.add(output)
            if len(loader.batches.sizes) > 1:
                averages.add(output, prefix=f"{batch['corpus'][0]}_")
            predictions.append((place, self.describe(batch, output)))
        rows = self.gather_rows(predictions)
        if rows and self.world.is_main:
            name = f"predictions_{split}_{epoch}" if split else f"predictions_{epoch}"
            with atomic_path(self.folder / f"{name}.jsonl") as temporary:
                temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return {**averages.figures(self.world), **self.metric(rows, split)}

    def gather_rows(self, predictions: list[tuple[int, Sequence[Row]]]) -> list[Row]:
        """Every process's predictions, in the order of the samples, on every process."""
        gathered = [part for parts in self.world.gather(predictions) for part in parts]
        return [row for _, part in sorted(gathered, key=lambda p: p[0]) for row in part]

    def keep_best(self, figures: dict[str, float], name: str) -> None:
        """Save the model as `ckpt_violet_TASK_best.pt` and what it reached in `best.json`."""
        self.save("best")
        if self.world.is_main:
            with atomic_path(self.folder / "best.json") as temporary:
                temporary.write_text(json.dumps(figures, indent=1) + "\n")
        found = [
            f"{split}_{name} {figures[f'{split}_{name}']:.4f}"
            for split in ("val", "test")
            if f"{split}_{name}" in figures
        ]
        log.info("best epoch so far: %d, %s", figures["epoch"], ", ".join(found))

    def save(self, name: str) -> Path:
        """Write the model's state dict, on the CPU, as `ckpt_violet_TASK_NAME.pt` in the run's folder."""
        path = self.folder / f"ckpt_violet_{self.config.task}_{name}.pt"
        if self.world.is_main:
            with atomic_path(path) as temporary:
                torch.save({k: v.cpu() for k, v in self.model.state_dict().items()}, temporary)
            log.info("checkpoint: %s", path)
        return path
