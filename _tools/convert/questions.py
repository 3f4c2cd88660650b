"""Converters of public questions: MSRVTT-QA, MSVD-QA, MSRVTT-MC, TGIF-QA, LSMDC's choices and blanks."""

import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from _tools.convert.files import Item, Public, Splits, hold_out, read_json, read_lines, read_table, read_text
from lib import UserError

CLIP = ("clip_name", "video_id", "video", "vid_key")  # what a clip's name is called
SEED = 88  # of the order of options where the right one comes first
BLANK = re.compile(r"_{3,}")


# ------------------------------------------------------------------------------------------- open-ended


def with_answers(splits: Splits, size_vocab: int) -> dict[str, Any]:
    """Answers in words -> numbers into `vocab`, the most frequent of train; -1: not among them."""
    counts = Counter(item["answer"] for item in splits["train"])
    frequent = sorted(counts, key=lambda word: (-counts[word], word))[:size_vocab]
    vocab = sorted(frequent)
    number = {word: index for index, word in enumerate(vocab)}
    numbered = {
        split: [{**item, "answer": number.get(item["answer"], -1)} for item in items]
        for split, items in splits.items()
    }
    return {**numbered, "vocab": vocab}


def msrvtt_qa(public: Public, val_share: float) -> dict[str, Any]:
    """Lists of {video_id, question, answer, id}; the videos are called video0, video1, ..."""
    splits = {}
    for split in ("train", "val", "test"):
        rows = read_json(public.find(split, f"{split}_qa.json", f"*{split}*qa*.json", f"*qa*{split}*.json"))
        splits[split] = [asked(row, f"video{row['video_id']}") for row in rows]
    return with_answers(splits, 1500)


def msvd_qa(public: Public, val_share: float) -> dict[str, Any]:
    """The same; lines "7xNG7qGY9rw_14_29 vid1" of `youtube_mapping.txt` say what video 1 is called."""
    path = public.find("mapping", "youtube_mapping.txt", "*mapping*.txt")
    lines = [line.split() for line in read_text(path).split("\n") if line.strip()]
    if not all(len(line) == 2 for line in lines):
        raise UserError(f"{path}: a line is a video's name, a space, its number (vid1, ...); correct it.")
    names = {number: name for name, number in lines}
    splits = {}
    for split in ("train", "val", "test"):
        rows = read_json(public.find(split, f"{split}_qa.json", f"*{split}*qa*.json", f"*qa*{split}*.json"))
        try:
            splits[split] = [asked(row, names[f"vid{row['video_id']}"]) for row in rows]
        except KeyError as error:
            raise UserError(f"{path} has no {error}, which {split} asks about.") from error
    return with_answers(splits, 1000)


def asked(row: Item, video: str) -> Item:
    """A question of the two."""
    return {"video": video, "question": row["question"], "answer": row["answer"]}


def tgif_frame(public: Public, val_share: float) -> dict[str, Any]:
    """Tables of gif_name, question, answer, and the type of the question where there is one."""
    splits = {}
    for split in ("train", "test"):
        path = public.find(split, f"{split}_frameqa_question.csv", f"*{split}*frame*.csv")
        rows = read_table(path, "\t", ("gif_name", "question", "answer"))
        splits[split] = [
            {"video": row["gif_name"], "question": row["question"], "answer": row["answer"]}
            | ({"type": row["type"]} if row.get("type") else {})
            for row in rows
        ]
    content = with_answers(splits, 1540)
    return content | hold_out(content["train"], val_share)


# --------------------------------------------------------------------------------------- multiple choice


def tgif_choice(task: str, public: Public, val_share: float) -> Splits:
    """Tables of gif_name, question, a1 .. a5, answer (the right one's number, 0 the first)."""
    splits = {}
    for split in ("train", "test"):
        path = public.find(split, f"{split}_{task}_question.csv", f"*{split}*{task}*.csv")
        options = [f"a{number}" for number in range(1, 6)]
        rows = read_table(path, "\t", ("gif_name", "question", *options, "answer"))
        splits[split] = [
            choice(row["gif_name"], row["question"], [row[option] for option in options], int(row["answer"]))
            for row in rows
        ]
    return {**hold_out(splits["train"], val_share), "test": splits["test"]}


def tgif_action(public: Public, val_share: float) -> Splits:
    """Questions about an action that is repeated."""
    return tgif_choice("action", public, val_share)


def tgif_transition(public: Public, val_share: float) -> Splits:
    """Questions about the action before or after another."""
    return tgif_choice("transition", public, val_share)


def choice(video: str, question: str, options: Sequence[str], answer: int) -> Item:
    """A question with options."""
    numbered = {f"option_{number}": text for number, text in enumerate(options)}
    return {"video": video, "question": question, **numbered, "answer": answer}


def msrvtt_mc(public: Public, val_share: float) -> Splits:
    """The test split, which alone is published, as ClipBERT, JSFusion, Singularity and VindLU have it.

    JSON, JSON lines or a CSV with commas or tabs; of a clip's name (JSFusion's `msr7010` is video7010),
    five options (`options`, `caption`, or `a1` .. `a5`) and `answer`, the right one's number, 0 the first.
    """
    names = [f"*mc*{test}*.{kind}" for test in ("test", "") for kind in ("jsonl", "json", "csv")]
    path = public.find("test", *names)
    rows = []
    for row in read_csv(path) if path.suffix == ".csv" else read_json(path):
        video = next((str(row[key]) for key in CLIP if row.get(key)), "")
        options = row.get("options") or row.get("caption")
        options = options or [row[f"a{number}"] for number in range(1, 6) if f"a{number}" in row]
        if not video or not isinstance(options, list) or len(options) < 2 or "answer" not in row:
            raise UserError(f"{path}: {row} needs clip_name, options and answer; correct it.")
        video = re.sub(r"^msr(?=\d)", "video", video)
        rows.append(choice(video, row.get("question", ""), options, int(row["answer"])))
    return {"test": rows}


def read_csv(path: Path) -> Iterator[Item]:
    """The rows of a table with commas, or with tabs if its head has one."""
    head = read_text(path).split("\n", 1)[0]
    return read_table(path, "\t" if "\t" in head else ",")


def lsmdc_mc(public: Public, val_share: float) -> Splits:
    """Lines of clip, four times, five sentences; in test behind them the right one's number, from 1 on.

    In the files of train and val the right sentence comes first: the five are shuffled, by a seed.
    """
    splits = ("train", "val", "test")
    return {split: lsmdc_choices(public.find(split, f"*multiple_choice*{split}*.csv")) for split in splits}


def lsmdc_choices(path: Path) -> list[Item]:
    """The questions of one of its files, with the right one's number or without.

    Whether it counts from 0 or from 1 shows in its numbers.
    """
    lines = list(read_lines(path, 6))
    numbered = [fields for fields in lines if fields[-1].strip().isdecimal()]
    if 2 * len(numbered) < len(lines):
        return shuffled_choices([fields for fields in lines if "clip_id" not in fields[0].lower()])
    numbers = {int(fields[-1]) for fields in numbered}  # a head has words
    first = 0 if 0 in numbers else 1
    if not numbered or not numbers <= set(range(first, first + 5)) or min(map(len, numbered)) < 7:
        raise UserError(f"{path}: the last field of a line is the right option's number, not {numbers}.")
    return [choice(fields[0], "", fields[-6:-1], int(fields[-1]) - first) for fields in numbered]


def shuffled_choices(lines: Sequence[Sequence[str]], seed: int = SEED) -> list[Item]:
    """Questions of lines whose last five fields are sentences, the right one first."""
    order, questions = random.Random(seed), []
    for fields in lines:
        places = order.sample(range(5), 5)
        options = [fields[-5:][place] for place in places]
        questions.append(choice(fields[0], "", options, places.index(0)))
    return questions


def lsmdc_fib(public: Public, val_share: float) -> dict[str, Any]:
    """Lines that begin with the clip, hold a sentence with a blank of underscores, and end with its word."""
    splits = {}
    for split in ("train", "val", "test"):
        names = [f"*{word}*{split}*.csv" for word in ("fib", "blank")]
        names += [f"*{split}*{word}*.csv" for word in ("fib", "blank")]
        splits[split] = lsmdc_blanks(public.find(split, *names))
    return with_answers(splits, 908)


def lsmdc_blanks(path: Path) -> list[Item]:
    """The questions of one of its files."""
    rows = []
    for number, fields in enumerate(read_lines(path, 3), 1):
        blanked = [text for text in fields[1:-1] if BLANK.search(text)]
        if not blanked and number == 1:
            continue  # a head
        if not blanked:
            raise UserError(f"{path} line {number}: no field has a blank, '_____'; correct it.")
        sentence = BLANK.sub("[MASK]", " ".join(blanked[-1].split()), count=1)
        rows.append({"video": fields[0], "question": sentence, "answer": fields[-1].strip().lower()})
    return rows
