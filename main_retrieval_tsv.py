"""Train retrieval (msrvtt, didemo, lsmdc): `fc` scores all pairs of a batch's texts and videos.

    python -m torch.distributed.launch --nproc_per_node=4 --master_port=5566 main_retrieval_tsv.py \
        --config _args/args_msrvtt-retrieval.json

eval_retrieval_tsv.py ranks the checkpoints of this script. In under a minute on a laptop, on your own data
with a small, random encoder:

    python main_retrieval_tsv.py --config _args/args_msrvtt-retrieval.json --path_ckpt "" \
        --vis_backbone_size demo --vis_backbone_init random --size_img 64 --size_batch 4 --max_steps 20
"""

import functools

from engine.arguments import load_config
from lib import run_script


def main() -> None:
    """One run: training with an evaluation within batches after each epoch, or that alone."""
    config = load_config("main_retrieval_tsv")
    # imported after parsing: mistakes in the command line are reported at once
    from agent import Agent
    from engine.processes import distributed
    from media.tokens import Tokens
    from tasks.retrieval.captions import accuracy, describe, pair_loaders
    from tasks.retrieval.model import RetrievalModel
    from weights.needs import check_needs

    with distributed(config) as world:
        check_needs(config, world)
        tokens = Tokens(config.tokenizer or config.txt_backbone, config.size_txt)
        loaders = pair_loaders(config, world, tokens)
        model = RetrievalModel.from_config(config, world)
        tokens.check(model.enc_txt.vocabulary, model.enc_txt.positions)
        rows = functools.partial(describe, splits=loaders)
        agent = Agent(config, world, model, describe=rows, metric=accuracy)
        agent.fit(loaders.get("train"), loaders.get("val"), loaders.get("test"), best="acc")


if __name__ == "__main__":
    run_script(main)
