"""What every module starts from: the `Config`, the log, errors of the user's, means, files."""

import contextlib
import dataclasses
import difflib
import errno
import fcntl
import json
import logging
import logging.handlers
import os
import re
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import jsonargparse
import yaml

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


# beyond these a value is a slip, or an attack: it would take all memory, processes or positions
LIMITS = {
    "size_img": 4096,
    "size_frame": 1024,
    "size_txt": 4096,
    "max_size_frame": 1024,
    "max_size_patch": 128,
    "size_option": 1000,
    "size_batch": 1 << 20,
    "accumulate": 1 << 20,
    "n_workers": 1024,
    "teacher_batch": 1 << 16,
    "pair_batch": 1 << 24,
    "seed": (1 << 32) - 1,
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
        check_limits(self)
        if self.size_txt < 3:
            raise UserError(f"size_txt {self.size_txt} leaves no word between [CLS] and [SEP].")

    def save(self, path: Path) -> None:
        """Write every key as JSON; `--config` reads it back."""
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")


def check_limits(config: Config) -> None:
    """Raise `UserError` for a number beyond `LIMITS`, and for a name that no file name may hold."""
    for key, most in LIMITS.items():
        if getattr(config, key) > most:
            raise UserError(f"{key} {getattr(config, key)} is more than {most}: correct it.")
    for key in ("task", "dataset"):
        name = getattr(config, key)
        if len(name) > 100 or "/" in name or "\\" in name or not name.isprintable():
            raise UserError(
                f"{key} {shown(name)[:40]!r} becomes a part of file names: choose up to 100 printable "
                "characters without a slash."
            )


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
    check_configs(given)
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


def check_configs(arguments: Sequence[str]) -> None:
    """Raise `UserError` for a file after `--config` that is not a JSON object."""
    places = [i + 1 for i, argument in enumerate(arguments[:-1]) if argument == "--config"]
    names = [arguments[i] for i in places] + [a[9:] for a in arguments if a.startswith("--config=")]
    for name in names:
        todo = "name one of _args/, or the args.json of a run"
        if not isinstance(read_json(Path(name), todo, most=1 << 20), dict):
            raise UserError(f"{name} is no JSON object of config keys; {todo}.")


def warn_of_unread(config: Config, keys: Iterable[str]) -> None:
    """Say of these keys, which a script does not read, that what was set has no effect."""
    default = Config(type=config.type)
    changed = [key for key in keys if getattr(config, key) != getattr(default, key)]
    if changed:
        log.warning("without effect here: %s", ", ".join(f"{k} {getattr(config, k)}" for k in changed))


# ------------------------------------------------------------------------------------------------- files


TEMPORARY = ".violet-"  # within the names of files that are being written, and of no others


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; it becomes `path` if nothing was raised, else it is removed.

    Its name is `.NAME.violet-XXXXXXXX`. An `OSError` of writing names `path`, whichever call it came from.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}{TEMPORARY}")
        os.close(descriptor)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o666 & ~_umask())  # mkstemp's own mode keeps others from reading
        temporary.replace(path)
    except OSError as error:
        if error.errno is None or error.filename not in (None, name):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def leftovers(folder: Path) -> list[Path]:
    """The temporary files of `atomic_path` in a folder; only a killed program leaves any."""
    return [path for path in folder.glob(f".*{TEMPORARY}*") if path.is_file() and not path.is_symlink()]


def hold(path: Path) -> IO[str] | None:
    """The lock that a file stands for, held until the file is closed or the process ends.

    None: another process holds it.
    """
    file = path.open("a")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of this process: no worker inherits it
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            file.close()
            return None
        log.debug("%s cannot be locked: %s", path, error)  # not all network file systems can
    return file


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


# ------------------------------------------------------------------------- one line for whatever goes wrong

EMPTY = "it is empty"
DEEPEST = 100  # levels of lists and dicts within one another that a file of text may have
DISK = frozenset([errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG])
DISK |= {errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR}


@contextlib.contextmanager
def reading(path: str | Path, what: str, todo: str = "fetch or make it again") -> Iterator[None]:
    """Whatever a reader raises inside becomes one line: the file, the reason, a remedy.

    `what` says how the file was to be read ("JSON", "a checkpoint of tensors"). Raises `UserError`.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # readers of damaged files raise any kind
        raise UserError(f"{path} cannot be read as {what}: {why(path, error)}; {todo}.") from error


@contextlib.contextmanager
def writing(what: str) -> Iterator[None]:
    """A disk that is full, read-only or forbidden becomes one line. Raises `UserError`."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK:
            raise
        place = error.filename or what
        raise UserError(f"{place}: {error.strerror}; make room, or name another place.") from error


def why(path: str | Path, error: BaseException) -> str:
    """The reason why a file cannot be read: by its content where that says more than the reader's error."""
    return unsuitable(Path(path)) or words_of(error)


def words_of(error: BaseException) -> str:
    """The reason that an error gives, in one line."""
    if isinstance(error, UnicodeDecodeError):
        return f"the text is not UTF-8 (byte {error.start})"
    if isinstance(error, RecursionError):
        return "lists or dicts are nested too deep, or contain themselves"
    if isinstance(error, KeyError | IndexError | TypeError | AttributeError):
        return "it is damaged, or of another form"
    if isinstance(error, MemoryError):
        return "more memory is claimed than there is"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return shown(first)[:300].rstrip(".;") or type(error).__name__


def unsuitable(path: Path) -> str:
    """Whether a path leads to no file, or to one that is something else altogether; empty if it does not."""
    try:
        kind, size = path.stat().st_mode, path.stat().st_size
        if stat.S_ISDIR(kind):
            return "it is a folder"
        if not stat.S_ISREG(kind):
            return "it is a pipe, a socket or a device, not a file"
        if not size:
            return EMPTY
        with path.open("rb") as file:
            start = file.read(512).lstrip(b"\xef\xbb\xbf \t\r\n")
    except FileNotFoundError:
        return "it does not exist (No such file)"
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)
    if re.match(rb"<(!doctype html|html|head|body|\?xml)", start, re.IGNORECASE):
        return f"it is a web page ({size} bytes), which came instead of the file"
    if start.startswith(b"version https://git-lfs.github.com"):
        return "it is a git-lfs pointer: run `git lfs pull` where it came from"
    return ""


def read_json(path: Path, todo: str = "correct it, or make it again", most: int = 1 << 28) -> Any:
    """The content of a JSON file in UTF-8, of `most` bytes at most. Raises `UserError`."""
    with reading(path, "JSON", todo):
        check_file(path, most)
        return parse_json(path.read_bytes())


def parse_json(text: bytes | str) -> Any:
    """A JSON text in UTF-8; halves of surrogate pairs, which no UTF-8 text has, become U+FFFD.

    Raises `ValueError`, for a number beyond 64 bits and for what is nested too deep as well.
    """
    text = text if isinstance(text, str) else text.decode("utf-8-sig")
    try:
        content = json.loads(text, parse_int=_whole)
        return _without_halves(content) if re.search(r"\\u[dD][89a-fA-F]", text) else content
    except RecursionError:
        raise ValueError("lists or dicts are nested too deep") from None


def _whole(digits: str) -> int:
    if len(digits) > 18 and not -(1 << 63) <= int(digits) < 1 << 63:
        raise ValueError(f"the number {digits[:20]}... is beyond 64 bits")
    return int(digits)


def _without_halves(content: Any) -> Any:
    if isinstance(content, str):
        return re.sub("[\ud800-\udfff]", "\ufffd", content)
    if isinstance(content, list):
        return [_without_halves(item) for item in content]
    if isinstance(content, dict):
        return {_without_halves(key): _without_halves(item) for key, item in content.items()}
    return content


class _Yaml(yaml.SafeLoader):
    """YAML without aliases: a few lines of them may stand for gigabytes, and no corpus needs one."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Refuse an alias, and what is nested too deep."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not read")
        self.depth = getattr(self, "depth", 0) + 1
        if self.depth > DEEPEST:
            raise yaml.YAMLError("lists or dicts are nested too deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def read_yaml(path: Path, todo: str = "correct it, see _data/README.md") -> Any:
    """The content of a YAML file in UTF-8. Raises `UserError`."""
    with reading(path, "YAML", todo):
        check_file(path, most=1 << 18)
        return yaml.load(path.read_bytes().decode("utf-8-sig"), _Yaml)


def check_file(path: Path, most: int = 1 << 31) -> None:
    """Raise `ValueError` if a path is no regular file, or has more bytes than such a file ever has."""
    if (wrong := unsuitable(path)) and wrong != EMPTY:
        raise ValueError(wrong)
    if path.stat().st_size > most:
        raise ValueError(f"it has {path.stat().st_size} bytes, more than the {most} of any such file")


def shown(text: str) -> str:
    """A text for the console: what would move its cursor or change its colours is written as an escape."""
    return "".join(
        c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape", "backslashreplace").decode()
        for c in text
    )
