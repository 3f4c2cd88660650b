"""Videos and their captions: `img_DATASET.tsv` and `txt_TASK.json` -> pairs to train on, a split to rank.

A caption is a string, or a list of sentences that are joined; for didemo all sentences of a video are one
caption. In training such a caption is a random number of its sentences in random order. File formats are
defined in `_data/README.md`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import default_collate

from batch import Batch, Output
from dataset import Loader
from lib import Config, UserError, World, log
from media.files import digest
from media.frames import Frames, Transform, read_clip, read_clips, row_frames
from media.tokens import Tokens
from media.tsv import BadRow, Videos
from tasks.qa.questions import Annotation, Item, choose_splits, split_loader, without_padding


@dataclass(frozen=True)
class Caption:
    """A video's id and the sentences about it."""

    video: str
    sentences: tuple[str, ...]

    @property
    def text(self) -> str:
        """All of it."""
        return " ".join(self.sentences)

    def draw(self, random: np.random.Generator) -> str:
        """A random number of its sentences, in random order."""
        count = random.integers(1, len(self.sentences) + 1)
        return " ".join(self.sentences[i] for i in random.permutation(len(self.sentences))[:count])


def read_captions(
    path: Path, split: str, items: Sequence[Item], join: bool, first: bool = False
) -> list[Caption]:
    """The captions of a split: with `join` one per video, of all its sentences; with `first` its first."""
    captions = []
    for item in items:
        given = item.get("caption")
        sentences = [given] if isinstance(given, str) else given
        if not isinstance(sentences, list) or not sentences or not all(type(s) is str for s in sentences):
            raise UserError(
                f"{path}, {split} {item['number']}: its caption is neither text nor a list of sentences; "
                "see _data/README.md."
            )
        captions.append(Caption(str(item["video"]), tuple(sentence.strip() for sentence in sentences)))
    if first and not join:
        firsts: dict[str, Caption] = {}
        for caption in captions:
            firsts.setdefault(caption.video, caption)
        return list(firsts.values())
    if not join:
        return captions
    joined: dict[str, tuple[str, ...]] = {}
    for caption in captions:
        joined[caption.video] = joined.get(caption.video, ()) + caption.sentences
    return [Caption(video, sentences) for video, sentences in joined.items()]


@dataclass
class Clips:
    """The videos of a split, one sample each, to be ranked: a clip each, or every clip (`multi_clip`)."""

    names: list[str]
    videos: Videos
    transform: Transform
    size_frame: int
    multi_clip: bool = False

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int, random: np.random.Generator | None) -> dict[str, Any]:
        """A video: img (clips, T, 3, size, size) and id. Raises `BadRow`."""
        name = self.names[index]
        if name not in self.videos:
            return self.blank(index)  # it has been reported
        try:
            fields, folder = self.videos[name], self.videos.tsv.path.parent
            if self.multi_clip:
                img = read_clips(fields, self.size_frame, self.transform, folder)
            else:
                img = read_clip(fields, self.size_frame, self.transform, random, folder)[None]
        except BadRow as error:
            path = self.videos.tsv.path
            raise BadRow(f"{path} ({name}): {error}; rebuild the row with _tools/make_tsv.py") from error
        return {"img": img, "id": name}

    def frames(self, name: str) -> Frames:
        """The frames of a video's row; raises `BadRow`."""
        return row_frames(self.videos[name], self.videos.tsv.path.parent)

    def source(self) -> dict[str, Any]:
        """See `dataset.Corpus.source`; of videos alone."""
        return {"file": self.videos.tsv.path.name, "videos": len(self)}

    def blank(self, index: int) -> dict[str, Any]:
        """The sample of a video that cannot be read: it is never found."""
        img = self.transform.blank(self.size_frame)[None]
        return {"img": img, "id": self.names[index], "valid": False}


class Pairs:
    """The captions of a split with a clip of each one's video, for training and accuracy within a batch."""

    def __init__(
        self,
        captions: Sequence[Caption],
        videos: Videos,
        tokens: Tokens,
        transform: Transform,
        size_frame: int,
        train: bool,
        path: Path | None = None,
        split: str = "",
    ) -> None:
        """path, split: where the captions are from, for the protocol."""
        self.path, self.split = path, split
        known = [caption for caption in captions if caption.video in videos]
        if not known:
            raise UserError(f"{videos.tsv.path} has none of the videos that the captions are about.")
        self.captions = known if train else list(captions)
        self.tokens = tokens
        self.clips = Clips([caption.video for caption in self.captions], videos, transform, size_frame)
        number = {name: i for i, name in enumerate(dict.fromkeys(self.clips.names))}
        self.numbers = [number[name] for name in self.clips.names]
        if missing := len(captions) - len(known):
            what = "left out" if train else "count as not found"
            first = next(caption.video for caption in captions if caption.video not in videos)
            log.info("%d captions %s: their video is missing, first %s", missing, what, first)

    def __len__(self) -> int:
        return len(self.captions)

    def read(self, index: int, random: np.random.Generator | None) -> dict[str, Any]:
        """A pair: img (T, 3, size, size), txt, mask (X,), its video's id and number. Raises `BadRow`."""
        return self.pair(index, self.clips.read(index, random), random)

    def source(self) -> dict[str, Any]:
        """See `dataset.Corpus.source`."""
        return source(self.path, self.split, self.clips.names, self.clips.videos)

    def blank(self, index: int) -> dict[str, Any]:
        """A pair whose video cannot be read: it counts as not found."""
        return self.pair(index, self.clips.blank(index), None)

    def pair(self, index: int, clip: dict[str, Any], random: np.random.Generator | None) -> dict[str, Any]:
        """A clip with its caption."""
        caption = self.captions[index]
        txt, mask = self.tokens(caption.draw(random) if random else caption.text)
        return {**clip, "img": clip["img"][0], "txt": txt, "mask": mask, "video": self.numbers[index]}

    def describe(self, index: int) -> Item:
        """A pair for the predictions file."""
        return {"id": self.captions[index].video, "caption": self.captions[index].text}


def source(path: Path | None, split: str, owners: Sequence[str], videos: Videos) -> dict[str, Any]:
    """The file of a split's captions, and how many there are. `owners`: the video of each caption."""
    names = set(owners)
    return {
        "file": path.name if path else "",
        "sha256": digest(path) if path else "",
        "split": split,
        "samples": len(owners),
        "videos": len(names),
        "missing_videos": sum(name not in videos for name in names),
        "captions_per_video": round(len(owners) / max(1, len(names)), 3),
    }


def describe(batch: Batch, output: Output, splits: Mapping[str, Loader]) -> list[Item]:
    """For the predictions file: caption, video, whether each found the other, and among how many."""
    rows = []
    found = (output.predictions[name] for name in ("t2v", "v2t", "among"))
    for split, index, t2v, v2t, among in zip(batch["corpus"], batch["index"].tolist(), *found, strict=True):
        pairs: Any = splits[split].dataset.corpora[split]
        rows.append({**pairs.describe(index), "right_t2v": t2v, "right_v2t": v2t, "among": among})
    return rows


def accuracy(rows: Sequence[Item], split: str) -> dict[str, float]:
    """Accuracy within the batches of an evaluation: a video finds its text (`acc`, as published), a text its
    video (`acc_t2v`), and the mean of both (`acc_mean`).

    A pair that is alone in its batch has nothing to be found among, and does not count.
    """
    among = [row for row in rows if row["among"] > 1]
    if not among:
        log.warning("%s: no batch has two pairs, so there is nothing to find and no accuracy", split)
        return {"pairs": 0}
    v2t, t2v = (sum(row[f"right_{way}"] for row in among) / max(1, len(among)) for way in ("v2t", "t2v"))
    return {"acc": v2t, "acc_t2v": t2v, "acc_mean": (v2t + t2v) / 2, "pairs": len(among)}


def joins(config: Config) -> bool:
    """Whether all sentences about a video are one caption, as in didemo."""
    return config.task.startswith("didemo")


def open_files(config: Config) -> tuple[Annotation, Videos]:
    """`txt_TASK.json` and `img_DATASET.tsv`."""
    folder = Path(config.data_dir)
    return Annotation.read(folder / f"txt_{config.task}.json"), Videos(folder / f"img_{config.dataset}.tsv")


def pair_loaders(config: Config, world: World, tokens: Tokens) -> dict[str, Loader]:
    """Loaders of the splits that `txt_TASK.json` has; training only where there are epochs."""
    annotation, videos = open_files(config)
    transform = Transform(config.img_transform, config.size_img)
    loaders = {}
    for split, items in choose_splits(config, annotation).items():
        first = split != "train" and config.text_rules == "published"
        captions = read_captions(annotation.path, split, items, joins(config), first)
        log.info("%s: %d captions", split, len(captions))
        train = split == "train"
        pairs = Pairs(captions, videos, tokens, transform, config.size_frame, train, annotation.path, split)
        # gathered texts must be equally long on every process
        collate = default_collate if config.gather_negatives else without_padding
        loaders[split] = split_loader(config, world, split, pairs, collate)
    return loaders


@dataclass(frozen=True)
class Gallery:
    """The videos of a split, each once, and its texts; `owner[i]` is the number of text i's video."""

    split: str
    clips: Clips
    texts: list[str]
    owner: list[int]
    path: Path | None = None
    """of the captions"""

    def source(self) -> dict[str, Any]:
        """See `dataset.Corpus.source`."""
        return source(self.path, self.split, [self.clips.names[i] for i in self.owner], self.clips.videos)


def read_gallery(config: Config) -> Gallery:
    """The videos and texts of `eval_split`, which an evaluation ranks."""
    annotation, videos = open_files(config)
    split = config.eval_split
    if split not in annotation.splits:
        there = [name for name in ("val", "test") if name in annotation.splits]
        hint = f"; --eval_split {there[0]} ranks {there[0]}" if there else ""
        raise UserError(f"{annotation.path} has nothing under {split} to rank{hint}.")
    captions = read_captions(annotation.path, split, annotation.splits[split], joins(config))
    names = list(dict.fromkeys(caption.video for caption in captions))
    place = {name: i for i, name in enumerate(names)}
    if missing := [name for name in names if name not in videos]:
        log.info("%s: %d videos are missing and not found, first %s", split, len(missing), missing[0])
    if len(missing) == len(names):
        raise UserError(f"{videos.tsv.path} has none of the videos of {split}.")
    transform = Transform(config.img_transform, config.size_img)
    clips = Clips(names, videos, transform, config.size_frame, config.multi_clip_testing)
    log.info("%s: %d texts, %d videos", split, len(captions), len(names))
    if len(names) == 1:
        log.warning("%s has one video: every text finds it, and recall says nothing", split)
    texts, owner = [caption.text for caption in captions], [place[c.video] for c in captions]
    return Gallery(split, clips, texts, owner, annotation.path)
