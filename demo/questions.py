"""Questions about the demo's videos, in the published formats of question answering.

    python -m demo.questions

It comes after make_demo.py, and make_tsv.py for train, val and test. In under a minute, anywhere:

    python -m demo.questions --data _data/demo-small

Writes beside them
    img_demo.tsv           the frames of all three sets: id, a field that readers skip, frames
    txt_demo-qa.json       open-ended: colour, shape, count, direction, what happens first
    txt_demo-action.json   five options: what an object does
    txt_demo-fib.json      a sentence with a [MASK]
Each question identifies one object of its clip; no answer follows from the question alone.
"""

import argparse
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from demo.make import COLOUR_WORDS, SHAPE_WORDS
from demo.world import BEHAVIOURS, CAPTIONED_SETS, MOVES, Object, Scene, load_scenes
from lib import UserError, run_script
from media.files import atomic_path

OPTIONS = 5
NUMBERS = ("zero", "one", "two", "three")
DOES = {
    "left": "moves left",
    "right": "moves right",
    "up": "moves up",
    "down": "moves down",
    "turn": "turns",
    "grow": "grows",
    "shrink": "shrinks",
    "blink": "blinks",
    "still": "rests",
}
Question = dict[str, Any]


# ------------------------------------------------------------------------------------------ open-ended


def colour_questions(scene: Scene, chance: random.Random) -> Iterator[Question]:
    """Of things whose shape is theirs alone."""
    for item in alone(scene, "shape"):
        shape = chance.choice(SHAPE_WORDS[item.shape])
        yield {"question": f"what color is the {shape}?", "answer": item.colour}


def shape_questions(scene: Scene, chance: random.Random) -> Iterator[Question]:
    """Of things whose colour is theirs alone."""
    for item in alone(scene, "colour"):
        colour = chance.choice(COLOUR_WORDS[item.colour])
        yield {"question": f"what shape is the {colour} object?", "answer": item.shape}


def count_questions(scene: Scene, chance: random.Random) -> Iterator[Question]:
    """How many things there are."""
    ask = chance.choice(("how many objects are there?", "how many things are in the video?"))
    yield {"question": ask, "answer": NUMBERS[len(scene.objects)]}


def direction_questions(scene: Scene, chance: random.Random) -> Iterator[Question]:
    """Questions about the direction of a moving object."""
    for item in scene.objects:
        if item.behaviour in MOVES:
            yield {"question": f"what direction does {name(item, chance)} move?", "answer": item.behaviour}


def order_questions(scene: Scene, chance: random.Random) -> Iterator[Question]:
    """Which of two things that are at it one after the other is first."""
    first, *others = sorted(scene.objects, key=lambda item: item.begin)
    if others and first.end < others[0].begin and first.colour != others[0].colour:
        yield {"question": "what color is the object that moves first?", "answer": first.colour}


OPEN_ENDED: dict[str, Callable[[Scene, random.Random], Iterator[Question]]] = {
    "colour": colour_questions,
    "shape": shape_questions,
    "count": count_questions,
    "direction": direction_questions,
    "order": order_questions,
}


def alone(scene: Scene, key: str) -> list[Object]:
    """The things that share their shape, or colour, with no other in the scene."""
    times = Counter(getattr(item, key) for item in scene.objects)
    return [item for item in scene.objects if times[getattr(item, key)] == 1]


def name(item: Object, chance: random.Random) -> str:
    """Colour and shape, which no two things of a scene have in common."""
    return f"the {chance.choice(COLOUR_WORDS[item.colour])} {chance.choice(SHAPE_WORDS[item.shape])}"


def open_ended(scene: Scene, chance: random.Random, most: int) -> list[Question]:
    """Up to `most` questions about a scene, of different kinds."""
    asked = []
    for kind in chance.sample(list(OPEN_ENDED), len(OPEN_ENDED)):
        if questions := list(OPEN_ENDED[kind](scene, chance)):
            asked.append({"video": scene.id, **chance.choice(questions), "type": kind})
    return asked[:most]


# ----------------------------------------------------------------------------------- options and blanks


def action(scene: Scene, chance: random.Random, most: int) -> list[Question]:
    """Five things that an object may do, of which it does one."""
    questions = []
    for item in chance.sample(scene.objects, min(most, len(scene.objects))):
        others = chance.sample([does for does in BEHAVIOURS if does != item.behaviour], OPTIONS - 1)
        answer = chance.randrange(OPTIONS)
        options = [*others[:answer], item.behaviour, *others[answer:]]
        questions.append(
            {
                "video": scene.id,
                "question": f"what does {name(item, chance)} do?",
                **{f"option_{i}": DOES[does] for i, does in enumerate(options)},
                "answer": answer,
            }
        )
    return questions


def blanks(scene: Scene, chance: random.Random, most: int) -> list[Question]:
    """A thing's colour, shape or behaviour left out of a sentence that is then true of no other thing."""
    questions = []
    for item in chance.sample(scene.objects, len(scene.objects)):
        key = chance.choice(("colour", "shape", "behaviour"))
        known = [part for part in ("colour", "shape", "behaviour") if part != key]
        alike = [o for o in scene.objects if all(getattr(o, part) == getattr(item, part) for part in known)]
        if len(alike) == 1:
            words = {"colour": item.colour, "shape": item.shape, "behaviour": DOES[item.behaviour]}
            *before, answer = words[key].split()
            sentence = {**words, key: " ".join([*before, "[MASK]"])}
            text = f"the {sentence['colour']} {sentence['shape']} {sentence['behaviour']}"
            questions.append({"video": scene.id, "question": text, "answer": answer, "type": key})
    return questions[:most]


# ----------------------------------------------------------------------------------------------- files

TASKS: dict[str, Callable[[Scene, random.Random, int], list[Question]]] = {
    "demo-qa": open_ended,
    "demo-action": action,
    "demo-fib": blanks,
}


def write_task(data: Path, task: str, seed: int) -> None:
    """One txt_TASK.json: up to two questions a scene; answers that are words get numbers."""
    splits: dict[str, list[Question]] = {}
    for split in CAPTIONED_SETS:
        scenes = load_scenes(data / f"{split}.scenes.jsonl")
        chances = [random.Random(f"{seed} {scene.id} {task}") for scene in scenes]
        asked = [TASKS[task](scene, chance, 2) for scene, chance in zip(scenes, chances, strict=True)]
        splits[split] = [question for questions in asked for question in questions]
    content: dict[str, Any] = {**splits}
    words = sorted({q["answer"] for questions in splits.values() for q in questions}, key=str)
    if isinstance(words[0], str):
        content["ans2label"] = {word: number for number, word in enumerate(words)}
        for question in (q for questions in splits.values() for q in questions):
            question |= {
                "answer": content["ans2label"][question["answer"]],
                "answer_text": question["answer"],
            }
    with atomic_path(data / f"txt_{task}.json") as temporary:
        temporary.write_text(json.dumps(content))
    print(f"{data}/txt_{task}.json:", ", ".join(f"{len(rows)} {split}" for split, rows in splits.items()))


def write_frames(data: Path) -> None:
    """img_demo.tsv: the rows of the three sets with the field that downstream rows have."""
    path = data / "img_demo.tsv"
    with atomic_path(path) as temporary, temporary.open("wb") as rows:
        for split in CAPTIONED_SETS:
            with (data / f"{split}.img.tsv").open("rb") as stored:
                for line in stored:
                    identity, _, frames = line.partition(b"\t")
                    rows.write(identity + b"\tdemo\t" + frames)
    path.with_suffix(".id2lineidx.pkl").unlink(missing_ok=True)  # of older rows; readers build it anew


def main(arguments: list[str] | None = None) -> None:
    """Write the frames and the three tasks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("_data/demo"), help="folder of the demo's files")
    parser.add_argument("--seed", type=int, default=88)
    options = parser.parse_args(arguments)
    files = [options.data / f"{split}.img.tsv" for split in CAPTIONED_SETS]
    if missing := [str(path) for path in files if not path.exists()]:
        raise UserError(f"{', '.join(missing)} missing: run demo.make and make_tsv.py first.")
    write_frames(options.data)
    for task in TASKS:
        write_task(options.data, task, options.seed)


if __name__ == "__main__":
    run_script(main)
