"""Small models and corpora that the tests share."""

import base64
import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import timm
import torch
from torchvision.models.optical_flow import raft_large
from transformers import BertConfig, BertTokenizerFast, DPTConfig, DPTForDepthEstimation

from batch import SpecialTokens
from masking import mask_batch
from model import PretrainModel
from teachers.base import Teacher
from teachers.dalle_encoder import DalleEncoder
from teachers.depth import DptTeacher
from teachers.features import TimmTeacher, VideoSwinTeacher
from teachers.flow import RaftTeacher
from teachers.vq import DalleTeacher
from video_swin import Size, VideoSwin

WORDS = [
    "a",
    "red",
    "blue",
    "green",
    "circle",
    "square",
    "star",
    "moves",
    "left",
    "right",
    "up",
    "down",
    "the",
    "small",
    "large",
    "grows",
]
SWIN = Size(16, (1, 1, 2, 1), (1, 2, 4, 8), window=(2, 2, 2), drop_path=0.0, init_std=None)


torch.set_num_threads(1)  # tiny tensors gain nothing from more, and lose much beside another process


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory) -> Path:
    """A BERT of 2 layers without weights, and its tokenizer."""
    folder = tmp_path_factory.mktemp("bert")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    tiny_bert(len(vocabulary)).save_pretrained(folder)
    return folder


ASKING = "what is which color shape ? . option answer : 0 1 2 3 4 video to about".split()  # noqa: SIM905


@pytest.fixture(scope="session")
def question_bert(tmp_path_factory) -> Path:
    """A BERT of 2 layers without weights that knows the words of questions."""
    folder = tmp_path_factory.mktemp("question_bert")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *ASKING]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    tiny_bert(len(vocabulary)).save_pretrained(folder)
    return folder


def tiny_bert(vocabulary: int = 128, dropout: float = 0.0) -> BertConfig:
    return BertConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        initializer_range=0.1,
        max_position_embeddings=64,
    )


@pytest.fixture
def tiny_model() -> PretrainModel:
    return PretrainModel(tiny_bert(), tiny_bert(), SWIN, targets=["pixel", "hog"])


def jpeg(level: int = 128, width: int = 80, height: int = 64) -> bytes:
    """A base64 JPEG of a textured picture around a grey level."""
    noise = np.random.default_rng(level).integers(-20, 20, (height // 8, width // 8, 3))
    picture = np.clip(level + np.kron(noise, np.ones((8, 8, 1))), 0, 255).astype(np.uint8)
    return base64.b64encode(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes())


def write_corpus(folder: Path, name: str, rows: int = 12, frames: int = 6, image: bool = False) -> Path:
    """A corpus of the pre-training format; returns its YAML."""
    random = np.random.default_rng(rows)
    images, captions, pairs = [], [], []
    for row in range(rows):
        stored = [jpeg(20 + 15 * row + 2 * f) for f in range(1 if image else frames)]
        images.append(b"\t".join([f"{name}{row}".encode(), *stored]))
        captions.append(f"{name}{row}\t" + json.dumps([{"caption": " ".join(random.choice(WORDS, 6))}]))
        pairs.append(f"{row}\t0")
    (folder / f"{name}.img.tsv").write_bytes(b"\n".join(images) + b"\n")
    (folder / f"{name}.caption.tsv").write_text("\n".join(captions) + "\n")
    (folder / f"{name}.linelist.tsv").write_text("\n".join(pairs) + "\n")
    path = folder / f"{name}.yaml"
    path.write_text(
        f"img: {name}.img.tsv\ncaption: {name}.caption.tsv\ncaption_linelist: {name}.linelist.tsv\n"
        f"image: {str(image).lower()}\n"
    )
    return path


def write_videos(folder: Path, dataset: str = "clips", rows: int = 6, frames: int = 7) -> Path:
    """`img_DATASET.tsv` as downstream files are: id, a field to skip, frames."""
    lines = []
    for row in range(rows):
        stored = [jpeg(20 + 30 * row + 2 * f) for f in range(frames)]
        lines.append(b"\t".join([f"clip{row}".encode(), b'{"class": 3}', *stored]))
    (folder / f"img_{dataset}.tsv").write_bytes(b"\n".join(lines) + b"\n")
    return folder / f"img_{dataset}.tsv"


def masked_batch(
    size=5, frames=3, pixels=64, p=0.4, seed=0, reads=lambda patches: patches, cut=False
) -> dict:
    """A batch of noise as the model of pre-training takes it; the vocabulary is of 128 words."""
    generator = torch.Generator().manual_seed(seed)
    txt = torch.randint(5, 128, (size, 8), generator=generator)
    txt[:, 0], txt[:, 5], txt[:, 6:] = 2, 3, 0
    batch = {
        "img": torch.randn(size, frames, 3, pixels, pixels, generator=generator),
        "txt": txt,
        "mask": (txt > 0).long(),
        "valid": torch.ones(size, dtype=torch.bool),
    }
    special = SpecialTokens(pad=0, cls=2, sep=3, mask=4)
    return mask_batch(batch, ["rm"], p, special, 32, generator, reads=reads, cut=cut)


class Noise:
    """A teacher that knows nothing: a truth of any shape, the same for the same clips."""

    def __init__(self, width: int, places: int = 1, pairs: bool = False, words: int = 0) -> None:
        self.width, self.places, self.pairs, self.words = words or width, places, pairs, words
        self.channels = width
        self.asked = 0

    def __call__(self, frames: torch.Tensor) -> torch.Tensor:
        self.asked += 1
        clips, number, _, height, width = frames.shape
        grid = (height // 32 * self.places, width // 32 * self.places)
        shape = (clips, number - self.pairs, self.channels, *grid)
        generator = torch.Generator().manual_seed(7)
        noise = torch.randn(shape, generator=generator)
        return (noise.abs() * self.words).long() % self.words if self.words else noise


def noise_teachers() -> dict[str, Noise]:
    """One for every target that has a teacher."""
    return {
        "depth": Noise(1, 32),
        "optical_flow": Noise(2, 32, pairs=True),
        "vq": Noise(1, 4, words=60),
        "3d_feature": Noise(24),
        "2d_feature": Noise(24),
        "2d_clip_feature": Noise(20),
        "clip_visible": Noise(20),
        "latent": Noise(24),
        "random_feature": Noise(24),
    }


def tiny_dpt() -> DPTForDepthEstimation:
    sizes = DPTConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=64,
        patch_size=16,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=16,
    )
    return DPTForDepthEstimation(sizes).eval()


def small_teacher(target: str, swin: Size = SWIN) -> Teacher | None:
    """A small teacher with random weights, of the class that a target has; None if the target has none.

    swin: the size of a Video Swin; that of the model's, which `latent` follows.
    """
    of_swin = {"strict_img_size": False, "embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 4)}
    of_vit = {"dynamic_img_size": True, "embed_dim": 32, "depth": 1, "num_heads": 2}

    def image_network(name: str, sizes: dict[str, Any]) -> Teacher:
        return TimmTeacher(timm.create_model(name, num_classes=0, **sizes))

    if target in ("3d_feature", "latent", "random_feature"):
        return VideoSwinTeacher(VideoSwin(swin))
    if target == "2d_feature":
        return image_network("swin_tiny_patch4_window7_224", of_swin)
    if target in ("2d_clip_feature", "clip_visible"):
        return image_network("vit_base_patch32_clip_224", of_vit)
    if target == "depth":
        return DptTeacher(tiny_dpt(), width=1)
    if target == "optical_flow":
        return RaftTeacher(raft_large(), width=2)
    return DalleTeacher(DalleEncoder(8, 64, 1), width=64) if target == "vq" else None


def demo_network(bert: Path) -> dict[str, str | bool]:
    """The config keys of a network of the demo's size with random weights."""
    return {
        "txt_backbone": str(bert),
        "fusion_encoder": str(bert),
        "txt_backbone_rand_init": True,
        "fusion_encoder_rand_init": True,
        "vis_backbone_size": "demo",
        "vis_backbone_init": "random",
    }


def run_script(monkeypatch, script, arguments: list[str]) -> Path:
    """Run a script in this process, `--config FILE` first; returns its run folder."""
    monkeypatch.setattr(sys, "argv", [script.__name__, *arguments])
    out = Path(json.loads(Path(arguments[1]).read_text())["path_output"])
    before = set(out.glob("_*"))
    monkeypatch.setattr("engine.runs.time.strftime", lambda layout, *_: f"{len(before)}")
    script.main()
    (folder,) = (path for path in set(out.glob("_*")) - before if not path.name.startswith("_scores_"))
    return folder


@pytest.fixture
def arguments(tmp_path, bert_folder):
    """Command line of a run on a corpus of clips and one of pictures."""
    corpora = {"clips": write_corpus(tmp_path, "clips"), "cc3m": write_corpus(tmp_path, "cc3m", image=True)}
    values = {
        "train_yaml": {name: str(path) for name, path in corpora.items()},
        "val_yaml": {name: str(path) for name, path in corpora.items()},
        **demo_network(bert_folder),
        "size_img": 32,
        "size_frame": 2,
        "size_txt": 10,
        "size_batch": 4,
        "mvm_target": ["pixel", "hog"],
        "p_mask": 0.3,
        "lr": 1e-3,
        "n_workers": 0,
        "logging_steps": 1,
        "path_output": str(tmp_path / "out"),
        "device": "cpu",
    }
    (tmp_path / "config.json").write_text(json.dumps(values))
    return ["--config", str(tmp_path / "config.json")]
