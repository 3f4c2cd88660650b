"""Which target makes masked visual modelling useful? The paper's ablation in miniature, on the demo's world.

    python -m study.run

It comes after `make demo`, and makes the teachers first (study/teachers.py). A condition is a target, or
none, or a mixture, or another mask. A run pre-trains in it from the demo's video encoder, then fine-tunes on
open-ended questions and on retrieval, every run with the same steps. A finished run is a JSON under
bench/study/ and is not run again, so that an interrupted study goes on; afterwards, or with --report alone,
bench/STUDY.md and its picture are made of what is there. Any part of it:

    python -m study.run --targets none pixel 2d_feature --seeds 88 89 --jobs 2

In two minutes, to see that everything is in place: --targets none --seeds 1 --quick.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from lib import run_script
from media.files import atomic_path
from study.runs import ROOT, Clock, call, last_row, results_folder, run_all, run_one, slug

# what all runs have in common; `pretrain` is that of the conditions from which they differ
CONFIGS: dict[str, dict[str, Any]] = {
    name: json.loads((ROOT / "_args" / f"study-{name}.json").read_text())
    for name in ("pretrain", "qa", "retrieval")
}
TARGETS = ("pixel", "hog", "depth", "optical_flow", "vq", "3d_feature", "2d_feature", "2d_clip_feature")
MASKED = "2d_feature"  # the target of the conditions that differ in their masks
# name of a condition -> what it changes; `oracle` in place of its target's teacher
CONDITIONS: dict[str, dict[str, Any]] = {
    "none": {"pretrain_tasks": ["vtm", "mlm"]},
    **{name: {"mvm_target": [name]} for name in TARGETS},
    "2d_feature+pixel": {"mvm_target": ["2d_feature", "pixel"]},
    "2d_feature+3d_feature": {"mvm_target": ["2d_feature", "3d_feature"]},
    "bm": {"mvm_target": [MASKED], "pretrain_masks": ["bm"]},
    "am": {"mvm_target": [MASKED], "pretrain_masks": ["am"]},
    "p_mask 0.3": {"mvm_target": [MASKED], "p_mask": 0.3},
    "p_mask 0.5": {"mvm_target": [MASKED], "p_mask": 0.5},
    "optical_flow, true": {"mvm_target": ["optical_flow"], "oracle": True},
    "depth, true": {"mvm_target": ["depth"], "oracle": True},
}
OURS = Path("bench/study")
SEEDS = (88, 89, 90)
STEPS = {name: config["max_steps"] for name, config in CONFIGS.items()}  # of every run
QUICK = dict.fromkeys(STEPS, 4)
QA, PAIRS = CONFIGS["qa"]["task"], CONFIGS["retrieval"]["task"]  # and so the names of their text files
RANKING = "study-ranking"
# options that each run is started with
GIVEN = ("data", "output", "results", "teachers", "backbone", "quick")


# ---------------------------------------------------------------------------------------- what runs read


def write_texts(data: Path) -> None:
    """The demo's questions and captions; nothing is chosen on val, so val's questions test too."""
    questions = json.loads((data / "txt_demo-qa.json").read_text())
    captions = json.loads((data / "txt_demo-retrieval.json").read_text())
    test = questions.pop("val") + questions.pop("test")
    texts = {
        QA: {**questions, "test": test},
        PAIRS: {"train": captions["train"]},
        RANKING: {"test": captions["test"]},
    }
    for task, content in texts.items():
        with atomic_path(data / f"txt_{task}.json") as temporary:
            temporary.write_text(json.dumps(content))


def pretraining(condition: str, data: Path, teachers: Path, backbone: Path) -> dict[str, Any]:
    """The config of a condition's pre-training, its files where they are."""
    changes = {key: value for key, value in CONDITIONS[condition].items() if key != "oracle"}
    return CONFIGS["pretrain"] | changes | {
        "train_yaml": {"demo": str(data / "train.yaml")},
        "feature_teacher": str(backbone),
        "image_teacher": str(teachers / "swin2d"),
        "clip_teacher": str(teachers / "clip"),
        "depth_teacher": str(teachers / "dpt"),
        "dalle_model_path": str(teachers / "encoder.pkl"),
    }  # fmt: skip


def use_oracles(data: Path, teachers: Path) -> None:
    """From now on depth and flow are what the generator knows."""
    from study.oracle import DepthOracle, FlowOracle
    from teachers.make import TEACHERS

    index = teachers / "oracle.npz"
    TEACHERS["depth"] = lambda _, options: DepthOracle(data, index, width=1, **options)
    TEACHERS["optical_flow"] = lambda _, options: FlowOracle(data, index, width=2, **options)


# -------------------------------------------------------------------------------------------- one run


def run(condition: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Pre-train, answer, retrieve; what came out."""
    import eval_retrieval_tsv
    import main_pretrain_yaml
    import main_qaoe_tsv_mlm_head
    import main_retrieval_tsv

    steps = QUICK if options.quick else STEPS
    folder = options.output / slug(condition, seed)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    clock = Clock()
    config, given = configs(condition, seed, folder, options)
    pretrained = call(main_pretrain_yaml.main, config | {"max_steps": steps["pretrain"]}, folder)
    checkpoint = max(pretrained.glob("ckpt_violet_*.pt"), key=lambda path: path.stat().st_mtime)
    clock.stop("pretrain")
    given |= {"path_ckpt": str(checkpoint)}
    questions = CONFIGS["qa"] | given | {"max_steps": steps["qa"]}
    answered = call(main_qaoe_tsv_mlm_head.main, questions, folder)
    clock.stop("qa")
    pairs = CONFIGS["retrieval"] | given | {"max_steps": steps["retrieval"]}
    last = call(main_retrieval_tsv.main, pairs, folder) / f"ckpt_violet_{PAIRS}_last.pt"
    ranked = call(eval_retrieval_tsv.main, pairs | {"task": RANKING, "path_ckpt": str(last)}, folder)
    clock.stop("retrieval")
    result = {
        "condition": condition,
        "seed": seed,
        "steps": steps,
        "mvm_share": config["mvm_share"],
        "pretraining": last_row(pretrained / "metrics.jsonl"),
        "qa": last_row(answered / "eval.jsonl"),
        "retrieval": last_row(ranked / "eval.jsonl"),
        "seconds": clock.seconds,
    }
    shutil.rmtree(folder)  # its checkpoints are large, and can be made again
    return result


def configs(
    condition: str, seed: int, folder: Path, options: argparse.Namespace
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The config of the pre-training, and what it has in common with the tasks'."""
    if CONDITIONS[condition].get("oracle"):
        use_oracles(options.data, options.teachers)
    bert = str(options.data / "bert")
    given: dict[str, Any] = {
        "txt_backbone": bert,
        "fusion_encoder": bert,
        "vis_backbone_path": str(options.backbone),
    }
    given |= {"path_output": str(folder), "seed": seed, "data_dir": str(options.data)}
    config = pretraining(condition, options.data, options.teachers, options.backbone) | given
    return config, given


def summary(path: Path) -> str:
    """A finished run in a line."""
    result = json.loads(path.read_text())
    recalls = " ".join(f"{result['retrieval'][f't2v_r{depth}']:.1%}" for depth in (1, 5, 10))
    return f"questions {result['qa']['test_acc']:.1%}, R@1/5/10 {recalls}"


def prepare(options: argparse.Namespace) -> None:
    """The teachers and the text files."""
    write_texts(options.data)
    subprocess.run(
        [
            sys.executable,
            "-m",
            "study.teachers",
            *("--data", str(options.data), "--output", str(options.teachers)),
        ],
        cwd=ROOT,
        check=True,
    )


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", nargs="+", choices=CONDITIONS, default=list(CONDITIONS), metavar="NAME",
                        help=f"conditions: {', '.join(CONDITIONS)}")  # fmt: skip
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--jobs", type=int, default=2, help="number of runs in parallel")
    parser.add_argument("--data", type=Path, default=Path("_data/demo"), help="folder of the demo's files")
    parser.add_argument("--backbone", type=Path, default=Path("_snapshot/demo/swin_demo.pth"))
    parser.add_argument("--teachers", type=Path, default=Path("_snapshot/study/teachers"))
    parser.add_argument("--output", type=Path, default=Path("_snapshot/study"), help="folder of the runs")
    parser.add_argument(
        "--results", type=Path, help="folder of results (default: bench/study, or of --quick quick/)"
    )
    parser.add_argument("--quick", action="store_true", help="a few steps, to try the program")
    parser.add_argument("--report", action="store_true", help="make the report of the finished runs and exit")
    parser.add_argument("--one", action="store_true", help="run the one named condition in this process")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Teachers, runs, report."""
    options = parse(arguments)
    os.chdir(ROOT)
    options.results = results_folder(options, OURS)
    options.results.mkdir(parents=True, exist_ok=True)
    if options.one:
        run_one(run, options)
        return
    if not options.report:
        prepare(options)
        run_all("study.run", options, GIVEN, summary)
    from study.report import write_report

    bench = ROOT / "bench"
    ours = options.results.resolve() == bench / "study"
    page = bench if ours else options.results  # results elsewhere are reported there
    quoting = ROOT / "docs/targets.md" if ours else None
    write_report(options.results, page / "STUDY.md", page / "study.png", quoting)


if __name__ == "__main__":
    run_script(main)
