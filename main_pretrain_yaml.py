"""Pre-train VIOLET on video-text and image-text pairs by MLM, VTM and MVM.

    python -m torch.distributed.launch --nproc_per_node=8 --master_port=5566 main_pretrain_yaml.py \
        --config _args/args_pretrain.json

In under a minute on a laptop, after `make demo` has made its data:

    python main_pretrain_yaml.py --config _args/demo-pretrain.json --max_steps 20
"""

import functools
import json
from collections.abc import Sequence
from typing import Any

from torch import Generator

from agent import Agent, sample_seeds
from batch import Batch, Output
from dataset import Tokens, pretrain_loader
from engine.processes import distributed
from lib import Config, UserError, load_config, log, warn_of_unread
from masking import mask_batch
from model import PretrainModel
from weights.checkpoint import load_checkpoint
from weights.needs import check_needs

# keys of the other tasks' configs, which mean nothing here
UNREAD: tuple[str, ...] = ("data_ratio", "reinit_head", "freeze_violet", "enable_prompt")
UNREAD += ("enable_task_token", "mask_pos", "multi_clip_testing")


def mask(
    batch: Batch, generator: Generator | None, model: PretrainModel, config: Config, tokens: Tokens
) -> Batch:
    """Hide words and patches; attended masking looks at the pair as it is first.

    In evaluation (no `generator`) each sample has its own random numbers.
    """
    masks = config.pretrain_masks
    left_out = not config.mvm_on_images and batch["img"].shape[1] == 1  # one-frame clips
    if "mvm" not in config.pretrain_tasks or left_out:
        masks = []  # what nobody is asked for stays to be seen
    attention = None
    if "am" in masks:
        attention = model.attention_received(batch["img"], batch["txt"], batch["mask"])
    return mask_batch(
        batch,
        masks,
        config.p_mask,
        tokens.special,
        config.size_patch,
        generator or sample_seeds(batch, config.seed),
        attention,
        model.reads,
        cut=not config.compile,  # which compiles anew for every shape
    )


def describe(batch: Batch, output: Output, tokens: Tokens) -> Sequence[dict[str, Any]]:
    """For the predictions file: the caption as the model saw it, the words hidden and those it named."""
    words = tokens.tokenizer.convert_ids_to_tokens
    rows = []
    for i, name in enumerate(batch["id"]):
        answers, seen = batch["ans_mlm"][i], batch["masked_txt"][i][batch["mask"][i].bool()]
        row = {
            "id": name,
            "text": tokens.tokenizer.decode(seen),
            "hidden": words(answers[answers >= 0].tolist()),
        }
        if "mlm" in output.predictions:
            row["named"] = words(output.predictions["mlm"][i])
        if "vtm" in output.predictions:
            row["matched"] = output.predictions["vtm"][i]
        rows.append(row)
    return rows


def main() -> None:
    """One run of pre-training."""
    config = load_config("pretrain")
    with distributed(config) as world:
        check_needs(config, world)
        warn_of_unread(config, UNREAD)
        tokens = Tokens(config.tokenizer or config.txt_backbone, config.size_txt)
        if not config.size_epoch and not config.val_yaml:
            raise UserError("size_epoch 0 evaluates only, and val_yaml names nothing to evaluate on.")
        train = pretrain_loader(config, world, tokens, train=True) if config.size_epoch else None
        val = pretrain_loader(config, world, tokens, train=False) if config.val_yaml else None
        for name, loader in (("train", train), ("val", val)):
            if loader is not None:
                log.info("%s: pairs %s", name, json.dumps(loader.batches.sizes))
        model = PretrainModel.from_config(config)
        tokens.check(model.enc_txt.vocabulary, model.enc_txt.positions)
        if config.path_ckpt:
            load_checkpoint(model, config.path_ckpt, model.match_heads)
        agent = Agent(
            config,
            world,
            model,
            prepare=functools.partial(mask, model=model, config=config, tokens=tokens),
            describe=functools.partial(describe, tokens=tokens),
            timers=model.teacher_seconds,
        )
        agent.fit(train, val)


if __name__ == "__main__":
    main()
