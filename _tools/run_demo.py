"""The whole way from video files to a VIOLET that answers questions and finds videos, on a generated world.

    python _tools/run_demo.py

Prints each command before it runs it. What is made already is not made again, but training is: pre-training,
then every task from it, and once more from the video encoder alone, to see what pre-training is worth.
In a few minutes, to see that everything is in place:

    python _tools/run_demo.py --data /tmp/demo --output /tmp/demo/run --quick

Writes under --output the runs' folders, and demo.json: all figures, and the seconds of each stage.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from demo_scores import pretraining_chances, pretraining_table, question_chances, task_table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the root's modules, from any folder
from lib import atomic_path, load_config

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "_args/demo-pretrain.json"
TASKS = {  # of _args/TASK.json: its script, what it asks
    "demo-qa": ("main_qaoe_tsv_mlm_head.py", "open-ended questions"),
    "demo-action": ("main_qamc_tsv.py", "five options"),
    "demo-fib": ("main_qaoe_tsv_lsmdc_fib.py", "fill in the blank"),
    "demo-retrieval": ("main_retrieval_tsv.py", "text-to-video retrieval"),
}
RECALL = ("r1", "r5", "r10")
QUICK = {"train": 64, "val": 16, "test": 16, "names": 128, "names_val": 32}
STEPS = ["--max_steps", "4"]  # of each training, if quick


def run(*command: str) -> float:
    """Run a script of this project from its root, its command printed first; returns the seconds it took."""
    print("\n$ python", shlex.join(command), flush=True)
    start = time.perf_counter()
    # threads that wait asleep: where another process wants the cores too, waiting awake is many times slower
    subprocess.run([sys.executable, *command], env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ}, check=True)
    return time.perf_counter() - start


def read(path: Path) -> str:
    """What a file holds, if it is there."""
    return path.read_text() if path.exists() else ""


def prepare(data: Path, backbone: Path, quick: bool) -> dict[str, float]:
    """World, TSV files, questions, and a video encoder that names what moves; returns the seconds of each."""
    seconds = {}
    sizes = [f"--{name.replace('_', '-')}={size}" for name, size in QUICK.items()] if quick else []
    before = read(data / "demo.json")
    seconds["world of videos"] = run("_tools/make_demo.py", "--output", str(data), *sizes)
    redrawn = ["--overwrite"] if read(data / "demo.json") != before else []
    seconds["TSV files"] = 0.0
    for name, frames in {"train": 16, "val": 16, "test": 16, "names": 8, "names_val": 8}.items():
        arguments = ["--output", str(data), "--name", name, "--frames", str(frames), *redrawn]
        seconds["TSV files"] += run("_tools/make_tsv.py", f"{data / name}.csv", *arguments)
    seconds["questions"] = run("_tools/demo_questions.py", "--data", str(data))
    seconds["questions"] += run("_tools/demo_retrieval.py", "--data", str(data))
    steps = ["--steps", "5"] if quick else []
    arguments = ["--data", str(data), "--output", str(backbone), *steps]
    seconds["video encoder"] = run("_tools/make_backbone.py", *arguments)
    return seconds


def model_arguments(data: Path, backbone: Path, output: Path, seed: int, quick: bool) -> list[str]:
    """What every training is told beside its config."""
    values = {
        "txt_backbone": f"{data}/bert",
        "fusion_encoder": f"{data}/bert",
        "tokenizer": f"{data}/bert",
        "vis_backbone_path": backbone,
        "path_output": output,
        "seed": seed,
    }
    return [part for key, value in values.items() for part in (f"--{key}", str(value))] + STEPS * quick


def pretrain(data: Path, backbone: Path, given: Sequence[str]) -> tuple[Path, list[str], float]:
    """Pre-train; returns the checkpoint, the arguments and the seconds."""
    corpora = {"train_yaml": f"{data}/train.yaml", "val_yaml": f"{data}/val.yaml"}
    paths = [part for key, path in corpora.items() for part in (f"--{key}", json.dumps({"demo": path}))]
    arguments = ["--config", CONFIG, *paths, "--feature_teacher", str(backbone), *given]
    seconds = run("main_pretrain_yaml.py", *arguments)
    folder = newest(Path(given[given.index("--path_output") + 1]), "pretrain")
    checkpoints = folder.glob("ckpt_violet_pretrain_*.pt")
    return max(checkpoints, key=lambda path: int(path.stem.split("_")[-1])), arguments, seconds


def fine_tune(task: str, data: Path, checkpoint: str, given: Sequence[str]) -> tuple[dict[str, float], float]:
    """Train a task from a checkpoint, or, if "", from the video encoder.

    Returns the best epoch's figures, of retrieval those of ranking, and the seconds.
    """
    output = Path(given[given.index("--path_output") + 1])
    arguments = ["--config", f"_args/{task}.json", "--data_dir", str(data), *given]
    seconds = run(TASKS[task][0], *arguments, "--path_ckpt", checkpoint)
    folder = newest(output, task)
    if task != "demo-retrieval":
        return json.loads((folder / "best.json").read_text()), seconds
    best = str(folder / f"ckpt_violet_{task}_best.pt")
    seconds += run("eval_retrieval_tsv.py", *arguments, "--path_ckpt", best)
    return json.loads((newest(output, task) / "eval.jsonl").read_text()), seconds


def compare(
    task: str, data: Path, checkpoint: str, given: Sequence[str]
) -> tuple[dict[str, dict[str, float]], float]:
    """A task from pre-training and without; rows of the table of scores, and the seconds."""
    (figures, with_it), (alone, without) = (fine_tune(task, data, start, given) for start in (checkpoint, ""))
    label = TASKS[task][1]
    if task == "demo-retrieval":
        rows = {
            f"{label}, R@{depth[1:]}": {
                "accuracy": figures[f"t2v_{depth}"],
                "no_pre-training": alone[f"t2v_{depth}"],
                "chance": int(depth[1:]) / figures["videos"],
            }
            for depth in RECALL
        }
    else:
        scores = {"accuracy": figures["test_acc"], "no_pre-training": alone["test_acc"]}
        rows = {label: scores | question_chances(data / f"txt_{task}.json")}
    return rows, with_it + without


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
    parser.add_argument("--seed", type=int, default=88, help="of the trainings; the world stays the same")
    parser.add_argument("--quick", action="store_true", help="a few clips and steps: shows no learning")
    return parser.parse_args(arguments)


def tell(result: dict[str, Any], path: Path, pictures: Sequence[Path]) -> None:
    """Write the figures to demo.json and to the console."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")
    seconds = result["seconds"]
    print("\n" + "  ".join(f"{name} {value:.0f} s" for name, value in seconds.items()))
    print(f"together {sum(seconds.values()) / 60:.1f} minutes\n")
    print(pretraining_table(**result["pretraining"]))
    print("\nOn test, trained from this pre-training:")
    print(task_table(result["tasks"]))
    print("\nReconstructions:", *pictures)
    print(f"All figures: {path}")


def main(arguments: list[str] | None = None) -> None:
    """Prepare, pre-train, fine-tune, tell."""
    options = parse(arguments)
    data, output = options.data, options.output
    os.chdir(ROOT)  # the commands are printed as they are typed there
    backbone = output / "swin_demo.pth"
    seconds = prepare(data, backbone, options.quick)
    given = model_arguments(data, backbone, output, options.seed, options.quick)
    checkpoint, command, seconds["pre-training"] = pretrain(data, backbone, given)
    folder = checkpoint.parent
    evaluations = [json.loads(line) for line in (folder / "eval.jsonl").read_text().splitlines()]
    seconds["pictures"] = run("_tools/show_mvm.py", "--checkpoint", str(checkpoint))
    chance = pretraining_chances(load_config("pretrain", command), folder)
    tasks: dict[str, dict[str, float]] = {}
    for task, (_, label) in TASKS.items():
        rows, seconds[label] = compare(task, data, str(checkpoint), given)
        tasks |= rows
    result = {
        "seed": options.seed,
        "seconds": seconds,
        "pretraining": {"before": evaluations[0], "after": evaluations[-1], "chance": chance},
        "tasks": tasks,
    }
    tell(result, output / "demo.json", sorted(folder.glob("mvm_*.png")))


if __name__ == "__main__":
    main()
