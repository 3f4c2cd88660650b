"""Rank all videos of a test split for each text, and all texts for each video.

    python eval_retrieval_tsv.py --config _args/_best/args_msrvtt-retrieval.json

On many devices, each taking its share of the videos:

    torchrun --nproc_per_node=4 eval_retrieval_tsv.py --config _args/_best/args_msrvtt-retrieval.json

The same command goes on where an interrupted one stopped. In under a minute on a laptop, after `make demo`:

    python eval_retrieval_tsv.py --config _args/demo-retrieval.json --path_ckpt CHECKPOINT
"""

import dataclasses
from pathlib import Path

import numpy as np

from dataset import Tokens
from engine.processes import World, distributed
from engine.runs import make_run_folder
from lib import Config, UserError, load_config, log, warn_of_unread
from tasks.retrieval.captions import Gallery, read_gallery
from tasks.retrieval.evaluation import rank_rows, score_gallery, write_results
from tasks.retrieval.model import UNREAD, RetrievalModel
from tasks.retrieval.pages import report, write_page
from tasks.retrieval.ranking import figures
from weights.needs import check_needs


def write(config: Config, folder: Path, gallery: Gallery, scores: np.ndarray) -> None:
    """What an evaluation leaves in its run folder, and its figures on the console."""
    found = figures(scores, np.array(gallery.owner))
    rows = rank_rows(scores, gallery)
    write_results(folder, scores, rows, found)
    write_page(folder / "retrieval.html", config.task, report(rows, found, gallery.clips.frames))
    for way, name in (("t2v", "text to video"), ("v2t", "video to text")):
        shares = "  ".join(f"R@{depth} {found[f'{way}_r{depth}']:.1%}" for depth in (1, 5, 10, 50))
        log.info(
            "%s: %s  median rank %g  mean %.1f", name, shares, found[f"{way}_median"], found[f"{way}_mean"]
        )
    log.info("chance of R@1: %.2f %%; written to %s", 100 / found["videos"], folder)


def evaluate(config: Config, world: World) -> None:
    """Score, rank, write."""
    if not config.path_ckpt:
        raise UserError("path_ckpt is empty: name the checkpoint whose scores are wanted.")
    check_needs(config, world)
    tokens = Tokens(config.tokenizer or config.txt_backbone, config.size_txt)
    gallery = read_gallery(config)
    model = RetrievalModel.from_config(dataclasses.replace(config, size_epoch=0))  # nothing is trained
    tokens.check(model.enc_txt.vocabulary, model.enc_txt.positions)
    folder = make_run_folder(config, world)
    scores, blocks = score_gallery(model, config, world, tokens, gallery)
    if world.is_main:
        write(config, folder, gallery, scores)
        blocks.remove()  # scores.npy has them all


def main() -> None:
    """One evaluation."""
    config = load_config("retrieval")
    with distributed(config) as world:
        warn_of_unread(config, UNREAD)
        evaluate(config, world)


if __name__ == "__main__":
    main()
