"""Fill in the blank (lsmdc-fib): the word at the sentence's own [MASK].

    python -m torch.distributed.launch --nproc_per_node=4 --master_port=5566 main_qaoe_tsv_lsmdc_fib.py \
        --config _args/args_lsmdc-fib.json

Evaluate a checkpoint only:

    python main_qaoe_tsv_lsmdc_fib.py --config _args/_best/args_lsmdc-fib.json --size_epoch 0

In under a minute on a laptop, on your own data with a small, random encoder:

    python main_qaoe_tsv_lsmdc_fib.py --config _args/args_lsmdc-fib.json --path_ckpt "" \
        --vis_backbone_size demo --vis_backbone_init random --size_img 64 --size_batch 2 --max_steps 20
"""

from engine.arguments import load_config
from lib import run_script


def main() -> None:
    """One run: training with an evaluation after each epoch, or an evaluation alone."""
    config = load_config("main_qaoe_tsv_lsmdc_fib")
    # imported after parsing: mistakes in the command line are reported at once
    from engine.processes import distributed
    from media.tokens import Tokens
    from tasks.qa.kinds import FillInTheBlank
    from tasks.qa.model import MaskModel, run
    from tasks.qa.questions import question_loaders
    from weights.needs import check_needs

    with distributed(config) as world:
        check_needs(config, world)
        tokens = Tokens(config.tokenizer or config.txt_backbone, config.size_txt)
        loaders = question_loaders(config, world, tokens, FillInTheBlank)
        model = MaskModel.from_config(config, "fill in the blank")
        run(config, world, tokens, model, loaders)


if __name__ == "__main__":
    run_script(main)
