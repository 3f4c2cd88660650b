"""Rank every epoch of a retrieval run on val, and report test of the best, as published results were chosen.

    python _tools/rank_epochs.py _snapshot/_msrvtt-retrieval_TIME

The run was trained with `--keep_epochs`. Options such as `--device cpu` or `--data_dir ...` change the run's
config. The figures go to epochs.json in the run's folder; each evaluation leaves its own run folder.
"""

import argparse
import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import root  # noqa: F401
from engine.arguments import load_config
from engine.processes import distributed
from lib import Config, UserError, World, log, run_script
from media.files import atomic_path
from tasks.retrieval.evaluation import evaluate

SHOWN = ("t2v_r1", "t2v_r5", "t2v_r10", "t2v_median")


def epochs_of(folder: Path, task: str) -> dict[int, Path]:
    """The checkpoints of a run's epochs; raises `UserError` if there are none."""
    found = {}
    for path in folder.glob(f"ckpt_violet_{task}_*.pt"):
        if number := re.fullmatch(rf"ckpt_violet_{re.escape(task)}_(\d+)\.pt", path.name):
            found[int(number[1])] = path
    if not found:
        raise UserError(f"{folder} has no checkpoint of an epoch: train with --keep_epochs.")
    return dict(sorted(found.items()))


def rank(config: Config, world: World, path: Path, split: Literal["test", "val"]) -> dict[str, float | str]:
    """The figures of a checkpoint on a split, on every process."""
    found = evaluate(dataclasses.replace(config, path_ckpt=str(path), eval_split=split), world)
    return world.gather(found)[0]


def rank_epochs(config: Config, world: World, folder: Path) -> None:
    """Rank all epochs on val; write the figures, with those of the best on test."""
    epochs = epochs_of(folder, config.task)
    val = {number: rank(config, world, path, "val") for number, path in epochs.items()}
    best = max(val, key=lambda number: (val[number]["t2v_r1"], val[number]["t2v_r10"]))
    test = rank(config, world, epochs[best], "test")
    if not world.is_main:
        return
    with atomic_path(folder / "epochs.json") as temporary:
        temporary.write_text(json.dumps({"val": val, "best": best, "test": test}, indent=1) + "\n")
    for number, row in val.items():
        log.info("epoch %d, val: %s", number, "  ".join(f"{name} {row[name]:.4g}" for name in SHOWN))
    log.info("best: epoch %d, test: %s", best, "  ".join(f"{name} {test[name]:.4g}" for name in SHOWN))


def main(arguments: Sequence[str] | None = None) -> None:
    """Rank the epochs of one run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "run", type=Path, help="folder of a retrieval run that was trained with --keep_epochs"
    )
    options, changes = parser.parse_known_args(arguments)
    if not (options.run / "args.json").is_file():
        raise UserError(f"{options.run} is not the folder of a run: it has no args.json.")
    config = load_config("eval_retrieval_tsv", ["--config", str(options.run / "args.json"), *changes])
    with distributed(config) as world:
        rank_epochs(config, world, options.run)


if __name__ == "__main__":
    run_script(main)
