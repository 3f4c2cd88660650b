"""Run the demo: generate a world of videos, pre-train, fine-tune four tasks, write a report.

    python -m demo.run

Independent stages run in parallel, and each prints its command. Existing data is reused; training is always
repeated: pre-training, then every task from it, and every task from the video encoder alone as a baseline.
In a few minutes, to check that everything works:

    python -m demo.run --data /tmp/demo --output /tmp/demo/run --quick

The program writes to --output the run folders, the output of the stages (logs/), demo.json with all figures,
and the page report.html.
"""

import argparse
import functools
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo import report as demo_report
from demo.scores import pretraining_table, question_chances, task_table
from demo.stages import Failed, Job, Stage, cores, run_all
from lib import run_script
from media.files import atomic_path

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "_args/demo-pretrain.json"
TASKS = {  # of _args/TASK.json: its script, what it asks
    "demo-retrieval": ("main_retrieval_tsv.py", "text-to-video retrieval"),
    "demo-action": ("main_qamc_tsv.py", "five options"),
    "demo-qa": ("main_qaoe_tsv_mlm_head.py", "open-ended questions"),
    "demo-fib": ("main_qaoe_tsv_lsmdc_fib.py", "fill in the blank"),
}
PRETRAINED, ENCODER = "pretrained", "encoder_only"  # what tasks start from: folders of their runs
SHOWN = (
    "demo-qa",
    "demo-action",
    "demo-fib",
    "demo-retrieval",
)  # in this order; above, what takes longest first
WORLD = {"train": 16, "val": 16, "test": 16, "names": 8, "names_val": 8}  # sets, and frames kept of a clip
RECALL = ("r1", "r5", "r10")
QUICK = {"train": 64, "val": 16, "test": 16, "names": 128, "names_val": 32}
STEPS = ["--max_steps", "4"]  # of each training, if quick


@dataclass(frozen=True)
class Demo:
    """Where everything is, and what every stage needs to know."""

    data: Path
    output: Path
    seed: int = 88
    quick: bool = False

    @property
    def backbone(self) -> Path:
        """The video encoder that everything starts from."""
        return self.output / "swin_demo.pth"

    def arguments(self, folder: str) -> list[str]:
        """The options of every training; its run goes to `folder` of the output."""
        values = {
            "txt_backbone": f"{self.data}/bert",
            "fusion_encoder": f"{self.data}/bert",
            "tokenizer": f"{self.data}/bert",
            "vis_backbone_path": self.backbone,
            "path_output": self.output / folder,
            "seed": self.seed,
        }
        given = [part for key, value in values.items() for part in (f"--{key}", str(value))]
        return given + STEPS * self.quick

    def corpora(self) -> list[str]:
        """Arguments that name what pre-training reads."""
        paths = {"train_yaml": f"{self.data}/train.yaml", "val_yaml": f"{self.data}/val.yaml"}
        return [part for key, path in paths.items() for part in (f"--{key}", json.dumps({"demo": path}))]

    def pretraining(self) -> list[str]:
        """Config and arguments of pre-training."""
        teacher = ["--feature_teacher", str(self.backbone)]
        return ["--config", CONFIG, *self.corpora(), *teacher, *self.arguments("pretraining")]

    def task(self, task: str, start: str) -> list[str]:
        """Config and arguments of a task; `start` is where it starts from, as `folders` has it."""
        return ["--config", f"_args/{task}.json", "--data_dir", str(self.data), *self.arguments(start)]

    def checkpoint(self) -> Path:
        """The last of pre-training."""
        found = newest(self.output / "pretraining", "pretrain").glob("ckpt_violet_pretrain_*.pt")
        return max(found, key=lambda path: int(path.stem.split("_")[-1]))

    # ------------------------------------------------------------------------------------------- stages

    def make_world(self, stage: Stage) -> None:
        """The videos, the TSV files that are made of them, questions and captions."""
        before = read(self.data / "demo.json")
        sizes = [f"--{name.replace('_', '-')}={size}" for name, size in QUICK.items()] if self.quick else []
        stage.run("-m", "demo.make", "--output", str(self.data), *sizes)
        redrawn = ["--overwrite"] if read(self.data / "demo.json") != before else []
        for name, frames in WORLD.items():
            arguments = ["--output", str(self.data), "--name", name, "--frames", str(frames), *redrawn]
            command = ("_tools/make_tsv.py", f"{self.data / name}.csv", *arguments)
            try:
                stage.run(*command)
            except Failed:
                if redrawn or stage.ended:
                    raise
                stage.run(*command, "--overwrite")  # files that an older version made with other settings
        stage.run("-m", "demo.questions", "--data", str(self.data))
        stage.run("-m", "demo.retrieval", "--data", str(self.data))

    def check(self, stage: Stage) -> None:
        """Check all data before training: every row is decoded once."""
        given = [*self.corpora(), "--data_dir", str(self.data), *self.arguments("check")]
        stage.run("_tools/check_data.py", CONFIG, *given)
        tasks = [f"_args/{task}.json" for task in TASKS]
        stage.run("_tools/check_data.py", *tasks, "--sample", "100", *given)

    def train_encoder(self, stage: Stage) -> None:
        """A video encoder that names what moves."""
        steps = ["--steps", "5"] if self.quick else []
        stage.run("-m", "demo.backbone", "--data", str(self.data), "--output", str(self.backbone), *steps)

    def pretrain(self, stage: Stage) -> None:
        """Pre-training."""
        stage.run("main_pretrain_yaml.py", *self.pretraining())

    def look_at_pretraining(self, stage: Stage) -> None:
        """Baselines of pre-training without looking, and pictures of reconstructions."""
        stage.run("-m", "demo.scores", str(self.checkpoint().parent))
        stage.run(
            "_tools/show_mvm.py", "--checkpoint", str(self.checkpoint()), "--rows", "2", "--columns", "1"
        )

    def fine_tune(self, stage: Stage, task: str, start: str) -> None:
        """Train a task, from pre-training or from the video encoder; of retrieval, rank the test split."""
        checkpoint = str(self.checkpoint()) if start == PRETRAINED else ""
        stage.run(TASKS[task][0], *self.task(task, start), "--path_ckpt", checkpoint)
        if task == "demo-retrieval":
            folder = newest(self.output / start, task)
            best = str(folder / f"ckpt_violet_{task}_best.pt")
            ranking = self.task(task, f"{start}/ranking")
            stage.run("eval_retrieval_tsv.py", *ranking, "--path_ckpt", best)

    def jobs(self) -> list[Job]:
        """All stages. Pre-training does not fill two cores: what needs no pre-training goes beside it."""
        stages = [
            Job("world, TSV files, questions", self.make_world),
            Job("data check", self.check, ("world, TSV files, questions",)),
            Job("video encoder", self.train_encoder, ("data check",)),
            Job("pre-training", self.pretrain, ("video encoder",), share=0.5),
        ]
        for start, before, mark in (
            (ENCODER, "video encoder", ", no pre-training"),
            (PRETRAINED, "pre-training", ""),
        ):
            for task, (_, label) in TASKS.items():
                work = functools.partial(self.fine_tune, task=task, start=start)
                stages.append(Job(label + mark, work, (before,), share=0.25))
        look = Job("chance and pictures", self.look_at_pretraining, ("pre-training",), share=0.25)
        return [*stages, look]

    # ------------------------------------------------------------------------------------------ figures

    def runs(self, start: str) -> dict[str, dict[str, str]]:
        """Of each task the folder of its training, and of its ranking, from that of the output."""
        places = {"training": start, "ranking": f"{start}/ranking"}
        return {
            task: {
                what: str(newest(self.output / place, task).relative_to(self.output))
                for what, place in places.items()
                if what == "training" or task == "demo-retrieval"
            }
            for task in SHOWN
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
        """Rows of the table of scores: a task with pre-training, without, and the baselines."""
        label = TASKS[task][1]
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

    def figures(self, stages: Sequence[Stage]) -> dict[str, Any]:
        """The figures of the runs, and the time of the stages."""
        folder = self.checkpoint().parent
        evaluations = rows(folder / "eval.jsonl")
        chance = json.loads((folder / "chance.json").read_text())
        runs = {start: self.runs(start) for start in (PRETRAINED, ENCODER)}
        tasks: dict[str, dict[str, float]] = {}
        for task in SHOWN:
            tasks |= self.compare(task, runs)
        return {
            "seed": self.seed,
            "cores": cores(),
            "data": str(self.data.resolve()),
            "stages": [stage.figures() for stage in stages],
            "pretraining": {"before": evaluations[0], "after": evaluations[-1], "chance": chance},
            "tasks": tasks,
            "runs": {"pretraining": str(folder.relative_to(self.output)), **runs},
        }


def read(path: Path) -> str:
    """The content of a file, if it exists."""
    return path.read_text() if path.exists() else ""


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
    parser.add_argument("--quick", action="store_true", help="a few clips and steps, to try the program")
    return parser.parse_args(arguments)


def tell(result: dict[str, Any]) -> None:
    """The figures on the console."""
    print("\n" + "\n".join(stage_lines(result["stages"])))
    print("\n" + pretraining_table(**result["pretraining"]))
    print("\nOn test, trained from this pre-training and without:")
    print(task_table(result["tasks"]))


def stage_lines(stages: Sequence[dict[str, Any]]) -> list[str]:
    """Time and memory of each stage, and the time of all, of which some ran side by side."""
    lines = [f"{s['name']:42}{s['seconds']:6.0f} s{s['memory_gib']:7.1f} GiB" for s in stages]
    return [*lines, f"{'together':42}{max(s['began'] + s['seconds'] for s in stages) / 60:6.1f} min"]


def main(arguments: list[str] | None = None) -> None:
    """Prepare, pre-train, fine-tune, tell."""
    options = parse(arguments)
    demo = Demo(options.data, options.output, options.seed, options.quick)
    for number in (signal.SIGTERM, signal.SIGHUP):  # so that what runs is ended too
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    os.chdir(ROOT)  # the commands are printed as they are typed there
    stages = run_all(demo.jobs(), options.output / "logs")
    result = demo.figures(stages)
    with atomic_path(options.output / "demo.json") as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")
    tell(result)
    page = demo_report.write(options.output)
    print(f"\nAll figures: {options.output / 'demo.json'}\nTo look at: {page}")


if __name__ == "__main__":
    run_script(main)
