"""Does pre-training help on pictures and clips that we did not make, and which target helps?

    make study-real
    python -m study.real --targets none 2d_feature --seeds 88 89

It comes after study.material, study.doom and study.networks, which `make study-real` runs first. A run
pre-trains in one condition on all training sets. Then it fine-tunes, each time from the pre-trained
checkpoint, on retrieval of pictures (Tux Paint), retrieval of clips (animated emoji) and questions about
first-person clips (ViZDoom). All runs have the same steps and rates, which are chosen on val (`--split
val`). A finished run is a JSON under bench/study-real/ and is not run again. The report,
bench/STUDY_REAL.md, is made of the finished runs; `--report` makes it alone.

In two minutes, to see that everything is in place: --quick.
"""

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import Any

from lib import run_script
from media.files import atomic_path
from study.runs import ROOT, Clock, call, last_row, results_folder, run_all, run_one, slug

CORPORA = ("clipart", "stamps_often", "emoji", "doom_some")  # of pre-training
TASKS = {"stamps": "retrieval", "emoji": "retrieval", "doom": "qa"}
CONFIGS: dict[str, dict[str, Any]] = {
    name: json.loads((ROOT / "_args" / f"study-real-{name}.json").read_text())
    for name in ("pretrain", *TASKS)
}
# name of a condition -> the keys of pre-training that it changes; None: no pre-training
CONDITIONS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "mlm+vtm+vtc": {"pretrain_tasks": ["vtm", "mlm", "vtc"]},
    **{name: {"mvm_target": [name]} for name in ("pixel", "hog", "optical_flow", "depth", "2d_feature")},
    "2d_feature+pixel": {"mvm_target": ["2d_feature", "pixel"]},
}
OURS = Path("bench/study-real")
SEEDS = (101, 102, 103, 104, 105)
QUICK = {"max_steps": 4}
# options that each run is started with
GIVEN = ("data", "output", "results", "split", "change", "quick", "keep")
# items that are used at most, evenly spaced: labelled ones of train, all others are pre-training's alone
USED = {
    "train": {"stamps": 108, "emoji": 64, "doom": 6000},
    "test": {"stamps": 100, "emoji": 100, "doom": 800},
}
RECALLS = ("t2v_r1", "t2v_r5", "t2v_r10")


def run(condition: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Pre-train, then train and measure each task."""
    folder = options.output / slug(condition, seed)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    clock = Clock()
    configs = changed(options, seed, folder)
    result: dict[str, Any] = {"condition": condition, "seed": seed, "split": options.split}
    result |= {"change": json.loads(options.change), "quick": options.quick}
    changes, start = CONDITIONS[condition], {"path_ckpt": ""}
    if changes is not None:
        import main_pretrain_yaml

        config = configs["pretrain"] | changes | json.loads(options.change).get("pretrain", {})
        config |= {"train_yaml": {name: str(options.data / f"{name}.yaml") for name in CORPORA}}
        pretrained = call(main_pretrain_yaml.main, config, folder)
        start["path_ckpt"] = str(
            max(pretrained.glob("ckpt_violet_*.pt"), key=lambda path: path.stat().st_mtime)
        )
        rows = (pretrained / "metrics.jsonl").read_text().splitlines()
        result["pretraining"] = [curves(json.loads(row)) for row in rows]
        clock.stop("pretrain")
    for task, kind in TASKS.items():
        measure = retrieval if kind == "retrieval" else questions
        result[task] = measure(configs[task] | start, options.split, folder)
        clock.stop(task)
    if not options.keep:
        shutil.rmtree(folder)  # its checkpoints are large, and can be made again
    return result | {"seconds": clock.seconds}


def curves(row: dict[str, Any]) -> dict[str, float]:
    """What is kept of a row of metrics: how much is right, and whether the video encoder collapses."""
    kept = ("step", "mlm_acc", "vtm_acc", "video_rank", "video_similarity")
    return {key: round(value, 4) for key, value in row.items() if key in kept or key.endswith("_skill")}


def changed(options: argparse.Namespace, seed: int, folder: Path) -> dict[str, dict[str, Any]]:
    """The configs with their files where they are, and with what --change and --quick change."""
    data = options.data
    given: dict[str, Any] = {
        "txt_backbone": str(data / "bert"),
        "fusion_encoder": str(data / "bert"),
        "vis_backbone_path": str(data / "swin_real.pth"),
        "image_teacher": str(data / "image_teacher"),
        "depth_teacher": str(data / "dpt"),
        "data_dir": str(data),
        "path_output": str(folder),
        "seed": seed,
    }
    tries = json.loads(options.change)
    quick = QUICK if options.quick else {}
    teachers = ("image_teacher", "depth_teacher")
    return {
        name: config
        | {key: value for key, value in given.items() if name == "pretrain" or key not in teachers}
        | tries.get(name, {})
        | quick
        for name, config in CONFIGS.items()
    }


def write_texts(data: Path) -> None:
    """The annotations of each task by split, so that a run reads none but those that it needs."""
    for task, kind in TASKS.items():
        texts = json.loads((data / f"txt_{task}-{kind}.json").read_text())
        for split, most in USED.items():
            count = min(most[task], len(texts[split]))
            texts[split] = [texts[split][number * len(texts[split]) // count] for number in range(count)]
        parts = {"train": ["train"], "val": ["val"], "test": ["test"]}
        if kind == "qa":
            parts = {split: ["train", split] for split in ("val", "test")}
        for name, splits in parts.items():
            with atomic_path(data / f"txt_{task}-{name}.json") as temporary:
                temporary.write_text(json.dumps({split: texts[split] for split in splits}))


def retrieval(config: dict[str, Any], split: str, folder: Path) -> dict[str, Any]:
    """Train, then rank a split: recalls, in parts of 1, and the median rank."""
    import eval_retrieval_tsv
    import main_retrieval_tsv

    name = config["dataset"]
    trained = call(main_retrieval_tsv.main, config | {"task": f"{name}-train"}, folder)
    last = trained / f"ckpt_violet_{name}-train_last.pt"
    ranking = {"task": f"{name}-{split}", "eval_split": split, "path_ckpt": str(last)}
    ranked = call(eval_retrieval_tsv.main, config | ranking, folder)
    figures = last_row(ranked / "eval.jsonl")
    return {key: figures[key] for key in (*RECALLS, "t2v_median", "texts", "videos")}


def questions(config: dict[str, Any], split: str, folder: Path) -> dict[str, Any]:
    """Train, and answer a split: accuracy, in parts of 1."""
    import main_qaoe_tsv_mlm_head

    task = {"task": f"{config['dataset']}-{split}"}
    answered = call(main_qaoe_tsv_mlm_head.main, config | task, folder)
    return {"acc": last_row(answered / "eval.jsonl")[f"{split}_acc"]}


def summary(path: Path) -> str:
    """A finished run in a line."""
    result = json.loads(path.read_text())
    return ", ".join(f"{task} {100 * score(result[task]):.1f}" for task in TASKS)


def score(figures: dict[str, Any]) -> float:
    """The one figure of a task: accuracy, or the mean of R@1, R@5 and R@10; in parts of 1."""
    if "acc" in figures:
        return figures["acc"]
    return sum(figures[key] for key in RECALLS) / len(RECALLS)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--targets", nargs="+", choices=CONDITIONS, default=list(CONDITIONS), metavar="NAME",
        help=f"conditions: {', '.join(CONDITIONS)}")  # fmt: skip
    add("--seeds", nargs="+", type=int, default=list(SEEDS))
    add("--jobs", type=int, default=2, help="number of runs in parallel")
    add("--data", type=Path, default=Path("_data/study-real"), help="folder of the material")
    add("--output", type=Path, default=Path("_snapshot/study-real"), help="folder of the runs")
    add("--results", type=Path, help=f"folder of results (default: {OURS}; --quick: OUTPUT/quick)")
    add(
        "--split", choices=("val", "test"), default="test", help="the split that is measured: val for choices"
    )
    add("--change", default="{}", help='JSON {"pretrain" or a task: {key: value}}: keys to try')
    add("--quick", action="store_true", help="four steps each, one seed, two conditions: to try the program")
    add("--report", action="store_true", help="make the report of the finished runs and exit")
    add("--keep", action="store_true", help="keep the folders of the runs, for study.picture")
    add("--one", action="store_true", help="run the one named condition in this process")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Runs and report."""
    options = parse(arguments)
    os.chdir(ROOT)
    options.results = results_folder(options, OURS)
    options.results.mkdir(parents=True, exist_ok=True)
    if options.one:
        run_one(run, options)
        return
    if options.quick:
        options.targets, options.seeds = ["none", "pixel"], options.seeds[:1]
    if not options.report:
        write_texts(options.data)
        run_all("study.real", options, GIVEN, summary)
    if options.results.resolve() == (ROOT / OURS).resolve():  # results elsewhere are trials
        from study.real_report import write_report

        write_report(options.results, ROOT / "bench")


if __name__ == "__main__":
    run_script(main)
