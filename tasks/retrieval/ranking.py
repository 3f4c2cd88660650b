"""Ranks and recall from a matrix of scores: pure functions of arrays.

Shapes: Q queries, C candidates.
"""

import numpy as np

DEPTHS = (1, 5, 10, 50)  # K of R@K


def ranks(scores: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The rank (Q,) of each query's right candidate, 1 the first; of the best where several are right.

    scores: (Q, C); right: bool (Q, C), one True a row at least. Ties count as wrong: a wrong
    candidate of the same score ranks first. Without a finite score the right one is not found: rank C + 1.
    """
    if scores.shape != right.shape or not right.any(axis=1).all():
        raise ValueError(
            f"scores {scores.shape} and right {right.shape}: every query needs a right candidate"
        )
    own = np.where(right & np.isfinite(scores), scores, -np.inf).max(axis=1, keepdims=True)
    before = ~(scores < own) & ~right
    return np.where(np.isfinite(own[:, 0]), 1 + before.sum(axis=1), scores.shape[1] + 1)


def both_ways(scores: np.ndarray, owner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """scores (videos, texts); owner (texts,): the video of each -> ranks of texts' videos, of videos' texts.

    A text finds its one video; a video finds the best of its texts (one of them suffices).
    """
    right = owner[None, :] == np.arange(len(scores))[:, None]
    return ranks(scores.T, right.T), ranks(scores, right)


def recall(found: np.ndarray, candidates: int) -> dict[str, float]:
    """Ranks -> `r1`, `r5`, `r10`, `r50` (shares), `median` and `mean` rank.

    A rank beyond the number of `candidates` says that the right one is not found.
    """
    figures = {f"r{depth}": float((found <= min(depth, candidates)).mean()) for depth in DEPTHS}
    return figures | {"median": float(np.median(found)), "mean": float(found.mean())}


def figures(scores: np.ndarray, owner: np.ndarray) -> dict[str, float]:
    """`t2v_` and `v2t_` figures of `recall`, and the numbers of texts and videos that chance follows from."""
    videos, texts = scores.shape
    of_texts, of_videos = both_ways(scores, owner)
    found = {f"t2v_{key}": value for key, value in recall(of_texts, videos).items()}
    found |= {f"v2t_{key}": value for key, value in recall(of_videos, texts).items()}
    return found | {"texts": texts, "videos": videos, "not_finite": int(np.isnan(scores).sum())}
