"""Ranks and recall from a matrix of scores: pure functions of arrays.

Shapes: Q queries, C candidates.
"""

import numpy as np

DEPTHS = (1, 5, 10, 50)  # K of R@K


def ranks(scores: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The rank (Q,) of each query's right candidate, 1 the first; of the best where several are right.

    scores: (Q, C); right: bool (Q, C), one True a row at least. Ties never help: a wrong candidate of the
    same score goes before. Nor does a score that is missing: a right one that is -inf or no number is last.
    """
    if scores.shape != right.shape or not right.any(axis=1).all():
        raise ValueError(
            f"scores {scores.shape} and right {right.shape}: every query needs a right candidate"
        )
    own = np.where(right & ~np.isnan(scores), scores, -np.inf).max(axis=1, keepdims=True)
    before = ~(scores < own) & ~right
    return 1 + before.sum(axis=1)


def both_ways(scores: np.ndarray, owner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """scores (videos, texts); owner (texts,): the video of each -> ranks of texts' videos, of videos' texts.

    A text finds its one video; a video finds the best of its texts (one of them suffices).
    """
    right = owner[None, :] == np.arange(len(scores))[:, None]
    return ranks(scores.T, right.T), ranks(scores, right)


def recall(found: np.ndarray) -> dict[str, float]:
    """Ranks -> `r1`, `r5`, `r10`, `r50` (shares), `median` and `mean` rank."""
    figures = {f"r{depth}": float((found <= depth).mean()) for depth in DEPTHS}
    return figures | {"median": float(np.median(found)), "mean": float(found.mean())}


def figures(scores: np.ndarray, owner: np.ndarray) -> dict[str, float]:
    """`t2v_` and `v2t_` figures of `recall`, and the numbers of texts and videos that chance follows from."""
    names = ("t2v", "v2t")
    found = {
        f"{name}_{key}": value
        for name, way in zip(names, both_ways(scores, owner), strict=True)
        for key, value in recall(way).items()
    }
    return found | {"texts": scores.shape[1], "videos": scores.shape[0]}
