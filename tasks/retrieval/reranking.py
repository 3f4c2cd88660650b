"""Re-ranking: embeddings choose the pairs that the cross-modal transformer scores; functions of arrays."""

import numpy as np


def candidates(similar: np.ndarray, number: int) -> np.ndarray:
    """bool (videos, texts): the `number` most similar videos of each text and texts of each video.

    similar: (videos, texts), the inner products of embeddings; -inf for a video that cannot be read, which is
    no candidate.
    """
    chosen = np.zeros(similar.shape, bool)
    for axis in (0, 1):
        best = np.argsort(-similar, axis=axis, kind="stable").take(
            range(min(number, similar.shape[axis])), axis
        )
        np.put_along_axis(chosen, best, True, axis=axis)
    return chosen & np.isfinite(similar)


def combine(scores: np.ndarray, similar: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """One matrix (videos, texts) that ranks the chosen pairs by their scores, and before all others.

    The others follow in the order of their similarities, which are in [-1, 1].
    """
    finite = scores[chosen & np.isfinite(scores)]
    lowest = finite.min() if len(finite) else 0.0
    return np.where(chosen, scores, lowest - 2 + similar).astype(np.float32)
