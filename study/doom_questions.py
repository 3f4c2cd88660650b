"""Questions and captions about clips of a first-person game, from what its engine says of the objects.

Boxes are (left, top, right, bottom) in shares of the square clip's side, distances are in map units (a person
is 56 units tall). Everything here is a pure function of its arguments and of a seeded `random.Random`.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

Box = tuple[float, float, float, float]


class Word(NamedTuple):
    """An object's name: the engine's classes that look like it in Freedoom, and how it behaves."""

    classes: tuple[str, ...]
    plural: str
    tall: bool = True  # a person's height or so: visible from afar
    alive: bool = False  # walks, once it has noticed the player


WORDS = {
    "zombie": Word(("ZombieMan",), "zombies", alive=True),
    "soldier": Word(("ChaingunGuy",), "soldiers", alive=True),
    "sailor": Word(("WolfensteinSS",), "sailors", alive=True),
    "worm": Word(("Demon",), "worms", alive=True),
    "serpent": Word(("DoomImp",), "serpents", alive=True),
    "beetle": Word(("Cacodemon",), "beetles", alive=True),
    "robot": Word(("BaronOfHell", "HellKnight"), "robots", alive=True),
    "octopus": Word(("Revenant",), "octopuses", alive=True),
    "barrel": Word(("ExplosiveBarrel",), "barrels", tall=False),
    "lamp": Word(("TechLamp", "TechLamp2"), "lamps"),
    "torch": Word(("RedTorch", "BlueTorch", "GreenTorch"), "torches"),
    "candle": Word(("Candelabra",), "candles"),
    "tree": Word(("BigTree", "TorchTree", "Stalagtite"), "trees"),
    "column": Word(("TallGreenColumn", "TallRedColumn"), "columns"),
    "computer": Word(("TechPillar",), "computers"),
    "eye": Word(("EvilEye",), "eyes"),
    "armor": Word(("GreenArmor", "BlueArmor"), "armors", tall=False),
    "suit": Word(("RadSuit",), "suits"),
    "backpack": Word(("Backpack",), "backpacks", tall=False),
    "ball": Word(("InvulnerabilitySphere",), "balls", tall=False),
    "gun": Word(("RocketLauncher", "Chaingun", "BFG9000"), "guns", tall=False),
    "box": Word(("RocketBox",), "boxes", tall=False),
}
NUMBERS = ("no", "one", "two", "three")
MOVES = ("still", "forward", "backward", "left", "right")
TURNS = ("turn left", "turn right")
NEAR, FAR = 105, 165  # map units, at most and at least
WALK = 25  # map units in a clip, at least, of an object of which it is said that it moves
CENTRE = 0.08  # a box whose middle is within this share of the picture's middle is on neither side


@dataclass(frozen=True)
class Thing:
    """An object: its box in each frame (None: not visible), first and last distance, its own way."""

    word: str
    boxes: list[Box | None]
    distances: tuple[float, float]
    moved: float


@dataclass(frozen=True)
class Clip:
    """What the engine knows of a clip."""

    id: str
    map: str
    split: str
    action: str  # of the player: one of MOVES or TURNS
    things: list[Thing]


class Question(NamedTuple):
    """A question of a type, such as `count`, and its answer, one word."""

    type: str
    text: str
    answer: str


PHRASES = {
    "object": ("What is in front of the player?", "Which object can be seen?"),
    "count": ("How many {plural} are there?", "How many {plural} can be seen?"),
    "side": ("On which side is the {word}?", "Is the {word} on the left or on the right?"),
    "which": ("What is on the {side} side?", "Which object is on the {side}?"),
    "move": ("How does the player move?", "In which direction does the player walk?"),
    "turn": ("Which way does the player turn?", "In which direction does the view turn?"),
    "approach": ("Does the {word} come closer or go away?", "Does the {word} get closer or move away?"),
    "motion": ("Does the {word} move?", "Is the {word} walking?"),
    "distance": ("Is the {word} near or far?", "How far is the {word}, near or far?"),
    "exists": ("Is there {a_word}?", "Can {a_word} be seen?"),
}


def article(word: str) -> str:
    """The word after its indefinite article."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def side(thing: Thing) -> str:
    """`left` or `right` if the object stays on that side in every frame in which it is visible, else ''."""
    middles = [(box[0] + box[2]) / 2 - 0.5 for box in thing.boxes if box]
    if middles and max(middles) < -CENTRE:
        return "left"
    return "right" if middles and min(middles) > CENTRE else ""


def questions(clip: Clip, chance: random.Random) -> list[Question]:
    """Every question that the clip answers beyond doubt, one phrase of each."""
    counts = Counter(thing.word for thing in clip.things)
    found: list[tuple[str, str, dict[str, str]]] = []
    if len(counts) == 1:
        found.append(("object", clip.things[0].word, {}))
    for word, count in counts.items():
        found.append(("count", NUMBERS[count], {"plural": WORDS[word].plural}))
        found.append(("exists", "yes", {"a_word": article(word)}))
        absent = chance.choice([other for other in WORDS if other not in counts])
        found.append(("exists", "no", {"a_word": article(absent)}))
    if clip.action in MOVES:
        found.append(("move", clip.action, {}))
    else:
        found.append(("turn", clip.action.removeprefix("turn "), {}))
    for thing in clip.things:
        if counts[thing.word] == 1:
            found += [(type_, answer, {"word": thing.word}) for type_, answer in about(thing, clip.action)]
    sides = {side(thing): thing.word for thing in clip.things if side(thing)}
    if len(sides) == len(counts) == len(clip.things) == 2:
        found += [("which", word, {"side": where}) for where, word in sides.items()]
    return [
        Question(type_, chance.choice(PHRASES[type_]).format(**names), answer)
        for type_, answer, names in found
    ]


def about(thing: Thing, action: str) -> list[tuple[str, str]]:
    """The types of question, each with its answer, about an object that is the only one of its name."""
    found = []
    first, last = thing.distances
    if where := side(thing):
        found.append(("side", where))
    if last < 0.8 * first or last > 1.25 * first:
        found.append(("approach", "closer" if last < first else "away"))
    if WORDS[thing.word].alive and action == "still" and not 1 <= thing.moved < WALK:
        found.append(("motion", "yes" if thing.moved >= WALK else "no"))
    if WORDS[thing.word].tall and (max(first, last) <= NEAR or min(first, last) >= FAR):
        found.append(("distance", "near" if first <= NEAR else "far"))
    return found


def choose(
    asked: Mapping[str, list[Question]], most: int, chance: random.Random
) -> dict[str, list[Question]]:
    """Up to `most` questions of each clip, of different types, answers of a type equally frequent.

    Questions with the rarest type and answer so far come first; afterwards no answer of a type is left more
    frequent than the rarest, where there are up to five, or than the lower quartile of the frequencies.
    """
    used: Counter[tuple[str, str]] = Counter()
    types: Counter[str] = Counter()
    chosen: list[tuple[str, Question]] = []
    for name in chance.sample(sorted(asked), len(asked)):
        left = list(asked[name])
        for _ in range(most):
            if not left:
                break
            best = min(left, key=lambda q: (types[q.type], used[q.type, q.answer], chance.random()))
            rivals = [q for q in left if q.type == best.type]
            best = min(rivals, key=lambda q: (used[q.type, q.answer], chance.random()))
            used[best.type, best.answer] += 1
            types[best.type] += 1
            chosen.append((name, best))
            left = [q for q in left if q.type != best.type]
    return level(chosen, chance)


def level(chosen: Sequence[tuple[str, Question]], chance: random.Random) -> dict[str, list[Question]]:
    """Drop questions with the frequent answers of each type at random; the clips keep their order."""
    frequencies: dict[str, Counter[str]] = defaultdict(Counter)
    for _, question in chosen:
        frequencies[question.type][question.answer] += 1
    limits = {type_: sorted(f.values())[len(f) // 4 if len(f) > 5 else 0] for type_, f in frequencies.items()}
    used: Counter[tuple[str, str]] = Counter()
    kept: dict[str, list[Question]] = defaultdict(list)
    for name, question in chance.sample(chosen, len(chosen)):
        used[question.type, question.answer] += 1
        if used[question.type, question.answer] <= limits[question.type]:
            kept[name].append(question)
    return {name: kept[name] for name in sorted(kept)}


# ------------------------------------------------------------------------------------------- captions

ACTIONS = {
    "still": ("the player stands still", "the view rests", "nobody walks", "the player waits"),
    "forward": ("the player walks forward", "the player advances", "the camera moves ahead"),
    "backward": ("the player walks backward", "the player steps back", "the camera moves back"),
    "left": (
        "the player steps to the left",
        "the camera slides left",
        "the player walks sideways to the left",
    ),
    "right": (
        "the player steps to the right",
        "the camera slides right",
        "the player walks sideways to the right",
    ),
    "turn left": (
        "the player turns to the left",
        "the view turns left",
        "the player looks around to the left",
    ),
    "turn right": (
        "the player turns to the right",
        "the view turns right",
        "the player looks around to the right",
    ),
}
PLACES = {
    "left": ("on the left", "on the left side", "to the left"),
    "right": ("on the right", "on the right side", "to the right"),
}
DISTANCES = {"near": ("nearby", "close by"), "far": ("far away", "in the distance")}
FRAMES = (
    "{things} and {action}",
    "{action} and there is {things}",
    "{action} with {things} ahead",
    "{things} while {action}",
)


def describe(clip: Clip, chance: random.Random) -> str:
    """The objects of a clip in words: number, distance, place and what they do, some of them left out."""
    counts = Counter(thing.word for thing in clip.things)
    phrases = []
    for word, count in counts.items():
        if count > 1:
            phrases.append(f"{NUMBERS[count]} {WORDS[word].plural}")
            continue
        thing = next(thing for thing in clip.things if thing.word == word)
        told = dict(about(thing, clip.action))
        words = [article(word)]
        if "distance" in told and chance.random() < 0.5:
            words.append(chance.choice(DISTANCES[told["distance"]]))
        if "side" in told and chance.random() < 0.7:
            words.append(chance.choice(PLACES[told["side"]]))
        if told.get("motion") == "yes":
            words.append("that walks")
        elif "approach" in told and chance.random() < 0.7:
            words.append({"closer": "that comes closer", "away": "that gets smaller"}[told["approach"]])
        phrases.append(" ".join(words))
    chance.shuffle(phrases)
    return " and ".join(phrases)


def captions(clip: Clip, count: int, chance: random.Random) -> list[str]:
    """`count` different sentences about a clip."""
    found: dict[str, None] = {}
    while len(found) < count:
        action = chance.choice(ACTIONS[clip.action])
        found[chance.choice(FRAMES).format(things=describe(clip, chance), action=action)] = None
    return list(found)


# --------------------------------------------------------------------------------- splits and baselines


def split_maps(maps: Iterable[str], seed: int, val: float = 0.1, test: float = 0.2) -> dict[str, str]:
    """A split for each map, drawn by the seed; at least one map for each of three splits."""
    order = sorted(maps)
    random.Random(seed).shuffle(order)
    counts = {"val": max(1, round(val * len(order))), "test": max(1, round(test * len(order)))}
    splits = [split for split, count in counts.items() for _ in range(count)]
    return {name: splits[i] if i < len(splits) else "train" for i, name in enumerate(order)}


def baselines(train: Sequence[Question], test: Sequence[Question]) -> dict[str, dict[str, float]]:
    """Accuracy on test of the most frequent answer on train: of the type, and of the very same question.

    Returns {"frequent by type" | "frequent by question": {type | "all": accuracy}}.
    """
    found = {}
    for name, key in (("frequent by type", lambda q: q.type), ("frequent by question", lambda q: q.text)):
        known: dict[str, Counter[str]] = defaultdict(Counter)
        for question in train:
            known[key(question)][question.answer] += 1
        right: dict[str, list[bool]] = defaultdict(list)
        for question in test:
            guess = known[key(question)].most_common(1)
            hit = bool(guess) and guess[0][0] == question.answer
            right[question.type].append(hit)
            right["all"].append(hit)
        found[name] = {type_: round(sum(hits) / len(hits), 4) for type_, hits in sorted(right.items())}
    return found
