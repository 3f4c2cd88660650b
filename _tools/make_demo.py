"""python _tools/make_demo.py
python _tools/make_demo.py --train 200 --val 32 --test 32 --names 200 --names-val 32 --output _data/demo-small

Draws a small world of H.264 videos with captions, so that the whole of pre-training runs on a laptop without
a download. A clip shows one to three objects over a textured background; each has a shape, a colour, a size
and one behaviour. The same seed gives the same scenes, pictures and captions, whatever the number of workers.

Under --output:
    SPLIT/NAME.mp4      16 frames at 8 frames per second, the shorter side 96 pixels
    SPLIT.csv           columns video (path from the folder of the CSV), caption; a row per caption
    SPLIT.scenes.jsonl  a line per video: everything that was drawn (`Scene`), its video and its captions
    bert/               vocabulary, tokenizer and configuration of a small BERT that knows the world's words
    demo.json           what is finished; a set that is finished with the same settings is not drawn again

train, val and test share no description (the set of their objects' size, colour, shape and behaviour), and
no two clips of one of them do. names and names_val show one object each, to teach a video encoder to name it.
"""

import argparse
import colorsys
import csv
import json
import math
import os
import random
import re
import shutil
import string
import sys
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lib import atomic_path

WORLD_VERSION = 1  # raise it when a change alters pictures or captions: finished sets are then drawn again
FRAMES = 16
FRAMES_PER_SECOND = 8
SIDE = 96  # pixels; objects stay within the central square of this side, so every centre crop shows them
MARGIN = 2  # pixels between an object and the edge of that square
BLINK_FRAMES = 4  # shown and hidden in turn: 4 frames picked evenly, 4 or 5 apart, meet both
FRAME_SIZES = ((SIDE, SIDE),) * 6 + ((128, SIDE), (SIDE, 128))  # (width, height), drawn with equal chances
RADIUS = {"small": 10.0, "large": 17.0}  # pixels, of the circle around the object
CAPTIONED_SETS = ("train", "val", "test")  # they share no description
SETS = (*CAPTIONED_SETS, "names", "names_val")

COLOURS = {
    "red": (222, 28, 36),
    "orange": (255, 136, 8),
    "yellow": (250, 232, 40),
    "green": (28, 170, 52),
    "cyan": (52, 222, 232),
    "blue": (36, 64, 232),
    "purple": (150, 36, 200),
    "white": (246, 246, 246),
}
SYMMETRY = {"square": 90, "triangle": 120, "star": 72, "cross": 90}  # degrees after which it looks the same
MOVES = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}  # y points down
IN_TURN = (*MOVES, "turn", "grow", "shrink")  # behaviours that can begin and end within the clip

SIZE_WORDS = {"small": ("small", "tiny", "little"), "large": ("large", "big", "huge")}
COLOUR_WORDS = {
    "red": ("red", "crimson"),
    "orange": ("orange",),
    "yellow": ("yellow", "golden"),
    "green": ("green", "emerald"),
    "cyan": ("cyan", "turquoise"),
    "blue": ("blue", "cobalt"),
    "purple": ("purple", "violet"),
    "white": ("white",),
}
SHAPE_WORDS = {
    "circle": ("circle", "disc"),
    "ring": ("ring", "hoop"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "cross": ("cross", "plus"),
}
BEHAVIOUR_WORDS = {
    "left": ("moves left", "moves to the left", "slides left", "drifts to the left", "goes left"),
    "right": ("moves right", "moves to the right", "slides right", "drifts to the right", "goes right"),
    "up": ("moves up", "moves upwards", "rises", "slides up", "climbs"),
    "down": ("moves down", "moves downwards", "falls", "slides down", "sinks"),
    "turn": ("turns", "rotates", "spins", "turns around"),
    "grow": ("grows", "gets bigger", "becomes larger", "expands"),
    "shrink": ("shrinks", "gets smaller", "becomes smaller", "contracts"),
    "blink": ("blinks", "flashes", "flickers", "blinks on and off"),
    "still": ("stays still", "does not move", "stays in place", "rests"),
}
ONE_OBJECT = ("{0} {1}", "there is {0} that {1}", "a clip of {0} that {1}", "in this video {0} {1}")
TWO_OBJECTS = (
    "{0} {1} and {2} {3}",
    "{0} {1} while {2} {3}",
    "there is {0} that {1} and {2} that {3}",
    "two objects : {0} {1} and {2} {3}",
)
THREE_OBJECTS = ("{0} {1}, {2} {3} and {4} {5}", "three objects : {0} {1}, {2} {3} and {4} {5}")
ONE_AFTER_THE_OTHER = (
    "first {0} {1} and then {2} {3}",
    "{0} {1} before {2} {3}",
    "{0} {1}, then {2} {3}",
    "{2} {3} after {0} {1}",
)
SIDE_BY_SIDE = (
    "{0} on the left {1} and {2} on the right {3}",
    "{2} on the right {3} and {0} on the left {1}",
)
ONE_ABOVE_THE_OTHER = ("{0} {1} and below it {2} {3}", "{2} {3} and above it {0} {1}")
QUESTION_WORDS = """
    what which who where when how why many much of in on at to it its not no yes true false a an the is are
    was do does did has have happens happen there this that with without and or than more less most same
    different both all any none first last then before after while object objects thing things clip video
    picture colour color shape size kind direction background front behind near nearer nearest far farther
    farthest above below between left right up down top bottom middle option options answer question choose
    caption describe move turn grow shrink blink stay rest rise fall rotate spin change changes slow fast
    faster slower clockwise counterclockwise once twice zero one two three four five six seven eight nine
    ten
"""


@dataclass(frozen=True)
class Pose:
    """Where an object is at one frame: pixels, degrees."""

    x: float
    y: float
    radius: float
    angle: float
    shown: bool


@dataclass(frozen=True)
class Object:
    """One object and what it does, from frame `begin` to frame `end`; pixels, degrees."""

    shape: str
    colour: str
    size: str
    behaviour: str
    rgb: tuple[int, int, int]
    x: float  # of the centre at the first frame, from the left edge
    y: float  # from the top edge
    dx: float  # the whole way it moves
    dy: float
    radius: float  # at the first frame, of the circle around it
    growth: float  # radius at the last frame / radius at the first
    angle: float  # at the first frame, clockwise from upright
    turn: float  # the whole angle it turns, clockwise
    begin: int
    end: int
    hidden: tuple[int, ...]  # frames at which it is not drawn
    depth: int  # 1 is nearest to the viewer and covers what is deeper

    @property
    def description(self) -> str:
        """What it is and does, wherever it is."""
        return f"{self.size} {self.colour} {self.shape} {self.behaviour}"

    def pose(self, frame: int) -> Pose:
        """Where it is at a frame; between `begin` and `end` everything changes evenly."""
        progress = min(max((frame - self.begin) / (self.end - self.begin), 0.0), 1.0)
        return Pose(
            x=self.x + self.dx * progress,
            y=self.y + self.dy * progress,
            radius=self.radius * (1 + (self.growth - 1) * progress),
            angle=self.angle + self.turn * progress,
            shown=frame not in self.hidden,
        )


@dataclass(frozen=True)
class Background:
    """A texture that blends two muted colours."""

    texture: str
    colours: tuple[tuple[int, int, int], tuple[int, int, int]]
    scale: float  # pixels, of one repeat of the texture
    angle: float  # degrees
    seed: int


@dataclass(frozen=True)
class Scene:
    """All that is to be known of a clip: its pictures are a function of this and the frame's number."""

    id: str
    width: int
    height: int
    background: Background
    objects: tuple[Object, ...]

    @property
    def description(self) -> str:
        """What its objects are and do, in an order that does not depend on theirs."""
        return ", ".join(sorted(item.description for item in self.objects))


# ----------------------------------------------------------------------------------------------- pictures


def polygon(corners: int, radii: tuple[float, ...] = (1.0,), first: float = -90.0) -> np.ndarray:
    """Corners (N, 2) around the origin at even angles from `first` degrees; the radii are used in turn."""
    angles = np.deg2rad(first + np.arange(corners) * 360 / corners)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.resize(radii, corners)[:, None]


def cross(half_width: float = 0.3) -> np.ndarray:
    """Corners (12, 2) of an upright cross within the unit circle."""
    length = math.sqrt(1 - half_width**2)  # so that the corners lie on the circle around it
    arm = np.array([[-half_width, -half_width], [-half_width, -length], [half_width, -length]])
    quarter = np.array([[0, 1], [-1, 0]])
    return np.concatenate([arm @ np.linalg.matrix_power(quarter, turns) for turns in range(4)])


# Contours within the unit circle; what two contours share is left out. Round shapes are a bit smaller, so
# that all look equally large.
OUTLINES: dict[str, tuple[np.ndarray, ...]] = {
    "circle": (polygon(48, (0.88,)),),
    "ring": (polygon(48, (0.94,)), polygon(48, (0.54,))),
    "square": (polygon(4, first=45),),
    "triangle": (polygon(3),),
    "star": (polygon(10, (1.0, 0.42)),),
    "cross": (cross(),),
}


def clouds(along: np.ndarray, across: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Smooth noise of two sizes."""
    height, width = along.shape
    sizes = [(max(2, int(np.ptp(along))), max(2, int(np.ptp(across)))), (24, 24)]
    coarse, fine = (
        cv2.resize(generator.random(size), (width, height), interpolation=cv2.INTER_CUBIC) for size in sizes
    )
    return (0.75 * coarse + 0.25 * fine).clip(0, 1)


# Two coordinates (H, W), counted in repeats of the texture -> how much of the second colour, 0 to 1.
TEXTURES: dict[str, Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]] = {
    "clouds": clouds,
    "stripes": lambda along, across, _: 0.5 + 0.5 * np.tanh(3 * np.sin(2 * np.pi * along)),
    "checks": lambda along, across, _: (
        0.5 + 0.5 * np.tanh(8 * np.sin(np.pi * along) * np.sin(np.pi * across))
    ),
    "waves": lambda along, across, _: 0.5 + 0.5 * np.sin(2 * np.pi * (along + 0.3 * np.sin(np.pi * across))),
    "gradient": lambda along, across, _: (along - along.min()) / np.ptp(along),
}


@lru_cache(maxsize=4)
def draw_background(background: Background, width: int, height: int) -> np.ndarray:
    """(3, H, W) float32, 0 to 255; the caller must not write into it, for it is kept for the next frame."""
    generator = np.random.default_rng(background.seed)
    y, x = np.mgrid[:height, :width] / background.scale
    cosine, sine = math.cos(math.radians(background.angle)), math.sin(math.radians(background.angle))
    blend = TEXTURES[background.texture](x * cosine + y * sine, y * cosine - x * sine, generator)
    first, second = np.array(background.colours, dtype=np.float32)[..., None, None]
    picture = first * (1 - blend) + second * blend + generator.normal(0, 2.5, (height, width))
    picture = picture.clip(0, 255).astype(np.float32)
    picture.flags.writeable = False
    return picture


def object_mask(item: Object, frame: int, width: int, height: int) -> np.ndarray:
    """How much of each pixel the object takes up, were it alone: (H, W) float32, 0 to 1."""
    mask = np.zeros((height, width), dtype=np.uint8)
    pose = item.pose(frame)
    if pose.shown:
        cosine, sine = math.cos(math.radians(pose.angle)), math.sin(math.radians(pose.angle))
        turned = pose.radius * np.array([[cosine, sine], [-sine, cosine]])
        contours = [outline @ turned + (pose.x, pose.y) for outline in OUTLINES[item.shape]]
        fixed_point = [np.rint(contour * 256).astype(np.int32) for contour in contours]
        cv2.fillPoly(mask, fixed_point, 255, cv2.LINE_AA, shift=8)
    return mask.astype(np.float32) / 255


def visible_masks(scene: Scene, frame: int) -> np.ndarray:
    """How much of each pixel shows each object: (objects, H, W) float32, in the order of `scene.objects`."""
    masks = np.zeros((len(scene.objects), scene.height, scene.width), dtype=np.float32)
    free = np.ones((scene.height, scene.width), dtype=np.float32)
    for index in sorted(range(len(scene.objects)), key=lambda index: scene.objects[index].depth):
        whole = object_mask(scene.objects[index], frame, scene.width, scene.height)
        masks[index] = whole * free
        free *= 1 - whole
    return masks


def render(scene: Scene, frame: int) -> np.ndarray:
    """The picture at one frame: (H, W, 3) uint8, RGB."""
    masks = visible_masks(scene, frame)
    colours = np.array([item.rgb for item in scene.objects], dtype=np.float32)
    background = draw_background(scene.background, scene.width, scene.height)
    picture = background * (1 - masks.sum(axis=0)) + np.einsum("oc,ohw->chw", colours, masks)
    return cv2.merge(list((picture + 0.5).astype(np.uint8)))


def write_video(path: Path, scene: Scene) -> None:
    """An mp4 that every player shows."""
    with av.open(str(path), "w", format="mp4") as container:
        # With "mbtree", x264 now and then writes the same pictures differently, even in one thread.
        options = {"preset": "veryfast", "crf": "18", "threads": "1", "x264-params": "mbtree=0"}
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options=options)
        stream.width, stream.height, stream.pix_fmt = scene.width, scene.height, "yuv420p"
        for frame in range(FRAMES):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(render(scene, frame), format="rgb24")))
        container.mux(stream.encode())


# ------------------------------------------------------------------------------------------------- scenes


def choose_background(chance: random.Random) -> Background:
    """Two muted colours of different brightness in one of the textures."""
    brightness = chance.uniform(0.28, 0.45)
    colours = []
    for value in (brightness, brightness + chance.uniform(0.1, 0.18)):
        red, green, blue = colorsys.hsv_to_rgb(chance.random(), chance.uniform(0.0, 0.28), value)
        colours.append((round(255 * red), round(255 * green), round(255 * blue)))
    chance.shuffle(colours)
    return Background(
        texture=chance.choice(sorted(TEXTURES)),
        colours=(colours[0], colours[1]),
        scale=round(chance.uniform(12, 28), 2),
        angle=round(chance.uniform(0, 180), 2),
        seed=chance.randrange(2**31),
    )


def choose_kinds(chance: random.Random, count: int) -> list[dict[str, str]]:
    """Shape, colour, size and behaviour of each object; no two have both shape and colour in common."""
    looks = [(shape, colour) for shape in SHAPE_WORDS for colour in COLOURS]
    kinds = []
    for shape, colour in chance.sample(looks, count):
        # A circle that turns looks as one that rests.
        behaviours = [name for name in BEHAVIOUR_WORDS if name != "turn" or shape in SYMMETRY]
        size = chance.choice(sorted(RADIUS))
        kinds.append({"shape": shape, "colour": colour, "size": size, "behaviour": chance.choice(behaviours)})
    return kinds


def choose_motion(chance: random.Random, shape: str, behaviour: str) -> dict[str, Any]:
    """The fields of `Object` in which the behaviours differ."""
    motion = {"dx": 0.0, "dy": 0.0, "growth": 1.0, "turn": 0.0, "hidden": ()}
    if behaviour in MOVES:
        travel = round(chance.uniform(28, 44), 2)
        motion["dx"], motion["dy"] = (travel * part for part in MOVES[behaviour])
    elif behaviour == "turn":
        # Short of one symmetry: at 4 even frames it never looks as at the frame before.
        motion["turn"] = round(chance.choice((-1, 1)) * 0.84 * SYMMETRY[shape], 2)
    elif behaviour == "grow":
        motion["growth"] = round(chance.uniform(1.8, 2.1), 2)
    elif behaviour == "shrink":
        motion["growth"] = round(1 / chance.uniform(1.8, 2.1), 2)
    elif behaviour == "blink":
        phase = chance.randrange(2)
        motion["hidden"] = tuple(frame for frame in range(FRAMES) if frame // BLINK_FRAMES % 2 == phase)
    return motion


def place(chance: random.Random, length: int, reach: float, way: float) -> float:
    """A start from which `way` stays in the central square along one side of the frame, `length` pixels."""
    low = (length - SIDE) / 2 + MARGIN + reach - min(0.0, way)
    high = (length + SIDE) / 2 - 1 - MARGIN - reach - max(0.0, way)
    return round(chance.uniform(low, high), 2)


def choose_object(
    chance: random.Random,
    kind: dict[str, str],
    span: tuple[int, int],
    depth: int,
    frame_size: tuple[int, int],
) -> Object:
    """An object of this kind anywhere within the central square of the frame."""
    motion = choose_motion(chance, kind["shape"], kind["behaviour"])
    middle_radius = RADIUS[kind["size"]] * chance.uniform(0.92, 1.08)
    radius = round(2 * middle_radius / (1 + motion["growth"]), 2)
    reach = radius * max(1.0, motion["growth"])
    angle = chance.uniform(0, 360) if kind["behaviour"] == "turn" else chance.uniform(-8, 8)
    red, green, blue = (min(255, max(0, part + chance.randint(-8, 8))) for part in COLOURS[kind["colour"]])
    return Object(
        **kind,
        **motion,
        rgb=(red, green, blue),
        x=place(chance, frame_size[0], reach, motion["dx"]),
        y=place(chance, frame_size[1], reach, motion["dy"]),
        radius=radius,
        angle=round(angle, 2),
        begin=span[0],
        end=span[1],
        depth=depth,
    )


def apart(first: Object, second: Object) -> bool:
    """Whether neither covers more than a part of the other, at any frame."""
    poses = [(first.pose(frame), second.pose(frame)) for frame in range(FRAMES)]
    return all(math.hypot(a.x - b.x, a.y - b.y) >= 0.8 * (a.radius + b.radius) for a, b in poses)


def arrange(
    chance: random.Random, kinds: list[dict[str, str]], frame_size: tuple[int, int]
) -> tuple[Object, ...] | None:
    """Objects of these kinds at places and times of their own, or None where they find no room."""
    spans = [(0, FRAMES - 1)] * len(kinds)
    if len(kinds) == 2 and all(kind["behaviour"] in IN_TURN for kind in kinds) and chance.random() < 0.6:
        spans = [(0, FRAMES // 2 - 1), (FRAMES // 2, FRAMES - 1)]
    depths = chance.sample(range(1, len(kinds) + 1), len(kinds))
    placed: list[Object] = []
    for kind, span, depth in zip(kinds, spans, depths, strict=True):
        for _ in range(30):
            item = choose_object(chance, kind, span, depth, frame_size)
            if all(apart(item, other) for other in placed):
                placed.append(item)
                break
        else:
            return None
    return tuple(placed)


def split_of(description: str) -> str:
    """The one of train, val and test in which a description may appear."""
    tenth = zlib.crc32(description.encode()) % 10
    return {0: "val", 1: "test"}.get(tenth, "train")


def choose_scenes(split: str, count: int, seed: int) -> Iterator[Scene]:
    """Scenes of a set; a shorter set is the beginning of a longer one."""
    seen: set[str] = set()
    for index in range(count):
        chance = random.Random(f"{seed} {split} {index}")
        scene = None
        while scene is None:
            scene = choose_scene(chance, split, f"{split}{index:05d}", seen)
        yield scene


def choose_scene(chance: random.Random, split: str, name: str, seen: set[str]) -> Scene | None:
    """One scene, or None where it belongs to another set, is in `seen` already or finds no room."""
    captioned = split in CAPTIONED_SETS
    kinds = choose_kinds(chance, chance.choices((1, 2, 3), (0.2, 0.5, 0.3))[0] if captioned else 1)
    width, height = chance.choice(FRAME_SIZES)
    objects = arrange(chance, kinds, (width, height))
    if objects is None:
        return None
    scene = Scene(name, width, height, choose_background(chance), objects)
    key = scene.description if captioned else repr((scene.objects, scene.background))
    if key in seen or (captioned and split_of(key) != split):
        return None
    seen.add(key)
    return scene


def load_scenes(path: Path) -> list[Scene]:
    """The scenes of a SPLIT.scenes.jsonl."""
    scenes = []
    for line in path.read_text().splitlines():
        fields = json.loads(line)
        colours = tuple(map(tuple, fields["background"].pop("colours")))
        objects = tuple(
            Object(**item | {"rgb": tuple(item["rgb"]), "hidden": tuple(item["hidden"])})
            for item in fields["objects"]
        )
        background = Background(colours=colours, **fields["background"])
        scenes.append(Scene(fields["id"], fields["width"], fields["height"], background, objects))
    return scenes


# ----------------------------------------------------------------------------------------------- captions


def arrangement(chance: random.Random, objects: list[Object]) -> tuple[tuple[str, ...], list[Object]]:
    """Sentences that are true of the objects in the order returned with them."""
    if len(objects) != 2:
        return (ONE_OBJECT if len(objects) == 1 else THREE_OBJECTS), objects
    early, late = sorted(objects, key=lambda item: item.begin)
    if early.end < late.begin:
        return ONE_AFTER_THE_OTHER, [early, late]
    choices = [(TWO_OBJECTS, objects)] * 2
    for first, second in (objects, objects[::-1]):
        poses = [(first.pose(frame), second.pose(frame)) for frame in range(FRAMES)]
        if all(b.x - a.x > 20 for a, b in poses):
            choices.append((SIDE_BY_SIDE, [first, second]))
        if all(b.y - a.y > 20 for a, b in poses):
            choices.append((ONE_ABOVE_THE_OTHER, [first, second]))
    return chance.choice(choices)


def caption(scene: Scene, chance: random.Random) -> str:
    """A sentence that says size, colour, shape and behaviour of each object."""
    sentences, objects = arrangement(chance, chance.sample(scene.objects, len(scene.objects)))
    parts = []
    for item in objects:
        tables = ((SIZE_WORDS, item.size), (COLOUR_WORDS, item.colour), (SHAPE_WORDS, item.shape))
        parts.append(" ".join(["a", *(chance.choice(words[name]) for words, name in tables)]))
        parts.append(chance.choice(BEHAVIOUR_WORDS[item.behaviour]))
    return chance.choice(sentences).format(*parts)


def captions_of(scene: Scene, count: int, seed: int) -> list[str]:
    """Different captions of one scene."""
    chance = random.Random(f"{seed} {scene.id} captions")
    captions: list[str] = []
    while len(captions) < count:
        text = caption(scene, chance)
        if text not in captions:
            captions.append(text)
    return captions


def vocabulary() -> list[str]:
    """Special tokens, pieces from which every other word can be spelt, and the words of the world."""
    letters = [*string.ascii_lowercase, *string.digits]
    tables = (SIZE_WORDS, COLOUR_WORDS, SHAPE_WORDS, BEHAVIOUR_WORDS)
    phrases = [phrase for table in tables for name, words in table.items() for phrase in (name, *words)]
    sentences = ONE_OBJECT + TWO_OBJECTS + THREE_OBJECTS
    sentences += ONE_AFTER_THE_OTHER + SIDE_BY_SIDE + ONE_ABOVE_THE_OTHER
    words = re.findall(r"[a-z]+", " ".join([*phrases, *sentences, *TEXTURES, QUESTION_WORDS]))
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*letters, *(f"##{letter}" for letter in letters), *string.punctuation]
    return list(dict.fromkeys([*special, *pieces, *words]))


# -------------------------------------------------------------------------------------------------- files


def write_text(path: Path, text: str) -> None:
    """A file that is there as a whole or not at all."""
    with atomic_path(path) as temporary:
        Path(temporary).write_text(text)


def write_bert(folder: Path) -> None:
    """What AutoTokenizer, AutoConfig and AutoModel.from_config need."""
    folder.mkdir(parents=True, exist_ok=True)
    words = vocabulary()
    config = {
        "architectures": ["BertForMaskedLM"],
        "model_type": "bert",
        "vocab_size": len(words),
        "hidden_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 512,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "initializer_range": 0.06,  # the published 0.02 suits a width of 768 and starts far too low here
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
    }
    tokenizer = {"tokenizer_class": "BertTokenizerFast", "do_lower_case": True, "model_max_length": 512}
    write_text(folder / "vocab.txt", "\n".join(words) + "\n")
    write_text(folder / "tokenizer_config.json", json.dumps(tokenizer, indent=2) + "\n")
    write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")


def make_clip(scene: Scene, folder: Path, captions: int, seed: int) -> dict[str, Any]:
    """Write the video of a scene; return its line in SPLIT.scenes.jsonl, but for the video's path."""
    write_video(folder / f"{scene.id}.mp4", scene)
    return asdict(scene) | {"captions": captions_of(scene, captions, seed)}


def draw_set(folder: Path, split: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Write the videos of one set to an empty folder; return their lines in SPLIT.scenes.jsonl."""
    count = getattr(options, split)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    clip = partial(make_clip, folder=folder, captions=2 if split == "train" else 1, seed=options.seed)
    with ProcessPoolExecutor(options.workers, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        clips = pool.map(clip, choose_scenes(split, count, options.seed), chunksize=16)
        records = list(tqdm(clips, desc=f"{split:>9}", total=count, unit="clip", disable=None))
    return [record | {"video": f"{split}/{record['id']}.mp4"} for record in records]


def make_set(split: str, options: argparse.Namespace) -> None:
    """Draw one set beside the place where it belongs, and move it there when all its videos are done."""
    output, folder = options.output, options.output / split
    settings = {"world": WORLD_VERSION, "seed": options.seed, "clips": getattr(options, split)}
    if finished_sets(output).get(split) == settings and len(list(folder.glob("*.mp4"))) == settings["clips"]:
        print(f"{folder}: {settings['clips']} clips are there already")
        return
    unfinished = output / f"{split}.partial"
    records = draw_set(unfinished, split, options)
    note_finished(output, split, None)  # from here to the end the set is neither the old one nor the new one
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
    write_text(output / f"{split}.scenes.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    with atomic_path(output / f"{split}.csv") as temporary, open(temporary, "w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["video", "caption"])
        rows.writerows((record["video"], text) for record in records for text in record["captions"])
    note_finished(output, split, settings)
    print(f"{folder}: {settings['clips']} clips")


def finished_sets(output: Path) -> dict[str, dict[str, int]]:
    """The settings with which each finished set was drawn."""
    path = output / "demo.json"
    return json.loads(path.read_text())["sets"] if path.exists() else {}


def note_finished(output: Path, split: str, settings: dict[str, int] | None) -> None:
    """Note in demo.json that a set is there, or, with None, that it is not."""
    sets = finished_sets(output)
    sets.pop(split, None)
    if settings is not None:
        sets[split] = settings
    write_text(output / "demo.json", json.dumps({"sets": sets}, indent=2, sort_keys=True) + "\n")


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Options of the command line; sizes are named as the sets are."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("_data/demo"), help="folder (%(default)s)")
    for split, count in {"train": 3000, "val": 256, "test": 256, "names": 4000, "names-val": 300}.items():
        parser.add_argument(f"--{split}", type=int, default=count, help=f"clips of {split} (%(default)s)")
    parser.add_argument("--seed", type=int, default=88, help="another number, another world (%(default)s)")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count(), help="processes that draw (%(default)s)"
    )
    options = parser.parse_args(arguments)
    if min(getattr(options, split) for split in SETS) < 0 or options.workers < 1:
        parser.error("a set has 0 clips or more, and there is at least one worker")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Make what is not there yet."""
    options = parse_arguments(arguments)
    write_bert(options.output / "bert")
    for split in SETS:
        make_set(split, options)


if __name__ == "__main__":
    main()
