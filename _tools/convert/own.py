"""A CSV of questions or captions -> annotations and a config of the script that trains on them."""

import dataclasses
import json
import random
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from _tools.convert.files import Item, Splits, numbered_table
from engine.arguments import load_config
from lib import Config, UserError
from media.files import atomic_path
from media.kinds import file_id
from media.tsv import read_id2lineidx

ARGS = Path(__file__).resolve().parents[2] / "_args"
SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val", "test": "test"}
BLANK = "[MASK]"


@dataclass(frozen=True)
class Kind:
    """A kind of task: the end of its name, its script, and the published config that it is like."""

    ending: str
    script: str
    config: str
    type: str


OPEN = Kind("qa", "main_qaoe_tsv_mlm_head.py", "args_msrvtt-qa.json", "qaoe")
FILL = Kind("fib", "main_qaoe_tsv_lsmdc_fib.py", "args_lsmdc-fib.json", "qaoe")
CHOICE = Kind("mc", "main_qamc_tsv.py", "args_msrvtt-mc.json", "qamc")
RETRIEVAL = Kind("retrieval", "main_retrieval_tsv.py", "args_msrvtt-retrieval.json", "retrieval")


@dataclass(frozen=True)
class Table:
    """Content of a CSV: a task's items, and the split of each ("" if the CSV gives none)."""

    name: str
    kind: Kind
    items: list[Item]
    splits: list[str]
    options: int

    @property
    def task(self) -> str:
        """The task's name in configs and files."""
        return f"{self.name}-{self.kind.ending}"


def read_own(path: Path, name: str) -> Table:
    """Read the CSV; raises `UserError` that names the line at fault."""
    if not re.fullmatch(r"\w[\w-]*", name):
        raise UserError(f"{name!r} is not a valid dataset name: give --name of letters, digits, - and _.")
    items, splits = [], []
    rows = list(numbered_table(path))
    if not rows:
        raise UserError(f"{path} has no row.")
    columns = set(rows[0][1])
    options = sum(re.fullmatch(r"option_\d+", column) is not None for column in columns)
    kind = kind_of_columns(path, columns, options, [row for _, row in rows])
    for line, row in rows:
        try:
            items.append(item_of(row, kind, options))
            splits.append(split_of(row))
        except ValueError as error:
            raise UserError(f"{path} line {line}: {error}; correct it.") from error
    if len({bool(split) for split in splits}) > 1:
        raise UserError(f"{path}: some rows have a split and some have none; give all or none.")
    return Table(name, kind, items, splits, options)


def kind_of_columns(path: Path, columns: set[str], options: int, rows: Sequence[Mapping[str, str]]) -> Kind:
    """The kind of task that the columns describe."""
    if not columns & {"video", "image"}:
        raise UserError(f"{path} has the columns {sorted(columns)}, and needs `video` (or `image`).")
    if "answer" in columns and options:
        if options < 2 or not {f"option_{i}" for i in range(options)} <= columns:
            raise UserError(f"{path}: the columns of options are option_0, option_1 and so on, at least two.")
        return CHOICE
    if {"question", "answer"} <= columns:
        masked = sum(BLANK in row["question"] for row in rows)
        if masked not in (0, len(rows)):
            raise UserError(f"{path}: {masked} of {len(rows)} questions have a {BLANK}; all must or none.")
        return FILL if masked else OPEN
    if "caption" in columns:
        return RETRIEVAL
    raise UserError(
        f"{path} has the columns {sorted(columns)}; it needs `question` and `answer`, those and `option_0`, "
        "`option_1` and so on, or `caption`."
    )


def item_of(row: Mapping[str, str], kind: Kind, options: int) -> Item:
    """A row as annotations have it; raises `ValueError` for what it lacks."""
    video = row.get("video") or row.get("image") or ""
    if not video:
        raise ValueError("it has no video")
    item: Item = {"video": row.get("id") or file_id(video)}
    if kind is RETRIEVAL:
        return item | {"caption": needed(row, "caption")}
    if kind is not CHOICE:
        return item | {"question": needed(row, "question"), "answer": row["answer"].strip() or -1}
    texts = [needed(row, f"option_{i}") for i in range(options)]
    numbered = {f"option_{i}": text for i, text in enumerate(texts)}
    return item | {"question": row.get("question", ""), **numbered, "answer": right_option(row, texts)}


def needed(row: Mapping[str, str], column: str) -> str:
    """The text in a column, of which there must be one."""
    text = " ".join((row.get(column) or "").split())
    if not text:
        raise ValueError(f"its {column} is empty")
    return text


def right_option(row: Mapping[str, str], texts: Sequence[str]) -> int:
    """The number of the right option, which the row gives as a number or as its text; -1: withheld."""
    answer = " ".join(row["answer"].split())
    if not answer:
        return -1
    named = [i for i, text in enumerate(texts) if text == answer]
    numbered = [int(answer)] if answer.isdecimal() and int(answer) < len(texts) else []
    found = set(named + numbered)
    if len(found) != 1:
        why = "may be several of" if found else "is none of"
        raise ValueError(f"its answer {answer!r} {why} the options {list(texts)}; 0 is the first")
    return found.pop()


def split_of(row: Mapping[str, str]) -> str:
    """The split of a row, "" where there is none."""
    given = (row.get("split") or "").strip().lower()
    if given and given not in SPLITS:
        raise ValueError(f"its split {given!r} is none of train, val, test")
    return SPLITS.get(given, "")


def draw_splits(videos: Sequence[str], shares: Mapping[str, float], seed: int) -> dict[str, str]:
    """A split for each video by chance; val and test have one video each at least, if there are three."""
    order = sorted(set(videos))
    random.Random(seed).shuffle(order)
    found = dict.fromkeys(order, "train")
    for split, share in shares.items():
        if not 0 <= share < 1:
            raise UserError(f"a share of videos is between 0 and 1, not {share}.")
        count = max(round(share * len(order)), int(share > 0 and len(order) > 2))
        left = [video for video in order if found[video] == "train"]
        found |= dict.fromkeys(left[: min(count, len(left) - 1)], split)
    return found


def write_annotations(table: Table, folder: Path, shares: Mapping[str, float], seed: int) -> Splits:
    """Write `txt_TASK.json` of the rows whose video could be read, and say how many each split has."""
    known = read_id2lineidx(folder / f"img_{table.name}.tsv")
    kept = [(i, s) for i, s in zip(table.items, table.splits, strict=True) if i["video"] in known]
    if lost := len(table.items) - len(kept):
        print(f"{lost} rows left out: their videos cannot be read, see img_{table.name}.failures.tsv")
    drawn = draw_splits([item["video"] for item, _ in kept], shares, seed)
    splits: Splits = {"train": [], "val": [], "test": []}
    for item, split in kept:
        splits[split or drawn[item["video"]]].append(item)
    check_answers(splits)
    splits = {split: items for split, items in splits.items() if items}
    path = folder / f"txt_{table.task}.json"
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(splits, ensure_ascii=False), encoding="utf-8")
    counts = [f"{split} {len(s)} of {len({i['video'] for i in s})} videos" for split, s in splits.items()]
    print(f"{path}: {', '.join(counts)}")
    return splits


def check_answers(splits: Splits) -> None:
    """Raise `UserError` where answers are missing, unless they are withheld in all of val or of test."""
    for split, items in splits.items():
        lacking = sum(item.get("answer") == -1 for item in items)
        if lacking and (split == "train" or lacking < len(items)):
            raise UserError(f"{lacking} of {len(items)} rows of {split} have no answer: give all of them.")


def own_config(table: Table, folder: Path, keys: Sequence[str]) -> Config:
    """The published config of such a task about this data, with what the command line changes."""
    changes = {"data_dir": str(folder), "dataset": table.name, "task": table.task}
    changes |= {"size_option": str(table.options)} if table.options else {}
    given = [f"--{key}={value}" for key, value in {**changes, "size_vocab": 0, "size_test": 0}.items()]
    return load_config(table.kind.type, ["--config", str(ARGS / table.kind.config), *given, *keys])


def write_config(table: Table, config: Config, splits: Splits, folder: Path) -> None:
    """Write `args_TASK.json`, the keys alone that are no defaults, and print what to run."""
    least = max(1, min(config.size_batch, len(splits.get("train", []))))
    config = dataclasses.replace(config, size_batch=least)
    default = dataclasses.asdict(Config(type=config.type))
    published = json.loads((ARGS / table.kind.config).read_text())
    made = dataclasses.asdict(config)
    kept = {key: value for key, value in made.items() if key in published or value != default[key]}
    path = folder / f"args_{table.task}.json"
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(kept, indent=2) + "\n")
    commands = [["_tools/check_data.py", str(path)], [table.kind.script, "--config", str(path)]]
    if "train" not in splits:
        commands[-1] += ["--size_epoch", "0"]
    if table.kind is RETRIEVAL:
        latest = str(Path(config.path_output) / "latest")
        commands.append(["eval_retrieval_tsv.py", "--config", str(path), "--path_ckpt", latest])
    print("Check the data, then train" + (", then rank:" if table.kind is RETRIEVAL else ":"))
    for command in commands:
        print(f"    {shlex.join(['python', *command])}")
