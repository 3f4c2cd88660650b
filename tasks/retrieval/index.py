"""An index of embeddings on disk: the vectors most similar to a query, among millions in milliseconds.

Up to `EXACT` vectors every one is compared (`IndexFlatIP` of faiss); beyond, those of the `PROBES` nearest of
`LISTS` clusters (`IndexIVFFlat`). Videos are added, changed and removed one by one; the clusters stay.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from lib import UserError, log
from media.files import atomic_path, read_json, reading

EXACT = 100_000  # vectors up to which all are compared
LISTS = 1024  # clusters beyond
PROBES = 256  # clusters that are looked into; with 64, a tenth of the nearest vectors is missed
FIRST = 100  # vectors of each cluster, at most, that the clusters are computed from


class Index:
    """Embeddings of videos by name, each with the stamp of its file, in a folder.

    `names.json` names the file of vectors that belongs to it: both change at once when it is replaced.
    """

    def __init__(self, folder: Path, made_by: str, size: int) -> None:
        """Open an index, or begin one. Raises `UserError` if another checkpoint made it."""
        self.folder, self.made_by, self.size = folder, made_by, size
        self.stamps: dict[str, str] = {}
        self.damaged: dict[str, str] = {}
        self.keys: dict[str, int] = {}
        self.generation, self.next = 0, 0
        self.vectors: Any = faiss.IndexIDMap2(faiss.IndexFlatIP(size))
        if self.listing.exists():
            self._load()
        self.names = {key: name for name, key in self.keys.items()}

    @property
    def listing(self) -> Path:
        """The file of names, stamps and keys."""
        return self.folder / "names.json"

    def _load(self) -> None:
        todo = "delete the folder: the index is built again"
        content = read_json(self.listing, todo, most=1 << 33)
        with reading(self.folder, "an index", todo):
            if content["made_by"] != self.made_by or content["size"] != self.size:
                raise UserError(
                    f"{self.folder} is the index of another checkpoint or of other settings: delete it, "
                    "or name another --cache."
                )
            self.stamps, self.damaged, self.keys = content["stamps"], content["damaged"], content["keys"]
            self.generation, self.next = int(content["generation"]), int(content["next"])
            self.vectors = faiss.read_index(str(self._file()))
            if self.vectors.ntotal != len(self.keys):
                raise ValueError(f"{len(self.keys)} names for {self.vectors.ntotal} vectors")

    def _file(self) -> Path:
        return self.folder / f"vectors-{self.generation}.faiss"

    def __len__(self) -> int:
        return len(self.keys)

    def add(self, names: Sequence[str], stamps: Sequence[str], rows: np.ndarray) -> None:
        """Enter videos with their vectors (N, E), in place of those that are there under these names."""
        self.remove([name for name in names if name in self.keys])
        keys = np.arange(self.next, self.next + len(names), dtype=np.int64)
        self.next += len(names)
        self._cluster(rows)
        self.vectors.add_with_ids(np.ascontiguousarray(rows, np.float32), keys)
        for name, stamp, key in zip(names, stamps, keys.tolist(), strict=True):
            self.keys[name], self.stamps[name], self.names[key] = key, stamp, name

    def _cluster(self, rows: np.ndarray) -> None:
        """Turn an exact index that grows beyond `EXACT` into one of clusters."""
        if not isinstance(self.vectors, faiss.IndexIDMap2) or len(self) + len(rows) <= EXACT:
            return
        there = self.vectors_there()
        keys = faiss.vector_to_array(self.vectors.id_map)
        clusters = faiss.IndexIVFFlat(
            faiss.IndexFlatIP(self.size), self.size, LISTS, faiss.METRIC_INNER_PRODUCT
        )
        sample = np.concatenate([there, rows])
        if len(sample) > FIRST * LISTS:
            chosen = np.random.default_rng(0).choice(len(sample), FIRST * LISTS, replace=False)
            sample = sample[np.sort(chosen)]
        clusters.train(np.ascontiguousarray(sample, np.float32))
        if len(keys):
            clusters.add_with_ids(there, keys)
        clusters.nprobe = PROBES
        log.info("index: more than %d vectors, clustered into %d lists", EXACT, LISTS)
        self.vectors = clusters

    def vectors_there(self) -> np.ndarray:
        """The vectors (N, E) of an exact index, in the order of its keys."""
        return self.vectors.index.reconstruct_n(0, self.vectors.ntotal)

    def remove(self, names: Sequence[str]) -> None:
        """Forget videos."""
        keys = np.array([self.keys[name] for name in names], dtype=np.int64)
        if len(keys):
            self.vectors.remove_ids(keys)
        for name, key in zip(names, keys.tolist(), strict=True):
            del self.keys[name], self.stamps[name], self.names[key]

    def outdated(self, stamps: Mapping[str, str]) -> list[str]:
        """Forget the videos that are gone or have changed -> those that are to be added, in order."""
        gone = [name for name, stamp in self.stamps.items() if stamps.get(name) != stamp]
        self.remove(gone)
        self.damaged = {name: stamp for name, stamp in self.damaged.items() if stamps.get(name) == stamp}
        return [name for name in stamps if name not in self.keys and name not in self.damaged]

    def save(self) -> None:
        """Write the index; the one that was there is whole until then."""
        before = self._file()
        self.generation += 1
        with atomic_path(self._file()) as temporary:
            faiss.write_index(self.vectors, str(temporary))
        content = {"made_by": self.made_by, "size": self.size, "generation": self.generation}
        content |= {"next": self.next, "stamps": self.stamps, "damaged": self.damaged, "keys": self.keys}
        with atomic_path(self.listing) as temporary:
            temporary.write_text(json.dumps(content))
        before.unlink(missing_ok=True)

    def search(self, queries: np.ndarray, number: int) -> list[list[tuple[str, float]]]:
        """queries (Q, E) -> for each the names of the `number` most similar videos, with similarities."""
        if not len(self):
            return [[] for _ in queries]
        found, keys = self.vectors.search(np.ascontiguousarray(queries, np.float32), min(number, len(self)))
        return [
            [(self.names[key], score) for key, score in zip(row, scores, strict=True) if key >= 0]
            for row, scores in zip(keys.tolist(), found.tolist(), strict=True)
        ]
