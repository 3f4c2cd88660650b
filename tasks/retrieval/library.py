"""Videos that are found by words: an index of their embeddings, and the transformer for the best of them.

From a checkpoint without embeddings, the transformer scores every video.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from layers.embedding import SIZE
from lib import UserError, log, shown
from media.files import atomic_path, digest
from media.frames import normalise
from tasks.retrieval.evaluation import encode_texts, token_rows
from tasks.retrieval.index import Index
from tasks.retrieval.scoring import PairScorer, all_pairs, pairs_at_once
from tasks.retrieval.sources import Source, embed_all
from tasks.retrieval.vectors import maker

CACHE = Path("_snapshot/search")  # folder of all libraries, unless another is named
RERANKED = 50  # of the most similar videos that the transformer scores
Found = list[tuple[str, float]]  # names of videos with their scores, the best first


class Library:
    """A source of videos, and a folder that keeps all that was computed of them.

    `violet` is a checkpoint in use (`violet.Pretrained`), `cache` the folder of all libraries.
    """

    def __init__(self, violet: Any, source: Source, cache: Path) -> None:
        self.violet, self.source = violet, source
        place = source.path.resolve()
        name = hashlib.sha256(os.fsencode(place)).hexdigest()[:12]
        self.folder = cache / f"{shown(place.stem)}-{name}"
        self.made_by = maker(violet.config, digest(Path(violet.config.path_ckpt)))
        self.scores_pairs = "fc" in violet.heads
        self.index: Index | None = None
        if "fc_vtc" in violet.heads:
            self.index = Index(self.folder / "index", self.made_by, SIZE)
        elif not self.scores_pairs:
            raise UserError(
                f"{violet.config.path_ckpt} has neither fc nor fc_vtc: it finds no video by words; take a "
                "checkpoint of retrieval or of pre-training."
            )

    def update(self) -> list[str]:
        """Bring the index up to date with the source -> the reasons why videos were left out."""
        self._forget_tokens()
        if self.index is None:
            return []
        index, faults = self.index, []
        before = len(index)
        new = index.outdated(self.source.stamps)
        for batch in embed_all(self.violet, self.source, new):
            kept = [(clip.name, row) for clip, row in batch if row is not None]
            for clip, row in batch:
                if row is None:
                    index.damaged[clip.name] = self.source.stamps[clip.name]
                    faults.append(clip.fault)
            if kept:
                names, rows = zip(*kept, strict=True)
                index.add(names, [self.source.stamps[name] for name in names], np.stack(rows))
        if new or len(index) != before or not index.listing.exists():
            index.save()
        if not len(index):
            raise UserError(f"{self.source.path}: no video in it can be read.")
        return faults

    def search(self, texts: Sequence[str], top: int = 5, reranked: int = RERANKED) -> list[Found]:
        """For each text the `top` videos.

        The score is that of the transformer, which looks at the `reranked` most similar ones; with 0 it is
        the similarity of the embeddings.
        """
        if self.index is None:
            return [found[:top] for found in self.rank(list(self.source.stamps), texts)]
        number = max(top, reranked)
        similar = self.index.search(self.violet.embed_text(texts), number)
        if not reranked or not self.scores_pairs:
            return [found[:top] for found in similar]
        return [
            self.rank([name for name, _ in found], [text])[0][:top]
            for text, found in zip(texts, similar, strict=True)
        ]

    @torch.inference_mode()
    def rank(self, names: Sequence[str], texts: Sequence[str]) -> list[Found]:
        """For each text all these videos, scored by the transformer, without those that cannot be read."""
        network, device, config = self.violet.network, self.violet.device, self.violet.config
        txt, mask = token_rows(self.violet.tokens, list(texts))
        text, mask = encode_texts(network, txt, mask, device), mask.to(device)
        length = config.size_frame * (1 + (config.size_img // config.size_patch) ** 2) + text.shape[1]
        pairs, scorer = pairs_at_once(network, length, torch.float32, device), PairScorer(network)
        unknown = sum(not self._tokens_file(name).exists() for name in names)
        scores: dict[str, Tensor] = {}
        with tqdm(total=len(names), desc="scoring", unit="video", disable=None if unknown else True) as bar:
            for start in range(0, len(names), pairs):  # few at a time on the device
                read = {name: self.tokens(name) for name in names[start : start + pairs]}
                known = {name: tokens for name, tokens in read.items() if tokens is not None}
                if known:
                    video = torch.stack(list(known.values())).to(device)
                    scores |= dict(zip(known, all_pairs(scorer, video, text, mask, pairs).cpu(), strict=True))
                bar.update(len(read))
        if not scores:
            raise UserError(f"{self.source.path}: no video in it can be read.")
        found = torch.stack(list(scores.values())).T
        order, read_names = found.argsort(dim=1, descending=True, stable=True), list(scores)
        return [
            [(read_names[i], float(row[i])) for i in best]
            for row, best in zip(found, order.tolist(), strict=True)
        ]

    # -- video tokens, a file each

    def tokens(self, name: str) -> Tensor | None:
        """The video tokens (V, D) of a video, encoded once; None where it cannot be read, which is logged."""
        path = self._tokens_file(name)
        try:
            return torch.from_numpy(np.load(path, allow_pickle=False))
        except (OSError, ValueError, EOFError):
            pass  # none yet, or a damaged file: it is written anew
        clip = self.source.clip(name, self.violet.config)
        if clip.frames is None:
            log.warning("left out: %s", clip.fault)
            return None
        img = normalise(clip.frames.to(self.violet.device))[None]
        tokens = self.violet.network.enc_img(img)[0].float().cpu()
        try:
            with atomic_path(path) as temporary, temporary.open("wb") as file:
                np.save(file, tokens.numpy())
        except OSError as error:
            log.warning("%s cannot be written (%s): the video is encoded again next time", path, error)
        return tokens

    def _tokens_file(self, name: str) -> Path:
        """The file of a video's tokens, which another checkpoint or a change of the video has another of."""
        made = f"{self.made_by}\0{name}\0{self.source.stamps[name]}"
        return self.folder / "tokens" / f"{hashlib.sha256(made.encode()).hexdigest()[:24]}.npy"

    def _forget_tokens(self) -> None:
        """Delete the tokens of videos that are gone or have changed."""
        known = {self._tokens_file(name) for name in self.source.stamps}
        for path in (self.folder / "tokens").glob("*.npy"):
            if path not in known:
                path.unlink(missing_ok=True)
