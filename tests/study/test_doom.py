"""Clips of ViZDoom: what is asked and told of them, their splits; and the films, where it is installed."""

import csv
import json
import random
from collections import Counter

import av
import numpy as np
import pytest

from lib import UserError
from study import doom, doom_film
from study.doom_questions import (
    MOVES,
    NUMBERS,
    PHRASES,
    TURNS,
    WORDS,
    Clip,
    Question,
    Thing,
    article,
    baselines,
    captions,
    choose,
    questions,
    side,
    split_maps,
)

TOKENS = """
    zombie soldier sailor worm serpent beetle robot octopus barrel lamp torch candle tree column computer
    eye armor suit backpack ball gun box no one two three still forward backward left right
    closer away near far yes
"""


def thing(word="zombie", middle=0.5, distances=(120.0, 120.0), moved=0.0, frames=4) -> Thing:
    box = (middle - 0.1, 0.3, middle + 0.1, 0.8)
    return Thing(word, [box] * frames, distances, moved)


def clip(*things: Thing, action="still") -> Clip:
    return Clip("map01_000", "MAP01", "train", action, list(things))


def answers(scene: Clip) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for question in questions(scene, random.Random(0)):
        found.setdefault(question.type, set()).add(question.answer)
    return found


# -- questions


def test_one_object_is_named_placed_and_counted():
    found = answers(clip(thing(middle=0.2, distances=(90, 95))))
    assert found == {
        "object": {"zombie"},
        "count": {"one"},
        "exists": {"yes", "no"},
        "move": {"still"},
        "side": {"left"},
        "motion": {"no"},
        "distance": {"near"},
    }


def test_several_of_one_name_are_counted_and_none_of_them_is_asked_about():
    found = answers(clip(*(thing("tree", middle) for middle in (0.2, 0.5, 0.8)), action="turn left"))
    assert found == {"object": {"tree"}, "count": {"three"}, "exists": {"yes", "no"}, "turn": {"left"}}


def test_two_names_are_told_apart_by_their_sides():
    asked = questions(clip(thing("gun", 0.2), thing("tree", 0.8), action="left"), random.Random(1))
    which = {q.answer: q.text for q in asked if q.type == "which"}
    assert which.keys() == {"gun", "tree"} and "left" in which["gun"] and "right" in which["tree"]
    assert "object" not in {q.type for q in asked}


@pytest.mark.parametrize(
    ("distances", "answer"), [((180, 100), {"closer"}), ((90, 150), {"away"}), ((120, 130), set())]
)
def test_nearness_that_hardly_changes_is_not_asked_about(distances, answer):
    assert answers(clip(thing(distances=distances))).get("approach", set()) == answer


def test_a_walk_is_asked_about_only_while_the_player_stands_still_and_where_it_is_clear():
    walking = thing(moved=60)
    assert answers(clip(walking))["motion"] == {"yes"}
    assert "motion" not in answers(clip(walking, action="forward"))
    assert "motion" not in answers(clip(thing(moved=10)))
    assert "motion" not in answers(clip(thing("tree")))


def test_an_object_that_crosses_the_middle_is_on_no_side():
    boxes = [(0.1, 0.3, 0.3, 0.8), None, (0.6, 0.3, 0.8, 0.8)]
    assert side(Thing("gun", boxes, (90, 90), 0)) == ""


def test_absent_objects_are_asked_for_by_names_that_are_not_there():
    for seed in range(50):
        asked = questions(clip(thing("gun", 0.2), thing("tree", 0.8)), random.Random(seed))
        for question in asked:
            if question.type == "exists":
                named = next(word for word in WORDS if f"{article(word)}" in question.text.removesuffix("?"))
                assert (question.answer == "yes") == any(w in question.text for w in ("a gun", "a tree")), (
                    named
                )


def test_every_answer_is_one_token_of_bert():
    """TOKENS was looked up in the vocabulary of bert-base-uncased."""
    assert {*WORDS, *NUMBERS, *MOVES, "closer", "away", "near", "far", "yes"} == set(TOKENS.split())


# -- balance


def many(count=600) -> dict[str, list[Question]]:
    """Questions of clips of which most show one zombie and a player that walks forward."""
    chance, found = random.Random(3), {}
    for number in range(count):
        word = chance.choice(["zombie", "zombie", "zombie", "tree", "gun"])
        action = chance.choice([*MOVES, *TURNS, "forward", "forward"])
        things = [thing(word, middle) for middle in chance.choice([(0.2,), (0.2,), (0.2,), (0.2, 0.8)])]
        found[f"clip_{number:03}"] = questions(clip(*things, action=action), chance)
    return found


def test_no_answer_of_a_type_is_more_frequent_than_another():
    chosen = choose(many(), 3, random.Random(0))
    counts: dict[str, Counter[str]] = {}
    for several in chosen.values():
        assert 1 <= len(several) <= 3 and len({q.type for q in several}) == len(several)
        for question in several:
            counts.setdefault(question.type, Counter())[question.answer] += 1
    assert counts.keys() >= {"object", "count", "exists", "move", "turn"}
    for type_, count in counts.items():
        if type_ != "side":  # every object of `many` is on the left
            assert max(count.values()) <= 1.2 * min(count.values()), (type_, count)


def test_the_choice_is_that_of_its_seed():
    asked = many(80)
    first, again, other = (choose(asked, 3, random.Random(seed)) for seed in (1, 1, 2))
    assert first == again != other


def test_baselines_learn_from_train_and_are_measured_on_test():
    train = [Question("move", "How?", a) for a in ("left", "left", "right")]
    train += [
        Question("count", f"How many {w}?", a)
        for w, a in (("guns", "one"), ("trees", "two"), ("trees", "two"))
    ]
    test = [
        Question("move", "How?", "right"),
        Question("move", "How?", "left"),
        Question("count", "How many guns?", "one"),
    ]
    found = baselines(train, test)
    assert found["frequent by type"] == {"all": round(1 / 3, 4), "count": 0.0, "move": 0.5}
    assert found["frequent by question"] == {"all": round(2 / 3, 4), "count": 1.0, "move": 0.5}


# -- captions, splits, plans


def test_captions_tell_the_objects_and_the_movement_in_several_ways():
    scene = clip(thing("octopus", 0.2, (180, 100)), thing("tree", 0.8), action="forward")
    told = [text for seed in range(20) for text in captions(scene, 2, random.Random(seed))]
    assert all("an octopus" in text and "a tree" in text for text in told)
    assert len(set(told)) > 20
    assert any("left" in text for text in told) and any("closer" in text for text in told)
    assert all(any(way in text for way in ("forward", "advances", "ahead")) for text in told)


def test_a_map_is_in_one_split_and_every_split_has_some():
    maps = [name for names in doom.WADS.values() for name in names]
    assert len(maps) == len(set(maps)) == 68
    splits = split_maps(maps, seed=88)
    assert Counter(splits.values()) == {"train": 47, "test": 14, "val": 7}
    assert splits == split_maps(reversed(maps), seed=88) != split_maps(maps, seed=89)
    assert set(split_maps(["a", "b", "c"], seed=1).values()) == {"train", "val", "test"}


def test_plans_show_one_object_or_several_of_a_name_or_two_names():
    chance = random.Random(0)
    plans = [doom_film.draw_plan(chance) for _ in range(500)]
    assert {plan.action for plan in plans} == {*MOVES, *TURNS}
    assert {len(plan.roles) for plan in plans} == {1, 2, 3}
    assert {role.word for plan in plans for role in plan.roles} == set(WORDS)
    for plan in plans:
        words = Counter(role.word for role in plan.roles)
        assert max(words.values()) == 1 or len(words) == 1
        assert all(role.name in WORDS[role.word].classes for role in plan.roles)
        assert all(WORDS[role.word].alive for role in plan.roles if role.walks)


# -- depth and films


def test_free_space_ends_where_the_floor_or_a_wall_is_not_where_a_level_floor_would_be():
    rows = np.arange(doom_film.HEIGHT)[:, None] - doom_film.HEIGHT // 2
    floor = np.where(rows > 2, doom_film.FLOOR / np.maximum(rows, 3), 60)
    level = np.broadcast_to(floor, (doom_film.HEIGHT, doom_film.WIDTH)).astype(np.uint8)
    assert doom_film.free_ahead(level) > 250
    walled = np.minimum(level, 15)  # a wall 145 units ahead
    assert 120 < doom_film.free_ahead(walled) < 170
    step = level.copy()
    step[-30:] = 3
    assert doom_film.free_ahead(step) == 0


def test_stills_are_four_frames_and_their_inverse_depth():
    film = doom_film.Film()
    for number in range(doom_film.FRAMES):
        film.frames.append(np.full((doom_film.SIDE, doom_film.SIDE, 3), number, np.uint8))
        film.depths.append(np.full((doom_film.SIDE, doom_film.SIDE), 2 * doom.DEPTH_NEAR, np.uint8))
    frames, depth = doom.stills(film, 64)
    assert frames.shape == (4, 64, 64, 3) and depth.shape == (4, 64, 64)
    assert [int(frame.max()) for frame in frames] == [0, 4, 7, 11]
    assert np.unique(depth).tolist() == [128]  # half of the nearest


def film_of(ahead=0.0, left=0.0, turned=0.0, box=(0.4, 0.3, 0.6, 0.8), light=90) -> doom_film.Film:
    film = doom_film.Film()
    for number in range(doom_film.FRAMES):
        share = number / (doom_film.FRAMES - 1)
        film.frames.append(np.full((doom_film.SIDE, doom_film.SIDE, 3), light, np.uint8))
        film.boxes.append({7: box})
        film.player.append((ahead * share, left * share, (turned * share) % 360))
    return film


@pytest.mark.parametrize(
    ("action", "moved"),
    [
        ("still", {}),
        ("forward", {"ahead": 80}),
        ("backward", {"ahead": -80}),
        ("left", {"left": 80}),
        ("right", {"left": -80}),
        ("turn left", {"turned": 20}),
        ("turn right", {"turned": -20}),
    ],
)
def test_a_film_is_kept_if_the_player_did_what_was_planned(action, moved):
    doom_film.check(film_of(**moved), action)
    for other in {*MOVES, *TURNS} - {action}:
        with pytest.raises(doom_film.Cut, match="another way"):
            doom_film.check(film_of(**moved), other)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"box": None}, "hidden"),
        ({"box": (0.5, 0.5, 0.55, 0.6)}, "small"),
        ({"box": (0.0, 0.1, 0.05, 0.9)}, "part|small"),
        ({"light": 20}, "dark"),
    ],
)
def test_a_film_is_cut_if_an_object_cannot_be_seen(fault, reason):
    with pytest.raises(doom_film.Cut, match=reason):
        doom_film.check(film_of(**fault), "still")


def test_a_monster_that_is_to_walk_walks():
    film = film_of()
    film.places = [{7: (0.0, 0.0)}, {7: (30.0, 40.0)}]
    walker = doom_film.Plan("still", [doom_film.Role("zombie", "ZombieMan", 0, 100, True, True)])
    doom_film.check_walk(film, walker)
    film.places[-1] = {7: (3.0, 4.0)}
    with pytest.raises(doom_film.Cut, match="did not walk"):
        doom_film.check_walk(film, walker)


def test_a_lack_of_vizdoom_is_told_with_its_remedy(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "vizdoom", None)
    with pytest.raises(UserError, match=r"pip install -r requirements-study\.txt"):
        doom_film.Stage("freedoom2.wad", "MAP01", 1, tmp_path / "engine.ini")


@pytest.fixture(scope="module")
def filmed(tmp_path_factory):
    """Three maps filmed by the engine, twice."""
    pytest.importorskip("vizdoom")
    folders = [tmp_path_factory.mktemp(name) for name in ("first", "again")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(doom, "WADS", {"freedoom2.wad": ["MAP01", "MAP05", "MAP22"]})
        for folder in folders:
            doom.main([f"--output={folder}", "--clips=12"])
    return folders


def test_films_come_with_questions_captions_and_depth(filmed):
    rows = list(csv.DictReader((filmed[0] / "questions.csv").open()))
    figures = json.loads((filmed[0] / "doom.json").read_text())
    maps = {split: {row["id"].split("_")[0] for row in rows if row["split"] == split} for split in doom.CLIPS}
    assert all(len(found) == 1 for found in maps.values()) and len(set.union(*maps.values())) == 3
    assert {row["type"] for row in rows} <= PHRASES.keys()
    with av.open(str(filmed[0] / rows[0]["video"])) as video:
        pictures = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(pictures) == doom_film.FRAMES and pictures[0].shape == (doom_film.SIDE, doom_film.SIDE, 3)
    with np.load(filmed[0] / "depth.npz", allow_pickle=False) as stored:
        count = figures["clips"]["train"]
        assert stored["frames"].shape == (count, 4, 96, 96, 3) and stored["depth"].shape == (count, 4, 96, 96)
        assert stored["depth"].std() > 10
    told = list(csv.DictReader((filmed[0] / "captions.csv").open()))
    assert {row["split"] for row in told} == {"train"} and len(told) == 2 * count


def test_films_of_one_seed_are_the_same(filmed):
    names = [path.relative_to(filmed[0]) for path in sorted(filmed[0].glob("clips/*.mp4"))]
    assert names and all((filmed[0] / n).read_bytes() == (filmed[1] / n).read_bytes() for n in names)
    for name in ("questions.csv", "captions.csv"):
        assert (filmed[0] / name).read_bytes() == (filmed[1] / name).read_bytes()


def test_finished_maps_are_not_filmed_again(filmed, monkeypatch):
    monkeypatch.setattr(doom, "WADS", {"freedoom2.wad": ["MAP01", "MAP05", "MAP22"]})
    monkeypatch.setattr(doom, "Stage", None)
    before = (filmed[1] / "questions.csv").read_bytes()
    doom.main([f"--output={filmed[1]}", "--clips=12"])
    assert (filmed[1] / "questions.csv").read_bytes() == before
