"""python -m demo.make
python -m demo.make --train 200 --val 32 --test 32 --names 200 --names-val 32 --output _data/demo-small

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
no two clips of val or of test do. names and names_val show one object each, to teach a video encoder to name
it.
"""

import argparse
import csv
import json
import os
import random
import re
import shutil
import string
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import av
import cv2
from tqdm import tqdm

from demo.world import FRAMES, SETS, TEXTURES, Object, Scene, choose_scenes, render
from lib import run_script
from media.files import atomic_path

WORLD_VERSION = 4  # raise it when a change alters pictures or captions: finished sets are then drawn again
FRAMES_PER_SECOND = 8

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


# ----------------------------------------------------------------------------------------------- captions


def arrangement(chance: random.Random, objects: list[Object]) -> tuple[tuple[str, ...], list[Object]]:
    """Sentences that are true of the objects in the order returned with them."""
    if len(objects) != 2:
        return (ONE_OBJECT if len(objects) == 1 else THREE_OBJECTS), objects
    early, late = sorted(objects, key=lambda item: item.begin)
    if early.end < late.begin:
        return ONE_AFTER_THE_OTHER, [early, late]
    choices: list[tuple[tuple[str, ...], list[Object]]] = [(TWO_OBJECTS, objects)] * 2
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
    sentences = [*ONE_OBJECT, *TWO_OBJECTS, *THREE_OBJECTS]
    sentences += (*ONE_AFTER_THE_OTHER, *SIDE_BY_SIDE, *ONE_ABOVE_THE_OTHER)
    words = re.findall(r"[a-z]+", " ".join([*phrases, *sentences, *TEXTURES, QUESTION_WORDS]))
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*letters, *(f"##{letter}" for letter in letters), *string.punctuation]
    return list(dict.fromkeys([*special, *pieces, *words]))


# -------------------------------------------------------------------------------------------------- files


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


def write_text(path: Path, text: str) -> None:
    """Write a file completely or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text)


def write_bert(folder: Path) -> None:
    """Write the files that AutoTokenizer, AutoConfig and AutoModel.from_config read."""
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
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    clip = partial(make_clip, folder=folder, captions=2 if split == "train" else 1, seed=options.seed)
    # Once here, not in each worker: a forked one would wait for threads of OpenCV that it does not have.
    cv2.setNumThreads(1)
    with ProcessPoolExecutor(options.workers) as pool:
        count = getattr(options, split)
        clips = pool.map(clip, choose_scenes(split, count, options.seed), chunksize=16)
        records = list(tqdm(clips, desc=f"{split:>9}", total=count, unit="clip", disable=None))
    return [record | {"video": f"{split}/{record['id']}.mp4"} for record in records]


def make_set(split: str, options: argparse.Namespace) -> None:
    """Draw one set in a temporary folder, and move it into place when all its videos are done."""
    output, folder = options.output, options.output / split
    settings = {"world": WORLD_VERSION, "seed": options.seed, "clips": getattr(options, split)}
    if finished_sets(output).get(split) == settings and len(list(folder.glob("*.mp4"))) == settings["clips"]:
        print(f"{folder}: {settings['clips']} clips exist")
        return
    unfinished = output / f"{split}.partial"
    records = draw_set(unfinished, split, options)
    note_finished(output, split, None)  # from here to the end the set is neither the old one nor the new one
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
    write_text(output / f"{split}.scenes.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    with atomic_path(output / f"{split}.csv") as temporary, temporary.open("w", newline="") as file:
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
    sets = {**finished_sets(output), split: settings}
    noted = {"sets": {name: value for name, value in sets.items() if value is not None}}
    write_text(output / "demo.json", json.dumps(noted, indent=2, sort_keys=True) + "\n")


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Options of the command line; sizes are named as the sets are."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("_data/demo"), help="folder (%(default)s)")
    for split, count in {"train": 3000, "val": 256, "test": 256, "names": 4000, "names-val": 300}.items():
        parser.add_argument(f"--{split}", type=int, default=count, help=f"clips of {split} (%(default)s)")
    parser.add_argument("--seed", type=int, default=88, help="seed of the world (%(default)s)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="drawing processes (%(default)s)")
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
    run_script(main)
