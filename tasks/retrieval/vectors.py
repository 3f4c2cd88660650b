"""A file of the features of many videos, `.npz`, that is brought up to date and resumed.

The same videos give the same bytes.

| array | shape | content |
| --- | --- | --- |
| `ids`, `stamps` | (N,) | names of the videos; size and time of change of each file |
| `vectors` | (N, 256), (N, C) or (N, T, C) | features, float32 |
| `times` | (N, T) | seconds of the frames that were looked at; NaN where a source has none |
| `damaged`, `damaged_stamps`, `reasons` | (M,) | videos that cannot be read, and why |
| `features`, `made_by` | () | kind of features; digest of the checkpoint and the settings |
| `checkpoint` | () | SHA-256 of the checkpoint's file |
"""

import hashlib
import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lib import Config, UserError
from media.files import atomic_path, check_file, reading
from tasks.retrieval.sources import Clip, Embedder, Source, embed_all

DECIDES = ("size_img", "size_frame", "img_transform")  # the features
EVERY = 60.0  # seconds between two saves, at least


def maker(config: Config, checkpoint: str) -> str:
    """A digest, 16 digits, of all that decides features: the checkpoint's digest and the settings."""
    settings = json.dumps([checkpoint, *(getattr(config, key) for key in DECIDES)])
    return hashlib.sha256(settings.encode()).hexdigest()[:16]


@dataclass
class Vectors:
    """The features of videos by name; `damaged` {name: (stamp, reason)}."""

    path: Path
    features: str
    checkpoint: str
    made_by: str
    stamps: dict[str, str] = field(default_factory=dict)
    rows: dict[str, np.ndarray] = field(default_factory=dict)
    times: dict[str, list[float]] = field(default_factory=dict)
    damaged: dict[str, tuple[str, str]] = field(default_factory=dict)

    def load(self) -> None:
        """Take what the file has. Raises `UserError` if another checkpoint, or other settings, made it."""
        if not self.path.exists():
            return
        with reading(self.path, "a file of features", "delete it, or name another --output"):
            check_file(self.path, most=1 << 40)
            with np.load(self.path, allow_pickle=False) as file:
                content = {name: file[name] for name in file.files}
            ids, made = content["ids"].tolist(), (str(content["made_by"]), str(content["features"]))
            damaged = zip(content["damaged_stamps"].tolist(), content["reasons"].tolist(), strict=True)
            self.stamps = dict(zip(ids, content["stamps"].tolist(), strict=True))
            self.rows = dict(zip(ids, content["vectors"], strict=True))
            seconds = content["times"].tolist()
            self.times = {id_: [s for s in row if s == s] for id_, row in zip(ids, seconds, strict=True)}
            self.damaged = dict(zip(content["damaged"].tolist(), damaged, strict=True))
        if made != (self.made_by, self.features):
            raise UserError(
                f"{self.path} was made by another checkpoint, with other settings or other features: "
                "delete it, or name another --output."
            )

    def save(self, frames: int) -> None:
        """Write the file; `frames` is the number of frames of a clip."""
        ids = list(self.rows)
        times = np.full((len(ids), frames), np.nan, np.float32)
        for row, id_ in zip(times, ids, strict=True):
            row[: len(self.times[id_])] = self.times[id_]
        arrays = {
            "ids": np.array(ids, dtype=np.str_),
            "stamps": np.array([self.stamps[id_] for id_ in ids], dtype=np.str_),
            "vectors": np.stack(list(self.rows.values())) if ids else np.zeros((0, 0), np.float32),
            "times": times,
            "damaged": np.array(list(self.damaged), dtype=np.str_),
            "damaged_stamps": np.array([stamp for stamp, _ in self.damaged.values()], dtype=np.str_),
            "reasons": np.array([reason for _, reason in self.damaged.values()], dtype=np.str_),
            "features": np.array(self.features),
            "made_by": np.array(self.made_by),
            "checkpoint": np.array(self.checkpoint),
        }
        with atomic_path(self.path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    def update(self, embedder: Embedder, source: Source) -> tuple[int, int]:
        """Embed the new and changed videos of a source, forget those that are gone, and write the file.

        It is written as it grows, at the end of a batch: an interrupted update continues there. Returns the
        number of videos that were embedded and of those that went.
        """
        frames = embedder.config.size_frame
        gone = [name for name, stamp in self.stamps.items() if source.stamps.get(name) != stamp]
        for name in gone:
            del self.stamps[name], self.rows[name], self.times[name]
        old = {name: it for name, it in self.damaged.items() if source.stamps.get(name) == it[0]}
        changed, self.damaged = bool(gone) or old.keys() != self.damaged.keys(), old
        new = [name for name in source.stamps if name not in self.rows and name not in self.damaged]
        saved = time.monotonic()
        for batch in embed_all(embedder, source, new, self.features):
            for clip, row in batch:
                self.take(clip, row, source)
            begun = time.monotonic()
            if begun - saved > EVERY:
                self.save(frames)
                written = time.monotonic()
                saved = written + 20 * (written - begun)  # a large file is written more rarely
        for values in (self.rows, self.stamps, self.times, self.damaged):
            reorder(values, source)
        if new or changed or not self.path.exists():
            self.save(frames)
        return sum(name in self.rows for name in new), sum(name not in source.stamps for name in gone)

    def take(self, clip: Clip, row: np.ndarray | None, source: Source) -> None:
        """Enter a video with its features, or with the reason why there are none."""
        stamp = source.stamps[clip.name]
        if row is None:
            self.damaged[clip.name] = (stamp, clip.fault)
        else:
            self.rows[clip.name], self.stamps[clip.name], self.times[clip.name] = row, stamp, clip.times


def reorder(values: dict, source: Source) -> None:
    """Put a dict in the order of the source's videos."""
    ordered = {name: values[name] for name in source.stamps if name in values}
    values.clear()
    values.update(ordered)
