"""Train the teachers of the study in miniature, on the demo world, and save each in its published layout.

    python -m study.teachers

It comes after `make demo`, whose Video Swin is the teacher of 3d_feature. Writes under --output

    swin2d/       of 2d_feature: a Swin of timm's that names shape and colour of single frames
    clip/         of 2d_clip_feature: the image side of a CLIP of frames and their captions, timm's too
    dpt/          of depth: a DPT of transformers' that learnt the depth that the generator knows
    encoder.pkl   of vq: the encoder of a discrete VAE, a pickled module of DALL-E's classes
    oracle.npz    by what the generator's own depth and flow know a frame again

each with a JSON of how good it is. In a minute, to see that it runs: `--steps 5 --output /tmp/teachers`.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from demo.backbone import NAMES, Clips, read_clips, train
from demo.world import load_scenes
from engine.processes import seed_everything
from engine.schedule import warmup_linear
from lib import run_script
from media.files import atomic_path
from media.frames import Transform, decode_frame, even_frames
from media.tokens import Tokens
from media.tsv import Tsv
from study.oracle import inverse_depth, write_index
from teachers.base import normalise
from teachers.dalle_encoder import DalleEncoder
from teachers.depth import DptTeacher
from teachers.features import TimmTeacher

SIZE = 64  # pixels a side
SWIN: dict[str, Any] = {
    "embed_dim": 32,
    "depths": (1, 1, 2, 1),
    "num_heads": (1, 2, 4, 8),
    "window_size": 4,
    "img_size": SIZE,
}
VIT: dict[str, Any] = {"embed_dim": 128, "depth": 3, "num_heads": 4, "img_size": SIZE}
DPT: dict[str, Any] = {
    "image_size": SIZE,
    "patch_size": 8,
    "hidden_size": 96,
    "intermediate_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "backbone_out_indices": [0, 1, 2, 3],
    "neck_hidden_sizes": [24, 32, 48, 48],
    "reassemble_factors": [2, 1, 0.5, 0.25],
    "fusion_hidden_size": 32,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
DALLE: dict[str, int] = {"hidden": 16, "vocabulary": 512, "blocks_per_group": 1}
BATCH = 64
Figures = dict[str, float]


class Frames:
    """Four frames of every training clip, with what the generator and the captions say of them."""

    def __init__(self, data: Path) -> None:
        self.scenes = load_scenes(data / "train.scenes.jsonl")
        lines = (data / "train.scenes.jsonl").read_text().splitlines()
        self.captions = [json.loads(line)["captions"] for line in lines]
        tsv, transform = Tsv(data / "train.img.tsv"), Transform(["img_center_crop"], SIZE)
        self.numbers = even_frames(len(tsv[0]) - 1, 4)
        self.pixels = torch.stack(
            [
                torch.stack(
                    [
                        transform.crop(decode_frame(tsv[row][1 + n], n), np.array([0.5, 0.5]))
                        for n in self.numbers
                    ]
                )
                for row in tqdm(range(len(tsv)), "reading train", unit="clip")
            ]
        )  # (N, 4, 3, S, S) uint8

    def draw(self, random: np.random.Generator, count: int = BATCH) -> tuple[Tensor, np.ndarray, np.ndarray]:
        """`count` frames of different clips: pixels (B, 3, S, S) in [0, 1], clips, places among the four."""
        rows = random.choice(len(self.scenes), count, replace=False)
        picked = random.integers(len(self.numbers), size=count)
        return self.pixels[rows, picked].float() / 255, rows, picked


def fit(name: str, network: nn.Module, loss: Callable[[int], Tensor], steps: int, lr: float = 2e-3) -> float:
    """Train by AdamW on `loss(step)`; returns its mean over the last tenth."""
    rule = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=1e-3, fused=True)
    values = []
    bar = tqdm(range(steps), name, unit="step")
    for step in bar:
        rule.param_groups[0]["lr"] = lr * warmup_linear(step, steps, warmup_ratio=0.1)
        value = loss(step)
        rule.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        rule.step()
        values.append(value.item())
        bar.set_postfix(loss=f"{values[-1]:.3f}")
    return float(np.mean(values[-max(1, steps // 10) :]))


# ---------------------------------------------------------------------------------------------- features


class FrameNamer(nn.Module):
    """A Swin of single frames, and linear heads that name shape and colour; as `make_backbone.Namer`."""

    def __init__(self) -> None:
        import timm

        super().__init__()
        self.backbone: Any = timm.create_model("swin_tiny_patch4_window7_224", num_classes=0, **SWIN)
        self.teacher = TimmTeacher(self.backbone)
        self.backbone.requires_grad_(True).train()
        for part in self.backbone.modules():  # its own start, deviation 0.02, is far slower at this size
            if isinstance(part, nn.Linear):
                nn.init.normal_(part.weight, std=part.in_features**-0.5)
        width = cast(int, self.backbone.num_features)
        self.cls_head = nn.ModuleDict({key: nn.Linear(width, len(NAMES[key])) for key in ("shape", "colour")})

    def forward(self, frames: Tensor) -> dict[str, Tensor]:
        """frames: (B, 1, 3, S, S) uint8 -> logits (B, names) of each thing."""
        features = self.teacher.look(frames[:, 0].float() / 255).mean(dim=(2, 3))
        return {key: head(features) for key, head in self.cls_head.items()}


def make_swin(output: Path, data: Path, _: Frames, steps: int) -> Figures:
    """2d_feature."""
    clips, held_out = (read_clips(data, name, SIZE) for name in ("names", "names_val"))
    namer = FrameNamer()
    train(namer, clips, 1, steps or 500, BATCH, 1e-3, seed=88)
    save_timm(namer.backbone, output / "swin2d", SWIN)
    return named_right(namer.eval(), held_out)


@torch.inference_mode()
def named_right(namer: FrameNamer, clips: Clips) -> Figures:
    """Share of the clips whose middle frame is named right."""
    logits = namer(clips.frames[:, clips.frames.shape[1] // 2, None])
    places = {key: list(NAMES).index(key) for key in logits}
    return {
        key: float((logits[key].argmax(1) == clips.labels[:, place]).float().mean())
        for key, place in places.items()
    }


def save_timm(network: Any, folder: Path, sizes: dict[str, Any]) -> None:
    """In the layout of the hub."""
    import timm

    timm.models.save_for_hf(network, str(folder), model_args=sizes, safe_serialization=True)


def make_clip(output: Path, data: Path, frames: Frames, steps: int) -> Figures:
    """2d_clip_feature: frames and captions of a batch find each other (Radford et al., ICML 2021)."""
    import timm

    vision: Any = timm.create_model("vit_base_patch32_clip_224", num_classes=0, **VIT)
    look = TimmTeacher(vision)
    vision.requires_grad_(True).train()
    tokens = Tokens(str(data / "bert"), 32)
    words = nn.Embedding(len(tokens.tokenizer), 128)
    layer = nn.TransformerEncoderLayer(128, 4, 256, dropout=0.0, batch_first=True, norm_first=True)
    text = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    place = nn.Parameter(0.02 * torch.randn(32, 128))
    both = nn.ModuleDict(
        {
            "vision": vision,
            "words": words,
            "text": text,
            "see": nn.Linear(128, 64),
            "read": nn.Linear(128, 64),
        }
    )
    both.register_parameter("place", place)
    random = np.random.default_rng(88)

    def logits() -> Tensor:
        pixels, rows, _ = frames.draw(random)
        ids, mask = map(
            torch.stack, zip(*(tokens(random.choice(frames.captions[r])) for r in rows), strict=True)
        )
        seen = both["see"](vision.forward_features(normalise(pixels, look.mean, look.std))[:, 0])
        read = both["read"](text(words(ids) + place, src_key_padding_mask=mask == 0)[:, 0])
        return F.normalize(seen, dim=1) @ F.normalize(read, dim=1).T / 0.07

    def loss(_: int) -> Tensor:
        scores, own = logits(), torch.arange(BATCH)
        return (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2

    value = fit("CLIP", both, loss, steps or 400, lr=1e-3)
    save_timm(vision, output / "clip", VIT)
    with torch.inference_mode():
        right = [(logits().argmax(1) == torch.arange(BATCH)).float().mean().item() for _ in range(8)]
    return {"loss": value, "caption_found_of_64": float(np.mean(right))}


# ---------------------------------------------------------------------------------------------- pictures


def make_dpt(output: Path, data: Path, frames: Frames, steps: int) -> Figures:
    """Depth: what the generator knows, learnt from single frames."""
    from transformers import DPTConfig, DPTForDepthEstimation

    network = DPTForDepthEstimation(DPTConfig(**DPT))
    teacher = DptTeacher(network, width=1)
    network.requires_grad_(True).train()
    random = np.random.default_rng(88)

    def loss(_: int) -> Tensor:
        pixels, rows, picked = frames.draw(random, BATCH // 2)
        truth = [
            inverse_depth(frames.scenes[r], int(frames.numbers[p]), SIZE)
            for r, p in zip(rows, picked, strict=True)
        ]
        # not L1: most of a picture is background, and nothing else would be its median
        return F.mse_loss(teacher.look(pixels)[:, 0], torch.from_numpy(np.stack(truth)))

    value = fit("DPT", network, loss, steps or 300, lr=2e-3)
    network.save_pretrained(output / "dpt")
    return {"root_mean_square_error": value**0.5}


def make_dalle(output: Path, data: Path, frames: Frames, steps: int) -> Figures:
    """vq: a discrete VAE, in which the entropy of its words keeps them in use."""
    from dall_e.encoder import Encoder

    encoder = DalleEncoder(**DALLE)
    width: int = DALLE["hidden"]
    decoder = nn.Sequential(nn.Conv2d(DALLE["vocabulary"], 4 * width, 1))
    for inputs, outputs in ((4 * width, 2 * width), (2 * width, width), (width, width)):
        decoder.append(nn.Sequential(nn.ReLU(), nn.ConvTranspose2d(inputs, outputs, 4, 2, 1)))
    decoder.append(nn.Sequential(nn.ReLU(), nn.Conv2d(width, 3, 3, padding=1)))
    random = np.random.default_rng(88)

    def loss(step: int) -> Tensor:
        pixels, _, _ = frames.draw(random, BATCH // 4)
        shares = encoder(pixels).softmax(dim=1)
        words = shares + (one_word(shares) - shares).detach()  # forward a word, backward its share
        use = shares.mean(dim=(0, 2, 3))
        unused = math.log(DALLE["vocabulary"]) + (use * use.clamp(min=1e-9).log()).sum()
        return F.mse_loss(decoder(words), pixels) + 0.01 * unused

    value = fit("dVAE", nn.ModuleList([encoder, decoder]), loss, steps or 500)
    published = Encoder(
        n_hid=width, vocab_size=DALLE["vocabulary"], n_blk_per_group=1, use_mixed_precision=False
    )
    published.load_state_dict(encoder.state_dict())
    with atomic_path(output / "encoder.pkl") as temporary:
        torch.save(published, temporary)
    with torch.inference_mode():
        pixels = frames.draw(random)[0]
        words = one_word(encoder(pixels))
        error = F.mse_loss(decoder(words), pixels) ** 0.5
    return {
        "loss": value,
        "root_mean_square_error": float(error),
        "deviation_of_pixels": float(pixels.std()),
        "words_used": int(words.amax(dim=(0, 2, 3)).sum()),
    }


def one_word(shares: Tensor) -> Tensor:
    """(N, V, h, w) -> the same with 1 at the largest of V and 0 elsewhere."""
    return F.one_hot(shares.argmax(dim=1), shares.shape[1]).movedim(-1, 1).to(shares.dtype)


def make_oracle(output: Path, data: Path, _: Frames, steps: int) -> Figures:
    """Write the index of true depth and flow."""
    write_index(data, output / "oracle.npz", SIZE)
    return {}


MAKERS = {
    "swin2d": make_swin,
    "clip": make_clip,
    "dpt": make_dpt,
    "dalle": make_dalle,
    "oracle": make_oracle,
}


def main(arguments: list[str] | None = None) -> None:
    """Make what is not there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("_data/demo"), help="folder of the demo's files")
    parser.add_argument("--output", type=Path, default=Path("_snapshot/study/teachers"))
    parser.add_argument(
        "--steps", type=int, default=0, help="steps of each training (default: 0, the full number)"
    )
    parser.add_argument("--only", nargs="*", choices=MAKERS, default=list(MAKERS))
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    missing = [name for name in options.only if not (options.output / f"{name}.json").exists()]
    if not missing:
        return
    frames = Frames(options.data)
    for name in missing:
        seed_everything(88)
        start = time.perf_counter()
        figures = MAKERS[name](options.output, options.data, frames, options.steps)
        figures["seconds"] = round(time.perf_counter() - start)
        print(f"{name}:", ", ".join(f"{key} {value:.3g}" for key, value in figures.items()), flush=True)
        with atomic_path(options.output / f"{name}.json") as temporary:
            temporary.write_text(json.dumps(figures) + "\n")


if __name__ == "__main__":
    run_script(main)
