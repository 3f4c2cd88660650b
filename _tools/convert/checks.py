"""Checks of check_data.py: frames files, pre-training corpora, questions, captions of retrieval."""

import functools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor
from tqdm import tqdm

from dataset import PretrainCorpus
from lib import Config, UserError
from media.frames import Linked, Transform, even_frames, row_frames
from media.tokens import Tokens
from media.tsv import BadRow, Tsv, Videos, find_rows
from tasks.qa.kinds import FillInTheBlank, MultipleChoice, OpenEnded, OptionNumber
from tasks.qa.questions import UNANSWERABLE, Annotation, Item, Questions

LOOKS = 32  # frames that are decoded of a file that a row names: the file itself may have thousands


class Row(NamedTuple):
    """A row that is to be decoded: its name, what reads its fields, its TSV's folder, the text with it."""

    name: str
    read: Callable[[], Sequence[bytes]]
    folder: Path
    text: str


@dataclass(frozen=True)
class Finding:
    """One check: the number of items, and the faults found."""

    where: str
    what: str
    faults: list[str]
    total: int
    stops: bool
    """whether it costs a run samples, or the run itself: an error; else it is to be known"""


@dataclass
class Report:
    """All findings, and some clips to look at."""

    findings: list[Finding] = field(default_factory=list)
    clips: list[tuple[str, list[Tensor]]] = field(default_factory=list)
    """caption, and frames (3, H, W) uint8"""

    def add(
        self, where: str, what: str, faults: Iterable[str], total: int = 1, stops: bool = True
    ) -> list[str]:
        """Add a finding; give its faults back."""
        self.findings.append(Finding(where, what, list(faults), total, stops))
        return self.findings[-1].faults


@dataclass(frozen=True)
class Sample:
    """How much is looked at: `size` rows drawn by `seed`, 0: all. Of a corpus, `clips` are to be shown."""

    size: int = 0
    seed: int = 0
    clips: int = 4

    def of(self, number: int) -> list[int]:
        """The rows of `number` that are looked at, ascending."""
        if not self.size or self.size >= number:
            return list(range(number))
        drawn = np.random.default_rng(self.seed).choice(number, self.size, replace=False)
        return sorted(drawn.tolist())


# ------------------------------------------------------------------------------------------------ frames


def check_rows(report: Report, where: str, rows: Sequence[Row], size_frame: int, clips: int) -> None:
    """Every row is decoded, and has as many frames as a clip; so many are kept to be shown."""

    def look(row: Row) -> tuple[str, int, list[Tensor]]:
        try:
            frames = row_frames(row.read(), row.folder)
            most = LOOKS if isinstance(frames, Linked) else len(frames)
            pictures = frames.read(even_frames(len(frames), min(most, len(frames))).tolist())
        except BadRow as error:
            return f"{row.name}: {error}", 0, []
        shown = even_frames(len(pictures), min(size_frame, len(pictures)))
        return "", len(frames), [pictures[i] for i in shown]

    faults, few, shown = [], [], np.linspace(0, max(len(rows) - 1, 0), clips).astype(int).tolist()
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        looks = tqdm(threads.map(look, rows), total=len(rows), desc=where, unit="row", leave=False)
        for number, (fault, frames, pictures) in enumerate(looks):
            if fault:
                faults.append(fault)
            elif frames < size_frame:
                few.append(f"{rows[number].name}: {frames}")
            if pictures and number in shown:
                report.clips.append((f"{rows[number].name}  {rows[number].text}", pictures))
    report.add(where, "rows that cannot be decoded", faults, len(rows))
    report.add(where, f"rows of fewer than {size_frame} frames", few, len(rows), stops=False)


def check_indices(report: Report, where: str, tsvs: Sequence[Tsv], sample: Sample) -> None:
    """Indices have their files' rows. Of a sample their ends alone are known to fit: no file is read."""
    if not sample.size:
        old = [t.path for t in tsvs if not np.array_equal(np.sort(t.offsets), find_rows(t.path))]
        faults = [f"{path}: delete its index" for path in old]
        report.add(where, "indices that are not their file's", faults, len(tsvs))


def repeated(names: Iterable[str]) -> list[str]:
    """Items that occur more than once."""
    return [f"{name}: {count} times" for name, count in Counter(names).items() if count > 1]


def overlap(report: Report, where: str, names: dict[str, set[str]]) -> None:
    """Videos that two splits share."""
    splits = list(names)
    for i, first in enumerate(splits):
        for second in splits[i + 1 :]:
            both = sorted(names[first] & names[second])
            total = len(names[second])
            report.add(where, f"videos of {second} that are in {first}", both, total, stops=False)


# ------------------------------------------------------------------------------------------ pre-training


def check_pretrain(config: Config, tokens: Tokens, report: Report, sample: Sample) -> None:
    """The corpora of `train_yaml` and `val_yaml`."""
    ids: dict[str, set[str]] = {}
    for split, paths in {"train": config.train_yaml, "val": config.val_yaml}.items():
        for name, path in paths.items():
            where = f"{split} {name}"
            try:
                transform = Transform(config.img_transform, config.size_img)
                corpus = PretrainCorpus(path, name, tokens, transform, config.size_frame)
            except UserError as error:
                report.add(where, "files that cannot be used", [str(error)])
                continue
            names = check_corpus(corpus, where, tokens, report, sample)
            ids.setdefault(split, set()).update(f"{name} {id_}" for id_ in names)
    if not config.train_yaml and not config.val_yaml:
        report.add("config", "corpora that are missing", ["train_yaml and val_yaml name none"])
    overlap(report, "all", ids)


def check_corpus(
    corpus: PretrainCorpus, where: str, tokens: Tokens, report: Report, sample: Sample
) -> list[str]:
    """Rows, pairs, captions and indices of a corpus; the ids of its captions."""
    check_indices(report, where, [*corpus.images, *corpus.captions], sample)
    sizes = np.array([len(tsv) for tsv in corpus.images])
    sources, numbers = corpus.pairs[:, 0], corpus.pairs[:, 1]
    known = (sources >= 0) & (sources < len(sizes)) & (numbers >= 0)
    known &= numbers < sizes[sources.clip(0, len(sizes) - 1)]
    wrong = [f"pair {i}: {corpus.pairs[i].tolist()}" for i in np.flatnonzero(~known)]
    report.add(where, "pairs whose row does not exist", wrong, len(corpus))
    pairs = np.flatnonzero(known)
    pairs = pairs[sample.of(len(pairs))]
    captions, faults = [], []
    texts: dict[Any, Any] = {}
    for index in pairs.tolist():
        source, row, number = corpus.pairs[index].tolist()
        try:
            name = corpus.images[source][row][0].decode(errors="replace")
            captions.append(corpus.caption(source, row, number, name))
            texts.setdefault((source, row), captions[-1])
        except BadRow as error:
            faults.append(f"pair {index}: {error}")
            texts.setdefault((source, row), "")
    report.add(where, "pairs without the caption of their row", faults, len(pairs))
    check_lengths(report, where, captions, tokens)
    rows = []
    for (source, row), text in texts.items():
        tsv = corpus.images[source]
        read = functools.partial(tsv.__getitem__, row)
        rows.append(Row(f"{tsv.path.name} row {row}", read, tsv.path.parent, text))
    check_rows(report, where, rows, corpus.size_frame, sample.clips)
    names = [tsv[i][0].decode(errors="replace") for tsv in corpus.captions for i in range(len(tsv))]
    report.add(where, "ids that come twice", repeated(names), len(names))
    return names


def check_lengths(report: Report, where: str, texts: Sequence[str], tokens: Tokens) -> None:
    """Texts that are empty, or lose words to size_txt."""
    lengths = tokens.words(texts)
    counts = [(len(lengths[text]), text) for text in texts]
    long = [f"{count + 2} tokens: {text}" for count, text in counts if count + 2 > tokens.size]
    report.add(
        where, "captions without a word", [repr(text) for count, text in counts if not count], len(texts)
    )
    report.add(where, f"captions cut to size_txt {tokens.size}", long, len(texts), stops=False)


# ------------------------------------------------------------------------------- questions and retrieval


def check_downstream(config: Config, tokens: Tokens, report: Report, sample: Sample) -> None:
    """`img_DATASET.tsv` and `txt_TASK.json` of question answering or retrieval."""
    folder = Path(config.data_dir)
    try:
        annotation = Annotation.read(folder / f"txt_{config.task}.json")
        videos = Videos(folder / f"img_{config.dataset}.tsv")
    except UserError as error:
        report.add("files", "files that cannot be used", [str(error)])
        return
    check_indices(report, "videos", [videos.tsv], sample)
    if not sample.size:  # the index has each id once: this reads the file
        ids = first_fields(videos.tsv)
        report.add("videos", "ids that come twice", repeated(ids), len(ids))
    used: dict[str, str] = {}
    names: dict[str, set[str]] = {}
    for split, items in annotation.splits.items():
        names[split] = {str(item["video"]) for item in items}
        missing = sorted(names[split] - set(videos.rows))
        total = len(names[split])
        report.add(split, "videos that are missing", missing, total, stops=len(missing) == total)
        if config.type == "retrieval":
            check_captions(report, split, items, tokens)
        else:
            check_questions(config, annotation, split, videos, tokens, report)
        for item in items:
            used.setdefault(str(item["video"]), text_of(item, annotation.words))
    overlap(report, "all", names)
    known = [name for name in used if name in videos.rows]
    picked = [known[i] for i in sample.of(len(known))]
    folder = videos.tsv.path.parent
    rows = [Row(name, functools.partial(videos.__getitem__, name), folder, used[name]) for name in picked]
    check_rows(report, "videos", rows, config.size_frame, 3 * sample.clips)


def first_fields(tsv: Tsv) -> list[str]:
    """The id of each row of the file."""
    starts = find_rows(tsv.path).tolist()
    return [tsv.map[start : start + 1024].split(b"\t", 1)[0].decode(errors="replace") for start in starts]


def text_of(item: Item, words: Mapping[int, str]) -> str:
    """The text of a question with its answer, or of a caption; `words` maps answer numbers to words."""
    text = item.get("caption", item.get("question")) or ""
    text = " ".join(map(str, text)) if isinstance(text, list) else str(text)
    answer = item.get("answer", "")
    named = item.get("answer_text") or item.get(f"option_{answer}") or words.get(answer, answer)
    return f"{text}  {named}"


def kind_of(config: Config, items: Sequence[Item]) -> type[Questions]:
    """The kind of question that the config's script asks."""
    if config.type == "qamc":
        numbered = config.task in ("tgif-action", "tgif-transition")  # of main_qamc_tsv_mlm_gen_ans_idx.py
        return OptionNumber if numbered else MultipleChoice
    masked = sum("[MASK]" in str(item.get("question")) for item in items)
    return FillInTheBlank if 2 * masked > len(items) else OpenEnded


def check_questions(
    config: Config, annotation: Annotation, split: str, videos: Videos, tokens: Tokens, report: Report
) -> None:
    """Questions that cannot be answered, are cut, or come twice."""
    items = annotation.splits[split]
    kind = kind_of(config, items)
    settings: dict[str, Any] = {"size_frame": config.size_frame, "size_option": config.size_option}
    settings |= {"mask_pos": config.mask_pos, "use_prompt": config.enable_prompt}
    settings |= {"text_rules": config.text_rules}
    transform = Transform(config.img_transform, config.size_img)
    try:  # not as split "train", which leaves out what cannot be answered
        asked = kind(annotation, f"{split} split", items, videos, tokens, transform, **settings)
    except UserError as error:
        report.add(split, "questions that cannot be used", [str(error)], len(items))
        return
    withheld = ["all: they are predicted, without accuracy"] if asked.withheld else []
    report.add(split, "answers that are withheld", withheld, stops=False)
    for why, words in UNANSWERABLE.items():
        if why not in ("video", "row"):
            at_fault = [i for i, reason in zip(items, asked.reasons, strict=True) if reason == why]
            faults = [f"{i['video']}: {text_of(i, annotation.words)}" for i in at_fault]
            report.add(split, f"questions: {words}", faults, len(items), stops=len(faults) == len(items))
    cut = [text_of(i, annotation.words) for i, short in zip(items, asked.shortened, strict=True) if short]
    report.add(split, f"questions cut to size_txt {tokens.size}", cut, len(items), stops=False)
    same = repeated(f"{item['video']}: {text_of(item, annotation.words)}" for item in items)
    report.add(split, "questions that come twice", same, len(items), stops=False)


def check_captions(report: Report, split: str, items: Sequence[Item], tokens: Tokens) -> None:
    """Captions of retrieval: a text, or a list of sentences, each."""
    faults, texts = [], []
    for item in items:
        caption = item.get("caption")
        sentences = caption if isinstance(caption, list) else [caption]
        words = [sentence for sentence in sentences if isinstance(sentence, str)]
        if words and len(words) == len(sentences):
            texts.append(" ".join(words))
        else:
            faults.append(f"{item['video']}: {caption!r}")
    report.add(split, "captions that are no text", faults, len(items))
    check_lengths(report, split, texts, tokens)
    same = repeated(f"{item['video']}: {text_of(item, {})}" for item in items)
    report.add(split, "captions that come twice", same, len(items), stops=False)
