"""The demo world: what its clips show, chosen by a seed, and their pictures.

A clip shows one to three objects over a textured background; each has a shape, a colour, a size and one
behaviour. A `Scene` says all of it, `choose_scenes` makes those of a set, `render` draws their frames;
`make_demo.py` writes them as videos with captions.
"""

import colorsys
import json
import math
import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

FRAMES = 16
SIDE = 96  # pixels; objects stay within the central square of this side, so every centre crop shows them
MARGIN = 2  # pixels between an object and the edge of that square
BLINK_FRAMES = 4  # shown and hidden in turn: 4 frames picked evenly, 4 or 5 apart, meet both
FRAME_SIZES = ((SIDE, SIDE),) * 6 + ((128, SIDE), (SIDE, 128))  # (width, height), drawn with equal chances
RADIUS = {"small": 12.0, "large": 20.0}  # pixels, of the circle around the object
CAPTIONED_SETS = ("train", "val", "test")  # they share no description
SETS = (*CAPTIONED_SETS, "names", "names_val")  # the last two show one object a clip

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
BEHAVIOURS = (*IN_TURN, "blink", "still")


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
        """Its size, colour, shape and behaviour, without its place."""
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
        """The descriptions of its objects, sorted."""
        return ", ".join(sorted(item.description for item in self.objects))


# ----------------------------------------------------------------------------------------------- pictures


def direction(degrees: float) -> tuple[float, float]:
    """Cosine and sine."""
    return math.cos(math.radians(degrees)), math.sin(math.radians(degrees))


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
    cosine, sine = direction(background.angle)
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
        cosine, sine = direction(pose.angle)
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


# ------------------------------------------------------------------------------------------------- scenes


def choose_background(chance: random.Random) -> Background:
    """Two muted colours of different brightness in one of the textures."""
    brightness = chance.uniform(0.12, 0.6)
    colours = []
    for value in (brightness, brightness + chance.uniform(0.06, 0.14)):
        red, green, blue = colorsys.hsv_to_rgb(chance.random(), chance.uniform(0.0, 0.4), value)
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
    looks = [(shape, colour) for shape in OUTLINES for colour in COLOURS]
    kinds = []
    for shape, colour in chance.sample(looks, count):
        # A circle that turns looks as one that rests.
        behaviours = [name for name in BEHAVIOURS if name != "turn" or shape in SYMMETRY]
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
    kind: dict[str, Any],
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
    count = chance.choices((1, 2, 3), (0.45, 0.4, 0.15))[0] if captioned else 1
    kinds = choose_kinds(chance, count)
    width, height = chance.choice(FRAME_SIZES)
    objects = arrange(chance, kinds, (width, height))
    if objects is None:
        return None
    scene = Scene(name, width, height, choose_background(chance), objects)
    if captioned and split_of(scene.description) != split:
        return None
    # a caption of val or test is to find one clip; what train shows it may show again, elsewhere
    key = scene.description if split in ("val", "test") else repr((scene.objects, scene.background))
    if key in seen:
        return None
    seen.add(key)
    return scene


def load_scenes(path: Path) -> list[Scene]:
    """The scenes of a SPLIT.scenes.jsonl."""
    scenes = []
    for line in path.read_text().splitlines():
        fields = json.loads(line)
        first, second = map(tuple, fields["background"].pop("colours"))
        objects = tuple(
            Object(**item | {"rgb": tuple(item["rgb"]), "hidden": tuple(item["hidden"])})
            for item in fields["objects"]
        )
        background = Background(colours=(first, second), **fields["background"])
        scenes.append(Scene(fields["id"], fields["width"], fields["height"], background, objects))
    return scenes
