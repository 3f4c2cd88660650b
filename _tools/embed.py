"""Write the features of the videos of a folder, a frames TSV or a corpus YAML to one file.

    python _tools/embed.py VIDEOS --checkpoint _snapshot/_msrvtt-retrieval_TIME --output features.npz

`numpy.load("features.npz")` gives `ids` and `vectors`, a row for each video: unit vectors of 256 values that
are compared with those of `violet.embed_text`, or, from a checkpoint without embeddings (`fc_vtc`) and with
`--features pooled` or `--features frames`, the features of the video encoder. `times` are the seconds of the
frames that were looked at, `damaged` and `reasons` the videos that cannot be read. The same command continues
an interrupted one, and later embeds only videos that are new or have changed; the same videos give the same
bytes. `--KEY VALUE` overrides a key of the config. In under a minute on a laptop, after `make demo`:

    python _tools/embed.py _data/demo/test --checkpoint CHECKPOINT --output features.npz
"""

import argparse
import sys
from pathlib import Path

import root  # noqa: F401
from engine.arguments import parse_with_keys
from lib import UserError, run_script, shown
from media.files import digest, writing
from tasks.retrieval.sources import open_source
from tasks.retrieval.vectors import Vectors, maker
from violet import FEATURES, load
from weights.tensor_files import checkpoint_in


def parse(arguments: list[str] | None) -> tuple[argparse.Namespace, dict[str, str]]:
    """The options of this program, and the config's keys that are overridden."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("videos", type=Path, help="a folder of videos and pictures, a frames TSV, or a YAML")
    parser.add_argument("--checkpoint", required=True, help="checkpoint, run folder or exported folder")
    parser.add_argument("--config", default="", help="config (default: the one in the checkpoint's folder)")
    parser.add_argument("--output", type=Path, required=True, help="file to write, .npz")
    parser.add_argument("--features", choices=FEATURES, default="", help="default: embedding, else pooled")
    return parse_with_keys(parser, arguments)


def main(arguments: list[str] | None = None) -> None:
    """Embed what is new, write, tell."""
    options, changes = parse(arguments)
    if options.output.suffix != ".npz":
        raise UserError(f"--output {options.output}: the file is an .npz of numpy; name it so.")
    violet = load(options.checkpoint, options.config, **changes)
    checkpoint = digest(checkpoint_in(Path(options.checkpoint)))
    features = violet.features_of(options.features)
    with writing(str(options.output)):
        vectors = Vectors(options.output, features, checkpoint, maker(violet.config, checkpoint))
        vectors.load()
        pictures = features != "frames"  # a picture has one, which makes no table with those of videos
        new, gone = vectors.update(violet, open_source(options.videos, pictures))
    for name, (_, reason) in vectors.damaged.items():
        print(f"cannot be read: {shown(name)}: {shown(reason)}", file=sys.stderr)
    print(
        f"{options.output}: {features} of {len(vectors.rows)} videos, {new} of them new, {gone} gone, ",
        end="",
    )
    print(f"{len(vectors.damaged)} cannot be read")


if __name__ == "__main__":
    run_script(main)
