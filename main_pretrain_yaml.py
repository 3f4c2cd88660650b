"""Pre-train VIOLET on video-text and image-text pairs by MLM, VTM and MVM.

    python -m torch.distributed.launch --nproc_per_node=8 --master_port=5566 main_pretrain_yaml.py \
        --config _args/args_pretrain.json

In under a minute on a laptop, after `make demo` has made its data:

    python main_pretrain_yaml.py --config _args/demo-pretrain.json --max_steps 20
"""

import functools
import json

from engine.arguments import load_config
from lib import UserError, log, run_script


def main() -> None:
    """One run of pre-training, or an evaluation alone."""
    config = load_config("main_pretrain_yaml")
    if not config.size_epoch and not config.val_yaml:
        raise UserError("size_epoch 0 evaluates only, and val_yaml is empty.")
    # imported after parsing: mistakes in the command line are reported at once
    from agent import Agent
    from dataset import pretrain_loader
    from engine.processes import distributed
    from media.tokens import Tokens
    from model import MVM_HEADS, PretrainModel
    from tasks.pretraining import describe, mask
    from teachers.make import worker_truths
    from weights.needs import check_needs

    with distributed(config) as world:
        check_needs(config, world)
        tokens = Tokens(config.tokenizer or config.txt_backbone, config.size_txt)
        truths = worker_truths(config)
        train = pretrain_loader(config, world, tokens, True, truths) if config.size_epoch else None
        val = pretrain_loader(config, world, tokens, False, truths) if config.val_yaml else None
        for name, loader in (("train", train), ("val", val)):
            if loader is not None:
                log.info("%s: number of pairs %s", name, json.dumps(loader.batches.sizes))
        model = PretrainModel.from_config(config, world)
        tokens.check(model.enc_txt.vocabulary, model.enc_txt.positions)
        agent = Agent(
            config,
            world,
            model,
            prepare=functools.partial(mask, model=model, config=config, tokens=tokens),
            describe=functools.partial(describe, tokens=tokens),
            timers=model.teacher_seconds,
            multiples={MVM_HEADS: config.mvm_lr_mul},
            weigh=model.weigh,
            follow=functools.partial(model.follow, world=world),
            followers=model.followers(),
        )
        agent.fit(train, val)


if __name__ == "__main__":
    run_script(main)
