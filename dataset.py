"""From a TSV row to a batch: tokens, corpora, loaders.

`TSV row -> clip (T, 3, H, W) uint8` (frames.py) and `caption -> ids (X,)`,
collated to {"img": (B, T, 3, H, W), "txt": (B, X), "mask": (B, X), "valid": (B,), "id": [...]}.
File formats are defined in `_data/README.md`.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from lib import Config, UserError, World, log
from masking import NEGATIVES
from media.batches import Batches, Draw
from media.corpus_files import named_files, yaml_path
from media.files import check_file, digest, parse_json, read_yaml, reading
from media.frames import Transform, read_clip, row_frames
from media.tokens import Tokens
from media.tsv import BadRow, Tsv, read_numbers

IMAGE_CORPORA = ("cc3m", "coco", "sbu", "vg", "cc12m")
IMAGE_BATCH = 128  # images have T times the clips' batch, at most this many
Collate = Callable[[list[dict[str, Any]]], dict[str, Any]]  # samples -> a batch
Truth = Callable[[Tensor], Tensor]  # a clip (T, 3, H, W) uint8 -> the truth of a target, (S, C, h k, w k)


# ------------------------------------------------------------------------------------------- datasets


class Corpus(Protocol):
    """Samples by number, as `Mixture` reads them."""

    def __len__(self) -> int: ...

    def read(self, index: int, random: np.random.Generator | None) -> dict[str, Any]:
        """One sample; `random` None is evaluation. Raises `BadRow`."""
        ...

    def blank(self, index: int) -> dict[str, Any]:
        """The sample that replaces an unreadable one in evaluation, with `valid` False."""
        ...

    def source(self) -> dict[str, Any]:
        """The file that the samples are from, by name and SHA-256, and their numbers: for the protocol."""
        ...


class PretrainCorpus:
    """Pairs of a clip (or a picture, which is a clip of one frame) and a caption, as a YAML lists them."""

    def __init__(
        self,
        path: str | Path,
        name: str,
        tokens: Tokens,
        transform: Transform,
        size_frame: int,
        data_dir: str = "",
        truths: Mapping[str, Truth] | None = None,
    ) -> None:
        """truths: of the targets whose truth is computed here, by the data-loading workers."""
        self.truths = truths or {}
        self.path = yaml_path(path, data_dir)
        self.tokens, self.transform = tokens, transform
        content = self._read_yaml()
        self.is_image = bool(content.get("image", name in IMAGE_CORPORA))
        self.size_frame = 1 if self.is_image else size_frame
        composite = bool(content.get("composite", False))
        self.images = [Tsv(file) for file in self._files(content, "img", composite)]
        self.captions = [Tsv(file) for file in self._files(content, "caption", composite)]
        self.listed = self.path  # the file that lists the pairs
        self.pairs = self._read_pairs(content, composite)
        if self.is_image and "image" not in content:
            self._check_is_image(name)

    def _read_yaml(self) -> dict[str, Any]:
        if not self.path.exists():
            raise UserError(f"{self.path} does not exist; _data/README.md says how a corpus is prepared.")
        content = read_yaml(self.path)
        if not isinstance(content, dict) or "img" not in content or "caption" not in content:
            raise UserError(f"{self.path} must have the keys img and caption; see _data/README.md.")
        for key in ("image", "composite"):
            if not isinstance(content.get(key, False), bool):
                raise UserError(f"{self.path}: {key} is neither true nor false; see _data/README.md.")
        return content

    def _files(self, content: Mapping[str, Any], key: str, composite: bool) -> list[Path]:
        """The paths under a key; see `named_files`."""
        names = content[key] if isinstance(content[key], list) else [content[key]]
        if not names or not all(isinstance(name, str) and name and "\0" not in name for name in names):
            raise UserError(f"{self.path}: {key} is neither a path nor a list of paths; see _data/README.md.")
        if len(names) > 1 and not composite:
            raise UserError(f"{self.path}: {key} is a list, but it does not say `composite: true`.")
        with reading(self.path, "a list of files", "see _data/README.md"):  # a name may be too long
            return named_files(self.path, content, key)

    def _check_is_image(self, name: str) -> None:
        """Raise `UserError` if a corpus with the name of one of pictures has videos."""
        frames = 0
        if len(self.images[0]):
            with contextlib.suppress(BadRow):
                frames = len(row_frames(self.images[0][0], self.images[0].path.parent))
        if frames > 1:
            raise UserError(
                f"{self.path}: a corpus named {name!r} holds pictures, but its first row has "
                f"{frames} frames: write `image: false` (videos) or `image: true` (first frames) there."
            )

    def _read_pairs(self, content: Mapping[str, Any], composite: bool) -> np.ndarray:
        """(pairs, 3): source, row, caption number; without a caption_linelist each row's first caption."""
        if "caption_linelist" not in content:
            rows = [np.arange(len(tsv)) for tsv in self.images]
            sources = [np.full(len(r), i) for i, r in enumerate(rows)]
            pairs = np.stack([np.concatenate(sources), np.concatenate(rows)], axis=1)
            return np.pad(pairs, ((0, 0), (0, 1)))
        self.listed = path = self._files(content, "caption_linelist", composite=False)[0]
        columns = 3 if composite else 2
        with reading(path, f"rows of {columns} whole numbers", "make it again; see _data/README.md"):
            check_file(path, most=1 << 32)
            pairs = read_numbers(path).reshape(-1, columns)
        return pairs if composite else np.pad(pairs, ((0, 0), (1, 0)))

    def __len__(self) -> int:
        return len(self.pairs)

    def by_node(self, nodes: int) -> list[np.ndarray]:
        """The pairs of each node: a composite corpus's files are shared out, so that none is read by two.

        Each gets about as many pairs. One list of all if there are fewer files than nodes.
        """
        counts = np.bincount(self.pairs[:, 0], minlength=len(self.images))
        if nodes == 1 or np.count_nonzero(counts) < nodes:
            return [np.arange(len(self))]
        shares: list[list[int]] = [[] for _ in range(nodes)]
        for source in np.argsort(
            -counts, kind="stable"
        ).tolist():  # the largest file first, to whom has least
            min(shares, key=lambda share: int(counts[share].sum())).append(source)
        return [np.flatnonzero(np.isin(self.pairs[:, 0], share)) for share in shares]

    def read(self, index: int, random: np.random.Generator | None) -> dict[str, Any]:
        """One pair; `random` None is evaluation. Raises `BadRow`."""
        source, row, number = self.place(index)
        fields = self.images[source][row]
        name = fields[0].decode(errors="replace")
        try:
            caption = self.caption(source, row, number, name)
            folder = self.images[source].path.parent
            img = read_clip(fields, self.size_frame, self.transform, random, folder)
        except BadRow as error:
            where = f"{self.images[source].path} row {row} ({name})"
            raise BadRow(f"{where}: {error}; rebuild the row with _tools/make_tsv.py") from error
        txt, mask = self.tokens(caption)
        others = self.others(index) if random is None else {}
        sample = {"img": img, "txt": txt, "mask": mask, "id": name, "video": source << 32 | row}
        return {**sample, **others, **self.truth_of(img)}

    def truth_of(self, img: Tensor) -> dict[str, Tensor]:
        """`truth_TARGET` of a clip (T, 3, H, W), for the targets of `truths`."""
        return {f"truth_{name}": truth(img) for name, truth in self.truths.items()}

    def place(self, index: int) -> tuple[int, int, int]:
        """Source, row and caption number of a pair; raises `BadRow` where there is no such source."""
        source, row, number = (int(value) for value in self.pairs[index])
        if not 0 <= source < len(self.images):
            raise BadRow(f"{self.path} pair {index}: there is no source {source}.")
        return source, row, number

    def text(self, index: int) -> str:
        """The caption of a pair; raises `BadRow`."""
        source, row, number = self.place(index)
        return self.caption(source, row, number, self.images[source][row][0].decode(errors="replace"))

    def caption(self, source: int, row: int, number: int, name: str) -> str:
        """A caption of the row of that id; raises `BadRow` where there is none."""
        if len(self.captions) == len(self.images):
            tsv = self.captions[source]
        else:  # one caption file for all the sources, in their order
            tsv, row = self.captions[0], row + sum(len(tsv) for tsv in self.images[:source])
        fields = tsv[row]
        if fields[0].decode(errors="replace") != name:
            raise BadRow(f"{tsv.path} row {row} belongs to {fields[0].decode(errors='replace')!r}")
        try:
            text = parse_json(fields[1])[number]["caption"]
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise BadRow(f"{tsv.path} row {row} has no caption {number}") from error
        if not isinstance(text, str):
            raise BadRow(f"{tsv.path} row {row}: caption {number} is {text!r}, not a string")
        return text

    def others(self, index: int) -> dict[str, Tensor]:
        """Texts of other clips of the split, for video-text matching in evaluation: min(clips, 4) - 1.

        They follow from the pair's number alone, whatever else is in its batch.
        """
        own, rows = self.pairs[index, :2], self.first_pairs
        number = min(NEGATIVES, len(rows) - 1)
        found: list[tuple[Tensor, Tensor]] = []
        for other in np.random.default_rng(index).permutation(rows).tolist():
            if len(found) == number:
                break
            if (self.pairs[other, :2] != own).any():
                with contextlib.suppress(BadRow):  # reported when its own turn comes
                    found.append(self.tokens(self.text(other)))
        found += [self.tokens("")] * (number - len(found))
        if not found:
            return {"other_txt": torch.zeros(0, self.tokens.size, dtype=torch.long),
                    "other_mask": torch.zeros(0, self.tokens.size, dtype=torch.long)}  # fmt: skip
        txt, mask = zip(*found, strict=True)
        return {"other_txt": torch.stack(txt), "other_mask": torch.stack(mask)}

    @functools.cached_property
    def first_pairs(self) -> np.ndarray:
        """The number of each clip's first pair."""
        return np.unique(self.pairs[:, :2], axis=0, return_index=True)[1]

    def source(self) -> dict[str, Any]:
        """See `Corpus.source`: of the list of pairs, which holds numbers alone, and of the captions."""
        files = (self.listed, *(tsv.path for tsv in self.captions))
        return {"file": self.path.name, "sha256": digest(*files), "samples": len(self)}

    def blank(self, index: int) -> dict[str, Any]:
        """The stand-in for a pair that cannot be read in evaluation."""
        txt, mask = self.tokens("")
        img = self.transform.blank(self.size_frame)
        sample = {"img": img, "txt": txt, "mask": mask, "id": "", "valid": False, "video": -1}
        return {**sample, **self.others(index), **self.truth_of(img)}


class Mixture(Dataset[dict[str, Any]]):
    """Several corpora under their names. All that is random in a sample follows from (seed, epoch, index)."""

    def __init__(self, corpora: Mapping[str, Corpus], seed: int, train: bool) -> None:
        self.corpora, self.seed, self.train = dict(corpora), seed, train

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        """The sample and its `corpus`, `index`, `valid` and `bad`: why its row was not read, or ""."""
        corpus = self.corpora[draw.corpus]
        source = list(self.corpora).index(draw.corpus)
        random = np.random.default_rng([self.seed, source, draw.epoch, draw.index]) if self.train else None
        reason = ""
        try:
            sample = corpus.read(draw.index, random)
        except BadRow as error:
            reason = str(error)
            sample = self.substitute(corpus, draw.index, random)
        return {"valid": True, **sample, "corpus": draw.corpus, "index": draw.index, "bad": reason}

    def substitute(self, corpus: Corpus, index: int, random: np.random.Generator | None) -> dict[str, Any]:
        """For a row that cannot be read: in training another one, in evaluation a blank."""
        if random is None:
            return corpus.blank(index)
        for _ in range(100):
            try:
                return corpus.read(int(random.integers(len(corpus))), random)
            except BadRow:
                continue  # it is reported when its own turn comes
        return corpus.blank(index)  # with so many bad rows the run stops at this batch


# -------------------------------------------------------------------------------------------- batches


class Loader:
    """Batches of a mixture, in worker processes; rows that cannot be read are reported and counted."""

    def __init__(
        self,
        dataset: Mixture,
        batches: Batches,
        n_workers: int,
        max_bad_ratio: float,
        pin: bool = False,
        collate: Collate = default_collate,
    ) -> None:
        self.dataset, self.batches, self.max_bad_ratio = dataset, batches, max_bad_ratio
        self.bad: dict[tuple[str, int], str] = {}  # (corpus, pair) -> reason, of this process's batches
        self.start_worker: Callable[[int], None] | None = None  # called in each worker process
        self.loader = DataLoader(
            dataset,
            batch_sampler=batches,
            collate_fn=collate,
            num_workers=n_workers,
            generator=torch.Generator().manual_seed(0),  # else each start of an epoch draws from dropout's
            pin_memory=pin,
            persistent_workers=n_workers > 0,
        )

    def __len__(self) -> int:
        return len(self.batches)

    def sources(self) -> dict[str, dict[str, Any]]:
        """Of each corpus that can tell: see `Corpus.source`."""
        corpora = self.dataset.corpora.items()
        return {name: corpus.source() for name, corpus in corpora if hasattr(corpus, "source")}

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[dict[str, Any]]:
        """The batches of an epoch but the first `skip`, of which none is read.

        Raises `UserError` when too many rows are bad.
        """
        self.batches.epoch, self.batches.skip = epoch, skip
        known = len(self.bad)
        self.loader.worker_init_fn = self.start_worker
        for batch in workers_alive(self.loader):
            for corpus, index, reason in zip(
                batch["corpus"], batch["index"].tolist(), batch["bad"], strict=True
            ):
                if reason and (corpus, index) not in self.bad:
                    self.bad[corpus, index] = reason
                    log.warning("bad row: %s", reason)
                    self._stop_at_too_many()
            yield batch
        if len(self.bad) > known:
            log.warning("%d rows so far could not be read", len(self.bad))

    def _stop_at_too_many(self) -> None:
        """Each process counts the rows that it has met: never more than there are."""
        share = len(self.bad) / sum(self.batches.sizes.values())
        if share > self.max_bad_ratio:
            raise UserError(
                f"{len(self.bad)} bad rows are {share:.1%} of the data, more than max_bad_ratio "
                f"{self.max_bad_ratio:.1%}:\n" + "\n".join(self.bad.values())
            )


def workers_alive(loader: DataLoader[Any]) -> Iterator[Any]:
    """The batches of a loader. Raises `UserError` where the system has ended one of its workers."""
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            "a data-loading worker was killed, usually by the system because memory ran out: "
            f"lower --n_workers (it is {loader.num_workers}), or give the job more memory."
        ) from error


def data_workers(config: Config, world: World) -> int:
    """`n_workers`, but no more than each training process of this machine has cores."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    most = min(config.n_workers, max(1, usable * world.nodes // world.size))
    if most < config.n_workers:
        log.info("n_workers %d: reduced to %d, the cores of each process", config.n_workers, most)
    return most


def pretrain_loader(
    config: Config, world: World, tokens: Tokens, train: bool, truths: Mapping[str, Truth] | None = None
) -> Loader:
    """The loader of `train_yaml` or `val_yaml`. Images have T times the clips' batch, at most 128."""
    paths = config.train_yaml if train else config.val_yaml
    transform = Transform(config.img_transform, config.size_img)
    corpora = {
        name: PretrainCorpus(path, name, tokens, transform, config.size_frame, config.data_dir, truths)
        for name, path in paths.items()
    }
    if not corpora:
        raise UserError(
            f"{'train_yaml' if train else 'val_yaml'} is empty: name a corpus, as the configs in _args/ do."
        )
    for corpus in corpora.values():
        if not len(corpus):
            raise UserError(f"{corpus.path} has no pairs.")
    image_batch = min(IMAGE_BATCH, config.size_batch * config.size_frame)
    batch_sizes = {name: image_batch if c.is_image else config.size_batch for name, c in corpora.items()}
    if train and "vtm" in config.pretrain_tasks and 1 in batch_sizes.values():
        log.warning("size_batch 1: a batch has no other text, and video-text matching (vtm) learns nothing")
    sizes = {name: len(c) for name, c in corpora.items()}
    pools = {name: c.by_node(world.nodes) for name, c in corpora.items()} if train else {}
    batches = Batches(
        sizes,
        batch_sizes,
        train,
        config.seed,
        world.rank,
        world.size,
        pools,
        shuffle_rows=config.shuffle_rows,
    )
    mixture = Mixture(corpora, config.seed, train)
    return Loader(
        mixture, batches, data_workers(config, world), config.max_bad_ratio, pin=world.device.type != "cpu"
    )
