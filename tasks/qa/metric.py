"""Accuracy of question answering from the rows of a predictions file: every question counts once."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

DRAWS = 1000  # of the bootstrap


def accuracy(
    rows: Sequence[Mapping[str, Any]], split: str, size_test: int = 0, seed: int = 0
) -> dict[str, float]:
    """Figures of a split, exact under any number of processes, for they are of all rows in order.

    `acc` and its 95 % interval `acc_low`, `acc_high`; `acc_5` where answers are words; `acc_type_TYPE` where
    the file gives types; `unanswerable`, the share that could not be answered, and `unanswerable_WHY`;
    `shortened`, the share whose text was cut; `acc_found`, over the questions whose video was found, and on
    the test split, with `size_test`, the published adjustment: `acc_adjusted`, accuracy x found / size_test.
    Of a split whose answers are withheld (`right` None) only the number of `questions`.
    """
    if rows and all(row["right"] is None for row in rows):  # its answers are withheld
        return {"questions": len(rows)}
    right = [bool(row["right"]) for row in rows]
    low, high = interval([row["id"] for row in rows], right, seed)
    figures = {"acc": mean(right), "acc_low": low, "acc_high": high, "questions": len(rows)}
    if all("right_5" in row for row in rows):
        figures["acc_5"] = mean([row["right_5"] for row in rows])
    for kind in sorted({row["type"] for row in rows if "type" in row}):
        figures[f"acc_type_{kind}"] = mean([row["right"] for row in rows if row.get("type") == kind])
    reasons = [row["unanswerable"] for row in rows]
    figures["unanswerable"] = mean([bool(reason) for reason in reasons])
    for reason in sorted(set(reasons) - {""}):
        figures[f"unanswerable_{reason}"] = mean([r == reason for r in reasons])
    figures["shortened"] = mean([row["shortened"] for row in rows])
    found = [row["right"] for row in rows if row["unanswerable"] != "video"]
    figures["acc_found"] = mean(found)
    if size_test and split == "test":
        figures["acc_adjusted"] = sum(found) / size_test
    return figures


def mean(values: Sequence[bool]) -> float:
    """The share of True; 0 of nothing."""
    return sum(values) / max(1, len(values))


def interval(videos: Sequence[str], right: Sequence[bool], seed: int) -> tuple[float, float]:
    """95 % bootstrap interval of the accuracy.

    Videos are drawn, not questions: those about one video are right or wrong together.
    """
    _, place = np.unique(videos, return_inverse=True)
    asked = np.bincount(place)
    hits = np.bincount(place, weights=np.asarray(right, float))
    random = np.random.default_rng(seed)
    picks = (random.integers(len(asked), size=len(asked)) for _ in range(DRAWS))
    drawn = [hits[pick].sum() / asked[pick].sum() for pick in picks]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)
