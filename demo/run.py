"""The figures of the demo, once its stages (demo.mk) are done: a table, demo.json, and the report.

    make demo
    python -m demo.run --output _snapshot/demo

`make demo` goes the whole way from video files to a VIOLET that answers questions and finds videos, on a
generated world: pre-training, then every task from it, and once more from the video encoder alone, to see
what pre-training is worth. This program reads the runs' folders under --output, writes demo.json with all
figures and report.html, a page that shows them, and prints the scores. It takes seconds.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo import report as demo_report
from demo.report import TASKS
from demo.scores import pretraining_table, question_chances, task_table
from lib import run_script
from media.files import atomic_path

PRETRAINED, ENCODER = "pretrained", "encoder_only"  # what tasks start from: folders of their runs
RECALL = ("r1", "r5", "r10")


@dataclass(frozen=True)
class Demo:
    """The folders of the demo's data and runs."""

    data: Path
    output: Path
    seed: int = 88

    def runs(self, start: str) -> dict[str, dict[str, str]]:
        """Of each task the folder of its training, and of its ranking, from that of the output."""
        places = {"training": start, "ranking": f"{start}/ranking"}
        return {
            task: {
                what: str(newest(self.output / place, task).relative_to(self.output))
                for what, place in places.items()
                if what == "training" or task == "demo-retrieval"
            }
            for task in TASKS
        }

    def scores(self, task: str, run: Mapping[str, str]) -> dict[str, float]:
        """Figures of a run of a task by their columns in the table; of retrieval, those of ranking."""
        if "ranking" in run:
            found = rows(self.output / run["ranking"] / "eval.jsonl")[-1]
            return {depth: found[f"t2v_{depth}"] for depth in RECALL} | {"videos": found["videos"]}
        return {"acc": json.loads((self.output / run["training"] / "best.json").read_text())["test_acc"]}

    def compare(
        self, task: str, runs: Mapping[str, dict[str, dict[str, str]]]
    ) -> dict[str, dict[str, float]]:
        """Rows of the table of scores: a task from pre-training, without, and by who does not look."""
        label = TASKS[task]
        ours, alone = (self.scores(task, runs[start][task]) for start in (PRETRAINED, ENCODER))
        if task != "demo-retrieval":
            found = {"accuracy": ours["acc"], "no_pre-training": alone["acc"]}
            return {label: found | question_chances(self.data / f"txt_{task}.json")}
        return {
            f"{label}, R@{depth[1:]}": {
                "accuracy": ours[depth],
                "no_pre-training": alone[depth],
                "chance": int(depth[1:]) / ours["videos"],
            }
            for depth in RECALL
        }

    def figures(self) -> dict[str, Any]:
        """All figures of the runs."""
        folder = newest(self.output / "pretraining", "pretrain")
        evaluations = rows(folder / "eval.jsonl")
        chance = json.loads((folder / "chance.json").read_text())
        runs = {start: self.runs(start) for start in (PRETRAINED, ENCODER)}
        tasks: dict[str, dict[str, float]] = {}
        for task in TASKS:
            tasks |= self.compare(task, runs)
        return {
            "seed": self.seed,
            "data": str(self.data.resolve()),
            "pretraining": {"before": evaluations[0], "after": evaluations[-1], "chance": chance},
            "tasks": tasks,
            "runs": {"pretraining": str(folder.relative_to(self.output)), **runs},
        }


def rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def newest(output: Path, task: str) -> Path:
    """The folder of a task's last run."""
    return max(output.glob(f"_{task}_*"))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("_data/demo"), help="folder for the world")
    parser.add_argument(
        "--output", type=Path, default=Path("_snapshot/demo"), help="folder for what is trained"
    )
    parser.add_argument("--seed", type=int, default=88, help="training seed; the world stays the same")
    return parser.parse_args(arguments)


def tell(result: dict[str, Any]) -> None:
    """The figures on the console."""
    print("\n" + pretraining_table(**result["pretraining"]))
    print("\nOn test, trained from this pre-training and without:")
    print(task_table(result["tasks"]))


def main(arguments: list[str] | None = None) -> None:
    """Read, write, tell."""
    options = parse(arguments)
    result = Demo(options.data, options.output, options.seed).figures()
    with atomic_path(options.output / "demo.json") as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")
    tell(result)
    page = demo_report.write(options.output)
    print(f"\nAll figures: {options.output / 'demo.json'}\nTo look at: {page}")


if __name__ == "__main__":
    run_script(main)
