"""What every module starts from: the `Config`, the log, errors of the user's, means, files."""

import contextlib
import dataclasses
import difflib
import json
import logging
import logging.handlers
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import jsonargparse

if TYPE_CHECKING:  # the ranges are checked when a config is read; a type checker needs the plain types
    from typing import TypeAlias

    PositiveInt: TypeAlias = int
    NonNegativeInt: TypeAlias = int
    PositiveFloat: TypeAlias = float
    NonNegativeFloat: TypeAlias = float
    ClosedUnitInterval: TypeAlias = float
    Names: TypeAlias = list[str]
else:
    from jsonargparse.typing import (
        ClosedUnitInterval,
        NonNegativeFloat,
        NonNegativeInt,
        PositiveFloat,
        PositiveInt,
    )

    Names = list[str] | str  # in a JSON file one name may stand for a list of one

log = logging.getLogger("violet")

NAMES = {  # the keys that hold names, and the names they may hold
    "pretrain_tasks": ("mlm", "vtm", "mvm"),
    "pretrain_masks": ("rm", "bm", "am"),
    "mvm_target": (
        "3d_feature",
        "2d_feature",
        "2d_clip_feature",
        "pixel",
        "hog",
        "optical_flow",
        "depth",
        "vq",
    ),
    "img_transform": ("img_rand_crop", "vid_rand_crop", "img_center_crop", "pad_resize"),
}


class UserError(SystemExit):
    """Something its user can mend. Uncaught it ends the program with this message and no traceback."""


def lookup(known: Iterable[str], name: str, what: str) -> str:
    """Return `name` if it is one of `known`; else raise `UserError` with the list and the closest match."""
    known = list(known)
    if name in known:
        return name
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    raise UserError(f"{what} {name!r} is unknown{hint} Known: {', '.join(sorted(known))}.")


# --------------------------------------------------------------------------------------------------- config


@dataclass(frozen=True)
class Config:
    """One run: every key of published configs, and a few of ours. The defaults are those of pre-training."""

    # -- what is run
    type: Literal["pretrain", "qamc", "qaoe", "retrieval"] = "pretrain"
    """kind of task; each script accepts its own"""
    task: str = "pretrain"
    """name of the task, part of the run folder's and the annotation file's name"""
    dataset: str = ""
    """name of the dataset, part of the frame file's name"""
    data_dir: str = "_data"
    """folder with the downstream files"""
    train_yaml: dict[str, str] = field(default_factory=dict)
    """pre-training corpora: {name: path of a YAML}"""
    val_yaml: dict[str, str] = field(default_factory=dict)
    """corpora of the evaluation after each epoch: {name: path of a YAML}"""
    size_part: dict[str, PositiveInt] = field(default_factory=dict)
    """number of files that a published corpus is split into; the YAML itself says what is read"""
    path_ckpt: str = ""
    """checkpoint to start from (a file that does not exist is an error)"""
    path_output: str = "_snapshot"
    """where run folders `_TASK_TIME` are made"""

    # -- what is learnt
    pretrain_tasks: Names = field(default_factory=lambda: ["mlm", "vtm", "mvm"])
    """any of mlm (older name: mtm), vtm, mvm"""
    pretrain_masks: Names = field(default_factory=lambda: ["rm", "bm"])
    """patch masks, one drawn per sample: rm random, bm block-wise, am attended"""
    p_mask: ClosedUnitInterval = 0.15
    """share of words and patches that are hidden"""
    mvm_target: Names = field(default_factory=lambda: ["pixel"])
    """one name or a list: 3d_feature 2d_feature 2d_clip_feature pixel hog optical_flow depth vq"""
    mvm_weight: dict[str, NonNegativeFloat] = field(default_factory=dict)
    """weight of a target's loss in the sum, {target: weight}, where it is not 1"""
    mvm_lr_mul: PositiveFloat = 1.0
    """learning rate of the heads of masked visual modelling, as a multiple of lr: they are always new, and in
    a short run from encoders that know much they else stay behind"""
    mvm_on_images: bool = True
    """whether one-frame clips take part in masked visual modelling"""
    temp: PositiveFloat = 0.05
    """temperature of the matching scores"""
    size_option: PositiveInt = 5
    """options of a multiple-choice question"""
    size_vocab: NonNegativeInt = 0
    """answers of an open-ended task's published answer list"""
    size_test: NonNegativeInt = 0
    """questions of the published test split, for accuracy over those without a video too"""
    mask_pos: Literal["append", "prepend", "insert", "replace"] = "append"
    """where a question gets its [MASK]"""
    text_rules: Literal["published", "fixed"] = "published"
    """how a text is cut and where its prompt goes: published, as released checkpoints were trained,
    or fixed, so that no text loses its [MASK], [SEP] or options"""
    reinit_head: bool = False
    """start the prediction head anew instead of from the checkpoint"""
    freeze_violet: bool = False
    """train the prediction head alone"""
    enable_prompt: bool = False
    """put a prompt before the question"""
    enable_task_token: bool = False
    """add the task's embedding"""
    multi_clip_testing: bool = False
    """average the video tokens of every clip of a video"""
    pair_batch: NonNegativeInt = 0
    """video-text pairs fused at a time in retrieval; 0: training all, evaluation what fits"""
    gather_negatives: bool = False
    """in training, pair every video and text with those of all processes"""
    resume_scores: bool = True
    """in evaluation, go on from the scores that an interrupted run left"""

    # -- the input
    size_img: PositiveInt = 224
    """pixels a side"""
    size_frame: PositiveInt = 4
    """frames of a clip"""
    size_txt: PositiveInt = 32
    """text tokens, [CLS] and [SEP] included"""
    size_patch: Literal[32] = 32
    """pixels a side of a patch: the stride of the video encoder"""
    max_size_frame: PositiveInt = 6
    """frames that the position embeddings provide for"""
    max_size_patch: PositiveInt = 14
    """patches a side that the position embeddings provide for"""
    img_transform: Names = field(default_factory=lambda: ["img_rand_crop"])
    """one drawn per sample: img_rand_crop vid_rand_crop img_center_crop pad_resize"""
    data_ratio: NonNegativeFloat = 1.0
    """share of the training videos that is used; above 1, their number"""
    max_bad_ratio: ClosedUnitInterval = 0.01
    """share of unreadable rows beyond which a run stops"""
    n_workers: NonNegativeInt = 4
    """loader processes per process"""

    # -- the network
    vis_backbone: Literal["vidswin"] = "vidswin"
    """video encoder"""
    vis_backbone_size: Literal["demo", "tiny", "small", "base", "large"] = "base"
    """size of the video encoder"""
    vis_backbone_init: Literal["3d", "2d", "random"] = "3d"
    """start from a Video Swin, from an image Swin inflated over time, or from nothing"""
    vis_backbone_path: str = ""
    """file of those weights; empty: the published name under _snapshot/"""
    vis_backbone_lr_mul: PositiveFloat = 1.0
    """learning rate of the video encoder, as a multiple of lr"""
    kinetics: Literal[400, 600] = 600
    """Kinetics edition of the published Video Swin weights"""
    txt_backbone: str = "bert-base-uncased"
    """BERT (name or folder) whose embeddings encode text"""
    txt_backbone_embed_only: bool = True
    """use its embeddings alone, not its encoder"""
    txt_backbone_rand_init: bool = False
    """take its sizes, not its weights"""
    fusion_encoder: str = "bert-base-uncased"
    """BERT (name or folder) whose encoder becomes the cross-modal transformer"""
    fusion_encoder_rand_init: bool = False
    """take its sizes, not its weights"""
    tokenizer: str = ""
    """tokenizer (name or folder); empty: that of txt_backbone"""

    # -- the training
    size_epoch: NonNegativeInt = 10
    """epochs; 0 evaluates only"""
    max_steps: NonNegativeInt = 0
    """end after this many optimiser steps (the schedule ends there too); 0: after size_epoch"""
    size_batch: PositiveInt = 20
    """clips per process and step"""
    accumulate: PositiveInt = 1
    """batches whose gradients make one optimiser step"""
    lr: PositiveFloat = 5e-5
    """peak learning rate"""
    decay: NonNegativeFloat = 1e-3
    """weight decay"""
    warmup_ratio: ClosedUnitInterval = 0.1
    """share of the steps in which the learning rate rises"""
    max_grad_norm: NonNegativeFloat = 1.0
    """gradients are clipped to this norm; 0: not at all"""
    amp: Literal["off", "bf16", "fp16"] = "off"
    """autocast type of the forward pass; fp16 scales the loss"""
    use_checkpoint: bool = False
    """activation checkpointing: less memory, a third more compute"""
    parallel: Literal["ddp", "zero1", "fsdp"] = "ddp"
    """what several processes share: ddp gradients, zero1 also optimiser states, fsdp also parameters"""
    deepspeed: bool = False
    """key of published configs: half precision (bf16 where the device has it) and zero1, as it means there"""
    compile: bool = False
    """compile the video encoder and the cross-modal transformer"""
    deterministic: bool = False
    """bit-equal results where the device leaves a choice; slower"""
    seed: NonNegativeInt = 88
    """of everything random; each process adds its rank"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ...; auto is the accelerator where there is one"""
    eval_start: bool = False
    """evaluate before training too"""
    eval_every: PositiveInt = 1
    """epochs between two evaluations, each with its checkpoint; one follows the last epoch in any case"""
    logging_steps: PositiveInt = 20
    """steps between two lines of the log"""
    logger: Literal["", "wandb"] = ""
    """wandb: figures go to Weights & Biases too"""
    profile: NonNegativeInt = 0
    """steps to profile near the start: a trace, and a table of the ten costliest operations"""

    # -- going on with a run
    resume: str = ""
    """auto: go on with the newest unfinished run of this task and config, or start one; or a run's folder"""
    save_minutes: NonNegativeFloat = 30.0
    """minutes between two saves of the training state, which epoch ends save too; 0: after every step"""
    requeue_code: int = 0
    """exit code after SIGTERM, SIGUSR1 or SIGINT has been obeyed"""

    # -- the teachers of MVM targets, loaded for the chosen ones alone
    feature_teacher: str = "_snapshot/swin_base_patch244_window877_kinetics600_22k.pth"
    """of 3d_feature: a Video Swin or VIOLET checkpoint of any size"""
    image_teacher: str = "timm/swin_base_patch4_window7_224.ms_in22k"
    """of 2d_feature: a timm model by name, folder or file"""
    clip_teacher: str = "timm/vit_base_patch32_clip_224.openai"
    """of 2d_clip_feature: a timm model by name, folder or file"""
    flow_teacher: str = "_snapshot/raft_large_C_T_SKHT_V2-ff5fadd5.pth"
    """of optical_flow: RAFT-Large's file, or dis: OpenCV's flow, which needs none"""
    depth_teacher: str = "Intel/dpt-large"
    """of depth: a DPT of transformers by name or folder"""
    dalle_model_path: str = "_snapshot/encoder.pkl"
    """of vq: DALL-E's encoder"""
    teacher_init: Literal["published", "random"] = "published"
    """random: teachers that know nothing, to try the plumbing without their weights"""
    teacher_batch: PositiveInt = 32
    """frames (or pairs of frames) that a teacher is given at a time"""
    teacher_device: str = ""
    """device of the teachers; empty: that of the model"""

    def __post_init__(self) -> None:
        """Check what a type alone cannot say; the names are made canonical (mtm is mlm)."""
        for key, known in NAMES.items():
            names = getattr(self, key)
            names = [names] if isinstance(names, str) else names  # Deviation 6
            names = ["mlm" if name == "mtm" else name for name in names]
            for name in names:
                lookup(known, name, key)
            if not names or len(set(names)) < len(names):
                raise UserError(f"{key} {names}: name at least one of {', '.join(known)}, and none twice.")
            object.__setattr__(self, key, names)
        for name in self.mvm_weight:
            lookup(NAMES["mvm_target"], name, "mvm_weight: target")
        if self.size_img % self.size_patch:
            raise UserError(f"size_img {self.size_img} is not a multiple of size_patch {self.size_patch}.")
        if self.size_frame > self.max_size_frame:
            raise UserError(f"size_frame {self.size_frame} exceeds max_size_frame {self.max_size_frame}.")
        if self.size_img // self.size_patch > self.max_size_patch:
            raise UserError(f"size_img {self.size_img} needs more than max_size_patch {self.max_size_patch}.")
        if self.size_txt < 3:
            raise UserError(f"size_txt {self.size_txt} leaves no word between [CLS] and [SEP].")

    def save(self, path: Path) -> None:
        """Write every key as JSON; `--config` reads it back."""
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")


KEYS = tuple(f.name for f in dataclasses.fields(Config))


def load_config(kind: str, arguments: Sequence[str] | None = None) -> Config:
    """Read `--config FILE.json` and the `--key value` that follow it (default: the command line's).

    `kind` is the `type` that the calling script runs. Raises `UserError` for an unknown key, a value of
    the wrong type, range or choice, and a config of another type.
    """
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config", help="JSON file of any of the keys below")
    parser.add_class_arguments(Config)
    given = sys.argv[1:] if arguments is None else arguments
    # torch.distributed.launch adds --local-rank; the environment variable LOCAL_RANK says the same
    given = [a for a in given if not re.fullmatch(r"--local[-_]rank=\d+", a)]
    try:
        values = parser.parse_args(given)
    except (jsonargparse.ArgumentError, TypeError) as error:
        unknown = re.search(r"Option '(\w+)' is not accepted|unrecognized arguments: --([^\s=]+)", str(error))
        if unknown:
            lookup(KEYS, unknown[1] or unknown[2], "config key")
        raise UserError(f"config: {error}") from None
    config = Config(**{key: values[key] for key in KEYS})
    if config.type != kind:
        raise UserError(f"this script runs configs of type {kind!r}; this one is of type {config.type!r}.")
    return config


def warn_of_unread(config: Config, keys: Iterable[str]) -> None:
    """Say of these keys, which a script does not read, that what was set has no effect."""
    default = Config(type=config.type)
    changed = [key for key in keys if getattr(config, key) != getattr(default, key)]
    if changed:
        log.warning("without effect here: %s", ", ".join(f"{k} {getattr(config, k)}" for k in changed))


# ------------------------------------------------------------------------------------------------- files


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; it becomes `path` if nothing was raised, else it is removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o666 & ~_umask())  # mkstemp's own mode keeps others from reading
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
