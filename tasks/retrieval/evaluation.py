"""Evaluation of retrieval: score a split's videos with all of its texts block by block, rank, write.

A block is a few videos and all texts. Videos are encoded one block at a time, so that memory holds a block,
the texts and the matrix of scores, however many pairs there are. Every finished block is on disk: an
interrupted evaluation continues from there. Processes take blocks in turn.
"""

import contextlib
import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from batch import Batch
from dataset import Loader, Mixture, data_workers
from engine.parallel import AMP
from engine.protocol import checkpoint, settings
from engine.runs import make_run_folder
from engine.signals import leave_signals
from engine.step import to_device
from lib import Config, UserError, World, log
from media.batches import Batches, Draw
from media.files import atomic_path, hold, leftovers
from media.tokens import Tokens
from model import Violet
from tasks.retrieval.captions import Gallery, read_gallery
from tasks.retrieval.model import RetrievalModel
from tasks.retrieval.pages import report, write_page
from tasks.retrieval.ranking import DEPTHS, both_ways, figures
from tasks.retrieval.reranking import candidates, combine
from tasks.retrieval.scoring import PairScorer, all_pairs, pairs_at_once
from weights.needs import check_needs

DECIDES: tuple[str, ...] = ("size_img", "size_frame", "img_transform", "multi_clip_testing")  # of scores
DECIDES += ("amp", "size_batch", "rerank")
BEST = 5  # candidates that ranks.jsonl names


class Blocks:
    """Scores of finished blocks, a file each, in a folder named after the fingerprint of the evaluation."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock: IO[str] | None = None

    def path(self, number: int) -> Path:
        """The path of a block."""
        return self.folder / f"{number:06d}.npy"

    def done(self) -> list[int]:
        """The numbers of the finished blocks."""
        names = [path.name for path in self.folder.glob("[0-9]*.npy")]
        return sorted(int(name[:6]) for name in names if re.fullmatch(r"[0-9]{6}\.npy", name))

    def write(self, number: int, scores: np.ndarray) -> None:
        """Write a block (videos, texts) atomically."""
        with atomic_path(self.path(number)) as temporary, temporary.open("wb") as file:
            np.save(file, scores)

    def read(self, number: int) -> np.ndarray:
        """Read a block."""
        return np.load(self.path(number), allow_pickle=False)

    def claim(self, world: World) -> None:
        """Lock the folder until the process ends. Raises `UserError` if another evaluation writes there."""
        if world.is_main:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lock = hold(self.folder / "lock")
        if not world.gather(self.lock is not None)[0]:
            raise UserError(f"{self.folder}: another process runs the same evaluation; wait until it ends.")

    def discard(self) -> None:
        """Delete all blocks."""
        for path in [*map(self.path, self.done()), *leftovers(self.folder)]:
            path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete all blocks, and the folder if nothing else is in it."""
        self.discard()
        (self.folder / "lock").unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()


class Remaining(Batches):
    """The blocks of an evaluation that are not `done`, in order; each process takes its share of them."""

    def __init__(self, size: int, batch: int, done: list[int], world: World) -> None:
        super().__init__({"videos": size}, {"videos": batch}, train=False)
        blocks: list[list[Draw]] = super().evaluation()
        self.count = len(blocks)
        self.numbers = sorted(set(range(len(blocks))) - set(done))[world.rank :: world.size]
        self.mine = [blocks[number] for number in self.numbers]

    def __len__(self) -> int:
        return len(self.mine)

    def evaluation(self) -> list[list[Draw]]:
        """This process's blocks."""
        return self.mine


def fingerprint(model: RetrievalModel, config: Config, gallery: Gallery, txt: Tensor) -> str:
    """A digest, 16 digits, of all that determines scores: weights, settings, tokens, the videos' file."""
    digest = hashlib.sha256()
    tsv = gallery.clips.videos.tsv.path
    settings = [getattr(config, key) for key in DECIDES]
    data = [str(tsv.resolve()), tsv.stat().st_size, tsv.stat().st_mtime_ns, gallery.clips.names]
    digest.update(json.dumps([settings, data]).encode())
    for name, tensor in (("", txt), *sorted(model.state_dict().items())):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def token_rows(tokens: Tokens, texts: list[str]) -> tuple[Tensor, Tensor]:
    """ids and mask (M, X) of texts."""
    rows = [tokens(text) for text in texts]
    return torch.stack([ids for ids, _ in rows]), torch.stack([mask for _, mask in rows])


@torch.inference_mode()
def encode_texts(model: Violet, txt: Tensor, mask: Tensor, device: torch.device) -> Tensor:
    """(M, X) -> text tokens (M, X, D) on the device."""
    parts = zip(txt.split(256), mask.split(256), strict=True)
    return torch.cat([model.enc_txt(ids.to(device), part.to(device)) for ids, part in parts])


def score_gallery(
    model: RetrievalModel, config: Config, world: World, tokens: Tokens, gallery: Gallery
) -> tuple[np.ndarray, Blocks, np.ndarray | None]:
    """Scores (videos, texts), their blocks on disk, and with `rerank` the similarities of the embeddings.

    All pairs are scored; with `rerank` the most similar ones, each of which ranks before all others. The row
    of a video that cannot be read is -inf.
    """
    model = model.to(world.device).eval()
    txt, mask = token_rows(tokens, gallery.texts)
    name = f"_scores_{config.task}_{fingerprint(model, config, gallery, txt)}"
    blocks = Blocks(Path(config.path_output) / name)
    blocks.claim(world)
    if world.is_main and not config.resume_scores:
        blocks.discard()
    done: list[int] = world.gather(blocks.done() if world.is_main else [])[0]
    remaining = remaining_blocks(config, gallery, done, world)
    if done:
        log.info(
            "%d of %d blocks of videos were scored before: %s", len(done), remaining.count, blocks.folder
        )
    similar = similarities(model, config, world, gallery, (txt, mask)) if config.rerank else None
    chosen = None if similar is None else candidates(similar, config.rerank)
    new = score_blocks(model, config, world, gallery, remaining, blocks, (txt, mask), chosen)
    for number in done if world.is_main else []:
        new[number] = blocks.read(number)
    scores = joined(new, world)
    if similar is not None and chosen is not None:
        scores = combine(scores, similar, chosen)
    return scores, blocks, similar


def remaining_blocks(config: Config, gallery: Gallery, done: list[int], world: World) -> Remaining:
    """This process's share of the blocks that are not done."""
    # clips of one video differ in number from those of another
    videos = 1 if config.multi_clip_testing else config.size_batch
    return Remaining(len(gallery.clips), videos, done, world)


def joined(parts: dict[int, np.ndarray], world: World) -> np.ndarray:
    """The blocks of all processes, by number, as one array."""
    found: dict[int, np.ndarray] = {}
    for part in world.gather(parts):
        found |= part
    return np.concatenate([found[number] for number in sorted(found)])


def encoded(
    model: RetrievalModel, config: Config, world: World, gallery: Gallery, remaining: Remaining
) -> Iterator[tuple[int, Batch, Tensor]]:
    """Of each of this process's blocks its number, its batch and its video tokens (N, V, D)."""
    mixture = Mixture({"videos": gallery.clips}, config.seed, train=False)
    pin = world.device.type != "cpu"
    loader = Loader(mixture, remaining, data_workers(config, world), config.max_bad_ratio, pin)
    loader.start_worker = leave_signals
    for number, batch in zip(remaining.numbers, loader.epoch(0), strict=True):
        with autocast(config, world):
            video = model.average(to_device(batch, world.device)["img"], config.size_batch)
        yield number, batch, video


def autocast(config: Config, world: World) -> torch.autocast:
    """The precision of the encoders."""
    dtype = AMP.get(config.amp, torch.float32)
    return torch.autocast(world.device.type, dtype, enabled=dtype != torch.float32)


@torch.inference_mode()
def similarities(
    model: RetrievalModel, config: Config, world: World, gallery: Gallery, words: tuple[Tensor, Tensor]
) -> np.ndarray:
    """The inner products (videos, texts) of all embeddings; -inf for a video that cannot be read.

    Videos are encoded here, and once more where their pairs are scored, so that memory holds one block.
    """
    assert model.fc_vtc is not None
    parts = zip(*(rows.to(world.device).split(256) for rows in words), strict=True)
    with autocast(config, world):
        texts = torch.cat([model.embed_text(model.enc_txt(ids, mask), mask) for ids, mask in parts])
    remaining = remaining_blocks(config, gallery, [], world)
    found = {}
    videos = encoded(model, config, world, gallery, remaining)
    bar = tqdm(videos, "embeddings", len(remaining), unit="block", disable=not world.is_main)
    for number, batch, video in bar:
        with autocast(config, world):
            own = model.fc_vtc.of_video(video, config.size_frame)
        found[number] = (own @ texts.T).float().cpu().numpy()
        found[number][~batch["valid"].numpy()] = -np.inf
    return joined(found, world)


@torch.inference_mode()
def score_blocks(
    model: RetrievalModel,
    config: Config,
    world: World,
    gallery: Gallery,
    remaining: Remaining,
    blocks: Blocks,
    words: tuple[Tensor, Tensor],
    chosen: np.ndarray | None,
) -> dict[int, np.ndarray]:
    """Score this process's blocks, writing each at once; texts are sorted by length internally.

    `chosen` (videos, texts) tells which pairs; None: all.
    """
    dtype, device = AMP.get(config.amp, torch.float32), world.device
    order = words[1].sum(dim=1).argsort(stable=True)
    txt, mask = (rows[order] for rows in words)
    lengths = mask.sum(dim=1)
    with autocast(config, world):
        text = encode_texts(model, txt, mask, device)
    scorer, mask = PairScorer(model, dtype), mask.to(device)
    length = config.size_frame * (1 + (config.size_img // config.size_patch) ** 2) + txt.shape[1]
    pairs = config.pair_batch or pairs_at_once(model, length, dtype, device)
    mine = [draw.index for block in remaining.mine for draw in block]
    total = len(mine) * len(gallery.texts) if chosen is None else int(chosen[mine].sum())
    found = {}
    with tqdm(total=total, desc="scores", unit="pair", unit_scale=True, disable=not world.is_main) as bar:
        for number, batch, video in encoded(model, config, world, gallery, remaining):
            block = np.full((len(video), len(gallery.texts)), -np.inf, np.float32)
            if chosen is None:
                scores = all_pairs(scorer, video, text, mask, pairs, bar.update, lengths)
                block[:, order.numpy()] = scores.cpu().numpy()
            else:
                for row, index in enumerate(batch["index"].tolist()):
                    columns = torch.from_numpy(chosen[index])[order].nonzero()[:, 0]
                    given = (video[row : row + 1], text[columns.to(device)], mask[columns.to(device)])
                    scores = all_pairs(scorer, *given, pairs, bar.update, lengths[columns])
                    block[row, order[columns].numpy()] = scores[0].cpu().numpy()
            block[~batch["valid"].numpy()] = -np.inf
            blocks.write(number, block)
            found[number] = block
    return found


def rank_rows(scores: np.ndarray, gallery: Gallery) -> list[dict[str, Any]]:
    """For ranks.jsonl: each text's rank of its video and the best videos; then each video's of its texts."""
    names, texts, owner = gallery.clips.names, gallery.texts, np.array(gallery.owner)
    of_texts, of_videos = both_ways(scores, owner)
    rows: list[dict[str, Any]] = []
    for number, rank in enumerate(of_texts.tolist()):
        best = [
            {"video": names[i], "score": number_of(scores[i, number])}
            for i in np.argsort(-scores[:, number], kind="stable")[:BEST]
        ]
        row = {"direction": "t2v", "text": texts[number], "video": names[owner[number]], "rank": rank}
        rows.append({**row, "score": number_of(scores[owner[number], number]), "best": best})
    for number, rank in enumerate(of_videos.tolist()):
        best = [
            {"text": texts[i], "video": names[owner[i]], "score": number_of(scores[number, i])}
            for i in np.argsort(-scores[number], kind="stable")[:BEST]
        ]
        rows.append({"direction": "v2t", "video": names[number], "rank": rank, "best": best})
    return rows


def number_of(score: np.floating[Any]) -> float | None:
    """A score for a JSON file; None if it is not finite."""
    return float(score) if np.isfinite(score) else None


def write_results(
    folder: Path, scores: np.ndarray, rows: list[dict[str, Any]], figures: Mapping[str, Any]
) -> None:
    """`scores.npy` (videos, texts), `ranks.jsonl` and `eval.jsonl` of a run's folder."""
    with atomic_path(folder / "scores.npy") as temporary, temporary.open("wb") as file:
        np.save(file, scores)
    with atomic_path(folder / "ranks.jsonl") as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with atomic_path(folder / "eval.jsonl") as temporary:
        temporary.write_text(json.dumps(figures) + "\n")


def report_figures(
    config: Config, folder: Path, gallery: Gallery, scores: np.ndarray, similar: np.ndarray | None
) -> dict[str, Any]:
    """Write the files of an evaluation to its run folder, and log its figures.

    After re-ranking, the figures of the embeddings alone (`similar`) are added.
    """
    found = figures(scores, np.array(gallery.owner))
    rows = rank_rows(scores, gallery)
    row: dict[str, Any] = {"split": gallery.split, **found}
    if similar is not None:
        alone = figures(similar, np.array(gallery.owner))
        row |= {f"embedding_{key}": alone[key] for key in alone if key.startswith(("t2v_", "v2t_"))}
        row |= {"fused_pairs": int(candidates(similar, config.rerank).sum()), "all_pairs": scores.size}
        log_recall(f"{gallery.split}, embeddings alone", alone)
        log.info("re-ranked: %d of %d pairs were fused", row["fused_pairs"], scores.size)
    protocol = {
        **settings(config, config.amp, ("multi_clip_testing", "rerank")),
        "checkpoint": checkpoint(config, 0),
        "data": {gallery.split: gallery.source()},
    }
    write_results(folder, scores, rows, {**row, "protocol": protocol})
    write_page(folder / "retrieval.html", config.task, report(rows, found, gallery.clips.frames))
    if found["not_finite"]:
        log.error("%d scores are not finite: their pairs count as not found", found["not_finite"])
    log_recall(gallery.split, found)
    log.info("chance of R@1: %.2f %%; written to %s", 100 / found["videos"], folder)
    return row


def log_recall(title: str, found: Mapping[str, float]) -> None:
    """A line for each direction."""
    for way, name in (("t2v", "text to video"), ("v2t", "video to text")):
        shares = "  ".join(f"R@{depth} {found[f'{way}_r{depth}']:.1%}" for depth in DEPTHS)
        ranks = (found[f"{way}_median"], found[f"{way}_mean"])
        log.info("%s, %s: %s  median rank %g  mean %.1f", title, name, shares, *ranks)


def evaluate(config: Config, world: World) -> dict[str, Any] | None:
    """Score, rank, write; the figures, on the main process."""
    check_needs(config, world)
    tokens = Tokens(config.tokenizer or config.txt_backbone, config.size_txt)
    gallery = read_gallery(config)
    # nothing is trained, and embeddings are read where they choose the pairs
    model = RetrievalModel.from_config(dataclasses.replace(config, size_epoch=0, vtc=config.rerank > 0))
    tokens.check(model.enc_txt.vocabulary, model.enc_txt.positions)
    folder = make_run_folder(config, world)
    scores, blocks, similar = score_gallery(model, config, world, tokens, gallery)
    if not world.is_main:
        return None
    found = report_figures(config, folder, gallery, scores, similar)
    blocks.remove()  # scores.npy has them all
    return found
