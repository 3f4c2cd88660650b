"""Weights that others publish: purpose, size, address and digest of each file."""

from dataclasses import dataclass
from pathlib import Path

from lib import UserError


@dataclass(frozen=True)
class Published:
    """One file, or one model of the Hugging Face hub."""

    what: str
    purpose: str
    """the config key that names it"""
    size: str
    """as published"""
    page: str
    direct: bool = False
    """whether `page` is the file's own address; if not, a person or a library fetches it"""
    bytes: int = 0
    """exact size; 0: not published"""
    sha256: str = ""
    """the digest, or its beginning; empty: not published"""


SWIN_RELEASES = "https://github.com/SwinTransformer/storage/releases/download"
DRIVE = "https://drive.google.com"
HUB = "https://huggingface.co"
PRETRAINED = "ckpt_pretrain_3d-init_webvid-cc_2d_rm-bm_0.3_ep10.pt"
ABLATION = f"{DRIVE}/drive/u/1/folders/1QgxhnRy8Pmyhg65kh0Q80DNn4UVkf5tA"  # those of Tables 1 and 6
TASKS = (  # msrvtt-mc is evaluated with the checkpoint of msrvtt-retrieval
    "tgif-action",
    "tgif-transition",
    "tgif-frame",
    "msrvtt-qa",
    "msvd-qa",
    "lsmdc-mc",
    "lsmdc-fib",
    "msrvtt-retrieval",
    "didemo-retrieval",
    "lsmdc-retrieval",
)

PUBLISHED = {
    PRETRAINED: Published(
        "VIOLETv2, pre-trained",
        "path_ckpt",
        "",
        f"{DRIVE}/file/d/1KgC1rjXzjUVQWKpRT5-bhUDLUGAuoJgl",
    ),
    **{
        f"ckpt_violet_{task}.pt": Published(
            f"VIOLETv2 after {task}",
            "path_ckpt",
            "",
            f"{DRIVE}/drive/u/1/folders/1HF9qeBMRsP0rnp_vVuBeUwFf9r7KE_92",
        )
        for task in TASKS
    },
    "swin_base_patch244_window877_kinetics600_22k.pth": Published(
        "Video Swin-B, Kinetics-600",
        "vis_backbone_path, feature_teacher",
        "88 million parameters",
        f"{SWIN_RELEASES}/v1.0.4/swin_base_patch244_window877_kinetics600_22k.pth",
        direct=True,
    ),
    "swin_base_patch4_window7_224_22k.pth": Published(
        "Swin-B, ImageNet-22K",
        "vis_backbone_path",
        "109 million parameters",
        f"{SWIN_RELEASES}/v1.0.0/swin_base_patch4_window7_224_22k.pth",
        direct=True,
    ),
    "timm/swin_base_patch4_window7_224.ms_in22k": Published(
        "Swin-B, ImageNet-22K, timm's layout",
        "image_teacher",
        "109 million parameters",
        f"{HUB}/timm/swin_base_patch4_window7_224.ms_in22k",
    ),
    "timm/vit_base_patch32_clip_224.openai": Published(
        "CLIP ViT-B/32, timm's layout",
        "clip_teacher",
        "88 million parameters",
        f"{HUB}/timm/vit_base_patch32_clip_224.openai",
    ),
    "raft_large_C_T_SKHT_V2-ff5fadd5.pth": Published(
        "RAFT-Large, torchvision's layout",
        "flow_teacher",
        "21 MB",
        "https://download.pytorch.org/models/raft_large_C_T_SKHT_V2-ff5fadd5.pth",
        direct=True,
        bytes=21_106_607,
        sha256="ff5fadd5",
    ),
    "Intel/dpt-large": Published(
        "DPT-Large, transformers' layout", "depth_teacher", "1.37 GB", f"{HUB}/Intel/dpt-large"
    ),
    "encoder.pkl": Published(
        "DALL-E's encoder",
        "dalle_model_path",
        "215 MB",
        "https://cdn.openai.com/dall-e/encoder.pkl",
        direct=True,
    ),
    "bert-base-uncased": Published(
        "BERT: text embeddings, cross-modal transformer, MLM head, tokenizer",
        "txt_backbone, fusion_encoder, tokenizer",
        "110 million parameters",
        f"{HUB}/google-bert/bert-base-uncased",
    ),
}


def published(name: str | Path) -> Published | None:
    """The entry of a published file or model of the hub, by its name, in any folder."""
    for known, entry in PUBLISHED.items():
        if str(name) == known or Path(name).name == Path(known).name:
            return entry
    return None


def missing_weights(name: str | Path, key: str) -> UserError:
    """The error for weights that are not there: what they are, where published, and the config key."""
    return UserError(describe_missing(name, key))


def describe_missing(name: str | Path, key: str) -> str:
    """As `missing_weights`, in words."""
    entry = published(name)
    if entry is None:
        return f"{name} does not exist; the config key {key} names it."
    size = f" ({entry.size})" if entry.size else ""
    return (
        f"{name} does not exist. It is {entry.what}{size}, published at {entry.page}: put it under "
        f"_snapshot/ and set the config key {key} to its path."
    )


def download(name: str, key: str, files: tuple[str, ...]) -> Path:
    """A model of the Hugging Face hub -> the folder where its files now are."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(files)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise missing_weights(name, key) from error
