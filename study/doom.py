"""Film short first-person clips in ViZDoom on Freedoom's maps, with questions, captions and true depth.

    pip install -r requirements-study.txt
    python -m study.doom --output _data/study-real/doom

In half a minute: `--clips 200`. The engine draws without a screen and on one core. A map is in one split
alone. Written to --output:

    clips/NAME.mp4   12 frames of 120 x 120 pixels, 12 per second
    questions.csv    id, video, question, answer, split, type: for _tools/own_data.py
    captions.csv     video, caption, split: two sentences about each clip of train
    depth.npz        frames (N, 4, S, S, 3) uint8 of the clips of train, and their depth (N, 4, S, S) uint8:
                     inverse depth, 255 at DEPTH_NEAR units of the engine's depth buffer and nearer
    doom.json        counts, frequencies of the answers, maps of each split, accuracy of frequent answers

A map that is finished is kept in --output/maps and is not filmed again, so that an interrupted program goes
on. Two runs with one seed on one machine give the same questions, captions and frames.
"""

import argparse
import csv
import json
import math
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from tqdm import tqdm

from lib import run_script
from media.files import atomic_path
from study.doom_film import (
    FRAMES,
    SIDE,
    Cut,
    Film,
    Plan,
    Stage,
    check,
    check_walk,
    describe,
    draw_plan,
    find_views,
    shoot,
)
from study.doom_questions import (
    Clip,
    Question,
    Thing,
    baselines,
    captions,
    choose,
    questions,
    split_maps,
)

WADS = {"freedoom1.wad": [f"E{e}M{m}" for e in range(1, 5) for m in range(1, 10)]}
WADS["freedoom2.wad"] = [f"MAP{number:02}" for number in range(1, 33)]
CLIPS = {"train": 1800, "val": 250, "test": 500}
VERSION = 2  # of what is filmed: finished maps of another are made again
DEPTH_NEAR = 6  # steps of the depth buffer
TRIES = 10  # places that are tried for a plan
RATE = 12  # frames per second when played


# ------------------------------------------------------------------------------------------------ maps


def film_map(
    output: Path, wad: str, map_name: str, split: str, count: int, seed: int, depth_side: int
) -> list[Clip]:
    """Up to `count` clips of a map: their videos, and a record that tells a later run that they are there."""
    record_path = output / "maps" / f"{map_name}.json"
    wanted = {"version": VERSION, "seed": seed, "split": split, "count": count, "depth_side": depth_side}
    if record_path.is_file():
        stored = json.loads(record_path.read_text())
        if stored["wanted"] == wanted:
            return [clip_of(item) for item in stored["clips"]]
    chance = random.Random(f"{seed} {map_name}")
    settings = output.resolve() / "maps" / "engine.ini"
    settings.parent.mkdir(parents=True, exist_ok=True)
    stage = Stage(wad, map_name, chance.randrange(1 << 30), settings)
    clips: list[Clip] = []
    cuts: Counter[str] = Counter()
    frames, depths = [], []
    try:
        for film, plan in films(stage, count, chance, cuts):
            name = f"{map_name.lower()}_{len(clips):03}"
            clips.append(describe(film, plan, name, map_name, split))
            write_video(output / "clips" / f"{name}.mp4", film.frames)
            if split == "train":
                picture, depth = stills(film, depth_side)
                frames.append(picture)
                depths.append(depth)
    finally:
        stage.game.close()
    if frames:
        write_depth(
            output / "maps" / f"{map_name}.npz", [c.id for c in clips], np.stack(frames), np.stack(depths)
        )
    with atomic_path(record_path) as temporary:
        content = {"wanted": wanted, "cuts": dict(cuts), "clips": [asdict(clip) for clip in clips]}
        temporary.write_text(json.dumps(content))
    return clips


def films(stage: Stage, count: int, chance: random.Random, cuts: Counter[str]) -> Iterator[tuple[Film, Plan]]:
    """Up to `count` films of a map; counts why others were given up."""
    views = find_views(stage, chance)
    made = 0
    for _ in range(3 * count):
        plan = draw_plan(chance)
        far = max(role.distance for role in plan.roles)
        wide = [view for view in views if view.free > far]
        for view in chance.sample(wide, min(TRIES, len(wide))):
            try:
                film = shoot(stage, plan, view)
                check(film, plan.action)
                check_walk(film, plan)
            except Cut as cut:
                cuts[str(cut)] += 1
                if stage.game.is_episode_finished():
                    stage.begin()
                continue
            made += 1
            yield film, plan
            break
        if made == count:
            return


def clip_of(item: dict[str, Any]) -> Clip:
    """A clip from its record."""
    return Clip(**item | {"things": [Thing(**thing) for thing in item["things"]]})


def stills(film: Film, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Four evenly spaced frames (4, S, S, 3) and their inverse depth (4, S, S), both uint8."""
    picked = np.linspace(0, FRAMES - 1, 4).round().astype(int)
    frames = [cv2.resize(film.frames[i], (side, side), interpolation=cv2.INTER_AREA) for i in picked]
    inverse = [255 * DEPTH_NEAR / np.maximum(film.depths[i], DEPTH_NEAR).astype(np.float32) for i in picked]
    depths = [cv2.resize(depth, (side, side), interpolation=cv2.INTER_AREA) for depth in inverse]
    return np.stack(frames), np.stack(depths).round().astype(np.uint8)


def write_video(path: Path, frames: Sequence[np.ndarray]) -> None:
    """Encode frames (SIDE, SIDE, 3) as H.264 of high quality."""
    with atomic_path(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        options = {"crf": "16", "preset": "veryfast"}
        stream = container.add_stream("libx264", rate=RATE, options=options)
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def write_depth(path: Path, names: Sequence[str], frames: np.ndarray, depths: np.ndarray) -> None:
    """Write stills and their depth."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, names=np.array(names), frames=frames, depth=depths)


# ----------------------------------------------------------------------------------------------- tables


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a CSV."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])


def ask(clips: Sequence[Clip], most: int, seed: int) -> dict[str, dict[str, list[Question]]]:
    """The questions of each clip, by split; answers of a type are equally frequent in each split."""
    asked: dict[str, dict[str, list[Question]]] = {split: {} for split in CLIPS}
    for clip in clips:
        asked[clip.split][clip.id] = questions(clip, random.Random(f"{seed} {clip.id}"))
    return {split: choose(found, most, random.Random(f"{seed} {split}")) for split, found in asked.items()}


def write_tables(output: Path, clips: Sequence[Clip], most: int, seed: int, seconds: float) -> dict[str, Any]:
    """Write questions, captions and figures; returns the figures."""
    asked = ask(clips, most, seed)
    rows = [
        (name, f"clips/{name}.mp4", q.text, q.answer, split, q.type)
        for split, found in asked.items() for name, several in found.items() for q in several
    ]  # fmt: skip
    write_table(output / "questions.csv", ("id", "video", "question", "answer", "split", "type"), rows)
    told = [
        (f"clips/{clip.id}.mp4", caption, clip.split)
        for clip in clips if clip.split == "train"
        for caption in captions(clip, 2, random.Random(f"{seed} caption {clip.id}"))
    ]  # fmt: skip
    write_table(output / "captions.csv", ("video", "caption", "split"), told)
    flat = {split: [q for several in found.values() for q in several] for split, found in asked.items()}
    figures = {
        "clips": Counter(clip.split for clip in clips),
        "questions": {split: len(several) for split, several in flat.items()},
        "captions": len(told),
        "accuracy": baselines(flat["train"], flat["test"]),
        "answers": {split: frequencies(several) for split, several in flat.items()},
        "maps": {split: dict(Counter(c.map for c in clips if c.split == split)) for split in CLIPS},
        "seed": seed,
        "seconds": round(seconds, 1),
    }
    with atomic_path(output / "doom.json") as temporary:
        temporary.write_text(json.dumps(figures, indent=1) + "\n")
    return figures


def frequencies(asked: Iterable[Question]) -> dict[str, dict[str, int]]:
    """How often each answer of each type is right."""
    found: dict[str, Counter[str]] = {}
    for question in asked:
        found.setdefault(question.type, Counter())[question.answer] += 1
    return {type_: dict(count.most_common()) for type_, count in sorted(found.items())}


def join_depth(output: Path, clips: Sequence[Clip]) -> None:
    """Write depth.npz of the maps' own."""
    parts = []
    for name in dict.fromkeys(clip.map for clip in clips if clip.split == "train"):
        with np.load(output / "maps" / f"{name}.npz", allow_pickle=False) as stored:
            parts.append((stored["names"], stored["frames"], stored["depth"]))
    names, frames, depths = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    write_depth(output / "depth.npz", names.tolist(), frames, depths)


def main(arguments: list[str] | None = None) -> None:
    """Film what is missing, and write the tables."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw, allow_abbrev=False)
    parser.add_argument(
        "--output", type=Path, default=Path("_data/study-real/doom"), help="folder to write to"
    )
    parser.add_argument("--seed", type=int, default=88, help="seed of everything that is drawn (default: 88)")
    parser.add_argument("--clips", type=int, default=sum(CLIPS.values()), help="clips in all (default: 2550)")
    parser.add_argument("--quick", action="store_true", help="100 clips, to see that everything is in place")
    parser.add_argument("--questions", type=int, default=4, help="questions of a clip at most (default: 4)")
    parser.add_argument("--depth_side", type=int, default=96, help="pixels a side in depth.npz (default: 96)")
    options = parser.parse_args(arguments)
    total = 100 if options.quick else options.clips
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the engine, a process of its own, ends too
    start = time.perf_counter()
    clips = film_all(options.output, total, options.seed, options.depth_side)
    join_depth(options.output, clips)
    figures = write_tables(
        options.output, clips, options.questions, options.seed, time.perf_counter() - start
    )
    print(
        json.dumps({key: figures[key] for key in ("clips", "questions", "captions", "accuracy", "seconds")})
    )


def film_all(output: Path, total: int, seed: int, depth_side: int) -> list[Clip]:
    """Film every map in turn; a map makes up for what the maps before it could not give."""
    wads = {name: wad for wad, names in WADS.items() for name in names}
    splits = split_maps(wads, seed)
    left = {split: round(total * count / sum(CLIPS.values())) for split, count in CLIPS.items()}
    maps = Counter(splits.values())
    clips: list[Clip] = []
    bar = tqdm(sorted(wads), "filming", unit="map")
    for name in bar:
        split = splits[name]
        found = film_map(
            output, wads[name], name, split, math.ceil(left[split] / maps[split]), seed, depth_side
        )
        left[split] -= len(found)
        maps[split] -= 1
        clips += found
        bar.set_postfix(clips=len(clips))
    return clips


if __name__ == "__main__":
    run_script(main)
