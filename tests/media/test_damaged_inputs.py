"""200 inputs, most of them damaged: no crash, no hang, each is reported by name, every good one is used.

pytest tests/test_damaged_inputs.py
"""

import csv
import json
import random
import shutil
from pathlib import Path

import pytest

from dataset import Loader, Mixture, PretrainCorpus
from media.batches import Batches
from media.frames import Transform
from media.tokens import Tokens
from tests.media.test_decoding import write_video, write_webp
from tests.tools.test_make_tsv import failures, read_rows, run, write_image

KINDS = ("a.mp4", "b.mp4", "c.webm", "d.mkv", "e.avi", "f.gif", "g.webp", "h.jpg", "i.png", "j.ts")
SAYING = ("a.mp4", "b.mp4", "d.mkv", "e.avi", "j.ts")  # kinds whose decoders say what they conceal
DAMAGES = ("none", "flipped", "cut", "emptied", "renamed")


def write_good(folder: Path) -> dict[str, Path]:
    """A whole file of each kind."""
    folder.mkdir()
    write_video(folder / "a.mp4", 20)
    write_video(folder / "b.mp4", 20, movflags="faststart")
    write_video(folder / "c.webm", 20, "libvpx-vp9", deadline="realtime")
    write_video(folder / "d.mkv", 20)
    write_video(folder / "e.avi", 20, "mpeg4")
    write_video(folder / "f.gif", 20, "gif", "pal8")
    write_webp(folder / "g.webp")
    write_image(folder / "h.jpg")
    write_image(folder / "i.png")
    write_video(folder / "j.ts", 20, "mpeg2video")
    return {name: folder / name for name in KINDS}


def damaged(data: bytes, damage: str, chance: random.Random) -> bytes:
    """The bytes of a file, damaged in one of the ways."""
    if damage == "flipped":
        changed = bytearray(data)
        for _ in range(chance.choice([1, 10, 100])):
            changed[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        return bytes(changed)
    if damage == "cut":
        return data[: int(len(data) * chance.uniform(0.02, 0.6))]
    return b"" if damage == "emptied" else data


def other_ending(name: str) -> str:
    """A video under another container's ending; a picture under none that is known."""
    endings = {"mp4": "avi", "webm": "mp4", "mkv": "mov", "avi": "mkv", "gif": "mp4", "ts": "webm"}
    return endings.get(name.split(".")[1], "dat")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> tuple[Path, list[tuple[str, str, str]]]:
    """A folder of 200 files, whole yet; (id, kind, damage) of each."""
    folder = tmp_path_factory.mktemp("inputs")
    good = write_good(folder / "good")
    cases = []
    (folder / "in").mkdir()
    for number in range(200):
        kind, damage = KINDS[number % len(KINDS)], DAMAGES[number // len(KINDS) % len(DAMAGES)]
        cases.append((f"{number:03d}_{damage}", kind, damage))
        shutil.copy(good[kind], folder / "in" / f"{cases[-1][0]}.{kind.split('.')[1]}")
    return folder, cases


def break_them(source: Path, target: Path, cases: list[tuple[str, str, str]]) -> None:
    chance = random.Random(7)
    target.mkdir()
    for id_, kind, damage in cases:
        ending = kind.split(".")[1]
        data = (source / f"{id_}.{ending}").read_bytes()
        name = f"{id_}.{other_ending(kind) if damage == 'renamed' else ending}"
        (target / name).write_bytes(damaged(data, damage, chance))


def test_make_tsv_reports_or_uses_every_one(inputs, tmp_path: Path) -> None:
    folder, cases = inputs
    break_them(folder / "in", tmp_path / "in", cases)
    files = {path.stem: path for path in (tmp_path / "in").iterdir()}
    with (tmp_path / "c.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["video", "image"])
        for id_, kind, _ in cases:
            name = f"in/{files[id_].name}"
            table.writerow(["", name] if kind in ("h.jpg", "i.png") else [name, ""])
    run(tmp_path / "c.csv", tmp_path / "out", "--frames_only", "--frames", 4, workers=2)
    rows = {id_: fields for id_, *fields in read_rows(tmp_path / "out", "img_x.tsv", name="")}
    listed = failures(tmp_path / "out", "img_x")
    assert not set(rows) & set(listed) and len(rows) + len(listed) == 200
    whole = {kind: rows[id_] for id_, kind, damage in cases if damage == "none"}
    assert len(whole) == len(KINDS)
    for id_, kind, damage in cases:
        if damage in ("none", "renamed") and (damage, kind) != ("renamed", "g.webp"):
            assert rows.get(id_) == whole[kind], id_
        elif damage in ("cut", "emptied"):
            assert id_ in listed, (id_, kind)
        elif damage == "flipped" and kind in SAYING:
            assert id_ in listed or rows[id_] == whole[kind], (id_, kind)
    assert "ended the process" not in " ".join(listed.values())


@pytest.mark.parametrize("train", [True, False])
def test_training_reports_or_uses_every_one(inputs, tmp_path: Path, question_bert, train: bool) -> None:
    """Rows that name files which were whole when the rows were made."""
    folder, cases = inputs
    captions = tmp_path / "captions.json"
    captions.write_text(json.dumps({id_: ["red star"] for id_, *_ in cases}))
    source = tmp_path / "in"
    shutil.copytree(folder / "in", source)
    run(source, tmp_path / "out", "--captions", captions, "--frames", 4, "--link")
    shutil.rmtree(source)
    break_them(folder / "in", source, cases)
    tokens, transform = Tokens(str(question_bert), 8), Transform(["vid_rand_crop"], 32)
    corpus = PretrainCorpus(tmp_path / "out/x.yaml", "x", tokens, transform, 4)
    batches = Batches({"x": 200}, {"x": 20}, train)
    loader = Loader(Mixture({"x": corpus}, 0, train), batches, 2, max_bad_ratio=1.0)
    seen, read = {}, set()
    for batch in loader.epoch(0):
        read |= {id_ for id_, valid in zip(batch["id"], batch["valid"].tolist(), strict=True) if valid}
        seen |= dict(zip(batch["index"].tolist(), batch["bad"], strict=True))
    assert len(seen) == 200
    for index, (id_, _, damage) in enumerate(cases):
        if damage == "none":
            assert not seen[index] and id_ in read
        elif damage != "flipped":
            assert f"({id_}):" in seen[index], (id_, cases[index])
    assert set(loader.bad) == {("x", index) for index, reason in seen.items() if reason}
