"""Convert the public annotation files of a dataset to `txt_TASK.json`, or to captions for pre-training.

    python _tools/annotations.py msrvtt-qa ~/MSRVTT-QA --data _data
    python _tools/annotations.py webvid-train ~/webvid --data _data --frames _data/img_webvid.tsv

The second command writes `_data/train_webvid2.5m_10.yaml`, the name in `_args/args_pretrain.json`.

_data/README.md lists the files that are needed, with their addresses. The program prints the counts of each
split next to the published ones, and the videos that are missing in `_data/img_DATASET.tsv`. A pre-training
corpus (NAME.caption.tsv, NAME.linelist.tsv, NAME.yaml) is written for frames files that make_tsv.py
--frames_only has made.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

import root  # noqa: F401
from _tools.convert import captions as captions
from _tools.convert import questions as questions
from _tools.convert.files import Item, Public
from lib import UserError, lookup, run_script
from media.files import atomic_path
from media.kinds import as_arguments, file_id
from media.tsv import Tsv, read_id2lineidx, write_lineidx
from tasks.qa.questions import fault_of_texts

SPLITS = ("train", "val", "test")
LISTED = 10  # missing videos that are printed


@dataclass(frozen=True)
class Task:
    """A task's converter, its dataset, and the published number of samples per split."""

    convert: Callable[[Public, float], Mapping[str, Any]]
    dataset: str
    published: Mapping[str, int]
    name: str = ""
    """name of the task in configs, if it differs"""


@dataclass(frozen=True)
class Corpus:
    """A caption corpus, and the published number of pairs."""

    convert: Callable[[Public, str], Mapping[str, str]]
    split: str
    published: int
    file: str
    """beginning of its files' names, as in `_args/args_pretrain.json`"""
    image: bool = field(default=False)


LSMDC = {"train": 101_079, "val": 7_408}
MSRVTT = {"train": 140_200, "val": 39_800, "test": 1_000}  # of 9k/1k-A
DIDEMO = {"train": 8_395, "val": 1_065, "test": 1_004}  # videos
TASKS = {
    "msrvtt-retrieval": Task(captions.msrvtt_retrieval, "msrvtt", MSRVTT),
    "lsmdc-retrieval": Task(captions.lsmdc_retrieval, "lsmdc", {**LSMDC, "test": 1_000}),
    "didemo-retrieval": Task(captions.didemo_retrieval, "didemo", DIDEMO),
    "msrvtt-qa": Task(questions.msrvtt_qa, "msrvtt", {"train": 158_581, "val": 12_278, "test": 72_821}),
    "msvd-qa": Task(questions.msvd_qa, "msvd", {"train": 30_933, "val": 6_415, "test": 13_157}),
    "msrvtt-mc": Task(questions.msrvtt_mc, "msrvtt", {"test": 2_990}, name="msrvtt-mc2"),
    "tgif-action": Task(questions.tgif_action, "tgif", {"train+val": 20_475, "test": 2_274}),
    "tgif-transition": Task(questions.tgif_transition, "tgif", {"train+val": 52_704, "test": 6_232}),
    "tgif-frame": Task(questions.tgif_frame, "tgif", {"train+val": 39_392, "test": 13_691}),
    "lsmdc-mc": Task(questions.lsmdc_mc, "lsmdc", {**LSMDC, "test": 10_053}),
    "lsmdc-fib": Task(questions.lsmdc_fib, "lsmdc", {"train": 296_960, "val": 21_689, "test": 30_349}),
}
CORPORA = {
    "webvid-train": Corpus(captions.webvid, "train", 2_500_000, "train_webvid2.5m_10"),
    "webvid-val": Corpus(captions.webvid, "val", 5_000, "val_webvid2.5m"),
    "cc3m-train": Corpus(captions.cc3m, "train", 3_318_333, "train_cc3m_10", image=True),
    "cc3m-val": Corpus(captions.cc3m, "val", 15_840, "val_cc3m", image=True),
}


# ------------------------------------------------------------------------------------------------- tasks


def write_task(name: str, public: Public, data: Path, val_share: float) -> None:
    """Convert, write `txt_TASK.json`, and print its counts next to the published ones."""
    task = TASKS[name]
    content = dict(task.convert(public, val_share))
    check_roles(public)
    splits = {split: checked(split, content[split]) for split in SPLITS if split in content}
    path = data / f"txt_{task.name or name}.json"
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content | splits, ensure_ascii=False), encoding="utf-8")
    frames = data / f"img_{task.dataset}.tsv"
    known = set(read_id2lineidx(frames)) if frames.is_file() else None
    print(f"{path}\n{'split':8}{'samples':>10}{'published':>11}{'videos':>9}{'missing':>9}")
    for split, items in splits.items():
        videos = list(dict.fromkeys(item["video"] for item in items))
        missing = [] if known is None else [video for video in videos if video not in known]
        said = "?" if known is None else str(len(missing))
        print(f"{split:8}{len(items):>10}{task.published.get(split, ''):>11}{len(videos):>9}{said:>9}")
        if missing:
            print(f"  missing: {first_of(missing)}")
    if "train+val" in task.published:
        both = sum(len(splits.get(split, [])) for split in ("train", "val"))
        print(f"train and val: {both}, published {task.published['train+val']}; val is drawn from train")
    if known is None:
        print(f"{frames} does not exist yet: make_tsv.py --frames_only --name {task.dataset} writes it")


def checked(split: str, items: list[Item]) -> list[Item]:
    """The items with the ids of their videos; items with an empty caption are left out and named.

    Raises `UserError` if a text is not a string.
    """
    for number, item in enumerate(items):
        if fault := fault_of_texts(item):
            raise UserError(f"question {number} of {split}: {fault}; correct the file.")
        item["video"] = file_id(str(item["video"]))
    empty = [item["video"] for item in items if not item.get("caption", True)]
    if empty:
        print(f"{split}: {len(empty)} empty captions are left out, of {first_of(empty)}")
    return [item for item in items if item.get("caption", True)]


def check_roles(public: Public) -> None:
    """Print which files were read; raise `UserError` if a file was given for an unknown role."""
    for role in public.named:
        lookup(public.roles, role, "--file")
    print("".join(f"{role}: {path}\n" for role, path in public.used.items()), end="")


def first_of(names: Sequence[str]) -> str:
    """The first names, and "..." if there are more."""
    return f"{', '.join(names[:LISTED])}{' ...' if len(names) > LISTED else ''}"


# ------------------------------------------------------------------------------------------ pre-training


def write_corpus(name: str, public: Public, data: Path, frames: Sequence[Path]) -> None:
    """Write captions for each row of the frames files; rows without one get an empty list and no pair."""
    corpus = CORPORA[name]
    converted = corpus.convert(public, corpus.split).items()
    texts = {file_id(id_): " ".join(text.split()) for id_, text in converted}
    name = corpus.file
    check_roles(public)
    lacking, pairs, seen, files = [], [], set(), []
    for source, path in enumerate(frames):
        tsv, lines = Tsv(path), []
        for row in range(len(tsv)):
            start = int(tsv.offsets[row])  # of a row that may be long: its id is at the beginning
            id_ = tsv.map[start : start + 1024].split(b"\t", 1)[0].decode(errors="replace")
            text = texts.get(id_, "")
            lines.append(f"{id_}\t{json.dumps([{'caption': text}] if text else [])}\n")
            if text:
                pairs.append(f"{source}\t{row}\t0\n" if len(frames) > 1 else f"{row}\t0\n")
                seen.add(id_)
            else:
                lacking.append(id_)
        files.append(data / (f"{name}.caption.{source}.tsv" if len(frames) > 1 else f"{name}.caption.tsv"))
        with atomic_path(files[-1]) as temporary:
            temporary.write_text("".join(lines), encoding="utf-8")
        write_lineidx(files[-1])
    write_yaml(name, data, frames, files, pairs, corpus.image)
    missing = [id_ for id_ in texts if id_ not in seen]
    print(f"{data / name}.yaml: {len(pairs)} pairs; {len(texts)} captions, published {corpus.published}")
    for what, ids in (("captions without a row", missing), ("rows without a caption", lacking)):
        if ids:
            print(f"{len(ids)} {what}: {first_of(ids)}")


def frames_of(name: str, data: Path) -> list[Path]:
    """The frames files of a corpus: one, or those that `--shard_gb` has numbered."""
    parts = [path for path in data.glob(f"img_{name}.*.tsv") if path.suffixes[0][1:].isdecimal()]
    return sorted(parts, key=lambda path: int(path.suffixes[0][1:])) or [data / f"img_{name}.tsv"]


def write_yaml(
    name: str, data: Path, frames: Sequence[Path], files: Sequence[Path], pairs: Sequence[str], image: bool
) -> None:
    """The list of pairs, and the corpus that names it."""
    with atomic_path(data / f"{name}.linelist.tsv") as temporary:
        temporary.write_text("".join(pairs))
    inside = [path.resolve().is_relative_to(data.resolve()) for path in frames]
    images = [
        str(path.resolve().relative_to(data.resolve()) if near else path.resolve())
        for path, near in zip(frames, inside, strict=True)
    ]
    composite = len(frames) > 1
    corpus: dict[str, Any] = {"img": images if composite else images[0]}
    corpus["caption"] = [path.name for path in files] if composite else files[0].name
    corpus["caption_linelist"] = f"{name}.linelist.tsv"
    corpus |= ({"composite": True} if composite else {}) | ({"image": True} if image else {})
    with atomic_path(data / f"{name}.yaml") as temporary:
        temporary.write_text(yaml.safe_dump(corpus, sort_keys=False))


# ----------------------------------------------------------------------------------------------- program


def main(arguments: Sequence[str] | None = None) -> None:
    """Convert one dataset's files."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("dataset", help=", ".join([*TASKS, *CORPORA]))
    add("folder", type=Path, help="folder of its public files")
    add(
        "--file", action="append", default=[], metavar="ROLE=PATH", help="a file with another name than usual"
    )
    add("--data", type=Path, default=Path("_data"), help="folder to write to (default: _data)")
    add(
        "--frames",
        type=Path,
        nargs="+",
        help="frames files of a caption corpus (default: img_NAME.tsv, or its parts)",
    )
    add(
        "--val_share",
        type=float,
        default=0.1,
        help="share of the training videos that becomes val if none is published (default: 0.1)",
    )
    args = parser.parse_args(as_arguments(sys.argv[1:] if arguments is None else list(arguments)))
    lookup([*TASKS, *CORPORA], args.dataset, "dataset")
    if not args.folder.is_dir():
        raise UserError(f"{args.folder} is not a folder; give the one with the public files.")
    if not all("=" in pair for pair in args.file):
        raise UserError(f"--file takes ROLE=PATH, such as train=my_train.csv, not {args.file}.")
    public = Public(args.folder, {role: Path(path) for role, path in (p.split("=", 1) for p in args.file)})
    try:
        if args.dataset in TASKS:
            write_task(args.dataset, public, args.data, args.val_share)
        else:
            frames = args.frames or frames_of(args.dataset.split("-")[0], args.data)
            write_corpus(args.dataset, public, args.data, frames)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"the files of {args.dataset} in {args.folder} do not have the published form ({error!r}), which "
            "_data/README.md shows."
        ) from error


if __name__ == "__main__":
    run_script(main)
