"""Pre-training: the masks of a batch, and the rows of its predictions file."""

import itertools
from collections.abc import Sequence
from typing import Any

from torch import Generator

from batch import Batch, Output
from engine.step import sample_seeds, to_device
from lib import Config
from masking import mask_batch
from media.tokens import Tokens
from model import PretrainModel


def mask(
    batch: Batch, generator: Generator | None, model: PretrainModel, config: Config, tokens: Tokens
) -> Batch:
    """Hide words and patches of a batch on the CPU; attended masking looks at the pair as it is first.

    In evaluation (no `generator`) each sample has its own random numbers.
    """
    masks = config.pretrain_masks
    left_out = not config.mvm_on_images and batch["img"].shape[1] == 1  # one-frame clips
    if "mvm" not in config.pretrain_tasks or left_out:
        masks = []  # no loss would ask for a hidden patch
    attention = None
    if "am" in masks:
        device = next(model.parameters()).device
        whole = to_device({name: batch[name] for name in ("img", "txt", "mask")}, device)
        attention = model.attention_received(*whole.values())
    return mask_batch(
        batch,
        masks,
        config.p_mask,
        tokens.special,
        config.size_patch,
        generator or sample_seeds(batch, config.seed),
        attention,
        model.reads,
        model.places,
        cut=True,
    )


def describe(batch: Batch, output: Output, tokens: Tokens) -> Sequence[dict[str, Any]]:
    """For the predictions file: the masked caption, the hidden words and the predicted words."""
    words = tokens.tokenizer.convert_ids_to_tokens
    counts = (batch["ans_mlm"] >= 0).sum(dim=1).tolist()
    named: list[int] = list(output.predictions.get("mlm", []))
    ends = list(itertools.accumulate(counts))
    rows = []
    for i, name in enumerate(batch["id"]):
        answers, seen = batch["ans_mlm"][i], batch["masked_txt"][i][batch["mask"][i].bool()]
        row = {
            "id": name,
            "text": tokens.tokenizer.decode(seen),
            "hidden": words(answers[answers >= 0].tolist()),
        }
        if "mlm" in output.predictions:
            row["named"] = words(named[ends[i] - counts[i] : ends[i]])
        if "vtm" in output.predictions:
            row["matched"] = output.predictions["vtm"][i]
        rows.append(row)
    return rows
