"""Fill the last column of the README's table of results from evaluations of released checkpoints.

    python main_qaoe_tsv_mlm_head.py --config _args/_best/args_msrvtt-qa.json --size_epoch 0
    python eval_retrieval_tsv.py --config _args/_best/args_msrvtt-retrieval.json
    python _tools/results.py --write README.md

The newest run folder (default: in `_snapshot/`) that evaluated the config of `_args/_best/` with `size_epoch`
0, or ranked its test split, fills the row of its task. Other rows keep their content.
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import root  # noqa: F401
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
    """Scores of evaluations by task; the latest folder counts."""
    here = {}
    for folder in sorted(folders, key=lambda path: path.name.rsplit("_", 1)[-1]):
        try:
            config = json.loads((folder / "args.json").read_text())
            figures = json.loads((folder / "eval.jsonl").read_text().splitlines()[-1])
        except (OSError, ValueError, IndexError):
            continue  # a run without an evaluation
        for task in PUBLISHED:
            if evaluates(config, task) and (cell := cell_of(figures)):
                here[task] = cell
    return here


def evaluates(config: dict[str, object], task: str) -> bool:
    """Whether a run evaluated the released checkpoint of a task as its config says, and trained nothing.

    eval_retrieval_tsv.py never trains; the others do unless `size_epoch` is 0.
    """
    best = json.loads((BEST / f"args_{task}.json").read_text())
    same = ("task", "path_ckpt", "size_img", "size_frame", "size_txt", "data_dir", "dataset")
    protocol = {
        "multi_clip_testing": True,
        "text_rules": "published",
        "eval_split": "test",
        "mask_pos": "append",
    }
    if any(config.get(key) != best[key] for key in same):
        return False
    if any(config.get(key) != best.get(key, value) for key, value in protocol.items()):
        return False
    return best["type"] == "retrieval" or config.get("size_epoch") == 0


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
