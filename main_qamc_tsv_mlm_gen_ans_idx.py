"""Multiple choice (tgif-action, tgif-transition): the number of the right option, at [MASK].

    python -m torch.distributed.launch --nproc_per_node=4 --master_port=5566 \
        main_qamc_tsv_mlm_gen_ans_idx.py --config _args/args_tgif-action.json

Evaluate a checkpoint only:

    python main_qamc_tsv_mlm_gen_ans_idx.py --config _args/_best/args_tgif-action.json --size_epoch 0

In under a minute on a laptop, on your own data with a small, random encoder:

    python main_qamc_tsv_mlm_gen_ans_idx.py --config _args/args_tgif-action.json --path_ckpt "" \
        --vis_backbone_size demo --vis_backbone_init random --size_img 64 --size_batch 2 --max_steps 20
"""

from engine.arguments import load_config
from lib import run_script


def main() -> None:
    """One run: training with an evaluation after each epoch, or an evaluation alone."""
    config = load_config("main_qamc_tsv_mlm_gen_ans_idx")
    # imported after parsing: mistakes in the command line are reported at once
    from engine.processes import distributed
    from media.tokens import Tokens
    from tasks.qa.kinds import OptionNumber
    from tasks.qa.model import MaskModel, run
    from tasks.qa.questions import question_loaders
    from weights.needs import check_needs

    with distributed(config) as world:
        check_needs(config, world)
        tokens = Tokens(config.tokenizer or config.txt_backbone, config.size_txt)
        loaders = question_loaders(config, world, tokens, OptionNumber)
        model = MaskModel.from_config(
            config, "multiple choice", OptionNumber.choices(tokens, config.size_option)
        )
        run(config, world, tokens, model, loaders)


if __name__ == "__main__":
    run_script(main)
