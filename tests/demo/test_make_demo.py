"""python -m pytest tests/test_make_demo.py"""

import csv
import json
import re
from pathlib import Path

import av
import numpy as np
import pytest
from transformers import AutoConfig, AutoTokenizer

from demo import make as make_demo
from demo import world as demo_world
from demo.world import Object, Scene

SIZES = {"train": 24, "val": 8, "test": 8, "names": 12, "names-val": 4}
PICKED = {  # frames that a reader of 4 frames gets: in evaluation, and from each start in training
    "evaluation": (0, 5, 10, 15),
    **{f"training from {start}": tuple(range(start, 16, 4)) for start in range(4)},
}
# Written out again, so that a word under the wrong name in make_demo is noticed here.
MEANINGS = {
    "small tiny little": "small",
    "large big huge": "large",
    "red crimson": "red",
    "orange": "orange",
    "yellow golden": "yellow",
    "green emerald": "green",
    "cyan turquoise": "cyan",
    "blue cobalt": "blue",
    "purple violet": "purple",
    "white": "white",
    "circle disc": "circle",
    "ring hoop": "ring",
    "square box": "square",
    "triangle": "triangle",
    "star": "star",
    "cross plus": "cross",
}
MEANING = {word: name for words, name in MEANINGS.items() for word in words.split()}
BEHAVIOURS = {
    "left": r"\b(moves|slides|drifts|goes) (to the )?left\b",
    "right": r"\b(moves|slides|drifts|goes) (to the )?right\b",
    "up": r"\b(moves up|moves upwards|rises|slides up|climbs)\b",
    "down": r"\b(moves down|moves downwards|falls|slides down|sinks)\b",
    "turn": r"\b(turns|rotates|spins)\b",
    "grow": r"\b(grows|gets bigger|becomes larger|expands)\b",
    "shrink": r"\b(shrinks|gets smaller|becomes smaller|contracts)\b",
    "blink": r"\b(blinks|flashes|flickers)\b",
    "still": r"\b(stays still|does not move|stays in place|rests)\b",
}
OBJECT = re.compile(r"\ba (small|tiny|little|large|big|huge) (\w+) (\w+)")


def make(output: Path, workers: int = 1, seed: int = 88, **sizes: int) -> Path:
    options = [f"--{name}={count}" for name, count in (SIZES | sizes).items()]
    make_demo.main([f"--output={output}", f"--seed={seed}", f"--workers={workers}", *options])
    return output


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [*demo_world.choose_scenes("train", 250, 1), *demo_world.choose_scenes("names", 150, 1)]


def records(world: Path, split: str) -> list[dict]:
    return [json.loads(line) for line in (world / f"{split}.scenes.jsonl").read_text().splitlines()]


def decoded(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def read(sentence: str) -> dict[str, str]:
    """What a caption says: for each object its description and where or when the sentence puts it."""
    found = list(OBJECT.finditer(sentence))
    said = {}
    for one, following in zip(found, [*found[1:], None], strict=True):
        words = sentence[one.end() : following.start() if following else None]
        before = sentence[: one.start()].split()
        place = re.match(r" on the (left|right)", words)
        behaviours = [name for name, words_of in BEHAVIOURS.items() if re.search(words_of, words)]
        assert len(behaviours) == 1, (sentence, behaviours)
        description = " ".join([*(MEANING[word] for word in one.groups()), *behaviours])
        said[description] = place[1] if place else (before[-2] if before[-1:] == ["it"] else "")
    return said


def test_the_same_seed_gives_the_same_world_whatever_the_workers(world: Path, tmp_path: Path) -> None:
    assert contents(make(tmp_path / "again", workers=2)) == contents(world)


def test_another_seed_gives_other_scenes_and_a_longer_set_begins_as_a_shorter_one() -> None:
    long, short = (list(demo_world.choose_scenes("train", count, 5)) for count in (30, 10))
    assert long[:10] == short
    assert not {scene.description for scene in long} & {
        scene.description for scene in demo_world.choose_scenes("train", 30, 6) if len(scene.objects) > 1
    }


def test_no_description_is_in_two_splits_or_twice_in_one_that_is_evaluated() -> None:
    descriptions = {
        split: [scene.description for scene in demo_world.choose_scenes(split, count, 88)]
        for split, count in {"train": 600, "val": 100, "test": 100}.items()
    }
    evaluated = descriptions["val"] + descriptions["test"]
    assert len(set(evaluated)) == 200
    assert not set(evaluated) & set(descriptions["train"])


def test_named_sets_share_no_picture() -> None:
    named = [*demo_world.choose_scenes("names", 400, 88), *demo_world.choose_scenes("names_val", 100, 88)]
    assert len({demo_world.render(scene, 0).tobytes() for scene in named}) == 500
    assert all(len(scene.objects) == 1 for scene in named)


def test_every_kind_of_object_occurs(scenes: list[Scene]) -> None:
    items = [item for scene in scenes for item in scene.objects]
    assert {item.shape for item in items} == set(demo_world.OUTLINES)
    assert {item.colour for item in items} == set(demo_world.COLOURS)
    assert {item.behaviour for item in items} == set(BEHAVIOURS)
    assert {len(scene.objects) for scene in scenes} == {1, 2, 3}
    assert {(scene.width, scene.height) for scene in scenes} == {(96, 96), (128, 96), (96, 128)}
    assert not [item for item in items if item.behaviour == "turn" and item.shape in ("circle", "ring")]


def test_objects_stay_within_the_central_square_and_in_sight(scenes: list[Scene]) -> None:
    for scene in scenes:
        left, top = (scene.width - 96) // 2, (scene.height - 96) // 2
        for frame in range(demo_world.FRAMES):
            visible = demo_world.visible_masks(scene, frame)
            for item, seen in zip(scene.objects, visible, strict=True):
                whole = demo_world.object_mask(item, frame, scene.width, scene.height)
                inside = whole[top : top + 96, left : left + 96]
                assert np.count_nonzero(inside) == np.count_nonzero(whole), (scene.id, frame)
                assert seen.sum() >= 0.5 * whole.sum(), (scene.id, frame)
                assert (whole.sum() > 20) == (frame not in item.hidden)


def state(item: Object, frame: int) -> tuple[float, float, float]:
    """Centre x, y and area of an object, measured in its mask."""
    mask = demo_world.object_mask(item, frame, 128, 128)
    area = float(mask.sum())
    y, x = np.mgrid[:128, :128]
    return float((mask * x).sum() / area), float((mask * y).sum() / area), area


def shows(item: Object, frames: tuple[int, ...]) -> bool:
    """Whether these frames alone show that an object does what it is said to do."""
    masks = [demo_world.object_mask(item, frame, 128, 128) for frame in frames]
    if item.behaviour == "blink":
        return len({bool(mask.any()) for mask in masks}) == 2
    (x, y, area), (last_x, last_y, last_area) = state(item, frames[0]), state(item, frames[-1])
    change = max(np.abs(mask - masks[0]).sum() for mask in masks) / area
    stays = abs(last_x - x) < 1.5 and abs(last_y - y) < 1.5
    return {
        "left": x - last_x > 12 and abs(last_y - y) < 1,
        "right": last_x - x > 12 and abs(last_y - y) < 1,
        "up": y - last_y > 12 and abs(last_x - x) < 1,
        "down": last_y - y > 12 and abs(last_x - x) < 1,
        "grow": stays and last_area > 1.5 * area,
        "shrink": stays and last_area < area / 1.5,
        "turn": stays and change > 0.1 and abs(last_area - area) < 0.1 * area,
        "still": change == 0,
    }[item.behaviour]


@pytest.mark.parametrize("frames", PICKED.values(), ids=PICKED)
def test_a_behaviour_shows_in_four_even_frames(scenes: list[Scene], frames: tuple[int, ...]) -> None:
    items = [item for scene in scenes for item in scene.objects]
    assert not [item for item in items if not shows(item, frames)]


def test_pictures_are_made_of_the_masks_and_the_colours(scenes: list[Scene]) -> None:
    for scene in scenes[:60]:
        picture = demo_world.render(scene, 3).astype(int)
        for item, mask in zip(scene.objects, demo_world.visible_masks(scene, 3), strict=True):
            assert (np.abs(picture[mask == 1] - item.rgb) <= 1).all()


def test_what_is_nearer_covers_what_is_deeper(scenes: list[Scene]) -> None:
    covered = 0
    for scene in (scene for scene in scenes if len(scene.objects) == 2):
        near, far = sorted(range(2), key=lambda index: scene.objects[index].depth)
        whole = [demo_world.object_mask(item, 6, scene.width, scene.height) for item in scene.objects]
        visible = demo_world.visible_masks(scene, 6)
        assert (visible[near] == whole[near]).all()
        covered += int((visible[far] < whole[far]).any())
    assert covered  # else the test has seen nothing


def test_captions_say_what_each_object_is_and_does(scenes: list[Scene]) -> None:
    for scene in scenes:
        captions = make_demo.captions_of(scene, 2, 1)
        assert len(set(captions)) == 2
        for sentence in captions:
            assert set(read(sentence)) == {item.description for item in scene.objects}, sentence


def test_captions_tell_true_relations_of_place(scenes: list[Scene]) -> None:
    told = set()
    for scene in (scene for scene in scenes if len(scene.objects) == 2):
        for sentence in make_demo.captions_of(scene, 2, 1):
            for description, place in read(sentence).items():
                one, other = sorted(scene.objects, key=lambda item: item.description != description)
                poses = [(one.pose(frame), other.pose(frame)) for frame in range(demo_world.FRAMES)]
                holds = {
                    "left": all(a.x < b.x for a, b in poses),
                    "right": all(a.x > b.x for a, b in poses),
                    "above": all(a.y < b.y for a, b in poses),
                    "below": all(a.y > b.y for a, b in poses),
                    "": True,
                }
                assert holds[place], sentence
                told.add(place)
    assert told == {"left", "right", "above", "below", ""}


def test_captions_tell_the_true_order_in_time(scenes: list[Scene]) -> None:
    told = 0
    for scene in (scene for scene in scenes if len(scene.objects) == 2):
        first, second = sorted(scene.objects, key=lambda item: item.begin)
        in_turn = first.end < second.begin
        for sentence in make_demo.captions_of(scene, 2, 1):
            assert in_turn == bool(re.search(r"\b(first|before|then|after)\b", sentence)), sentence
            order = [first.description, second.description]
            if in_turn:
                assert list(read(sentence)) == (order[::-1] if " after " in sentence else order), sentence
                told += 1
    assert told > 20


def test_videos_decode_to_the_pictures(world: Path) -> None:
    for scene in demo_world.load_scenes(world / "train.scenes.jsonl"):
        video = decoded(world / "train" / f"{scene.id}.mp4").astype(int)
        assert video.shape == (16, scene.height, scene.width, 3)
        pictures = np.stack([demo_world.render(scene, frame) for frame in range(16)])
        assert np.abs(video - pictures).mean() < 4
    with av.open(str(world / "train" / "train00000.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 8


def test_decoded_colours_are_nearest_to_the_named_ones(world: Path) -> None:
    names = list(demo_world.COLOURS)
    palette = np.array([demo_world.COLOURS[name] for name in names])
    distances = np.abs(palette[:, None].astype(int) - palette).sum(axis=-1)
    assert distances[~np.eye(len(names), dtype=bool)].min() > 120  # no two names for one look
    for scene in demo_world.load_scenes(world / "names.scenes.jsonl"):
        video = decoded(world / "names" / f"{scene.id}.mp4")
        frame = next(frame for frame in range(16) if frame not in scene.objects[0].hidden)
        inside = demo_world.visible_masks(scene, frame)[0] == 1
        colour = np.median(video[frame][inside], axis=0)
        assert names[np.abs(palette - colour).sum(axis=1).argmin()] == scene.objects[0].colour


def test_files_list_every_video_and_caption(world: Path) -> None:
    for split, captions in {"train": 2, "val": 1, "test": 1, "names": 1, "names_val": 1}.items():
        told = [(record["video"], text) for record in records(world, split) for text in record["captions"]]
        with open(world / f"{split}.csv", newline="") as file:
            rows = [(row["video"], row["caption"]) for row in csv.DictReader(file)]
        assert rows == told
        assert len(rows) == captions * SIZES[split.replace("_", "-")]
        assert {world / video for video, _ in rows} == set((world / split).iterdir())


def test_scene_files_hold_the_scenes(world: Path) -> None:
    assert demo_world.load_scenes(world / "val.scenes.jsonl") == list(demo_world.choose_scenes("val", 8, 88))


def test_the_tokenizer_knows_every_word_of_the_world(world: Path, scenes: list[Scene]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(world / "bert")
    assert tokenizer.convert_tokens_to_ids(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]) == [0, 1, 2, 3, 4]
    for scene in scenes:
        for sentence in make_demo.captions_of(scene, 2, 1):
            words = re.findall(r"\w+|[^\w\s]", sentence)
            assert tokenizer.tokenize(sentence) == words
            assert len(words) <= 30  # with [CLS] and [SEP] no more than the published 32
    assert tokenizer.tokenize("What COLOUR is it? option 1: red answer: [MASK]") == [
        *("what", "colour", "is", "it", "?", "option", "1", ":", "red", "answer", ":", "[MASK]")
    ]
    assert tokenizer.tokenize("zébra7") == ["z", "##e", "##b", "##r", "##a", "##7"]


def test_the_vocabulary_is_small_and_the_bert_config_fits_it(world: Path) -> None:
    config = AutoConfig.from_pretrained(world / "bert")
    words = (world / "bert" / "vocab.txt").read_text().split()
    assert config.vocab_size == len(words) == len(set(words))
    tables = (make_demo.SIZE_WORDS, make_demo.COLOUR_WORDS, make_demo.SHAPE_WORDS, make_demo.BEHAVIOUR_WORDS)
    spoken = {
        word for table in tables for phrases in table.values() for text in phrases for word in text.split()
    }
    assert len(spoken) < 100


def test_there_are_words_for_all_that_is_drawn() -> None:
    assert set(make_demo.SIZE_WORDS) == set(demo_world.RADIUS)
    assert set(make_demo.COLOUR_WORDS) == set(demo_world.COLOURS)
    assert set(make_demo.SHAPE_WORDS) == set(demo_world.OUTLINES)
    assert set(make_demo.BEHAVIOUR_WORDS) == set(demo_world.BEHAVIOURS)


def test_a_finished_set_is_not_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"train": 3, "val": 2, "test": 0, "names": 0, "names-val": 0}
    make(tmp_path, **sizes)
    before = contents(tmp_path)
    drawn: list[str] = []
    draw_set = make_demo.draw_set

    def noting(folder: Path, split: str, options) -> list[dict]:
        drawn.append(split)
        return draw_set(folder, split, options)

    monkeypatch.setattr(make_demo, "draw_set", noting)
    make(tmp_path, **sizes)
    assert drawn == []
    (tmp_path / "train" / "train00001.mp4").unlink()
    make(tmp_path, **sizes)
    assert drawn == ["train"]
    assert contents(tmp_path) == before
    make(tmp_path, **sizes | {"val": 3})
    assert drawn == ["train", "val"]
    make(tmp_path, seed=89, **sizes)
    assert set(drawn[2:]) == set(demo_world.SETS)


def test_an_interrupted_run_leaves_the_finished_set_and_is_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"train": 3, "val": 0, "test": 0, "names": 0, "names-val": 0}
    make(tmp_path, **sizes)
    before = contents(tmp_path)

    def full_disk(folder: Path, *_: object) -> None:
        folder.mkdir()
        (folder / "train00000.mp4").write_bytes(b"half a video")
        raise OSError("no space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="no space left"):
        patched.setattr(make_demo, "draw_set", full_disk)
        make(tmp_path, **sizes | {"train": 4})
    kept = contents(tmp_path)
    assert {name: kept[name] for name in before} == before
    make(tmp_path, **sizes | {"train": 4})
    assert len(list((tmp_path / "train").iterdir())) == 4
    assert not (tmp_path / "train.partial").exists()


def test_impossible_options_are_refused(tmp_path: Path) -> None:
    for option in ("--train=-1", "--workers=0"):
        with pytest.raises(SystemExit):
            make_demo.main([f"--output={tmp_path}", option])
    assert not list(tmp_path.iterdir())
