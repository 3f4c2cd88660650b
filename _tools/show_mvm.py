"""Draw what masked visual modelling sees and makes: frames, masked frames, reconstruction and target.

    python _tools/show_mvm.py --checkpoint _snapshot/_pretrain_TIME/ckpt_violet_pretrain_10.pt

The config is the `args.json` beside the checkpoint (`--config` names another). The rows are the first of
its `val_yaml`; `--yaml` names another corpus. In under a minute on a laptop, after `make demo`:

    python _tools/show_mvm.py --checkpoint _snapshot/demo/_pretrain_TIME/ckpt_violet_pretrain_1.pt --rows 1
"""

import argparse
import dataclasses
import sys
import textwrap
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the root's modules, from any folder
from agent import seeded, to_device
from checkpoint import load_checkpoint
from dataset import MEAN, STD, PretrainCorpus, Tokens, Transform
from lib import Config, UserError, atomic_path, choose_device, load_config
from masking import mask_batch
from model import PretrainModel


def read_batch(config: Config, tokens: Tokens, name: str, yaml: str, rows: int, seed: int) -> dict[str, Any]:
    """The first `rows` pairs of a corpus, masked by random patches and blocks."""
    transform = Transform(config.img_transform, config.size_img)
    corpus = PretrainCorpus(yaml, name, tokens, transform, config.size_frame)
    samples = [corpus.read(i, None) for i in range(min(rows, len(corpus)))]
    batch = default_collate([{**sample, "valid": True} for sample in samples])
    masks = [name for name in config.pretrain_masks if name != "am"] or ["rm"]
    return mask_batch(batch, masks, config.p_mask, tokens.special, config.size_patch, seeded(seed))


@torch.inference_mode()
def reconstruct(model: PretrainModel, batch: dict[str, Any]) -> dict[str, tuple[Tensor, Tensor]]:
    """For each target: what the model makes of the hidden patches, within the true rest, and the truth."""
    video, text = model.encode(batch["masked_img"], batch["masked_txt"], batch["mask"])
    visual = model.fuse(video, text, batch["mask"])[:, : video.shape[1]]
    grid = batch["mvm_mask"].shape[1:]
    pictures = {}
    for name, target in model.targets.items():
        truth = target.target(batch["img"])
        size = truth.shape[-1] // grid[-1]
        hidden = batch["mvm_mask"].repeat_interleave(size, 2).repeat_interleave(size, 3)[:, :, None]
        pictures[name] = (torch.where(hidden, target.reconstruct(visual, grid), truth), truth)
    return pictures


def to_pixels(picture: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Normalised RGB (..., 3, H, W), or one channel as grey -> (..., H, W, 3) in [0, 1]."""
    if picture.shape[-3] == 3:
        picture = picture * STD + MEAN
    else:
        picture = ((picture - low) / max(high - low, 1e-6)).expand(*picture.shape[:-3], 3, -1, -1)
    return picture.clamp(0, 1).movedim(-3, -1)


def draw(
    batch: dict[str, Any], pictures: dict[str, tuple[Tensor, Tensor]], captions: list[str], path: Path
) -> None:
    """A block per clip: a row of its frames for what is seen, and two for each target."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows: list[tuple[str, Tensor]] = [
        ("frames", to_pixels(batch["img"])),
        ("masked", to_pixels(batch["masked_img"])),
    ]
    for name, (made, truth) in pictures.items():
        low, high = (
            float(truth.min()),
            float(truth.quantile(0.995)) if truth.numel() < 1e7 else float(truth.max()),
        )
        rows += [
            (f"{name}\nreconstructed", to_pixels(made, low, high)),
            (f"{name}\ntarget", to_pixels(truth, low, high)),
        ]
    clips, frames = batch["img"].shape[:2]
    figure, axes = pyplot.subplots(
        len(rows), clips * frames, figsize=(1.05 * clips * frames + 1, 1.05 * len(rows) + 0.5), squeeze=False
    )
    for i, (label, picture) in enumerate(rows):
        for clip in range(clips):
            for frame in range(frames):
                axis = axes[i, clip * frames + frame]
                axis.imshow(picture[clip, frame].numpy(), interpolation="nearest")
                axis.set_xticks([])
                axis.set_yticks([])
                axis.spines[:].set_visible(False)
        axes[i, 0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)
    for clip, caption in enumerate(captions):
        axes[0, clip * frames].set_title(textwrap.fill(caption, 15 * frames), fontsize=6, loc="left")
    figure.subplots_adjust(left=0.07, right=0.995, top=0.9, bottom=0.01, wspace=0.04, hspace=0.04)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, format=path.suffix[1:] or "png")
    pyplot.close(figure)


def main(arguments: list[str] | None = None) -> None:
    """Read, reconstruct, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True, help="state dict of a pre-training run")
    parser.add_argument("--config", default="", help="its config; default: args.json beside the checkpoint")
    parser.add_argument(
        "--yaml", default="", help="corpus to read; default: the first of the config's val_yaml"
    )
    parser.add_argument("--rows", type=int, default=3, help="clips to draw")
    parser.add_argument("--seed", type=int, default=0, help="of the masks")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", default="", help="picture; default: mvm.png beside the checkpoint")
    options = parser.parse_args(arguments)
    folder = Path(options.checkpoint).parent
    config = load_config("pretrain", ["--config", options.config or str(folder / "args.json")])
    config = dataclasses.replace(config, path_ckpt=options.checkpoint)
    corpora = {Path(options.yaml).stem: options.yaml} if options.yaml else config.val_yaml
    if not corpora:
        raise UserError("the config has no val_yaml: name a corpus with --yaml.")
    name, yaml = next(iter(corpora.items()))
    tokens = Tokens(config.tokenizer or config.txt_backbone, config.size_txt)
    device = choose_device(options.device)
    model = PretrainModel.from_config(config)
    load_checkpoint(model, options.checkpoint)
    model = model.to(device).eval()
    batch = to_device(read_batch(config, tokens, name, yaml, options.rows, options.seed), device)
    pictures = {k: (a.cpu(), b.cpu()) for k, (a, b) in reconstruct(model, batch).items()}
    captions = [tokens.tokenizer.decode(ids, skip_special_tokens=True) for ids in batch["txt"]]
    path = Path(options.output or folder / "mvm.png")
    draw(to_device(batch, torch.device("cpu")), pictures, captions, path)
    print(path)


if __name__ == "__main__":
    main()
