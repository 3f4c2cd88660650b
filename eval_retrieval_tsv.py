"""Rank all videos of a test split for each text, and all texts for each video.

    python eval_retrieval_tsv.py --config _args/_best/args_msrvtt-retrieval.json

On several devices, each of which scores a share of the videos:

    torchrun --nproc_per_node=4 eval_retrieval_tsv.py --config _args/_best/args_msrvtt-retrieval.json

The same command resumes an interrupted evaluation. In under a minute on a laptop, after `make demo`:

    python eval_retrieval_tsv.py --config _args/demo-retrieval.json --path_ckpt CHECKPOINT
"""

from engine.arguments import load_config
from lib import UserError, run_script


def main() -> None:
    """One evaluation."""
    config = load_config("eval_retrieval_tsv")
    if not config.path_ckpt:
        raise UserError("path_ckpt is empty: name a checkpoint.")
    # imported after parsing: mistakes in the command line are reported at once
    from engine.processes import distributed
    from tasks.retrieval.evaluation import evaluate

    with distributed(config) as world:
        evaluate(config, world)


if __name__ == "__main__":
    run_script(main)
