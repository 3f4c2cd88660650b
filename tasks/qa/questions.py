"""Questions about videos: `img_DATASET.tsv` and `txt_TASK.json` -> clip, text or texts, answer -> loaders.

The kinds of question in kinds.py define text and answer. A question that cannot be answered (its video is
missing, its answer is not one token) stays in training without a loss, as published, and counts as wrong in
evaluation. File formats are defined in `_data/README.md`.
"""

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch.utils.data import default_collate

from batch import Batch, Output
from dataset import Collate, Corpus, Loader, Mixture, data_workers
from lib import Config, UserError, World, log
from media.batches import Batches
from media.files import digest, read_json
from media.frames import Transform, read_clip
from media.tokens import Tokens
from media.tsv import BadRow, Videos
from tasks.qa.texts import RULES, Text

Item = dict[str, Any]
BEST = 5  # answers that the predictions file names
UNANSWERABLE = {  # why a question cannot be answered
    "video": "the video is missing",
    "row": "the video's row cannot be read",
    "answer": "the answer is not one token",
    "score": "the scores are not finite numbers",
    "mask": "the text has no [MASK], or loses it when it is cut to size_txt",
}


@dataclass(frozen=True)
class Annotation:
    """A `txt_TASK.json`: the questions of each split, and the words that answer numbers stand for."""

    path: Path
    splits: dict[str, list[Item]]
    words: dict[int, str]

    @classmethod
    def read(cls, path: Path) -> "Annotation":
        """Raises `UserError` for a file that is missing or of another form."""
        if not path.exists():
            raise UserError(f"{path} does not exist; _data/README.md says how questions are prepared.")
        content = read_json(path)
        content = content if isinstance(content, dict) else {}
        found = {name: content[name] for name in ("train", "val", "test") if content.get(name)}
        for name, items in found.items():
            if not isinstance(items, list) or not all(isinstance(i, dict) and "video" in i for i in items):
                raise UserError(f'{path}: {name} is not a list of {{"video": ...}}; see _data/README.md.')
            for number, item in enumerate(items):
                if fault := fault_of_texts(item):
                    raise UserError(f"{path}, {name} question {number}: {fault}.")
        if not found:
            raise UserError(f"{path} has no questions under train, val or test.")
        splits = {
            name: [{**item, "number": i} for i, item in enumerate(rows)] for name, rows in found.items()
        }
        return cls(path, splits, read_labels(path, content.get("ans2label") or content.get("vocab") or []))


def read_labels(path: Path, labels: Any) -> dict[int, str]:
    """{number: word} of `ans2label`, {word: number}, or of a list of words. Raises `UserError`."""
    if isinstance(labels, list):
        pairs = list(enumerate(labels))
    else:
        pairs = [(index, word) for word, index in labels.items()] if isinstance(labels, dict) else [(-1, "")]
    numbers: dict[int, str] = {}
    for index, word in pairs:
        if type(word) is not str or type(index) is not int or index < 0:
            raise UserError(f"{path}: its answers (ans2label or vocab) are not words numbered from 0.")
        if numbers.setdefault(index, word) != word:
            raise UserError(f"{path}: ans2label gives the number {index} to {numbers[index]!r} and {word!r}.")
    return numbers


def fault_of_texts(item: Item) -> str:
    """Which part of a question should be text, or the id of a video, and is none; empty if all are."""
    if type(item["video"]) not in (str, int) or item["video"] == "":
        return f"its video {item['video']!r} is not an id"
    for key, value in item.items():
        if (key in ("question", "answer_text") or key.startswith("option_")) and not isinstance(value, str):
            return f"its {key} is {value!r}, not a string"
    return ""


def is_withheld(items: Sequence[Item]) -> bool:
    """Whether the answers of a split are withheld: all are -1."""
    return all(item.get("answer") == -1 and "answer_text" not in item for item in items)


# -------------------------------------------------------------------------------------------- datasets


class NothingToAnswer(UserError):
    """No question of a split can be answered, for example because all videos are missing."""


@dataclass
class Questions(ABC):
    """One split of a task. A kind of question defines text and answer.

    `wanted[i]` is the right option or token; -1 where `reasons[i]` says why there is none.
    """

    annotation: Annotation
    split: str
    items: list[Item]
    videos: Videos
    tokens: Tokens
    transform: Transform
    size_frame: int
    size_option: int = 5
    mask_pos: str = "append"
    use_prompt: bool = False
    text_rules: str = "published"
    wanted: list[int] = field(init=False)
    reasons: list[str] = field(init=False)
    withheld: bool = field(init=False)
    """whether the split has no answers: it is predicted, and has no accuracy"""

    prompt: ClassVar[str] = ""
    text_per_option: ClassVar[bool] = False
    has_options: ClassVar[bool] = False

    def source(self) -> dict[str, Any]:
        """See `dataset.Corpus.source`; of the split, with its videos and those that are missing."""
        videos = {str(item["video"]) for item in self.items}
        missing = sum(name not in self.videos for name in videos)
        return {
            "file": self.annotation.path.name,
            "sha256": digest(self.annotation.path),
            "split": self.split,
            "samples": len(self.items),
            "videos": len(videos),
            "missing_videos": missing,
        }

    def __post_init__(self) -> None:
        """Tokenise everything, and leave questions without a video out of training."""
        self.withheld = not self.split.startswith("train") and is_withheld(self.items)
        self.special = self.tokens.special
        self.pad = self.special.pad
        prompt = self.lead() if self.use_prompt else ""
        self.table = self.tokens.words(
            [prompt, *(piece for item in self.items for piece in self.pieces(item))]
        )
        self.rules = RULES[self.text_rules](
            self.special, self.tokens.size, self.mask_pos, tuple(self.table[prompt])
        )
        texts = [self.compose(item) for item in self.items]
        answers = [-1 if self.withheld else self.answer(item) for item in self.items]
        self.reasons = [self.reason(*triple) for triple in zip(self.items, texts, answers, strict=True)]
        self.report(texts)
        if all(self.reasons):
            raise NothingToAnswer(
                f"{self.annotation.path}: no question of {self.split} can be answered; see the log above."
            )
        # as published, questions without an answer or a video stay in training, without a loss
        self.wanted = [-1 if why else answer for why, answer in zip(self.reasons, answers, strict=True)]
        self.places, self.shortened = [text.place for text in texts], [text.shortened for text in texts]
        self.txt = [[np.array(ids, np.int32) for ids in text.ids] for text in texts]
        self.width = max(self.tokens.size, *(len(ids) for texts in self.txt for ids in texts))
        del self.table

    def __len__(self) -> int:
        return len(self.items)

    # -- defined by a kind of question

    @abstractmethod
    def pieces(self, item: Item) -> list[str]:
        """The strings that its text is made of."""

    @abstractmethod
    def compose(self, item: Item) -> Text:
        """Its text, by the ids of its pieces in `table`."""

    @abstractmethod
    def answer(self, item: Item) -> int:
        """The right option or token; -1: there is none."""

    @abstractmethod
    def name(self, item: Item, pick: int) -> str:
        """A pick of the model in words."""

    @abstractmethod
    def answer_name(self, item: Item) -> str:
        """The right answer in words."""

    # -- shared by all kinds

    def fail(self, item: Item, message: str) -> UserError:
        """The error of a question, with its place in the file."""
        return UserError(f"{self.annotation.path}, {self.split} question {item['number']}: {message}")

    def lead(self) -> str:
        """The prompt."""
        return self.prompt

    def asked(self, item: Item) -> str:
        """The question as the file has it; empty if it has none."""
        return str(item.get("question") or "")

    def reason(self, item: Item, text: Text, answer: int) -> str:
        """Why a question cannot be answered: a key of UNANSWERABLE, or nothing."""
        if str(item["video"]) not in self.videos:
            return "video"
        if not text.answerable:
            return "mask"
        return "answer" if answer < 0 and not self.withheld else ""

    def report(self, texts: Sequence[Text]) -> None:
        """Log how many questions there are, how many were shortened, and how many cannot be answered."""
        log.info("%s: %d questions", self.split, len(self.items))
        if self.withheld:
            log.warning("%s: the file has no answers: the split is predicted, without accuracy.", self.split)
        if short := sum(text.shortened for text in texts):
            log.info("%s: %d questions shortened to size_txt %d", self.split, short, self.tokens.size)
        for why, count in Counter(filter(None, self.reasons)).items():
            first = next(i for i, r in zip(self.items, self.reasons, strict=True) if r == why)
            log.info(
                "%s: %d questions %s: %s, first that of %s",
                self.split,
                count,
                "have no loss" if self.split == "train" else "count as wrong",
                UNANSWERABLE[why],
                f"{first['video']} ({'' if self.withheld else self.answer_name(first)!r})",
            )

    def read(self, index: int, random: np.random.Generator | None) -> dict[str, Any]:
        """One question; `random` None is evaluation. Raises `BadRow`."""
        if self.reasons[index] == "video":
            return self.blank(index)
        video = str(self.items[index]["video"])
        path = self.videos.tsv.path
        try:
            img = read_clip(self.videos[video], self.size_frame, self.transform, random, path.parent)
        except BadRow as error:
            raise BadRow(f"{path} ({video}): {error}; rebuild the row with _tools/make_tsv.py") from error
        return {**self.sample(index), "img": img}

    def sample(self, index: int) -> dict[str, Any]:
        """A question without its clip: txt, mask (X,), or (O, X) with options; place, answer and id."""
        txt = torch.full((len(self.txt[index]), self.width), self.pad)
        mask = torch.zeros_like(txt)
        for row, ids in enumerate(self.txt[index]):
            txt[row, : len(ids)] = torch.from_numpy(ids)
            mask[row, : len(ids)] = torch.from_numpy(ids != self.pad)
        if not self.text_per_option:
            txt, mask = txt[0], mask[0]
        prompt = {"prompt": torch.tensor(self.rules.between)} if self.rules.between else {}
        return {
            "txt": txt,
            "mask": mask,
            **prompt,
            "place": self.places[index],
            "answer": self.wanted[index],
            "id": str(self.items[index]["video"]),
        }

    def blank(self, index: int) -> dict[str, Any]:
        """A question whose clip cannot be read: it counts as wrong."""
        return {**self.sample(index), "img": self.transform.blank(self.size_frame), "valid": False}

    def describe(
        self, index: int, valid: bool, rank: int, best: Sequence[int], shares: Sequence[float]
    ) -> Item:
        """For the predictions file: question, answer, the best picks with probabilities, right or wrong.

        `rank` is that of the right answer. Without finite scores nothing is picked.
        """
        item, reason = self.items[index], self.reasons[index] or ("" if valid else "row")
        if not reason and not all(map(math.isfinite, shares)):
            reason, best, shares = "score", [], []
        picks = [
            {"answer": self.name(item, pick), "probability": round(share, 6)}
            for pick, share in zip(best, shares, strict=True)
        ]
        row: Item = {"id": str(item["video"]), "question": self.asked(item)}
        row |= {"answer": None if self.withheld else self.answer_name(item), "best": picks}
        row["right"] = None if self.withheld else not reason and rank == 1
        if not self.has_options and not self.withheld:
            row["right_5"] = not reason and rank <= BEST
        if kind := item.get("type", item.get("question_type")):
            row["type"] = str(kind)
        return {**row, "unanswerable": reason, "shortened": self.shortened[index]}


# --------------------------------------------------------------------------------------------- loaders


def describe(batch: Batch, output: Output, splits: Mapping[str, Loader]) -> Sequence[Item]:
    """The rows of the predictions file for a batch."""
    columns = (batch["corpus"], batch["index"].tolist(), batch["valid"].tolist())
    picks = (output.predictions[name] for name in ("rank", "best", "probabilities"))
    rows = []
    for split, index, valid, *picked in zip(*columns, *picks, strict=True):
        questions: Any = splits[split].dataset.corpora[split]
        rows.append(questions.describe(index, valid, *picked))
    return rows


def some_videos(items: Sequence[Item], ratio: float, seed: int) -> list[Item]:
    """The questions about a share of the videos, or about `ratio` videos where that is above 1, by `seed`."""
    videos = sorted({str(item["video"]) for item in items})
    order = np.random.default_rng(seed).permutation(len(videos))
    count = math.ceil(ratio * len(videos)) if ratio <= 1 else int(ratio)
    kept = {videos[i] for i in order[:count]}
    return [item for item in items if str(item["video"]) in kept]


def question_loaders(
    config: Config, world: World, tokens: Tokens, kind: type[Questions]
) -> dict[str, Loader]:
    """Loaders of the splits that `txt_TASK.json` has; training only where there are epochs."""
    folder = Path(config.data_dir)
    annotation = Annotation.read(folder / f"txt_{config.task}.json")
    listed = len(annotation.words)
    if listed and config.size_vocab > 0 and config.size_vocab != listed:
        log.info("%s lists %d answers, not size_vocab %d", annotation.path, listed, config.size_vocab)
    splits = choose_splits(config, annotation)
    videos = Videos(folder / f"img_{config.dataset}.tsv")
    loaders: dict[str, Loader] = {}
    settings: dict[str, Any] = {"size_frame": config.size_frame, "size_option": config.size_option}
    settings |= {"mask_pos": config.mask_pos, "use_prompt": config.enable_prompt}
    settings |= {"text_rules": config.text_rules}
    transform = Transform(config.img_transform, config.size_img)
    for number, (split, items) in enumerate(splits.items()):
        try:
            questions = kind(annotation, split, items, videos, tokens, transform, **settings)
        except NothingToAnswer as error:
            if config.size_epoch or not (loaders or number + 1 < len(splits)):
                raise
            log.warning("%s It is not evaluated.", error)
            continue
        loaders[split] = split_loader(config, world, split, questions, without_padding)
    return loaders


def without_padding(samples: list[dict[str, Any]]) -> Batch:
    """Samples -> a batch without the columns that are padding in all of its texts."""
    batch = default_collate(samples)
    columns = torch.arange(1, batch["mask"].shape[-1] + 1)
    longest = int((batch["mask"] * columns).max())  # with mask_pos insert, padding may lie before [MASK]
    return {**batch, **{name: batch[name][..., :longest] for name in ("txt", "mask")}}


def choose_splits(config: Config, annotation: Annotation) -> dict[str, list[Item]]:
    """The questions that a run is about, of each split; `UserError` if there are none for it."""
    splits = dict(annotation.splits)
    for split in ("val", "test"):
        if split not in splits:
            log.info("%s has no questions under %s: it is not evaluated.", annotation.path, split)
    names = {split: {str(item["video"]) for item in items} for split, items in splits.items()}
    if shared := names.get("train", set()) & names.get("test", set()):
        log.warning(
            "%s: %d videos are in train and in test, first %s: the test measures what was seen in training",
            annotation.path, len(shared), min(shared),
        )  # fmt: skip
    if not config.size_epoch:
        splits.pop("train", None)
        if not splits:
            raise UserError(f"size_epoch 0 evaluates only; {annotation.path} has nothing under val or test.")
        return splits
    if "train" not in splits:
        raise UserError(f"{annotation.path} has no questions under train; --size_epoch 0 evaluates only.")
    splits["train"] = some_videos(splits["train"], config.data_ratio, config.seed)
    if not splits["train"]:
        raise UserError(f"data_ratio {config.data_ratio} leaves no training video.")
    return splits


def split_loader(
    config: Config, world: World, split: str, questions: Corpus, collate: Collate = default_collate
) -> Loader:
    """The loader of one split; the split is also the name of the corpus in its batches."""
    train = split == "train"
    sizes, batch_sizes = {split: len(questions)}, {split: config.size_batch}
    batches = Batches(sizes, batch_sizes, train, config.seed, world.rank, world.size, keep_last=True)
    mixture, pin = Mixture({split: questions}, config.seed, train), world.device.type != "cpu"
    return Loader(mixture, batches, data_workers(config, world), config.max_bad_ratio, pin, collate)
