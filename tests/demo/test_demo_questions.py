"""The demo's questions: true of their clips, answerable in one word, in the published formats."""

import json
import random
from dataclasses import asdict

import pytest

from demo import questions as demo_questions
from demo.make import COLOUR_WORDS, SHAPE_WORDS, vocabulary
from demo.world import BEHAVIOURS, CAPTIONED_SETS, choose_scenes
from lib import UserError


@pytest.fixture(scope="module")
def scenes():
    return list(choose_scenes("train", 300, seed=3))


def asked(scenes, task, most=5):
    return [
        (scene, question)
        for scene in scenes
        for question in demo_questions.TASKS[task](scene, random.Random(scene.id), most)
    ]


def meant(text: str, table: dict) -> str | None:
    """The name for which a word of `text` stands."""
    words = text.strip("?").split()
    return next((name for name, synonyms in table.items() if set(synonyms) & set(words)), None)


def test_open_ended_answers_are_true_of_one_thing(scenes):
    pairs = asked(scenes, "demo-qa")
    kinds = {question["type"] for _, question in pairs}
    assert kinds == set(demo_questions.OPEN_ENDED)
    for scene, question in pairs:
        text, answer = question["question"], question["answer"]
        shape, colour = meant(text, SHAPE_WORDS), meant(text, COLOUR_WORDS)
        fitting = [
            item for item in scene.objects if shape in (None, item.shape) and colour in (None, item.colour)
        ]
        if question["type"] == "count":
            assert answer == ("zero", "one", "two", "three")[len(scene.objects)]
        elif question["type"] == "order":
            assert answer == min(scene.objects, key=lambda item: item.begin).colour
        else:
            key = {"colour": "colour", "shape": "shape", "direction": "behaviour"}[question["type"]]
            assert [getattr(item, key) for item in fitting] == [answer]


def test_one_of_five_options_is_true(scenes):
    numbers = set()
    for scene, question in asked(scenes, "demo-action"):
        options = [question[f"option_{i}"] for i in range(5)]
        assert len(set(options)) == 5
        shape, colour = meant(question["question"], SHAPE_WORDS), meant(question["question"], COLOUR_WORDS)
        (item,) = (o for o in scene.objects if (o.shape, o.colour) == (shape, colour))
        assert options[question["answer"]] == demo_questions.DOES[item.behaviour]
        numbers.add(question["answer"])
    assert numbers == set(range(5))


def test_blanks_have_one_answer(scenes):
    for scene, question in asked(scenes, "demo-fib"):
        sentences = [
            f"the {item.colour} {item.shape} {demo_questions.DOES[item.behaviour]}" for item in scene.objects
        ]
        before, after = question["question"].split("[MASK]")
        fitting = [s for s in sentences if s.startswith(before) and s.endswith(after)]
        assert fitting == [question["question"].replace("[MASK]", question["answer"])]


def test_every_answer_is_one_word_that_the_demo_knows(scenes):
    known = set(vocabulary())
    for task in ("demo-qa", "demo-fib"):
        assert {question["answer"] for _, question in asked(scenes, task)} <= known
    assert set(demo_questions.DOES) == set(BEHAVIOURS)
    assert {str(i) for i in range(5)} <= known


def test_files_are_those_of_the_published_formats(tmp_path):
    for split in CAPTIONED_SETS:
        few = list(choose_scenes(split, 4, seed=3))
        records = [json.dumps({**asdict(scene), "captions": [], "video": ""}) + "\n" for scene in few]
        (tmp_path / f"{split}.scenes.jsonl").write_text("".join(records))
        if split != "test":
            (tmp_path / f"{split}.img.tsv").write_text("".join(f"{s.id}\t/9j/AA\t/9j/BB\n" for s in few))
    with pytest.raises(UserError, match=r"test\.img\.tsv missing"):
        demo_questions.main(["--data", str(tmp_path)])
    (tmp_path / "test.img.tsv").write_text("test00000\t/9j/AA\n")
    demo_questions.main(["--data", str(tmp_path)])
    rows = (tmp_path / "img_demo.tsv").read_text().splitlines()
    assert rows[0].split("\t") == ["train00000", "demo", "/9j/AA", "/9j/BB"]
    assert len(rows) == 4 + 4 + 1
    for task in demo_questions.TASKS:
        first = (tmp_path / f"txt_{task}.json").read_text()
        content = json.loads(first)
        assert [len(content[split]) >= 4 for split in CAPTIONED_SETS] == [True] * 3
        if labels := content.get("ans2label"):
            for question in content["train"]:
                assert labels[question["answer_text"]] == question["answer"]
        demo_questions.main(["--data", str(tmp_path)])
        assert (tmp_path / f"txt_{task}.json").read_text() == first
