"""Baselines for the demo's figures, which do not look at the video, and tables of both.

    python -m demo.scores _snapshot/demo/pretraining/_pretrain_TIME

writes chance.json into a pre-training run's folder: each figure of its evaluations, for who does not look.
"""

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from dataset import pretrain_loader
from engine.arguments import load_config
from engine.step import sample_seeds, to_device
from lib import Config, World, run_script
from masking import NEGATIVES, mask_batch
from media.files import atomic_path
from media.tokens import Tokens
from mvm_targets import make_targets
from teachers.make import make_teachers

Question = dict[str, Any]


@torch.inference_mode()
def constant_losses(config: Config, loader: Any, tokens: Tokens) -> dict[str, float]:
    """Loss of each MVM target if every hidden patch is given one constant colour, the best there is."""
    batches = []
    for batch in loader.epoch(0):
        batch, own = to_device(batch, torch.device("cpu")), sample_seeds(batch, config.seed)
        batches.append(
            mask_batch(batch, config.pretrain_masks, config.p_mask, tokens.special, config.size_patch, own)
        )
    losses = {}
    for name, target in make_targets(config.mvm_target, 1, teachers=make_teachers(config)).items():
        masks = [(batch["img"], batch["mvm_mask"]) for batch in batches]
        hidden = [target.hidden_truth(img, mask.shape[1:], target.places(mask)) for img, mask in masks]
        colour = torch.cat(hidden).movedim(1, 0).flatten(1).nanmedian(dim=1).values
        total = count = 0.0
        for patches in hidden:
            mean = target.error(colour[:, None, None].expand_as(patches), patches)
            total, count = total + float(mean.total), count + float(mean.count)
        losses[name] = total / count
    return losses


def pretraining_chances(config: Config, folder: Path) -> dict[str, float]:
    """Baseline accuracies and losses of pre-training without looking at the video."""
    tokens = Tokens(config.tokenizer or config.txt_backbone, config.size_txt)
    loader = pretrain_loader(config, World(torch.device("cpu")), tokens, train=False)
    rows = [json.loads(line) for line in (folder / "predictions_0.jsonl").read_text().splitlines()]
    words = Counter(word for row in rows for word in row["hidden"])
    frequent = words.most_common(1)[0][1] / words.total()
    constant = {f"mvm_{name}": loss for name, loss in constant_losses(config, loader, tokens).items()}
    return {"mlm_acc": frequent, "vtm_acc": 1 / min(1 + NEGATIVES, len(rows)), **constant}


def pretraining_table(before: dict[str, float], after: dict[str, float], chance: dict[str, float]) -> str:
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


def question_chances(path: Path) -> dict[str, float]:
    """Baseline accuracies on test from the training answers of a `txt_TASK.json`, without videos.

    `chance`: a random answer; `frequent`: the most frequent answer; `frequent_by_type`: the most frequent
    answer to questions of the same type.
    """
    content = json.loads(path.read_text())
    train, test = content["train"], content["test"]
    options = sum(key.startswith("option_") for key in test[0])
    kinds = {question.get("type") for question in train}
    by_type = {kind: most_frequent(q for q in train if q.get("type") == kind) for kind in kinds}
    frequent = most_frequent(train)
    return {
        "chance": 1 / (options or len(content["ans2label"])),
        "frequent": share(q["answer"] == frequent for q in test),
        "frequent_by_type": share(
            question["answer"] == by_type.get(question.get("type")) for question in test
        ),
    }


def most_frequent(questions: Any) -> int:
    """The answer of most of them."""
    return Counter(question["answer"] for question in questions).most_common(1)[0][0]


def share(values: Any) -> float:
    """Of True among them."""
    values = list(values)
    return sum(values) / len(values)


def task_table(rows: dict[str, dict[str, float]]) -> str:
    """A line per task, with the columns of the first row."""
    columns = list(next(iter(rows.values())))
    lines = [f"{'':28}" + "".join(f"{name.replace('_', ' '):>18}" for name in columns)]
    for label, figures in rows.items():
        cells = (f"{figures[name]:18.1%}" if name in figures else f"{'':18}" for name in columns)
        lines.append(f"{label:28}" + "".join(cells))
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Write chance.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a pre-training run with --eval_start")
    folder = parser.parse_args(arguments).run
    chance = pretraining_chances(load_config("pretrain", ["--config", str(folder / "args.json")]), folder)
    with atomic_path(folder / "chance.json") as temporary:
        temporary.write_text(json.dumps(chance, indent=1) + "\n")
    print(folder / "chance.json")


if __name__ == "__main__":
    run_script(main)
