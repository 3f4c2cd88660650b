"""Ranks within scores: ties never help, nor do scores that are not finite."""

import itertools

import pytest
import torch

from batch import best_alone, rank_of

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("scores", "own", "rank"),
    [
        ([3.0, 2.0, 1.0], 0, 1),
        ([3.0, 2.0, 1.0], 2, 3),
        ([0.0, 0.0, 0.0], 0, 3),
        ([0.0, 0.0, 0.0], 2, 3),
        ([2.0, 2.0, 1.0], 1, 2),
        ([NAN, 2.0, 1.0], 1, 2),
        ([NAN, 2.0, 1.0], 0, 3),
        ([INF, 2.0, 1.0], 0, 3),
        ([-INF, -INF, 1.0], 0, 3),
        ([5.0], 0, 1),
    ],
)
def test_rank(scores, own, rank):
    scores, own = torch.tensor([scores]), torch.tensor([own])
    assert rank_of(scores, scores[0, own]).tolist() == [rank]
    assert best_alone(scores, own).tolist() == [rank == 1 and scores.shape[1] > 1]


def test_the_rank_is_the_place_in_the_order_where_all_scores_differ():
    for order in itertools.permutations([1.0, 2.0, 3.0, 4.0]):
        scores = torch.tensor([order]).repeat(4, 1)
        ranks = rank_of(scores, torch.tensor(order))
        assert ranks.tolist() == [sorted(order, reverse=True).index(value) + 1 for value in order]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_scores_of_a_dead_head_are_never_right(dtype):
    scores = torch.full((8, 4), 0.25, dtype=dtype)
    assert not best_alone(scores, torch.arange(8) % 4).any()
