"""The weights and data that a config needs, and a check that names all missing ones at once."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lib import Config, UserError, World
from media.corpus_files import named_files, yaml_path
from media.files import read_yaml
from weights.published import published
from weights.swin import weights_path

PATIENCE = 5.0  # seconds that the hub has to answer
TEACHER_KEYS = {  # of the targets that have a teacher with weights
    "3d_feature": "feature_teacher",
    "2d_feature": "image_teacher",
    "2d_clip_feature": "clip_teacher",
    "clip_visible": "clip_teacher",
    "optical_flow": "flow_teacher",
    "depth": "depth_teacher",
    "vq": "dalle_model_path",
}
WEIGHTS = ("model.safetensors", "pytorch_model.bin", "model.safetensors.index.json")
WORDS = ("vocab.txt", "tokenizer.json")


@dataclass(frozen=True)
class Need:
    """A file or a model of the hub that a run reads."""

    key: str
    """the config key that names it"""
    name: str
    files: Sequence[str] = ()
    """of a folder or a model of the hub: one of these; nothing: it is a file or a run's folder"""
    is_data: bool = False

    def missing(self) -> bool:
        """Whether it is neither on the disk nor to be had from the hub."""
        if not self.files or Path(self.name).exists():
            return not is_there(Path(self.name), self.files)
        return not (cached(self.name, self.files) or offered(self.name))

    def __str__(self) -> str:
        """With what it is and where it is published."""
        if self.is_data:
            return f"{self.key}: {self.name}"
        entry = published(self.name)
        about = f" ({entry.what}; {entry.page})" if entry else ""
        if self.files and Path(self.name).is_dir():
            about = f" has none of {', '.join(self.files)}"
        return f"{self.key}: {self.name}{about}"


def is_there(path: Path, files: Sequence[str]) -> bool:
    """Whether a path is a file, or a folder with one of `files` (any folder, if there are none)."""
    return path.is_file() or (path.is_dir() and (not files or any((path / name).is_file() for name in files)))


def cached(name: str, files: Sequence[str]) -> bool:
    """Whether one of a model's files has been downloaded before."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return any(isinstance(try_to_load_from_cache(name, file), str) for file in files)
    except HFValidationError:  # such a name is that of a folder
        return False


@functools.lru_cache(maxsize=64)
def offered(name: str) -> bool:
    """Whether the hub can be reached and has a model of that name.

    As the library's `file_exists`, asked once and for `PATIENCE` seconds at most.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=PATIENCE)
    except HfHubHTTPError as error:
        return error.response.status_code not in (401, 404)  # the library waits out the hub's other troubles
    except (HTTPError, OSError, ValueError):  # no network, offline mode, or no name of a model
        return False
    return True


# ---------------------------------------------------------------------------------------------- what


def needs(config: Config) -> Iterator[Need]:
    """All that a run of `config` reads."""
    yield from weights(config)
    yield from corpora(config) if config.type == "pretrain" else downstream(config)


def weights(config: Config) -> Iterator[Need]:
    """Tokenizer, BERTs, and the checkpoint, or what the encoders start from; the targets' teachers."""
    words = "tokenizer" if config.tokenizer else "txt_backbone"
    yield Need(words, config.tokenizer or config.txt_backbone, WORDS)
    if config.path_ckpt:
        yield Need("path_ckpt", config.path_ckpt)
    elif config.vis_backbone_init != "random":
        sizes = (config.vis_backbone_size, config.vis_backbone_init, config.kinetics)
        yield Need("vis_backbone_path", config.vis_backbone_path or str(weights_path(*sizes)))
    for key, random in (
        ("txt_backbone", config.txt_backbone_rand_init),
        ("fusion_encoder", config.fusion_encoder_rand_init),
    ):
        yield Need(key, getattr(config, key), ("config.json",))
        if not random and not config.path_ckpt:
            yield Need(key, getattr(config, key), WEIGHTS)
    if config.type == "pretrain" and "mvm" in config.pretrain_tasks and config.teacher_init == "published":
        yield from teachers(config)


def teachers(config: Config) -> Iterator[Need]:
    """The weights of the chosen targets' teachers."""
    for target in config.mvm_target:
        key = TEACHER_KEYS.get(target)
        if key and getattr(config, key) != "dis":  # OpenCV's flow
            in_hub = key in ("image_teacher", "clip_teacher", "depth_teacher")
            yield Need(key, getattr(config, key), WEIGHTS if in_hub else ())


def corpora(config: Config) -> Iterator[Need]:
    """The YAMLs of pre-training, and the files that those which are there name."""
    chosen = ["val_yaml"] + (["train_yaml"] if config.size_epoch else [])
    for key in sorted(chosen):
        for name in getattr(config, key).values():
            path = yaml_path(name, config.data_dir)
            yield Need(key, str(path), is_data=True)
            for file in named_in(path):
                yield Need(f"{key} {path.name}", str(file), is_data=True)


def named_in(path: Path) -> list[Path]:
    """The files that a corpus's YAML names; none where it cannot be read, which its reader reports."""
    try:
        content = read_yaml(path)
    except UserError:
        return []
    content = content if isinstance(content, dict) else {}
    listed = [content.get(key) for key in ("img", "caption", "caption_linelist")]
    names = [name for item in listed for name in (item if isinstance(item, list) else [item])]
    if not all(name is None or (isinstance(name, str) and "\0" not in name) for name in names):
        return []
    keys = ("img", "caption", "caption_linelist")
    try:
        return [file for key in keys for file in named_files(path, content, key)]
    except (OSError, ValueError):  # a name that no file can have
        return []


def downstream(config: Config) -> Iterator[Need]:
    """Frames and text of a task."""
    folder = Path(config.data_dir)
    yield Need("dataset", str(folder / f"img_{config.dataset}.tsv"), is_data=True)
    yield Need("task", str(folder / f"txt_{config.task}.json"), is_data=True)


# -------------------------------------------------------------------------------------------- the check


def lacking(config: Config) -> list[Need]:
    """The missing needs, each once."""
    found: dict[tuple[str, Sequence[str]], Need] = {}
    for need in needs(config):
        if (need.name, need.files) not in found and need.missing():
            found[need.name, need.files] = need
    by_name = {need.name: need for need in reversed(found.values())}  # a model's files are named as one
    return [need for need in found.values() if by_name[need.name] is need]


def check_needs(config: Config, world: World) -> None:
    """Raise `UserError` with all missing files and models, from the main process alone."""
    missing: list[Need] = world.gather(lacking(config) if world.is_main else [])[0]
    if not missing:
        return
    if not world.is_main:
        raise SystemExit(1)
    lines = [f"{config.task} cannot start: {len(missing)} required files or models are missing."]
    for title, is_data in (
        ("weights (_snapshot/README.md; _tools/weights.py fetch)", False),
        ("data (_data/README.md)", True),
    ):
        part = [f"  {need}" for need in missing if need.is_data == is_data]
        lines += [f"{title}:", *part] if part else []
    raise UserError("\n".join(lines))
