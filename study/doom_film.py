"""Short first-person clips from ViZDoom: what a clip shows, where it is filmed, and whether it came out.

`draw_plan` chooses objects and a movement of the player, `find_views` the places of a map, `shoot` films a
plan at a place. A film whose objects or movement did not come out raises `Cut`.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lib import UserError
from study.doom_questions import MOVES, TURNS, WALK, WORDS, Box, Clip, Thing

OBJECTS = "freedoom2.wad"  # the game: the other has not all the objects
FRAMES, TICS = 12, 3  # frames of a clip, tics (1/35 s) between them
SIDE, WIDTH, HEIGHT = 120, 160, 120  # of a clip and of the engine's picture, in pixels
PLAYER = "DoomPlayer"
LEFT = (WIDTH - SIDE) // 2
VIEW = 75  # degrees, of the engine's picture
DEPTH_UNIT = 9.7  # map units per step of the depth buffer at this angle of view
FLOOR = 616  # steps of the depth buffer, one row below the horizon: it falls with the rows
SUMMONED = 56  # map units between the player and what it summons
GAIT, SIDESTEP = 7, 6  # units of the buttons that walk by a number: 2.3 and 2 map units per tic in the end
TURN = 0.65  # degrees per tic
# degrees by which objects stand aside before the player moves, so that the first frame does not tell its way
SHIFT = {"turn left": 6, "turn right": -6, "left": 4, "right": -4}
REST, SETTLE, NOTICE = (
    20,
    10,
    12,
)  # tics: until the player rests, a movement is even, a monster has noticed the player
PLACES = 80  # of a map that are looked at
WALKED, TURNED = 30, 12  # map units and degrees of a clip, at least
LEAST_SIDE, LEAST_AREA = 18, 300  # pixels of an object's box, on average over the frames
EXPOSURE = (255 * np.linspace(0, 1, 256) ** 0.7).round().astype(np.uint8)  # many maps are dark
DARKEST = 48  # mean grey level in an object's box, exposed


@dataclass(frozen=True)
class Role:
    """An object of a plan: its class, its place as the player sees it at first, what it does."""

    word: str
    name: str  # of the engine's class
    bearing: float  # degrees, positive to the left
    distance: float  # map units
    faces_player: bool
    walks: bool


@dataclass(frozen=True)
class Plan:
    """What a clip is to show."""

    action: str
    roles: list[Role]


@dataclass
class Film:
    """What was recorded: per frame pixels (SIDE, SIDE, 3) and depth (SIDE, SIDE) uint8, boxes, positions."""

    frames: list[np.ndarray] = field(default_factory=list)
    depths: list[np.ndarray] = field(default_factory=list)
    boxes: list[dict[int, Box | None]] = field(default_factory=list)  # by number of the object
    places: list[dict[int, tuple[float, float]]] = field(default_factory=list)
    player: list[tuple[float, float, float]] = field(default_factory=list)  # x, y, angle


# ------------------------------------------------------------------------------------------------ plans


def draw_plan(chance: random.Random) -> Plan:
    """What a clip is to show: one object, or several of one name, or two of different names."""
    scene = chance.choice(["alone", "alone", "several", "pair"])
    words = chance.sample(sorted(WORDS), 2)
    walker = scene == "alone" and WORDS[words[0]].alive
    action = "still" if walker and chance.random() < 0.5 else chance.choice([*MOVES, *TURNS])
    if scene == "pair":
        bearings = [chance.uniform(9, 15), -chance.uniform(9, 15)]
        named = list(zip(words, bearings, strict=True))
    elif scene == "several":
        count = chance.choice([2, 3])
        slots = {2: [-10, 10], 3: [-17, 0, 17]}[count]
        named = [(words[0], slot + chance.uniform(-3, 3)) for slot in slots]
    else:
        named = [(words[0], chance.choice([-1, 1]) * chance.choice([0, 10, 14]) + chance.uniform(-3, 3))]
    shift = SHIFT.get(action, 0)
    distance = draw_distance(scene, action, all(WORDS[word].tall for word, _ in named), chance)
    walks = walker and chance.random() < 0.6
    roles = [
        Role(
            word,
            chance.choice(WORDS[word].classes),
            bearing * ((0.25 if scene == "alone" else 0.6) if shift else 1) + shift,
            distance + chance.uniform(-8, 8) + {"forward": 10, "backward": -10}.get(action, 0),
            chance.random() < 0.7 or walks,
            walks,
        )
        for word, bearing in named
    ]
    return Plan(action, roles)


def draw_distance(scene: str, action: str, tall: bool, chance: random.Random) -> float:
    """Map units from the player to the objects at first; what lies on the floor is seen from 85 on."""
    if action in ("forward", "backward"):
        return chance.uniform(135, 155) if tall else chance.uniform(130, 140)
    if not tall or scene == "pair":
        return chance.uniform(95, 140)
    if scene == "several":
        return chance.uniform(110, 150)
    return chance.choice([chance.uniform(78, 97), chance.uniform(120, 155), chance.uniform(170, 195)])


# ---------------------------------------------------------------------------------------------- engine


class Stage:
    """A game of ViZDoom on one of Freedoom's maps, without monsters of its own."""

    def __init__(self, wad: str, name: str, seed: int, settings: Path) -> None:
        try:
            import vizdoom
        except ImportError as error:
            raise UserError(
                "the clips are filmed with ViZDoom: pip install -r requirements-study.txt"
            ) from error
        game = vizdoom.DoomGame()
        package = Path(vizdoom.__file__).parent
        game.set_doom_game_path(str(package / OBJECTS))
        game.set_doom_scenario_path(str(package / wad))  # the maps
        game.set_doom_config_path(str(settings))  # the engine writes it
        game.set_doom_map(name)
        game.set_doom_skill(1)
        game.set_seed(seed)
        game.set_screen_resolution(vizdoom.ScreenResolution.RES_160X120)
        game.set_screen_format(vizdoom.ScreenFormat.RGB24)
        game.set_depth_buffer_enabled(True)
        game.set_labels_buffer_enabled(True)
        game.set_objects_info_enabled(True)
        for part in ("hud", "weapon", "crosshair", "decals", "particles", "messages", "screen_flashes"):
            getattr(game, f"set_render_{part}")(False)
        game.set_window_visible(False)
        game.set_sound_enabled(False)
        game.set_mode(vizdoom.Mode.PLAYER)
        game.set_episode_timeout(0)
        buttons, values = vizdoom.Button, vizdoom.GameVariable
        game.set_available_buttons(
            [
                buttons.MOVE_FORWARD_BACKWARD_DELTA,
                buttons.MOVE_LEFT_RIGHT_DELTA,
                buttons.TURN_LEFT_RIGHT_DELTA,
            ]
        )
        game.set_available_game_variables([values.POSITION_X, values.POSITION_Y, values.ANGLE])
        game.add_game_args("+sv_cheats 1 -nomonsters +con_midtime 0 +cl_showsecretmessage 0")
        game.init()
        self.game = game

    def begin(self) -> list[tuple[float, float]]:
        """Start the map and take everything away; returns x, y of its things: people can stand there."""
        self.game.new_episode()
        for cheat in ("god", "notarget", f"fov {VIEW}"):
            self.game.send_game_command(cheat)
        self.hunted = False
        objects = self.act(tics=REST).objects  # the angle of view changes in steps
        places = {(float(item.position_x), float(item.position_y)) for item in objects}
        self.clear()
        return sorted(places)

    def clear(self) -> None:
        """Remove every object but the player, and let it come to rest; monsters no longer notice it."""
        for name in sorted({item.name for item in self.game.get_state().objects} - {PLAYER}):
            self.game.send_game_command(f"remove {name}")
        self.hunt(False)
        self.act(tics=REST)

    def hunt(self, hunted: bool) -> None:
        """Whether monsters notice the player."""
        if hunted != self.hunted:
            self.game.send_game_command("notarget")
        self.hunted = hunted

    def act(self, forward: float = 0, right: float = 0, turn: float = 0, tics: int = 1) -> Any:
        """Play some tics with these buttons; returns the engine's state after them."""
        self.game.make_action([forward, right, turn], tics)
        if self.game.is_episode_finished():
            raise Cut("the episode has ended")
        return self.game.get_state()

    def look_from(self, x: float, y: float, angle: float) -> Any:
        """Put the player at a place, looking at an angle in degrees; returns the state."""
        self.game.send_game_command(f"warp {x:.1f} {y:.1f}")
        turn = (self.game.get_state().game_variables[2] - angle + 180) % 360 - 180  # positive to the right
        if abs(turn) > 90:  # the button knows no half turn
            self.act(turn=turn / 2)
            turn /= 2
        return self.act(turn=turn)

    def summon(self, name: str) -> int:
        """Make an object in front of the player; returns its number. Raises `Cut` if it does not fit."""
        before = {item.id for item in self.game.get_state().objects}
        self.game.send_game_command(f"summon {name}")
        made = [
            item.id
            for item in self.act().objects
            if item.id not in before and item.name.lower() == name.lower()
        ]
        if len(made) != 1:
            raise Cut("no room for the object")
        return made[0]


class Cut(Exception):
    """A plan does not work at a place."""


class View(NamedTuple):
    """A place on the map from which one sees far: x, y, angle in degrees, free map units ahead."""

    x: float
    y: float
    angle: float
    free: float


def find_views(stage: Stage, chance: random.Random) -> list[View]:
    """Views on free and lit space, from places about the map's things."""
    places = stage.begin()
    found = []
    for _ in range(PLACES):
        x, y = (at + chance.uniform(-64, 64) for at in chance.choice(places))
        state = stage.look_from(x, y, chance.uniform(0, 360))
        for _ in range(8):
            state = stage.act(turn=45)
            x, y, angle = (float(value) for value in state.game_variables)
            if state.screen_buffer[::4, ::4].mean() > 20:
                found.append(View(x, y, angle, free_ahead(state.depth_buffer)))
    return found


def free_ahead(depth: np.ndarray) -> float:
    """(HEIGHT, WIDTH) uint8 -> map units ahead of the player, over a level floor, until something stands."""
    middle = HEIGHT // 2
    standing = float(depth[middle - 2 : middle + 3, LEFT:-LEFT].min()) * DEPTH_UNIT
    rows = np.arange(HEIGHT - 4, middle + 18, -2)
    floor = FLOOR / (rows - middle)  # steps of the depth buffer, on the level floor that the player stands on
    seen = depth[rows, LEFT + 20 : -LEFT - 20].astype(np.float32)
    uneven = np.flatnonzero((np.abs(seen - floor[:, None]) > 1.5 + 0.15 * floor[:, None]).any(axis=1))
    last = int(uneven[0]) if len(uneven) else len(rows)
    return min(standing, float(floor[last - 1]) * DEPTH_UNIT) if last else 0.0


def shoot(stage: Stage, plan: Plan, view: View) -> Film:
    """Film a plan at a place. Raises `Cut` where it does not work."""
    stage.clear()
    numbers = []
    for role in plan.roles:
        heading = math.radians(view.angle + role.bearing)
        reach = role.distance + (SUMMONED if role.faces_player else -SUMMONED)
        looks = view.angle + role.bearing + (180 if role.faces_player else 0)
        stage.look_from(view.x + reach * math.cos(heading), view.y + reach * math.sin(heading), looks)
        numbers.append(stage.summon(role.name))
    stage.look_from(view.x, view.y, view.angle)
    if any(role.walks for role in plan.roles):
        stage.hunt(True)
        stage.act(tics=NOTICE)
    return roll(stage, plan, numbers)


def roll(stage: Stage, plan: Plan, numbers: Sequence[int]) -> Film:
    """Record the clip, the objects being in place."""
    forward = {"forward": GAIT, "backward": -GAIT}.get(plan.action, 0)
    right = {"right": SIDESTEP, "left": -SIDESTEP}.get(plan.action, 0)
    turn = {"turn right": TURN, "turn left": -TURN}.get(plan.action, 0.0)
    film = Film()
    for number in range(FRAMES):
        record(film, stage.act(forward, right, turn, TICS if number else SETTLE), numbers)
        if number == 0:
            check_objects(film)
        if number == FRAMES // 2:
            check_player(film, plan.action, 0.4)
    return film


def record(film: Film, state: Any, numbers: Sequence[int]) -> None:
    """Add a frame. Raises `Cut` if anything else is in it, such as a monster's shot."""
    film.frames.append(EXPOSURE[state.screen_buffer[:, LEFT:-LEFT]])
    film.depths.append(state.depth_buffer[:, LEFT:-LEFT].copy())
    boxes: dict[int, Box | None] = dict.fromkeys(numbers)
    for label in state.labels:
        mask = state.labels_buffer[:, LEFT:-LEFT] == label.value
        area = int(mask.sum())
        if label.object_id in boxes and area > 0.16 * label.width * label.height:
            columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
            edges = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            boxes[label.object_id] = tuple(float(edge) / SIDE for edge in edges)  # type: ignore[assignment]
        elif area > 50 and label.object_id not in boxes and label.object_name != PLAYER:
            raise Cut(f"a {label.object_name} is visible too")
    film.boxes.append(boxes)
    film.places.append({o.id: (o.position_x, o.position_y) for o in state.objects if o.id in boxes})
    x, y, angle = (float(value) for value in state.game_variables)
    film.player.append((x, y, angle))


def check(film: Film, action: str) -> None:
    """Raise `Cut` unless the objects are visible and large, and the player did what was planned."""
    check_player(film, action)
    check_objects(film)


def check_objects(film: Film) -> None:
    """Raise `Cut` unless the objects are visible, large and lit in the frames so far."""
    for number in film.boxes[0]:
        shown = [(boxes[number], frame) for boxes, frame in zip(film.boxes, film.frames, strict=True)]
        pixels = [([round(edge * SIDE) for edge in box], frame) for box, frame in shown if box]
        if len(pixels) < len(shown) - 2 or not film.boxes[0][number] or not film.boxes[-1][number]:
            raise Cut("an object is hidden")
        sizes = np.array([(right - left, bottom - top) for (left, top, right, bottom), _ in pixels])
        if sizes.max(axis=1).mean() < LEAST_SIDE or sizes.prod(axis=1).mean() < LEAST_AREA:
            raise Cut("an object is small")
        if sizes.min() < 8:
            raise Cut("an object is hidden in part")
        if np.mean([frame[t:b, left:r].mean() for (left, t, r, b), frame in pixels]) < DARKEST:
            raise Cut("an object is dark")


def check_walk(film: Film, plan: Plan) -> None:
    """Raise `Cut` unless the monsters that are to walk do: not every place lets them see the player."""
    for role, number in zip(plan.roles, film.boxes[0], strict=True):
        if role.walks and math.dist(film.places[0][number], film.places[-1][number]) < WALK:
            raise Cut("a monster did not walk")


def check_player(film: Film, action: str, share: float = 1.0) -> None:
    """Raise `Cut` unless the player walked or turned as planned; by `share` of what a clip asks for."""
    (x0, y0, angle0), (x1, y1, angle1) = film.player[0], film.player[-1]
    heading = math.radians(angle0)
    ahead = (x1 - x0) * math.cos(heading) + (y1 - y0) * math.sin(heading)
    left = (y1 - y0) * math.cos(heading) - (x1 - x0) * math.sin(heading)
    turned = (angle1 - angle0 + 180) % 360 - 180  # positive to the left
    way = {
        "forward": (ahead, left),
        "backward": (-ahead, left),
        "left": (left, ahead),
        "right": (-left, ahead),
    }
    along, across = way.get(action, (WALKED, max(abs(ahead), abs(left))))
    turns = {"turn left": turned, "turn right": -turned}.get(action, TURNED if abs(turned) < 1 else 0)
    if along < share * WALKED or abs(across) > 6 or turns < share * TURNED:
        raise Cut("the player moved in another way")


def describe(film: Film, plan: Plan, name: str, map_name: str, split: str) -> Clip:
    """A film -> what is asked and told of it."""
    things = []
    for role, number in zip(plan.roles, film.boxes[0], strict=True):
        (start, end), eyes = (
            (film.places[0][number], film.places[-1][number]),
            (film.player[0], film.player[-1]),
        )
        far = [math.hypot(at[0] - eye[0], at[1] - eye[1]) for at, eye in zip((start, end), eyes, strict=True)]
        boxes = [frame[number] for frame in film.boxes]
        things.append(
            Thing(role.word, boxes, (far[0], far[1]), math.hypot(end[0] - start[0], end[1] - start[1]))
        )
    return Clip(name, map_name, split, plan.action, things)
