"""The `Config` and its keys, the processes of a run, the log, errors that a user can mend."""

import dataclasses
import difflib
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

# torch is not imported here: it takes two seconds, and mistakes in a command are reported before. Ranges are
# checked when a config is read; a type checker needs the plain types.
if TYPE_CHECKING:
    from typing import TypeAlias

    import torch
    import torch.distributed as dist
    from torch import Tensor

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
MISTAKE = 78  # exit code of a mistake that a restart does not mend (EX_CONFIG)


def registered_targets() -> tuple[str, ...]:
    """The names under which mvm_targets.py registers its classes.

    They are read from its text, since importing it would import torch.
    """
    text = Path(__file__).with_name("mvm_targets.py").read_text()
    return tuple(re.findall(r'^@register\("(\w+)"\)', text, re.MULTILINE))


NAMES = {  # the keys that hold names, and the names they may hold
    "pretrain_tasks": ("mlm", "vtm", "mvm", "vtc"),
    "pretrain_masks": ("rm", "bm", "am"),
    "mvm_target": registered_targets(),
    "img_transform": ("img_rand_crop", "vid_rand_crop", "img_center_crop", "pad_resize"),
}


# larger values are mistakes or attacks: they would take all memory, processes or positions
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


class UserError(Exception):
    """A mistake that the user can correct: scripts print its message without a traceback (`run_script`)."""


def lookup(known: Iterable[str], name: str, what: str) -> str:
    """Return `name` if it is one of `known`; else raise `UserError` with the list and the closest match."""
    known = list(known)
    if name in known:
        return name
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    raise UserError(f"{what} {name!r} is unknown{hint} Known: {', '.join(sorted(known))}.")


def run_script(main: Callable[[], object]) -> None:
    """Run a script's `main`; a `UserError` becomes its message and the exit code `MISTAKE`."""
    rank, size = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    start_log(World(cast(Any, None), rank, size))  # lines about the config go to the run's file too
    if Path(sys.argv[0]).stem not in SCRIPTS:
        log.handlers[0].setLevel(logging.WARNING)  # a tool prints its own results
    try:
        main()
    except UserError as error:
        if str(error):
            print(error, file=sys.stderr)
        sys.exit(MISTAKE)


# --------------------------------------------------------------------------------------------------- config

SCRIPTS = {  # script -> the `type` of the configs that it runs
    "main_pretrain_yaml": "pretrain",
    "main_qamc_tsv": "qamc",
    "main_qamc_tsv_mlm_gen_ans_idx": "qamc",
    "main_qaoe_tsv_mlm_head": "qaoe",
    "main_qaoe_tsv_lsmdc_fib": "qaoe",
    "main_retrieval_tsv": "retrieval",
    "eval_retrieval_tsv": "retrieval",
}
PRETRAIN, CHOICE, NUMBER, OPEN, BLANK, PAIRS, RANKING = ((name,) for name in SCRIPTS)
BY_MASK = NUMBER + OPEN + BLANK
QUESTIONS = CHOICE + BY_MASK
RETRIEVAL = PAIRS + RANKING
FINE_TUNING = QUESTIONS + PAIRS
TRAINING = PRETRAIN + FINE_TUNING
EVERY = TRAINING + RANKING
RUN, LEARNT, INPUT, NETWORK = "the run", "the task", "the input", "the network"  # groups in --help
STEPS, RESUME, TEACHERS = "the training", "resuming", "teachers of MVM targets"


def key(default: Any, scripts: tuple[str, ...], group: str) -> Any:
    """A key of the config: its default (a list or dict is copied), the scripts that read it, its group."""
    metadata = {"scripts": scripts, "group": group}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Config:
    """The config of a run: every key of published configs, and a few of ours. Defaults are for pre-training.

    Each key names the scripts that read it; another script warns about it.
    """

    # -- what is run
    type: Literal["pretrain", "qamc", "qaoe", "retrieval"] = key("pretrain", EVERY, RUN)
    """kind of task: pretrain, qamc (multiple choice), qaoe (open-ended) or retrieval"""
    task: str = key("pretrain", EVERY, RUN)
    """name of the task, part of the names of the run folder and of txt_TASK.json"""
    dataset: str = key("", QUESTIONS + RETRIEVAL, RUN)
    """name of the dataset: frames are read from img_DATASET.tsv"""
    data_dir: str = key("_data", EVERY, RUN)
    """folder of the data: txt_TASK.json and img_DATASET.tsv; YAMLs of corpora are sought there too"""
    train_yaml: dict[str, str] = key({}, PRETRAIN, RUN)
    """pre-training corpora, {name: path of a YAML}"""
    val_yaml: dict[str, str] = key({}, PRETRAIN, RUN)
    """corpora on which the model is evaluated, {name: path of a YAML}"""
    size_part: dict[str, PositiveInt] | PositiveInt = key(1, PRETRAIN, RUN)
    """evaluations and checkpoints per epoch: a number, or {corpus: number}, of which the largest counts"""
    path_ckpt: str = key("", EVERY, RUN)
    """checkpoint to start from: a file, or a run folder, whose best checkpoint is taken"""
    path_output: str = key("_snapshot", EVERY, RUN)
    """folder in which run folders _TASK_TIME are made"""

    # -- what is learnt
    pretrain_tasks: Names = key(["mlm", "vtm", "mvm"], PRETRAIN, LEARNT)
    """any of mlm (older name: mtm), vtm, mvm, vtc (contrastive loss of video and text embeddings)"""
    pretrain_masks: Names = key(["rm", "bm"], PRETRAIN, LEARNT)
    """patch masks, one drawn per sample: rm random patches, bm boxes, am attended patches and words"""
    p_mask: ClosedUnitInterval = key(0.15, PRETRAIN, LEARNT)
    """probability that a word or a patch is masked"""
    mvm_target: Names = key(["pixel"], PRETRAIN, LEARNT)
    """one target or several: 3d_feature 2d_feature 2d_clip_feature pixel hog optical_flow depth vq
    clip_visible latent random_feature"""
    mvm_weight: dict[str, NonNegativeFloat] | Literal["balanced"] = key({}, PRETRAIN, LEARNT)
    """weights of the targets' losses in the sum, {target: weight}; 1 where a target is not named; balanced:
    the gradients of all targets at the transformer's output are mvm_share times as large as MLM's"""
    mvm_share: PositiveFloat = key(1.0, PRETRAIN, LEARNT)
    """with mvm_weight balanced: gradients of all targets together, as a multiple of MLM's"""
    mvm_lr_mul: PositiveFloat = key(1.0, PRETRAIN, LEARNT)
    """learning rate of the MVM heads, as a multiple of lr: they always start from random weights"""
    mvm_on_images: bool = key(True, PRETRAIN, LEARNT)
    """compute MVM losses on image-text pairs too"""
    temp: PositiveFloat = key(0.05, PRETRAIN + PAIRS, LEARNT)
    """temperature of the matching scores"""
    vtm_negatives: Literal["random", "hard"] = key("random", PRETRAIN, LEARNT)
    """wrong texts of video-text matching: random, or drawn by the similarity of the embeddings of vtc"""
    size_option: PositiveInt = key(5, CHOICE + NUMBER, LEARNT)
    """number of options of a multiple-choice question"""
    size_vocab: int = key(0, OPEN + BLANK, LEARNT)
    """number of answers in the published answer list; only compared with the annotation file"""
    size_test: NonNegativeInt = key(0, QUESTIONS, LEARNT)
    """number of questions of the published test split, to report accuracy over all of them"""
    mask_pos: Literal["append", "prepend", "insert", "replace"] = key("append", NUMBER + OPEN, LEARNT)
    """place of [MASK] in a question"""
    text_rules: Literal["published", "fixed"] = key("published", QUESTIONS + RETRIEVAL, LEARNT)
    """published: questions are cut as for released checkpoints, and main_retrieval_tsv.py keeps one caption
    per video in val and test; fixed: no question loses its [MASK], [SEP] or options, and all captions stay"""
    reinit_head: bool = key(False, FINE_TUNING, LEARNT)
    """start the prediction head from random weights, whatever the checkpoint holds"""
    freeze_violet: bool = key(False, FINE_TUNING, LEARNT)
    """train the prediction head only"""
    enable_prompt: bool = key(False, QUESTIONS, LEARNT)
    """put a prompt before the question"""
    enable_task_token: bool = key(False, BY_MASK, LEARNT)
    """put the embedding of the task (emb_task) behind the video tokens"""
    multi_clip_testing: bool = key(True, RANKING, LEARNT)
    """average the video tokens of every clip of a video, as the published evaluation always does"""
    eval_split: Literal["test", "val"] = key("test", RANKING, LEARNT)
    """split that is ranked"""
    pair_batch: NonNegativeInt = key(0, RETRIEVAL, LEARNT)
    """video-text pairs that are fused at a time; 0: all in training, as many as fit in evaluation"""
    gather_negatives: bool = key(False, PAIRS, LEARNT)
    """pair every video and text with those of all processes, not only of its own batch"""
    vtc: bool = key(False, PAIRS, LEARNT)
    """also train embeddings of videos and texts (fc_vtc) by a contrastive loss over all processes"""
    rerank: NonNegativeInt = key(0, RANKING, LEARNT)
    """candidates of each text and of each video, the most similar by embedding, that are scored by the
    cross-modal transformer; 0: all pairs, as published"""
    resume_scores: bool = key(True, RANKING, LEARNT)
    """continue from the scores that an interrupted evaluation left"""

    # -- the input
    size_img: PositiveInt = key(224, EVERY, INPUT)
    """height and width of a frame in pixels"""
    size_frame: PositiveInt = key(4, EVERY, INPUT)
    """frames per clip"""
    size_txt: PositiveInt = key(32, EVERY, INPUT)
    """text tokens, [CLS] and [SEP] included"""
    size_patch: Literal[32] = key(32, EVERY, INPUT)
    """height and width of a patch in pixels: the stride of the video encoder"""
    max_size_frame: PositiveInt = key(6, EVERY, INPUT)
    """frames for which there are position embeddings"""
    max_size_patch: PositiveInt = key(14, EVERY, INPUT)
    """patches per side for which there are position embeddings"""
    img_transform: Names = key(["img_rand_crop"], EVERY, INPUT)
    """img_rand_crop, vid_rand_crop, img_center_crop or pad_resize; of several, one is drawn per frame"""
    data_ratio: NonNegativeFloat = key(1.0, FINE_TUNING, INPUT)
    """share of the training videos that is used; above 1, their number"""
    max_bad_ratio: ClosedUnitInterval = key(0.01, EVERY, INPUT)
    """share of unreadable rows above which a run stops"""
    n_workers: NonNegativeInt = key(4, EVERY, INPUT)
    """data-loading workers per training process, at most as many as each process has cores"""
    shuffle_rows: NonNegativeInt = key(0, PRETRAIN, INPUT)
    """pairs of a corpus that are shuffled together, then the next: files are read nearly in their order, as
    network disks need; 0: whole corpora are shuffled"""

    # -- the network
    vis_backbone: Literal["vidswin"] = key("vidswin", EVERY, NETWORK)
    """video encoder"""
    vis_backbone_size: Literal["demo", "tiny", "small", "base", "large"] = key("base", EVERY, NETWORK)
    """size of the video encoder"""
    vis_backbone_init: Literal["3d", "2d", "random"] = key("3d", EVERY, NETWORK)
    """start from Video Swin weights (3d), from an image Swin inflated over time (2d), or random"""
    vis_backbone_path: str = key("", EVERY, NETWORK)
    """file of those weights; empty: the published file under _snapshot/"""
    vis_backbone_lr_mul: PositiveFloat = key(1.0, TRAINING, NETWORK)
    """learning rate of the video encoder, as a multiple of lr"""
    kinetics: Literal[400, 600, -1] = key(600, EVERY, NETWORK)
    """Kinetics edition of the published Video Swin weights; -1: 600"""
    txt_backbone: str = key("bert-base-uncased", EVERY, NETWORK)
    """BERT (name or folder) whose embeddings encode text"""
    txt_backbone_embed_only: bool = key(True, EVERY, NETWORK)
    """use only the embeddings of txt_backbone, not its encoder"""
    txt_backbone_rand_init: bool = key(False, EVERY, NETWORK)
    """start txt_backbone from random weights"""
    fusion_encoder: str = key("bert-base-uncased", EVERY, NETWORK)
    """BERT (name or folder) whose encoder becomes the cross-modal transformer"""
    fusion_encoder_rand_init: bool = key(False, EVERY, NETWORK)
    """start fusion_encoder from random weights"""
    tokenizer: str = key("", EVERY, NETWORK)
    """tokenizer (name or folder); empty: that of txt_backbone"""

    # -- the training
    size_epoch: NonNegativeInt = key(10, TRAINING, STEPS)
    """epochs; 0: evaluate only"""
    max_steps: NonNegativeInt = key(0, TRAINING, STEPS)
    """stop after this many optimiser steps; the learning rate reaches 0 there. 0: train size_epoch epochs"""
    size_batch: PositiveInt = key(20, EVERY, STEPS)
    """clips per process and batch"""
    accumulate: PositiveInt = key(1, TRAINING, STEPS)
    """batches whose gradients are averaged for one optimiser step"""
    lr: PositiveFloat = key(5e-5, TRAINING, STEPS)
    """peak learning rate"""
    decay: NonNegativeFloat = key(1e-3, TRAINING, STEPS)
    """weight decay"""
    warmup_ratio: ClosedUnitInterval = key(0.1, TRAINING, STEPS)
    """share of the steps in which the learning rate rises"""
    max_grad_norm: float = key(1.0, TRAINING, STEPS)
    """gradients are clipped to this norm; 0 or less: not at all"""
    amp: Literal["off", "bf16", "fp16"] = key("off", EVERY, STEPS)
    """precision of the forward pass: autocast to bf16 or fp16 (with a loss scale), or off"""
    use_checkpoint: bool | Literal["auto"] = key("auto", TRAINING, STEPS)
    """activation checkpointing: less memory, steps half as long again; auto: on GPUs of less than 24 GB"""
    parallel: Literal["ddp", "zero1", "fsdp"] = key("ddp", TRAINING, STEPS)
    """ddp exchanges gradients; zero1 also shards the optimiser state; fsdp also shards the parameters"""
    compress_gradients: bool = key(False, TRAINING, STEPS)
    """exchange gradients between processes in bf16, with half of the bytes; ddp and zero1 alone"""
    deepspeed: bool = key(False, TRAINING, STEPS)
    """key of published configs: bf16 (without it fp16 on a GPU, float32 on a CPU), and zero1 on GPUs of less
    than 24 GB"""
    compile: bool | Literal["auto"] = key("auto", TRAINING, STEPS)
    """compile the video encoder and the cross-modal transformer; auto: on CUDA, if Triton is installed"""
    window_kernels: bool | Literal["auto"] = key("auto", TRAINING, STEPS)
    """attention within Video Swin's windows by our own kernels, in bf16 and fp16; auto: on CUDA of compute
    capability 8 or more, if Triton is installed"""
    tf32: bool = key(False, EVERY, STEPS)
    """with amp off on CUDA: matrix products in TF32, faster and of lower precision than float32"""
    deterministic: bool = key(False, EVERY, STEPS)
    """bit-equal results on accelerators too; slower"""
    seed: NonNegativeInt = key(88, EVERY, STEPS)
    """seed of everything random; each process adds its rank"""
    device: str = key("auto", EVERY, STEPS)
    """auto, cpu, cuda, cuda:1, ...; auto takes the accelerator if there is one"""
    eval_start: bool = key(False, TRAINING, STEPS)
    """evaluate before training too"""
    eval_every: PositiveInt = key(1, TRAINING, STEPS)
    """epochs between two evaluations; the last epoch is always evaluated"""
    keep_epochs: bool = key(False, FINE_TUNING, STEPS)
    """keep the checkpoint of every epoch, not only of the best and the last; pre-training always does"""
    logging_steps: PositiveInt = key(20, TRAINING, STEPS)
    """steps between two lines of figures"""
    doctor_every: NonNegativeInt = key(100, PRETRAIN, STEPS)
    """steps between two measurements of each loss's gradient, more frequent in the first steps; 0: none"""
    logger: Literal["", "wandb"] = key("", TRAINING, STEPS)
    """wandb: also send figures to Weights & Biases"""
    profile: NonNegativeInt = key(0, TRAINING, STEPS)
    """steps to profile near the start: a trace, and a table of the ten costliest operations"""

    # -- going on with a run
    resume: str = key("", TRAINING, RESUME)
    """auto: resume the newest unfinished run of this task and config, or start one; or a run folder"""
    save_minutes: NonNegativeFloat = key(30.0, TRAINING, RESUME)
    """minutes between two saves of the training state; 0: after every step"""
    requeue_code: int = key(0, TRAINING, RESUME)
    """exit code after SIGTERM, SIGUSR1 or SIGINT"""

    # -- the teachers of MVM targets, loaded for the chosen ones alone
    feature_teacher: str = key(
        "_snapshot/swin_base_patch244_window877_kinetics600_22k.pth", PRETRAIN, TEACHERS
    )
    """teacher of 3d_feature: a Video Swin or VIOLET checkpoint of any size"""
    image_teacher: str = key("timm/swin_base_patch4_window7_224.ms_in22k", PRETRAIN, TEACHERS)
    """teacher of 2d_feature: a timm model by name, folder or file"""
    clip_teacher: str = key("timm/vit_base_patch32_clip_224.openai", PRETRAIN, TEACHERS)
    """teacher of 2d_clip_feature: a timm model by name, folder or file"""
    flow_teacher: str = key("_snapshot/raft_large_C_T_SKHT_V2-ff5fadd5.pth", PRETRAIN, TEACHERS)
    """teacher of optical_flow: RAFT-Large's file, or dis: OpenCV's flow, which has no weights"""
    depth_teacher: str = key("Intel/dpt-large", PRETRAIN, TEACHERS)
    """teacher of depth: a DPT of transformers by name or folder"""
    dalle_model_path: str = key("_snapshot/encoder.pkl", PRETRAIN, TEACHERS)
    """teacher of vq: DALL-E's encoder"""
    teacher_init: Literal["published", "random"] = key("published", PRETRAIN, TEACHERS)
    """random: teachers with random weights, to try a run without downloading them"""
    teacher_batch: PositiveInt = key(32, PRETRAIN, TEACHERS)
    """frames, or pairs of frames, that a teacher processes at a time"""
    teacher_device: str = key("", PRETRAIN, TEACHERS)
    """device of the teachers; empty: that of the model"""

    def __post_init__(self) -> None:
        """Check values beyond their types, and make names canonical (mtm is mlm)."""
        for key, known in NAMES.items():
            names = getattr(self, key)
            names = [names] if isinstance(names, str) else names  # Deviation 6
            names = ["mlm" if name == "mtm" else name for name in names]
            for name in names:
                lookup(known, name, key)
            if not names or len(set(names)) < len(names):
                raise UserError(f"{key} {names}: name at least one of {', '.join(known)}, and none twice.")
            object.__setattr__(self, key, names)
        self.check_weights()
        if self.size_img % self.size_patch:
            raise UserError(f"size_img {self.size_img} is not a multiple of size_patch {self.size_patch}.")
        if self.size_frame > self.max_size_frame:
            raise UserError(f"size_frame {self.size_frame} exceeds max_size_frame {self.max_size_frame}.")
        if self.size_img // self.size_patch > self.max_size_patch:
            raise UserError(f"size_img {self.size_img} needs more than max_size_patch {self.max_size_patch}.")
        check_limits(self)
        if self.size_txt < 3:
            raise UserError(f"size_txt {self.size_txt} leaves no word between [CLS] and [SEP].")

    def check_weights(self) -> None:
        """Raise `UserError` for weights of unknown targets, and for a balance without its measurements."""
        if self.mvm_weight != "balanced":
            for name in self.mvm_weight:
                lookup(NAMES["mvm_target"], name, "mvm_weight: target")
        elif "mvm" in self.pretrain_tasks and ("mlm" not in self.pretrain_tasks or not self.doctor_every):
            raise UserError(
                "mvm_weight balanced compares with the gradient of MLM: add mlm to pretrain_tasks and set "
                "doctor_every above 0."
            )

    @property
    def parts(self) -> int:
        """Evaluations per epoch of pre-training."""
        counts = self.size_part.values() if isinstance(self.size_part, dict) else [self.size_part]
        return max(counts, default=1) if self.type == "pretrain" else 1

    def to_json(self) -> str:
        """Every key as JSON, which `--config` reads back."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"


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


# --------------------------------------------------------------------------------------------- processes


@dataclass(frozen=True)
class World:
    """The processes of a run, and the rank of this one."""

    device: "torch.device"
    rank: int = 0
    size: int = 1
    nodes: int = 1
    """machines, each with as many processes as the others"""
    control: "dist.ProcessGroup | None" = None
    """process group on the CPUs, for messages that do not wait for devices; None: the default group"""

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files and the console."""
        return self.rank == 0

    def sum(self, tensor: "Tensor") -> "Tensor":
        """The sum of `tensor` over all processes, on every process."""
        if self.size > 1:
            import torch.distributed as dist

            tensor = tensor.clone()
            dist.all_reduce(tensor)
        return tensor

    def gather(self, item: Any) -> list[Any]:
        """Every process's `item`, in order of rank, on every process."""
        if self.size == 1:
            return [item]
        import torch.distributed as dist

        items = [None] * self.size
        dist.all_gather_object(items, item, group=self.control)
        return items

    def most(self, value: int) -> int:
        """The largest `value` of all processes, on every process."""
        if self.size == 1:
            return value
        import torch
        import torch.distributed as dist

        largest = torch.tensor(value)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=self.control)
        return int(largest)


# --------------------------------------------------------------------------------------------- the log


def shown(text: str) -> str:
    """A text for the console, with control characters written as escapes."""
    return "".join(
        c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape", "backslashreplace").decode()
        for c in text
    )


class Printable(logging.Formatter):
    """Log lines without control characters, which ids and paths may contain."""

    def format(self, record: logging.LogRecord) -> str:
        """A record as text."""
        return shown(super().format(record))


def start_log(world: World, folder: Path | None = None) -> None:
    """Log to the console (main process: everything; others: warnings) and, per process, to a file.

    Lines logged before there is a folder are kept and written to the beginning of the file.
    """
    name = f"[{world.rank}] " if world.size > 1 else ""
    layout = Printable(f"%(asctime)s {name}%(levelname)s %(message)s", "%H:%M:%S")
    console = logging.StreamHandler()
    console.setLevel(logging.INFO if world.is_main else logging.WARNING)
    console.setFormatter(layout)
    early = [handler for handler in log.handlers if isinstance(handler, MemoryHandler)]
    rest: logging.Handler = early[0] if early else MemoryHandler(10_000, flushLevel=logging.CRITICAL + 1)
    if folder is not None:
        file = "log.txt" if world.is_main else f"log_rank{world.rank}.txt"
        rest = logging.FileHandler(folder / file, delay=True)
        rest.setFormatter(layout)
        for handler in early:
            handler.setTarget(rest)
            handler.flush()
    log.handlers, log.propagate = [console, rest], False
    log.setLevel(logging.DEBUG)
