"""Fill the last column of the README's table of results from evaluations of released checkpoints.

    python main_qaoe_tsv_mlm_head.py --config _args/_best/args_msrvtt-qa.json --size_epoch 0
    python eval_retrieval_tsv.py --config _args/_best/args_msrvtt-retrieval.json
    python _tools/results.py --write README.md

The newest run folder (default: in `_snapshot/`) that evaluated the released checkpoint by the published
protocol fills the row of its task: without training, with the config of `_args/_best/`, on as many samples as
the published test split has. Of every other folder the program says why it does not count. Other rows keep
their content.
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import root  # noqa: F401
from _tools.annotations import TASKS
from _tools.convert.marked import END, START, split
from lib import run_script
from media.files import atomic_path

BEST = Path(__file__).resolve().parents[1] / "_args" / "_best"
HEAD = "| task | figure | paper | released checkpoint | here |\n| --- | --- | --- | --- | --- |"
RECALL = ("t2v_r1", "t2v_r5", "t2v_r10")
# config of `_args/_best/` -> figures of the paper and of the released checkpoint
PUBLISHED = {
    "tgif-action": ("94.8", "94.9"),
    "tgif-transition": ("99.0", "99.0"),
    "msrvtt-mc": ("97.6", "96.8"),
    "lsmdc-mc": ("84.4", "84.4"),
    "tgif-frame": ("72.8", "72.7"),
    "msrvtt-qa": ("44.5", "44.5"),
    "msvd-qa": ("54.7", "54.6"),
    "lsmdc-fib": ("56.9", "56.9"),
    "msrvtt-retrieval": ("37.2 / 64.8 / 75.8", "36.3 / 64.9 / 75.5"),
    "didemo-retrieval": ("47.9 / 76.5 / 84.1", "46.0 / 74.1 / 83.9"),
    "lsmdc-retrieval": ("24.0 / 43.5 / 54.1", "25.1 / 44.2 / 54.9"),
}


def table(here: dict[str, str]) -> str:
    """The table, with the column `here` by task."""
    rows = [HEAD]
    for task, (paper, released) in PUBLISHED.items():
        figure = "text-to-video R@1 / 5 / 10" if task.endswith("retrieval") else "accuracy"
        rows.append(f"| {task} | {figure} | {paper} | {released} | {here.get(task, '')} |")
    return "\n".join(rows)


def found_in(folders: Iterable[Path]) -> dict[str, str]:
    """Scores of evaluations by task; the latest folder counts. Prints why others do not."""
    here: dict[str, str] = {}
    protocols: dict[str, tuple[Path, Any]] = {}
    for folder in sorted(folders, key=lambda path: path.name.rsplit("_", 1)[-1]):
        try:
            config, row = read_run(folder)
            task = task_of(config)
            check(config, row, task)
            measured = row["protocol"]
            first, before = protocols.setdefault(task, (folder, measured))
            if unlike := [key for key in measured if measured[key] != before.get(key)]:
                raise DoesNotCount(f"its protocol is not that of {first.name}: {', '.join(unlike)}")
        except DoesNotCount as error:
            print(f"{folder}: not counted, {error}")
            continue
        here[task] = cell_of(row)
    return here


class DoesNotCount(Exception):
    """Why a run does not fill a row of the table."""


def read_run(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The config of a run and its last evaluation; raises `DoesNotCount`."""
    try:
        config = json.loads((folder / "args.json").read_text())
        return config, json.loads((folder / "eval.jsonl").read_text().splitlines()[-1])
    except (OSError, ValueError, IndexError) as error:
        raise DoesNotCount("it has no evaluation") from error


def task_of(config: dict[str, Any]) -> str:
    """The row of the table that a run's config belongs to; raises `DoesNotCount`."""
    for task in PUBLISHED:
        if json.loads((BEST / f"args_{task}.json").read_text())["task"] == config.get("task"):
            return task
    raise DoesNotCount(f"the table has no task {config.get('task')!r}")


def check(config: dict[str, Any], row: dict[str, Any], task: str) -> None:
    """Raise `DoesNotCount` unless a run evaluated a task's released checkpoint by the published protocol."""
    best = json.loads((BEST / f"args_{task}.json").read_text())
    wanted = {"text_rules": "published", "mask_pos": "append", **best}
    keys = ["path_ckpt", "dataset", "size_img", "size_frame", "size_txt", "text_rules", "mask_pos"]
    if best["type"] == "retrieval":  # eval_retrieval_tsv.py, which never trains
        wanted |= {"multi_clip_testing": True, "eval_split": "test", "rerank": 0}
        keys += ["multi_clip_testing", "eval_split", "rerank"]
    else:
        wanted["size_epoch"] = 0
        keys.append("size_epoch")
    for key in keys:
        if config.get(key) != wanted[key]:
            raise DoesNotCount(f"its {key} is {config.get(key)!r}, the protocol's {wanted[key]!r}")
    if not cell_of(row):
        raise DoesNotCount("its last evaluation is not of the test split")
    data = row.get("protocol", {}).get("data", {}).get("test")
    if data is None:
        raise DoesNotCount("its evaluation does not say its protocol; evaluate again")
    published = TASKS[task].published["test"]
    samples = data["videos"] if task.startswith("didemo") else data["samples"]
    if samples != published:
        raise DoesNotCount(f"it was measured on {samples} samples, the published test split has {published}")


def cell_of(figures: dict[str, Any]) -> str:
    """The test score of a row of eval.jsonl in per cent; empty if it has none."""
    if figures.get("split", "test") != "test":
        return ""
    if all(name in figures for name in RECALL):
        return " / ".join(f"{100 * figures[name]:.1f}" for name in RECALL)
    score = figures.get("test_acc_adjusted", figures.get("test_acc"))
    return "" if score is None or "test_acc_t2v" in figures else f"{100 * score:.1f}"


def cells(within: str) -> dict[str, str]:
    """The last column of a table, by task."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in within.splitlines()]
    return {row[0]: row[-1] for row in rows if row and row[0] in PUBLISHED}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, or write it into a page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path, help="run folders (default: all in _snapshot)")
    parser.add_argument("--write", type=Path, help="page whose table is filled (default: print the table)")
    options = parser.parse_args(arguments)
    here = found_in(options.folders or Path("_snapshot").glob("_*"))
    if not options.write:
        print(table(here))
        return
    before, within, behind = split(options.write.read_text(), options.write)
    filled = table(cells(within) | here)
    with atomic_path(options.write) as temporary:
        temporary.write_text(f"{before}{START}\n{filled}\n{END}{behind}")


if __name__ == "__main__":
    run_script(main)
