"""The config of a run: from a file, from the command line, and from the run that made a checkpoint."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import docstring_parser
import jsonargparse

from lib import KEYS, SCRIPTS, Config, UserError, log, lookup
from media.files import read_json
from media.kinds import as_arguments

FIELDS = {field.name: field for field in dataclasses.fields(Config)}
FLAGS = {name for name, field in FIELDS.items() if field.type is bool or bool in get_args(field.type)}
LISTS = ("pretrain_tasks", "pretrain_masks", "mvm_target", "img_transform")
TRUE, FALSE = ("1", "t", "true", "y", "yes", "on"), ("0", "f", "false", "n", "no", "off")
# keys of the published parser without a meaning here; a file with any of them is a published run's args.json
LEGACY = (
    "amp_level", "asr_only", "ast_fshape", "ast_fstride", "ast_input_fdim", "ast_model_path",
    "ast_model_size", "ast_tshape", "ast_tstride", "attn_mask_type", "audio_feat_type", "audio_freqm",
    "audio_mean", "audio_mixup", "audio_noise_aug", "audio_num_mel_bins", "audio_skip_norm", "audio_std",
    "audio_target_length", "audio_timem", "debug", "dist_url", "distributed", "effective_batch_size",
    "freeze_ast", "fusion_layers", "gumble_tau", "imagenet", "imagenet_norm", "img_tsv_dir", "local_rank",
    "local_size", "lr_mult_cross_modal", "lr_mult_head", "max_iter", "n_gpu", "nodes", "num_gpus",
    "num_video_tokens", "pseudo_cap_only", "rank", "size_sanity_check", "size_txt_pre", "swinbert",
    "task_token", "temporal_fusion", "txt_dir", "txt_lineidx", "world_size",
)  # fmt: skip
SYNONYMS = {  # names in other codebases
    "batch_size": "size_batch",
    "checkpoint": "path_ckpt",
    "ckpt": "path_ckpt",
    "clip_grad": "max_grad_norm",
    "epochs": "size_epoch",
    "frames": "size_frame",
    "image_size": "size_img",
    "learning_rate": "lr",
    "mask_ratio": "p_mask",
    "max_length": "size_txt",
    "num_epochs": "size_epoch",
    "num_frames": "size_frame",
    "num_workers": "n_workers",
    "output": "path_output",
    "output_dir": "path_output",
    "pretrained": "path_ckpt",
    "target": "mvm_target",
    "temperature": "temp",
    "weight_decay": "decay",
    "workers": "n_workers",
}
# published task -> the one script that runs it
TASKS = {
    "msrvtt-mc": "main_qamc_tsv",
    "msrvtt-mc2": "main_qamc_tsv",
    "lsmdc-mc": "main_qamc_tsv",
    "tgif-action": "main_qamc_tsv_mlm_gen_ans_idx",
    "tgif-transition": "main_qamc_tsv_mlm_gen_ans_idx",
    "tgif-frame": "main_qaoe_tsv_mlm_head",
    "msrvtt-qa": "main_qaoe_tsv_mlm_head",
    "msvd-qa": "main_qaoe_tsv_mlm_head",
    "lsmdc-fib": "main_qaoe_tsv_lsmdc_fib",
}
# keys that the args.json of a checkpoint decides, as published; the second group in evaluation alone
OF_CHECKPOINT: tuple[str, ...] = ("mask_pos", "text_rules", "vis_backbone", "vis_backbone_size")
OF_CHECKPOINT += (
    "max_size_frame",
    "max_size_patch",
    "txt_backbone",
    "txt_backbone_embed_only",
    "fusion_encoder",
    "tokenizer",
)
OF_EVALUATION = ("size_frame", "size_txt", "size_img", "img_transform")
FOLDERS = ("txt_backbone", "fusion_encoder", "tokenizer")

Values = dict[str, Any]


def load_config(script: str, arguments: Sequence[str] | None = None) -> Config:
    """The config of a run: `--config FILE.json`, changed by `--key value` (default: the command line's).

    An option wins over the file wherever it stands. `script` is one of `SCRIPTS`, or, for programs that run
    none, a `type`. Published command lines, configs and args.json are read as they are. Of the args.json
    beside `path_ckpt` the network's keys are taken, in evaluation also those of the input, unless they are
    options. Raises `UserError` for an unknown key, a value of the wrong type, range or choice, and a config
    that another script runs.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if "-h" in given or "--help" in given:
        make_parser(script).print_help()
        sys.exit(0)
    file, options = split_arguments(given)
    stored = read_file(Path(file)) if file else {}
    values = parse(script, {**stored, **options})
    config = Config(**values)
    check_script(script, config)
    bare = isinstance(stored.get("img_transform"), str) and "img_transform" not in options
    if bare and config.task in ("tgif-action", "tgif-transition"):
        log.warning(
            "img_transform %s: the published %s ran with img_rand_crop and the centre crop, because its code "
            "only reads lists; --img_transform img_rand_crop does the same.",
            stored["img_transform"], config.task,
        )  # fmt: skip
    config = of_run(script, config, Path(file), options) if file else config
    own = (
        Path(file).name == "args.json" and "path_ckpt" not in options
    )  # of a run, which has adopted them already
    config = adopt_checkpoint_args(script, config, options, own)
    warn_of_unread(script, config, stored, options)
    return config


# -------------------------------------------------------------------------------------- command line and file


def split_arguments(given: Sequence[str]) -> tuple[str, Values]:
    """The file after `--config`, and the options as {key: text}; `UserError` for an unknown key."""
    options: dict[str, list[str]] = {}
    current: list[str] = []
    for word in given:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            current = options[name] = [value] if equals else []
        elif not options:
            raise UserError(f"{word!r} is not an option: options begin with --.")
        else:
            current.append(word)
    # torch.distributed.launch adds it; the environment variable LOCAL_RANK says the same
    options = {name: words for name, words in options.items() if name not in ("local-rank", "local_rank")}
    files = options.pop("config", [""])
    if len(files) != 1:
        raise UserError("--config takes one file.")
    ignored = [name for name in options if name in LEGACY]
    if ignored:
        log.warning("ignored, without meaning in this code: %s", ", ".join(ignored))
    return files[0], {name: value_of(name, options[name]) for name in options if name not in ignored}


def parse_with_keys(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None, own: Sequence[str] = ()
) -> tuple[argparse.Namespace, dict[str, str]]:
    """The options of a program that takes a checkpoint, and the keys of its config that are overridden.

    Every key but those of the same name as an `own` option is an option that `--help` does not list.
    `arguments`: None takes those of the command line.
    """
    for key in KEYS:
        if key not in own:
            parser.add_argument(f"--{key}", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    given = vars(parser.parse_args(as_arguments(sys.argv[1:] if arguments is None else list(arguments))))
    return argparse.Namespace(**given), {key: given[key] for key in KEYS if key in given}


def value_of(name: str, words: list[str]) -> str:
    """The words behind an option -> the text of its value; `UserError` for an unknown name."""
    check_key(name)
    if name in FLAGS:
        return "true" if not words else words[0] if len(words) == 1 else " ".join(words)
    if name in LISTS and words and not words[0].startswith("["):
        return json.dumps(words)
    if len(words) != 1:
        raise UserError(f"--{name} takes one value, not {len(words)}.")
    return words[0]


def check_key(name: str) -> None:
    """Raise `UserError` for a name that is no key, with the key that may be meant."""
    meant = SYNONYMS.get(name.replace("-", "_").lower())
    if meant:
        raise UserError(f"config key {name!r} is unknown; did you mean {meant!r}?")
    lookup(KEYS, name, "config key")


def read_file(path: Path) -> Values:
    """The keys of a config's JSON file, or of a published run's args.json without legacy keys."""
    todo = "name one of _args/, or the args.json of a run"
    content = read_json(path, todo, most=1 << 20)
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object of config keys; {todo}.")
    unknown = [name for name in content if name not in KEYS]
    if any(name in LEGACY for name in unknown):
        log.warning("%s: ignored, without meaning in this code: %s", path, ", ".join(unknown))
        content = {name: value for name, value in content.items() if name in KEYS and value is not None}
        content.pop("multi_clip_testing", None)  # the published evaluation never reads it
        for name in FOLDERS:  # the published parser writes a folder of its own in place of the model's name
            if "/huggingface_transformers/" in str(content.get(name)):
                content[name] = Path(content[name]).name
    elif "accumulate" in content and content.get("type") != "pretrain":
        content.setdefault("text_rules", "fixed")  # of a run of ours from before there was a choice
    if isinstance(content.get("dataset"), list) and len(content["dataset"]) == 1:
        content["dataset"] = content["dataset"][0]
    for name in content:
        check_key(name)
    return content


def parse(script: str, values: Mapping[str, Any]) -> Values:
    """Values of a file (JSON) and of options (text) -> checked by the types of the keys."""
    words = []
    for name, value in values.items():
        if name in FLAGS and str(value).lower() in TRUE + FALSE:
            value = str(value).lower() in TRUE
        text = value if isinstance(value, str) else json.dumps(value)
        words.append(f"--{name}={text}")
    try:
        found = make_parser(script).parse_args(words)
    except (jsonargparse.ArgumentError, TypeError) as error:
        raise UserError(f"config: {error}") from None
    return {name: found[name] for name in KEYS}


def make_parser(script: str) -> jsonargparse.ArgumentParser:
    """The parser of all keys; its help shows the keys that a script reads, in groups."""
    texts = {p.arg_name: p.description for p in docstring_parser.parse_from_object(Config).params}
    name = f"{script}.py" if script in SCRIPTS else None
    parser = jsonargparse.ArgumentParser(
        prog=name, exit_on_error=False, usage="%(prog)s --config FILE [--key value ...]"
    )
    parser.add_argument("--config", help="JSON file of any of these keys; options on the command line win")
    groups: dict[str, Any] = {}
    for field in FIELDS.values():
        title = field.metadata["group"]
        group = groups.get(title) or groups.setdefault(title, parser.add_argument_group(title))
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        shown = script not in SCRIPTS or script in field.metadata["scripts"]
        text = " ".join((texts[field.name] or "").split()) if shown else jsonargparse.SUPPRESS
        group.add_argument(f"--{field.name}", type=field.type, default=default, help=text)
    return parser


# ---------------------------------------------------------------------------------- which script, which run


def check_script(script: str, config: Config) -> None:
    """Raise `UserError` for a config that another script runs."""
    kind = SCRIPTS.get(script, script)
    if config.type != kind:
        others = " or ".join(f"{name}.py" for name, its in SCRIPTS.items() if its == config.type)
        raise UserError(
            f"this script runs configs of type {kind!r}; this one is of type {config.type!r}: run {others}."
        )
    right = TASKS.get(config.task, script)
    if script in SCRIPTS and script != right:
        raise UserError(f"the task {config.task} is run by {right}.py, not by {script}.py.")


def of_run(script: str, config: Config, file: Path, options: Values) -> Config:
    """For an evaluation with a run's own args.json: use the best checkpoint of that run."""
    evaluates = script == "eval_retrieval_tsv" or not config.size_epoch
    folder = file.parent
    if not evaluates or "path_ckpt" in options or file.name != "args.json":
        return config
    if not any(folder.glob("ckpt_violet_*.pt")):
        return config
    log.info("path_ckpt %s: using the best checkpoint of the run that wrote this config", folder)
    return dataclasses.replace(config, path_ckpt=str(folder))


def adopt_checkpoint_args(script: str, config: Config, options: Values, own: bool) -> Config:
    """The config with the values that the args.json of `path_ckpt` decides; each change is logged."""
    path = Path(config.path_ckpt)
    file = (path if path.is_dir() else path.parent) / "args.json"
    if not config.path_ckpt or not file.is_file() or own:
        return config
    names = OF_CHECKPOINT
    if script == "eval_retrieval_tsv" or not config.size_epoch:
        names += OF_EVALUATION
    content = {name: value for name, value in read_file(file).items() if name in (*names, "type")}
    if content.pop("type", "pretrain") == "pretrain":
        content.pop("text_rules", None)  # pre-training reads none
    if isinstance(content.get("img_transform"), str):
        del content["img_transform"]  # the published code does not read a bare name either
    stored = Config(**parse(script, {**content, "type": config.type}))
    taken = {}
    for name in content:
        ours, theirs = getattr(config, name), getattr(stored, name)
        trained_elsewhere = name in FOLDERS and ours and Path(ours).exists() and not Path(theirs).exists()
        a_folder = name in FOLDERS and str(theirs).startswith((".", "/", "~")) and not Path(theirs).exists()
        if name not in options and ours != theirs and not trained_elsewhere and not a_folder:
            taken[name] = theirs
            log.warning("%s: using %s from %s instead of %s of the config", name, theirs, file, ours)
    return dataclasses.replace(config, **taken)


def warn_of_unread(script: str, config: Config, stored: Values, options: Values) -> None:
    """One warning of all keys that were set and that the script does not read.

    A config is shared by the training and the ranking of retrieval: of its file's keys those that either
    reads are in order.
    """
    if script not in SCRIPTS:
        return
    usual = Config(type=config.type)
    unread = []
    for name in KEYS:
        readers = FIELDS[name].metadata["scripts"]
        shared = name in stored and script == "eval_retrieval_tsv" and "main_retrieval_tsv" in readers
        set_here = name in options or (name in stored and not shared)
        if set_here and script not in readers and getattr(config, name) != getattr(usual, name):
            unread.append(f"{name}={getattr(config, name)}")
    if unread:
        log.warning("ignored by this script: %s", ", ".join(unread))
