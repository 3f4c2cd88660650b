"""Cost of the index of embeddings: to ask, to build, to update; and the share of exact neighbours it finds.

    python -m bench.search --sizes 1000 100000 1000000

Videos are random unit vectors of 256 values, the hardest case for clusters since they have none; queries are
random too, or, for `near`, a video's vector with noise. `recall` is the share of the 50 most similar vectors
that is found, `first` the share of queries whose most similar vector is. `--real` lays real embeddings among
the random ones, and asks their texts too:

    python _tools/embed.py _data/demo/test --checkpoint RUN --output videos.npz
    python -c "import json, numpy, violet; \
        pairs = json.load(open('_data/demo/txt_demo-retrieval.json'))['test']; \
        numpy.save('texts.npy', violet.load('RUN').embed_text([pair['caption'] for pair in pairs]))"
    python -m bench.search --real videos.npz texts.npy
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from layers.embedding import SIZE
from lib import run_script
from tasks.retrieval.index import Index
from tasks.retrieval.library import RERANKED


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows at length 1."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def seconds(work: Callable[[], Any]) -> float:
    """The time that it takes."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def exact(rows: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """The numbers (Q, 50) of the most similar rows."""
    scores = np.concatenate(
        [queries @ part.T for part in np.array_split(rows, max(1, len(rows) // 50_000))], axis=1
    )
    return np.argsort(-scores, axis=1)[:, :RERANKED]


def share(index: Index, rows: np.ndarray, queries: np.ndarray) -> tuple[float, float]:
    """The shares of the exact neighbours, and of the nearest ones, that an index finds."""
    want = exact(rows, queries)
    found = [[int(name) for name, _ in row] for row in index.search(queries, RERANKED)]
    same = [len(set(a) & set(b.tolist())) / RERANKED for a, b in zip(found, want, strict=True)]
    nearest = [b[0] in a for a, b in zip(found, want, strict=True)]
    return float(np.mean(same)), float(np.mean(nearest))


def measure(size: int, folder: Path, real: list[Path]) -> dict[str, float]:
    """The figures of an index of so many vectors; `real`: the files of `--real`."""
    random = np.random.default_rng(0)
    rows = unit(random.standard_normal((size, SIZE), dtype=np.float32))
    videos, texts = (np.load(real[0])["vectors"], np.load(real[1])) if real else (rows[:0], rows[:0])
    rows[: len(videos)] = videos[:size]
    queries = unit(random.standard_normal((100, SIZE), dtype=np.float32))
    noise = unit(random.standard_normal((100, SIZE), dtype=np.float32))
    near = unit(rows[random.choice(size, 100)] + noise)
    names = [str(number) for number in range(size)]
    index = Index(folder, "bench", SIZE)
    found = {"vectors": size, "build_s": seconds(lambda: index.add(names, ["1"] * size, rows))}
    found["save_s"] = seconds(index.save)
    found["open_s"] = seconds(lambda: Index(folder, "bench", SIZE))
    found["MB"] = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    times = [seconds(lambda q=query: index.search(q[None], RERANKED)) for query in queries]  # type: ignore[misc]
    found["query_ms"] = 1000 * float(np.median(times))
    found["recall"], found["first"] = share(index, rows, queries)
    found["near_recall"], found["near_first"] = share(index, rows, near)
    if real:
        found["real_recall"], found["real_first"] = share(index, rows, texts)
    changed = names[: min(1000, size)]
    found["update_1000_s"] = seconds(lambda: index.add(changed, ["2"] * len(changed), rows[: len(changed)]))
    found["remove_1000_s"] = seconds(lambda: index.remove(changed))
    return found


def main(arguments: list[str] | None = None) -> None:
    """Print a line for each size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 100_000, 1_000_000])
    parser.add_argument(
        "--real", type=Path, nargs=2, default=[], help="embeddings of videos (npz), of texts (npy)"
    )
    options = parser.parse_args(arguments)
    for size in options.sizes:
        with tempfile.TemporaryDirectory() as folder:
            row = {key: round(value, 4) for key, value in measure(size, Path(folder), options.real).items()}
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    run_script(main)
