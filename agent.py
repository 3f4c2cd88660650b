"""The engine: one step, one run, evaluation, checkpoints, going on after a stop."""

import contextlib
import dataclasses
import functools
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Generator, nn
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from batch import Batch, Mean, Output
from dataset import Loader
from engine.doctor import Doctor
from engine.parallel import (
    AMP,
    choose_compile,
    choose_kernels,
    choose_parallel,
    choose_precision,
    clip,
    exchange,
    make_optimizer,
    report,
    unsharded,
    wrap,
)
from engine.processes import Agreement
from engine.profiling import Profile, peak_memory
from engine.protocol import checkpoint, settings
from engine.recorder import Averages, Recorder
from engine.resume import (
    AGAIN,
    PROGRESS,
    Saver,
    gather_to_cpu,
    load_model,
    load_optimizer,
    load_random_states,
    optimizer_state,
    random_states,
    read_state,
    write_tensors,
)
from engine.runs import BEFORE, FINISHED, STATE, Run, open_run, reopen
from engine.schedule import MIN_LR, parameter_groups, warmup_linear
from engine.signals import Stalled, Stop, handling_signals, leave_signals
from engine.step import (
    compile_encoders,
    join,
    joined_values,
    leave_out,
    part_ends,
    quiet_console,
    seeded,
    to_device,
    to_host,
    total_loss,
    values_of,
)
from lib import Config, UserError, World, log
from media.files import reading
from video_swin import use_kernels

RECENT = 60  # seconds after which the end of an epoch saves the state again
Row = dict[str, Any]  # of the predictions file
CONTINUE, SAVE, STOP = range(3)  # decision of all processes after a step


def write_text(path: Path, content: str) -> None:
    """As `Path.write_text`, for files that are written in the background."""
    path.write_text(content)


# ------------------------------------------------------------------------------------------------- agent


class Agent:
    """Trains and evaluates one model: the loop of every script.

    `prepare(batch, generator)` adds masks and the like to a batch on the CPU; in evaluation `generator` is
    None. `describe(batch, output)` gives a JSON object per sample for the predictions file; `metric(rows,
    split)` makes figures of those of all processes, so that they are the same on any number of them.
    `weigh(output, means)` may change the weights of a training batch's losses, by their means over all
    processes, which it returns. `follow(progress)` is called before the first step and after each;
    `followers` are modules that either changes, which are part of the training state and of no checkpoint.
    """

    def __init__(
        self,
        config: Config,
        world: World,
        model: nn.Module,
        prepare: Callable[[Batch, Generator | None], Batch] = lambda batch, _: batch,
        describe: Callable[[Batch, Output], Sequence[Row]] = lambda *_: [],
        metric: Callable[[Sequence[Row], str], dict[str, float]] = lambda *_: {},
        timers: Callable[[], dict[str, float]] = dict,
        multiples: Mapping[tuple[str, ...], float] | None = None,
        weigh: Callable[[Output, dict[str, Mean]], dict[str, Mean]] = lambda output, means: means,
        follow: Callable[[float], None] = lambda progress: None,
        followers: Mapping[str, nn.Module] | None = None,
    ) -> None:
        self.config, self.world, self.prepare = config, world, prepare
        self.describe, self.metric, self.timers = describe, metric, timers
        self.weigh, self.follow, self.followers = weigh, follow, followers or {}
        self.precision = choose_precision(config, world.device)
        sharing = choose_parallel(config, world)
        self.model = model.to(world.device)
        if choose_kernels(config, world.device):
            use_kernels(self.model)
        if choose_compile(config, sharing, world.device):
            compile_encoders(self.model)
        self.wrapped = wrap(self.model, world, sharing, config.compress_gradients)
        groups = parameter_groups(self.model, config.lr, config.decay, config.vis_backbone_lr_mul, multiples)
        self.optimizer = make_optimizer(groups, config.lr, sharing)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=self.precision == "fp16")
        report(config, sharing, self.precision, world.device)
        self.follow(0.0)
        self.saver, self.stop, self.agreement = Saver(), Stop(), Agreement(world)
        self.in_run = False  # whether `fit` is on
        self.saved = 0.0  # when the state was saved last
        self.step, self.total = 0, 0  # optimiser steps done, and of the whole run
        self.epoch, self.batches = 1, 0  # the epoch in training or evaluation, and its batches done
        self.due = False  # whether an evaluation comes next
        self.figures: dict[str, float] = {}  # of the last evaluation
        self.kept: dict[str, float] = {}  # of the best epoch

    @functools.cached_property
    def run(self) -> Run:
        """The run's folder, made or found when it is first needed, by all processes at once."""
        return open_run(self.config, self.world)

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.run.folder

    def fit(
        self, train: Loader | None, val: Loader | None, test: Loader | None = None, best: str = ""
    ) -> dict[str, float]:
        """Train for `max_steps` steps, or else `size_epoch` epochs, evaluating and saving after `eval_every`.

        `best` is the figure of `val` that tells the best epoch: its weights and the last's are kept, and what
        is started from a checkpoint is evaluated first. Returns the figures of the last evaluation, or of the
        best epoch. Without `train` it evaluates only. A run that was stopped goes on where its state is; if a
        signal asks it to stop, it saves that state and raises `SystemExit`.
        """
        config = self.config
        if train is not None:
            steps = math.ceil(len(train) / config.accumulate)
            self.total = config.max_steps or config.size_epoch * steps
        splits = {"val": val, "test": test} if best else {"": val}
        # not by its truth: that of a process which has none of a split's batches is false
        loaders = {name: loader for name, loader in splits.items() if loader is not None}
        for loader in (train, *loaders.values()):
            if loader is not None:
                loader.start_worker = leave_signals
        with self.running():
            if not self.run.resumed and (config.eval_start or not self.total or (best and config.path_ckpt)):
                self.figures = self.evaluate_all(loaders, epoch=0)
            if train is not None:
                self.train(train, loaders, best)
            self.check_written()
        return self.kept or self.figures

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Open a run's figures, saver and signal handlers; load its state if it is resumed."""
        loggers = [log] if self.world.is_main else []  # lines of the log above the bar, not through it
        with contextlib.ExitStack() as opened:
            if self.run.lock is not None:
                opened.enter_context(self.run.lock)
            opened.enter_context(logging_redirect_tqdm(loggers))
            quiet_console()
            opened.callback(self.saver.close)
            opened.enter_context(handling_signals(self.stop))
            recorded = self.restore() if self.run.resumed else {}
            self.recorder = Recorder(self.folder, self.world, self.total, self.config.logger)
            opened.callback(self.recorder.close)
            self.recorder.resume(self.step, recorded, dataclasses.asdict(self.config))
            self.doctor = Doctor(self.folder, self.world, self.total, self.config.freeze_violet)
            if self.run.resumed:
                self.doctor.resume()
            self.profile = Profile(self.config.profile if self.world.is_main else 0, self.folder)
            opened.callback(self.profile.close)
            self.in_run = True
            yield
            self.in_run = False

    def train(self, train: Loader, loaders: Mapping[str, Loader], best: str) -> None:
        """The epochs that are left, each in parts that end with an evaluation."""
        if not self.run.resumed:
            self.save_first_state()
        ends = part_ends(len(train), self.config.parts, self.config.accumulate)
        stream = self.until_stopped(train.epoch(self.epoch, self.batches))
        while self.step < self.total or self.due:
            if not self.due:
                self.train_part(stream, next((end for end in ends if end > self.batches), self.batches))
            if self.due or self.batches >= len(train):
                self.log_figures()
            if self.due:
                self.save_state(unless_recent=True)  # an evaluation may take long
                part = 1 + sum(end < self.batches for end in ends)
                whole = self.batches >= len(train) or len(ends) == 1
                self.end_part(loaders, best, str(self.epoch) if whole else f"{self.epoch}_{part}")
            if self.batches >= len(train):
                self.epoch, self.batches = self.epoch + 1, 0
                stream = self.until_stopped(train.epoch(self.epoch))
            if self.step < self.total:
                self.save_state(unless_recent=True)
        self.finish()

    def end_part(self, loaders: Mapping[str, Loader], best: str, name: str) -> None:
        """Evaluate, and save the weights."""
        self.figures = self.evaluate_all(loaders, self.epoch, name)
        if self.world.gather(self.path("best") in self.saver.failed)[0]:
            self.kept = {}  # its weights were not written: the next best epoch's are
        self.saver.failed.clear()
        for kept in (["last"] if best else []) + ([name] if self.config.keep_epochs or not best else []):
            self.save(kept)
        if self.figures.get(f"val_{best}", -1.0) > self.kept.get(f"val_{best}", -1.0):  # Deviation 10
            self.kept = {"epoch": self.epoch, **self.figures}
            self.keep_best(self.kept, best)
        self.due = False

    def train_part(self, stream: Iterator[Batch], until: int) -> None:
        """Train until `until` batches of the epoch, or all steps of the run, are done."""
        self.model.train()
        evaluates = self.config.parts > 1 or self.epoch % self.config.eval_every == 0
        while self.step < self.total and self.batches < until:
            with self.recorder.waiting():
                batches = list(itertools.islice(stream, min(self.config.accumulate, until - self.batches)))
            rates = self.set_rates()
            values = self.train_step(batches)
            self.step, self.batches = self.step + 1, self.batches + len(batches)
            self.follow(self.step / self.total)
            self.due = (evaluates and self.batches >= until) or self.step >= self.total
            self.recorder.add(values, batches, rates)
            if self.step % self.config.logging_steps == 0 or self.step == self.total:
                self.log_figures()
            self.profile.step()
            self.save_or_stop()

    def log_figures(self) -> None:
        """Write the figures of the steps since the last time; raises `FloatingPointError`: see `Recorder`."""
        if self.scaler.is_enabled() and self.scaler.get_scale() < 1:
            self.doctor.overflow(self.step)
            raise FloatingPointError(
                "fp16: gradients are not finite with any loss scale; try amp bf16 or a smaller lr."
            )
        figures = self.recorder.flush(self.step, peak_memory(self.world.device), self.timers)
        self.doctor.examine(self.step, figures)

    def save_or_stop(self) -> None:
        """Save the state if it is due; stop if any process has received a stop signal."""
        due = self.world.is_main and time.monotonic() - self.saved >= 60 * self.config.save_minutes
        decision = STOP if self.stop.asked else SAVE if due else CONTINUE
        agreed = (self.agreement if self.config.save_minutes else self.world).most(decision)
        if agreed != CONTINUE:
            self.save_state()
        if agreed == STOP:
            self.leave()

    def until_stopped(self, stream: Iterator[Batch]) -> Iterator[Batch]:
        """The batches; after a stop signal a missing batch is waited for only briefly."""
        while True:
            try:
                with self.stop.waiting():
                    batch = next(stream, None)
            except Stalled:
                log.error("no batch arrived after the stop signal: the process stops without one")
                if self.world.size == 1:  # others cannot be waited for
                    self.save_state()
                self.leave()
            if batch is None:
                return
            yield batch

    def leave(self) -> None:
        """Exit once everything is written."""
        self.saver.wait()
        if self.saver.failed:
            log.error("some files could not be written: steps after the last saved state will be repeated")
        log.warning("stopped at step %d of %d; --resume auto resumes the run", self.step, self.total)
        raise SystemExit(self.config.requeue_code)

    def set_rates(self) -> dict[str, float]:
        """Set the learning rates of the next step; returns the rates of the video encoder and of the rest."""
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
            batch = self.prepared(batch, number)
            with exchange(self.wrapped, last=number + 1 == len(batches)):
                with self.autocast():
                    output: Output = self.wrapped(batch)
                means = self.weigh(output, join({**output.losses, **output.scores}, self.world))
                loss = total_loss(output, means, self.world.size)
                self.scaler.scale(loss / len(batches)).backward()
            steps.append(values_of(output, means))
        self.scaler.unscale_(self.optimizer)
        norms = clip(self.model, self.config.max_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        values = joined_values(steps) | {
            name: Mean(norm, torch.ones_like(norm)) for name, norm in norms.items()
        }
        return leave_out(values) if self.scaler.is_enabled() else values

    def prepared(self, batch: Batch, number: int) -> Batch:
        """A training batch with masks, on the device; dropout too follows from seed, rank and step alone."""
        generator = seeded(self.config.seed, self.world.rank, self.step, number)
        torch.manual_seed(generator.initial_seed())
        every = self.config.doctor_every
        probe = bool(every) and number == 0 and (self.step % every == 0 or self.step & (self.step - 1) == 0)
        with self.autocast():
            return to_device({**self.prepare(batch, generator), "probe": probe}, self.world.device)

    def autocast(self) -> torch.autocast:
        """Mixed precision as the config says."""
        kind = self.precision
        return torch.autocast(self.world.device.type, AMP.get(kind), enabled=kind in AMP)

    def evaluate_all(self, loaders: Mapping[str, Loader], epoch: int, name: str = "") -> dict[str, float]:
        """Evaluate each split of `loaders`; the figures of all go to one row of `eval.jsonl`.

        `name` is that of an epoch's part in file names; empty: the epoch.
        """
        figures: dict[str, float] = {}
        with unsharded(self.model):
            for split, loader in loaders.items():
                prefix = f"{split}_" if split else ""
                found = self.evaluate(loader, name or str(epoch), split)
                figures |= {prefix + name: value for name, value in found.items()}
        if figures:
            protocol = self.protocol(loaders) if self.world.is_main else {}
            self.recorder.evaluation(self.step, epoch, figures, protocol)
        if 0 < self.step < self.total:  # else at the end of the run
            self.doctor.report()
        return figures

    def protocol(self, loaders: Mapping[str, Loader]) -> dict[str, Any]:
        """What an evaluation of these splits measures, and how."""
        return {
            **settings(self.config, self.precision),
            "checkpoint": checkpoint(self.config, self.step),
            "data": {
                name: source for loader in loaders.values() for name, source in loader.sources().items()
            },
        }

    @torch.inference_mode()
    def evaluate(self, loader: Loader, name: str, split: str = "") -> dict[str, float]:
        """Every sample once, on one process or many: the mean of each loss and score, per corpus too.

        Writes the predictions to `predictions_NAME.jsonl`, or `predictions_SPLIT_NAME.jsonl`.
        """
        self.model.eval()
        folder = self.folder
        common = min(self.world.gather(len(loader)))  # batches that every process has
        averages = Averages()
        predictions: list[tuple[int, Sequence[Row]]] = []
        quiet = not self.world.is_main
        for number, batch in enumerate(
            tqdm(self.until_stopped(loader.epoch(0)), "evaluation", len(loader), leave=False, disable=quiet)
        ):
            place = number * self.world.size + self.world.rank  # among the batches of all processes
            with self.autocast():
                batch = self.prepare(batch, None)
                output = to_host(self.model(to_device(batch, self.world.device)))
            averages.add(output)
            if len(loader.batches.sizes) > 1:
                averages.add(output, prefix=f"{batch['corpus'][0]}_")
            predictions.append((place, self.describe(batch, output)))
            if number < common and self.agreement.most(STOP if self.stop.asked else CONTINUE) == STOP:
                self.leave()
        rows = self.gather_rows(predictions)
        if rows and self.world.is_main:
            file = f"predictions_{split}_{name}.jsonl" if split else f"predictions_{name}.jsonl"
            content = "".join(json.dumps(row) + "\n" for row in rows)
            self.write(folder / file, lambda path: write_text(path, content))
        return {**averages.figures(self.world), **self.metric(rows, split)}

    def gather_rows(self, predictions: list[tuple[int, Sequence[Row]]]) -> list[Row]:
        """Every process's predictions, in the order of the samples, on every process."""
        gathered = [part for parts in self.world.gather(predictions) for part in parts]
        return [row for _, part in sorted(gathered, key=lambda p: p[0]) for row in part]

    # -- files of a run

    def keep_best(self, figures: dict[str, float], name: str) -> None:
        """Save the model as `ckpt_violet_TASK_best.pt`, and its figures in `best.json`."""
        self.save("best")
        if self.world.is_main:
            content = json.dumps(figures, indent=1) + "\n"
            self.saver.submit(self.folder / "best.json", lambda path: write_text(path, content))
        found = [
            f"{split}_{name} {figures[f'{split}_{name}']:.4f}"
            for split in ("val", "test")
            if f"{split}_{name}" in figures
        ]
        log.info("best epoch so far: %d, %s", figures["epoch"], ", ".join(found))

    def save(self, name: str) -> Path:
        """Write the model's state dict, on the CPU, as `ckpt_violet_TASK_NAME.pt` in the run's folder."""
        path = self.path(name)
        weights = gather_to_cpu(self.model.state_dict(), keep=self.world.is_main)
        if self.world.is_main:
            self.write(path, functools.partial(write_tensors, weights))
        return path

    def write(self, path: Path, write: Callable[[Path], None]) -> None:
        """Write a file in the background; outside of `fit`, wait for it."""
        self.saver.submit(path, write)
        if not self.in_run:
            self.saver.wait()

    def path(self, name: str) -> Path:
        """The path of the weights of an epoch, of the best one or of the last."""
        return self.folder / f"ckpt_violet_{self.config.task}_{name}.pt"

    def save_state(self, unless_recent: bool = False) -> None:
        """Write the training state; raises `FloatingPointError` if figures are not finite.

        `unless_recent`: not within a minute (or `save_minutes`) after the last time.
        """
        if unless_recent:
            age = int(time.monotonic() - self.saved)
            if self.world.most(age if self.world.is_main else 0) < min(RECENT, 60 * self.config.save_minutes):
                return
        self.recorder.check(self.step)
        main = self.world.is_main
        state = {
            "model": self.model.state_dict(),
            "followers": {name: network.state_dict() for name, network in self.followers.items()},
            "scaler": self.scaler.state_dict(),
            "random": self.world.gather(random_states(self.world.device)),
            "progress": {name: getattr(self, name) for name in PROGRESS},
            "recorder": self.recorder.state(),
            "config": dataclasses.asdict(self.config),
        }
        state = gather_to_cpu(state, keep=main) | {"optimizer": optimizer_state(self.optimizer, keep=main)}
        if main:
            self.saver.submit(
                self.folder / STATE, functools.partial(write_tensors, state), self.folder / BEFORE
            )
        self.saved = time.monotonic()

    def save_first_state(self) -> None:
        """As `save_state`; raises `UserError` if the state cannot be saved, before training begins."""
        self.save_state()
        self.saver.wait()
        self.check_written(self.world.gather(self.saver.failed)[0])

    def check_written(self, failed: Mapping[Path, str] | None = None) -> None:
        """Raise `UserError` if a file could not be written."""
        self.saver.wait()
        if failed := self.saver.failed if failed is None else failed:
            named = ", ".join(f"{path} ({reason})" for path, reason in failed.items())
            raise UserError(f"not written: {named}. Free disk space, or choose another --path_output.")

    def restore(self) -> dict[str, Any]:
        """Load the state in the run's folder; returns the state of the recorder."""
        state = read_state(self.folder, self.world)
        with reading(self.folder / STATE, "the state of this run", AGAIN):
            load_model(self.model, state["model"])
            load_optimizer(self.optimizer, state["optimizer"])
            for name, network in self.followers.items():
                if name in state["followers"]:
                    load_model(network, state["followers"][name])
                else:
                    log.warning("the state has no %s, which starts anew", name)
            self.scaler.load_state_dict(state["scaler"])
            load_random_states(state["random"][self.world.rank % len(state["random"])], self.world.device)
        if self.world.is_main:
            reopen(self.folder)
        total = self.total
        for name in PROGRESS:
            setattr(self, name, state["progress"][name])
        if len(state["random"]) != self.world.size:
            self.share_out(len(state["random"]), total)
        elif total != self.total:
            log.warning("the run was planned for %d steps; the schedule now has %d", self.total, total)
        self.total = total
        self.saved = time.monotonic()
        log.info("step %d of %d, epoch %d", self.step, self.total, self.epoch)
        return state["recorder"]

    def share_out(self, processes: int, total: int) -> None:
        """Carry the progress of so many `processes` over to those of now, whose run has `total` steps.

        As many samples of the epoch and as large a share of the schedule are done as before.
        """
        log.warning(
            "the state is of %d processes, and the run continues on %d: a step has another number of samples "
            "and the run is not bit-equal to one that stays on %d.", processes, self.world.size, processes,
        )  # fmt: skip
        accumulate = self.config.accumulate
        self.batches = self.batches * processes // self.world.size // accumulate * accumulate
        self.step = min(self.step * total // max(1, self.total), total)

    def finish(self) -> None:
        """Mark the run as finished; raises `UserError` if a file could not be written."""
        self.doctor.report()
        self.saver.wait()
        lost = [f"{path} ({reason})" for path, reason in self.saver.failed.items()]
        if failed := ", ".join(self.world.gather(lost)[0]):  # the state is that before the last evaluation
            raise UserError(f"not written: {failed}. Free disk space; --resume {self.folder} ends the run.")
        self.save_state()
        if self.world.is_main:
            content = json.dumps(self.kept or self.figures, indent=1) + "\n"
            self.saver.submit(self.folder / FINISHED, lambda path: write_text(path, content))
            self.saver.wait()
            (self.folder / BEFORE).unlink(missing_ok=True)
