"""Convert questions or captions of your own, in a CSV, to frames, annotations and a config for training.

    python _tools/own_data.py clips/questions.csv --path_ckpt _snapshot/FILE.pt

In under a minute, ten clips beside their CSV and a tiny network:

    python _tools/own_data.py clips/captions.csv --frames 8 --path_ckpt "" --vis_backbone_size demo \
        --vis_backbone_init random --size_img 64

The columns of the CSV decide the task and its script:

    video,question,answer                open-ended questions; a question may have its own [MASK]
    video,question,option_0,...,answer   multiple choice; `answer` is the right option, number or text
    video,caption                        retrieval

`video` is a path relative to the CSV's folder. Further columns: `split` (train, val or test; without this
column the splits are drawn by video, see --seed), `id`, `start` and `end` of a clip as in make_tsv.py. The
program writes img_NAME.tsv, txt_TASK.json and args_TASK.json to --output, and prints the commands that check
the data and train. Every `--KEY VALUE` that is a key of the config goes into args_TASK.json.
"""

import argparse
import sys
from pathlib import Path

import root  # noqa: F401
from _tools import make_tsv
from lib import run_script


def parse(arguments: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """The options of this program, and the keys of the config that are given."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw, allow_abbrev=False)
    add = parser.add_argument
    add("table", type=Path, help="the CSV")
    add("--name", help="name of the dataset (default: the CSV's name)")
    add("--output", type=Path, default=Path("_data"), help="folder to write to (default: _data)")
    add("--seed", type=int, default=88, help="seed of the splits, if the CSV has none (default: 88)")
    add("--val_share", type=float, default=0.1, help="share of the videos for val (default: 0.1)")
    add("--test_share", type=float, default=0.1, help="share of the videos for test (default: 0.1)")
    add("--frames", type=int, default=32, help="frames per video at most, evenly spaced (default: 32)")
    add("--workers", type=int, help="decoding processes (default: one per core; 0: the main process decodes)")
    add("--overwrite", action="store_true", help="replace existing frames of this name")
    words = sys.argv[1:] if arguments is None else arguments
    return parser.parse_known_args(words)


def main(arguments: list[str] | None = None) -> None:
    """Write frames, annotations and config, and print the commands to run."""
    from _tools.convert import own  # imports torch: not for the processes that decode

    options, keys = parse(arguments)
    name = options.name or options.table.stem
    table = own.read_own(options.table, name)
    config = own.own_config(table, options.output, ["--seed", str(options.seed), *keys])
    given = ["--frames_only", "--output", options.output, "--name", name, "--frames", options.frames]
    given += ["--overwrite"] if options.overwrite else []
    given += ["--workers", options.workers] if options.workers is not None else []
    make_tsv.main([str(word) for word in (options.table, *given)])
    shares = {"val": options.val_share, "test": options.test_share}
    splits = own.write_annotations(table, options.output, shares, options.seed)
    own.write_config(table, config, splits, options.output)


if __name__ == "__main__":
    run_script(main)
