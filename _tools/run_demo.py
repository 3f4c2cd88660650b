"""The whole way from video files to a pre-trained VIOLET, on a world that is generated first.

    python _tools/run_demo.py

Prints each command before it runs it. What is made already is not made again, but the pre-training is.
In under a minute, to see that everything is in place:

    python _tools/run_demo.py --data /tmp/demo --output /tmp/demo/run --quick
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the root's modules, from any folder
from agent import seeded
from dataset import Tokens, pretrain_loader
from lib import Config, World, load_config
from masking import mask_batch
from mvm_targets import make_targets
from teachers import make_teachers

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "_args/demo-pretrain.json"
QUICK = {"train": 64, "val": 16, "test": 4, "names": 128, "names_val": 32}


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
    """World, TSV files, and a video encoder that names what moves; returns the seconds of each."""
    seconds = {}
    sizes = [f"--{name.replace('_', '-')}={size}" for name, size in QUICK.items()] if quick else []
    before = read(data / "demo.json")
    seconds["world of videos"] = run("_tools/make_demo.py", "--output", str(data), *sizes)
    redrawn = ["--overwrite"] if read(data / "demo.json") != before else []
    seconds["TSV files"] = 0.0
    for name, frames in {"train": 16, "val": 16, "names": 8, "names_val": 8}.items():
        arguments = ["--output", str(data), "--name", name, "--frames", str(frames), *redrawn]
        seconds["TSV files"] += run("_tools/make_tsv.py", f"{data / name}.csv", *arguments)
    steps = ["--steps", "5"] if quick else []
    arguments = ["--data", str(data), "--output", str(backbone), *steps]
    seconds["video encoder"] = run("_tools/make_backbone.py", *arguments)
    return seconds


def overrides(data: Path, backbone: Path, output: Path, quick: bool) -> list[str]:
    """The config's paths as command-line arguments."""
    values: dict[str, Any] = {
        "train_yaml": json.dumps({"demo": f"{data}/train.yaml"}),
        "val_yaml": json.dumps({"demo": f"{data}/val.yaml"}),
        "txt_backbone": f"{data}/bert",
        "fusion_encoder": f"{data}/bert",
        "tokenizer": f"{data}/bert",
        "vis_backbone_path": backbone,
        "feature_teacher": backbone,
        "path_output": output,
    } | ({"max_steps": 4} if quick else {})
    return [part for key, value in values.items() for part in (f"--{key}", str(value))]


@torch.inference_mode()
def constant_losses(config: Config, loader: Any, tokens: Tokens) -> dict[str, float]:
    """Loss of each MVM target if every hidden patch is given one constant colour, the best there is."""
    batches = []
    for number, batch in enumerate(loader.epoch(0)):
        generator = seeded(config.seed, number)
        batches.append(
            mask_batch(
                batch, config.pretrain_masks, config.p_mask, tokens.special, config.size_patch, generator
            )
        )
    losses = {}
    for name, target in make_targets(config.mvm_target, 1, teachers=make_teachers(config)).items():
        hidden = [target.hidden_truth(batch["img"], batch["mvm_mask"])[0] for batch in batches]
        colour = torch.cat(hidden).movedim(1, 0).flatten(1).median(dim=1).values
        total = count = 0.0
        for patches in hidden:
            mean = target.error(colour[:, None, None].expand_as(patches), patches)
            total, count = total + float(mean.total), count + float(mean.count)
        losses[name] = total / count
    return losses


def chances(config: Config, folder: Path) -> dict[str, float]:
    """What the figures of an evaluation are for who does not look: accuracies and losses."""
    tokens = Tokens(config.tokenizer or config.txt_backbone, config.size_txt)
    loader = pretrain_loader(config, World(torch.device("cpu")), tokens, train=False)
    rows = [json.loads(line) for line in (folder / "predictions_0.jsonl").read_text().splitlines()]
    words = Counter(word for row in rows for word in row["hidden"])
    frequent = words.most_common(1)[0][1] / words.total()
    constant = {f"mvm_{name}": loss for name, loss in constant_losses(config, loader, tokens).items()}
    return {"mlm_acc": frequent, "vtm_acc": 1 / min(config.size_batch, 4), **constant}


def table(before: dict[str, float], after: dict[str, float], chance: dict[str, float]) -> str:
    """A line per figure: before and after pre-training, and chance."""
    names = {
        "mlm_acc": ("MLM: hidden words named", "the most frequent word"),
        "vtm_acc": ("VTM: own text among 4", "one in 4"),
    }
    lines = [f"{'':28}{'before':>9}{'after':>9}{'chance':>9}"]
    for key, value in chance.items():
        label, by = names.get(key, (f"MVM: {key.removeprefix('mvm_')} loss", "the best constant"))
        form = ".1%" if key.endswith("acc") else ".4f"
        lines.append(f"{label:28}{before[key]:9{form}}{after[key]:9{form}}{value:9{form}}  ({by})")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Prepare, pre-train, tell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("_data/demo"), help="folder for the world")
    parser.add_argument(
        "--output", type=Path, default=Path("_snapshot/demo"), help="folder for what is trained"
    )
    parser.add_argument("--quick", action="store_true", help="a few clips and steps: shows no learning")
    options = parser.parse_args(arguments)
    os.chdir(ROOT)  # the commands are printed as they are typed there
    backbone = options.output / "swin_demo.pth"
    seconds = prepare(options.data, backbone, options.quick)
    given = ["--config", CONFIG, *overrides(options.data, backbone, options.output, options.quick)]
    seconds["pre-training"] = run("main_pretrain_yaml.py", *given)
    folder = max(options.output.glob("_pretrain_*"))
    evaluations = [json.loads(line) for line in (folder / "eval.jsonl").read_text().splitlines()]
    checkpoint = max(folder.glob("ckpt_violet_pretrain_*.pt"), key=lambda path: int(path.stem.split("_")[-1]))
    run("_tools/show_mvm.py", "--checkpoint", str(checkpoint))
    chance = chances(load_config("pretrain", given), folder)
    print("\n" + "  ".join(f"{name} {value:.0f} s" for name, value in seconds.items()))
    print(table(evaluations[0], evaluations[-1], chance))
    print("Reconstructions:", *sorted(folder.glob("mvm_*.png")))


if __name__ == "__main__":
    main()
