"""Ranks and recall."""

import numpy as np
import pytest

from tasks.retrieval.ranking import both_ways, figures, ranks, recall

EYE = np.eye(3, dtype=bool)


def test_the_rank_is_one_more_than_what_is_before():
    scores = np.array([[3.0, 2, 1], [3, 2, 1], [3, 2, 1]])
    assert ranks(scores, EYE).tolist() == [1, 2, 3]


def test_ties_never_help():
    assert ranks(np.zeros((3, 3)), EYE).tolist() == [3, 3, 3]
    assert ranks(np.array([[1.0, 1, 0], [0, 1, 0], [0, 0, 0]]), EYE).tolist() == [2, 1, 3]


@pytest.mark.parametrize("missing", [np.nan, -np.inf])
def test_a_score_that_is_missing_never_helps(missing):
    scores = np.array([[missing, 0, 0], [0, 1, 0], [missing, missing, missing]])
    assert ranks(scores, EYE).tolist() == [4, 1, 4]  # beyond the candidates: not found
    assert recall(ranks(scores, EYE), 3)["r5"] == recall(ranks(scores, EYE), 3)["r50"] == 1 / 3


def test_a_wrong_candidate_that_cannot_be_read_hinders_nobody():
    assert ranks(np.array([[1.0, -np.inf, 0]]), EYE[:1]).tolist() == [1]


def test_several_captions_of_a_video():
    """Texts 0 and 1 are about video 0, text 2 about video 1."""
    scores = np.array([[1.0, 5, 4], [2, 0, 3]])
    of_texts, of_videos = both_ways(scores, np.array([0, 0, 1]))
    assert of_texts.tolist() == [2, 1, 2]
    assert of_videos.tolist() == [1, 1]  # its best caption is first; the other one is no wrong candidate
    scores = np.array([[1.0, 2, 3], [1, 2, 0]])
    assert both_ways(scores, np.array([0, 0, 1]))[1].tolist() == [2, 3]


def test_every_query_needs_a_right_candidate():
    with pytest.raises(ValueError, match="right candidate"):
        ranks(np.zeros((2, 2)), np.array([[True, False], [False, False]]))


def test_recall():
    got = recall(np.array([1, 2, 5, 6, 10, 11, 50, 51]), 100)
    shares = {"r1": 1 / 8, "r5": 3 / 8, "r10": 5 / 8, "r50": 7 / 8}
    assert got == {**shares, "median": 8.0, "mean": 17.0}


def test_figures_name_both_ways_and_what_chance_follows_from():
    found = figures(np.array([[1.0, 5, 4], [2, 0, 3]]), np.array([0, 0, 1]))
    assert (found["t2v_r1"], found["v2t_r1"], found["texts"], found["videos"]) == (1 / 3, 1.0, 3, 2)


def test_chance_is_what_random_scores_reach():
    scores = np.random.default_rng(0).standard_normal((400, 400))
    found = figures(scores, np.arange(400))
    assert found["t2v_r50"] == pytest.approx(50 / 400, abs=0.05)
    assert found["v2t_median"] == pytest.approx(200, rel=0.15)
