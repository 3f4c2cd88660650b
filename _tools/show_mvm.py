"""Draw the frames, masked frames, reconstructions and targets of masked visual modelling.

    python _tools/show_mvm.py --checkpoint _snapshot/_pretrain_TIME/ckpt_violet_pretrain_10.pt
    python _tools/show_mvm.py --checkpoint ... --video clip.mp4 --caption "a dog runs" --flow_teacher dis

The config is the `args.json` in the checkpoint's folder (`--config` names another, `--KEY VALUE` overrides
one of its keys). The clips are the first of its `val_yaml`; `--yaml` names another corpus, `--video` a file.
One picture per target, `mvm_TARGET.png`, is written to the checkpoint's folder or to `--output`. In under a
minute on a laptop, after `make demo`:

    python _tools/show_mvm.py --checkpoint _snapshot/demo/pretraining/_pretrain_TIME --rows 1
"""

import argparse
import dataclasses
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import root  # noqa: F401
from _tools.convert.clips import Item, Sampling, read_video
from dataset import PretrainCorpus
from engine.arguments import load_config
from engine.processes import choose_device
from engine.step import to_device
from lib import Config, UserError, run_script
from masking import hide_patches
from media.files import atomic_path
from media.frames import Transform, decode_frame
from media.kinds import file_id
from media.tokens import Tokens
from model import PretrainModel
from tasks.pictures import channels_last, coloured, make_batch
from teachers.base import to_pixels
from weights.tensor_files import checkpoint_in

# ----------------------------------------------------------------------------------------------- drawing


def draw(
    rows: Sequence[tuple[str, np.ndarray]], captions: Sequence[str], path: Path, columns: int = 0
) -> None:
    """A picture of rows, each (label, (B, T or T-1, H, W, 3)), with `columns` clips side by side; 0: all."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    clips, frames = rows[0][1].shape[:2]
    columns = min(columns or clips, clips)
    wrapped = [textwrap.fill(caption, 14 * max(frames, 2)) for caption in captions]
    heights = []  # in inches
    for start in range(0, clips, columns):  # a row for captions above those of each block of clips
        lines = 1 + max(text.count("\n") for text in wrapped[start : start + columns])
        heights += [0.15 * lines + 0.15, *[1.05] * len(rows)]
    size = (1.05 * columns * frames + 1.4, sum(heights))
    figure = pyplot.figure(figsize=size)
    grid = figure.add_gridspec(
        len(heights), columns * frames, height_ratios=heights, wspace=0.04, hspace=0.04
    )
    for clip, text in enumerate(wrapped):
        block, column = divmod(clip, columns)
        top, left = block * (len(rows) + 1), column * frames
        title = figure.add_subplot(grid[top, left : left + frames])
        title.set_axis_off()
        title.text(0, 0.08, text, fontsize=8, va="bottom", transform=title.transAxes)
        for i, (label, pictures) in enumerate(rows):
            for frame, picture in enumerate(pictures[clip]):  # the last frame is the first of no pair
                axis = figure.add_subplot(grid[top + 1 + i, left + frame])
                axis.imshow(picture, interpolation="nearest")
                axis.set(xticks=[], yticks=[])
                axis.spines[:].set(color="0.8", linewidth=0.5)  # still flow is as white as the paper
                if not column and not frame:
                    axis.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=10)
    figure.subplots_adjust(left=1.35 / size[0], right=0.995, top=1.0, bottom=0.01)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, format=path.suffix[1:] or "png")
    pyplot.close(figure)


# ------------------------------------------------------------------------------------------------- input


def read_rows(config: Config, tokens: Tokens, yaml: str, rows: int) -> list[dict[str, Any]]:
    """The first `rows` pairs of a corpus; of the config's evaluation corpora if none is named."""
    corpora = {Path(yaml).stem: yaml} if yaml else config.val_yaml
    if not corpora:
        raise UserError("the config has no val_yaml: name a corpus with --yaml, or a file with --video.")
    name, path = next(iter(corpora.items()))
    corpus = PretrainCorpus(
        path, name, tokens, Transform(config.img_transform, config.size_img), config.size_frame
    )
    return [corpus.read(i, None) for i in range(min(rows, len(corpus)))]


def read_clip(config: Config, tokens: Tokens, path: str, caption: str) -> list[dict[str, Any]]:
    """A video file as a sample of its own."""
    item = Item(file_id(path), (caption,), Path(path), "video")
    try:
        stored = read_video(item, Sampling(frames=config.size_frame, size=2 * config.size_img)).frames
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a video: {error}") from error
    frames = [decode_frame(frame, i) for i, frame in enumerate(stored)]
    txt, mask = tokens(caption)
    return [{"img": Transform(config.img_transform, config.size_img)(frames, None), "txt": txt, "mask": mask}]


def parse(arguments: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """The options of this program, and the config's keys that are overridden."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--checkpoint", required=True, help="checkpoint, or run folder, of pre-training")
    parser.add_argument("--config", default="", help="config (default: args.json in the checkpoint's folder)")
    parser.add_argument("--yaml", default="", help="corpus (default: the first of the config's val_yaml)")
    parser.add_argument("--rows", type=int, default=3, help="number of clips to draw (default: 3)")
    parser.add_argument("--columns", type=int, default=0, help="clips side by side; 0: all")
    parser.add_argument("--video", default="", help="draw this video file instead of a corpus")
    parser.add_argument("--caption", default="", help="caption of that video")
    parser.add_argument("--draw_seed", type=int, default=0, help="seed of the masks (default: 0)")
    parser.add_argument("--output", default="", help="folder to write to (default: the checkpoint's folder)")
    return parser.parse_known_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Read, reconstruct, draw."""
    options, keys = parse(arguments)
    checkpoint = checkpoint_in(Path(options.checkpoint))
    folder = checkpoint.parent
    config = load_config("pretrain", ["--config", options.config or str(folder / "args.json"), *keys])
    config = dataclasses.replace(config, path_ckpt=str(checkpoint))
    tokens = Tokens(config.tokenizer or config.txt_backbone, config.size_txt)
    if options.video:
        samples = read_clip(config, tokens, options.video, options.caption)
    else:
        samples = read_rows(config, tokens, options.yaml, options.rows)
    device = choose_device(config.device)
    model = PretrainModel.from_config(config).to(device).eval()
    masks = [name for name in config.pretrain_masks if name != "am"] or ["rm"]
    batch = to_device(make_batch(config, tokens, samples, masks, config.p_mask, options.draw_seed), device)
    captions = [str(tokens.tokenizer.decode(ids, skip_special_tokens=True)) for ids in batch["txt"]]
    seen = [("frames", batch["img"]), ("masked", hide_patches(batch["img"], batch["mvm_mask"]))]
    rows = [(label, channels_last(to_pixels(frames.cpu()))) for label, frames in seen]
    for name, (made, truth) in coloured(model, batch).items():
        path = Path(options.output or folder) / f"mvm_{name}.png"
        draw(
            [*rows, (f"{name}\nreconstructed", made), (f"{name}\ntarget", truth)],
            captions,
            path,
            options.columns,
        )
        print(path)


if __name__ == "__main__":
    run_script(main)
