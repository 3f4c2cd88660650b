"""_tools/make_tsv.py: the right frames, every caption, nothing lost to a bad file or a kill.

pytest tests/test_make_tsv.py
"""

import base64
import csv
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from fractions import Fraction
from multiprocessing import active_children
from pathlib import Path

import av
import numpy as np
import pytest
import yaml
from PIL import Image
from tqdm import tqdm

import make_tsv
from _tools.convert import clips
from _tools.convert.clips import Item, Row, Sampling
from lib import UserError
from media.frames import row_frames
from media.tsv import Videos

STEP = 4  # brightness from one frame of a test video to the next
TABLES = (
    "img.tsv",
    "img.lineidx",
    "img.fieldidx.npy",
    "caption.tsv",
    "caption.lineidx",
    "linelist.tsv",
    "failures.tsv",
)
TABLES += ("failures.tsv",)
FILES = {f"x.{ending}" for ending in (*TABLES, "yaml", "manifest.jsonl")}


def write_video(
    path: Path, frames: int, size: tuple[int, int] = (64, 48), aspect: Fraction = Fraction(1), **options: str
) -> Path:
    """A video whose frame i has brightness i * STEP everywhere, of pixels that have this width / height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.sample_aspect_ratio = aspect
        for number in range(frames):
            picture = np.full((size[1], size[0], 3), number * STEP, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def cut_video(whole: Path, path: Path, packets: int) -> Path:
    """The file as far as so many packets; its header, which comes first, goes on promising all of them."""
    with av.open(str(whole)) as container:
        positions = [packet.pos for packet in container.demux(video=0)]
    path.write_bytes(whole.read_bytes()[: positions[packets]])
    return path


def write_image(path: Path, size: tuple[int, int] = (64, 48), **options: object) -> Path:
    """A picture with a gradient, so that it does not compress to nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    gradient = np.linspace(0, 255, size[0] * size[1] * 3).astype(np.uint8).reshape(size[1], size[0], 3)
    Image.fromarray(gradient).save(path, **options)
    return path


def write_csv(
    path: Path, rows: list[tuple[str, str]], column: str = "video", encoding: str = "utf-8"
) -> Path:
    with path.open("w", encoding=encoding, newline="") as file:
        csv.writer(file).writerows([(column, "caption"), *rows])
    return path


def write_json(path: Path, captions: object) -> Path:
    path.write_text(json.dumps(captions), encoding="utf-8")
    return path


def run(source: Path, output: Path, *options: object, workers: int = 0) -> None:
    arguments = [source, "--output", output, "--name", "x", "--workers", workers, *options]
    make_tsv.main([str(argument) for argument in arguments])


def read_rows(output: Path, ending: str = "img.tsv", name: str = "x.") -> list[list[str]]:
    lines = (output / f"{name}{ending}").read_bytes().decode().split("\n")
    assert lines.pop() == "", "the last row has its line break"
    return [line.split("\t") for line in lines]


def read_captions(output: Path) -> dict[str, list[str]]:
    rows = {id_: json.loads(entries) for id_, entries in read_rows(output, "caption.tsv")}
    return {id_: [entry["caption"] for entry in entries] for id_, entries in rows.items()}


def failures(output: Path, name: str = "x") -> dict[str, str]:
    return {id_: reason for id_, _, reason in read_rows(output, "failures.tsv", f"{name}.")}


def picture(field: str) -> Image.Image:
    image = Image.open(io.BytesIO(base64.b64decode(field, validate=True)))
    assert image.format == "JPEG"
    return image


def frame_numbers(fields: list[str]) -> list[int]:
    return [round(float(np.asarray(picture(field)).mean()) / STEP) for field in fields]


def all_bytes(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in output.iterdir() if path.is_file()}


@pytest.fixture
def four(tmp_path: Path) -> Path:
    """A CSV of four videos, one of which is not a video."""
    for number in range(4):
        write_video(tmp_path / f"clip{number}.mp4", frames=6 + number)
    (tmp_path / "clip1.mp4").write_text("not a video")
    return write_csv(
        tmp_path / "clips.csv", [(f"clip{number}.mp4", f"caption {number}") for number in range(4)]
    )


# ---- Frames ----


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--frames", 4], [0, 13, 26, 39]),
        (["--frames", 1], [20]),
        (["--frames", 40], list(range(40))),
        (["--frames", 64], list(range(40))),
        (["--fps", 5], list(range(0, 40, 5))),
        (["--fps", 5, "--frames", 3], [0, 20, 35]),
        (["--fps", 100], list(range(40))),
    ],
)
def test_picked_frames(tmp_path: Path, options: list, expected: list[int]) -> None:
    write_video(tmp_path / "a.mp4", frames=40)
    run(write_csv(tmp_path / "c.csv", [("a.mp4", "a clip")]), tmp_path / "out", *options)
    [[id_, *fields]] = read_rows(tmp_path / "out")
    assert id_ == "a"
    assert frame_numbers(fields) == expected


def test_fps_goes_by_time_and_not_by_number() -> None:
    times = [7.0, 7.1, 8.0, 8.05, 9.2]  # seen after 0, 0.5, 1, 1.5 and 2 seconds: the last on screen by then
    assert clips.pick(times, Sampling(fps=2)) == [0, 1, 2, 3]


def test_decoding_corrects_what_the_packets_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    item = Item("a", ("a clip",), write_video(tmp_path / "a.mp4", frames=40), "video")
    expected = clips.make_row(item, Sampling(frames=4))
    assert len(expected.fields) == expected.frames == 4
    for wrong in ([], [0.0, 0.1, 0.2], [number / 25 for number in range(50)]):
        monkeypatch.setattr(clips, "stated_times", lambda path, rate, wrong=wrong: wrong)
        assert clips.make_row(item, Sampling(frames=4)) == expected


@pytest.mark.parametrize(
    ("size", "expected"),
    [((640, 360), (100, 56)), ((120, 250), (48, 100)), ((64, 48), (64, 48)), ((100, 100), (100, 100))],
)
def test_longer_side_is_bounded_and_never_enlarged(tmp_path: Path, size: tuple, expected: tuple) -> None:
    write_video(tmp_path / "video.mp4", frames=2, size=size)
    write_image(tmp_path / "image.png", size=size)
    captions = write_json(tmp_path / "c.json", {"video": ["v"], "image": ["i"]})
    run(tmp_path, tmp_path / "out", "--captions", captions, "--size", 100)
    sizes = {picture(field).size for _, *fields in read_rows(tmp_path / "out") for field in fields}
    assert sizes == {expected}


@pytest.mark.parametrize(
    ("aspect", "size", "expected"),
    [
        (Fraction(4, 3), 320, (320, 180)),  # as most of MSR-VTT: 320x240 that is shown 16:9
        (Fraction(4, 3), 100, (100, 56)),
        (Fraction(1, 2), 320, (160, 240)),
    ],
)
def test_pixels_come_out_square(tmp_path: Path, aspect: Fraction, size: int, expected: tuple) -> None:
    write_video(tmp_path / "a.mp4", frames=2, size=(320, 240), aspect=aspect)
    run(write_csv(tmp_path / "c.csv", [("a.mp4", "a clip")]), tmp_path / "out", "--size", size)
    assert {picture(field).size for field in read_rows(tmp_path / "out")[0][1:]} == {expected}


# ---- What is written ----


def test_images_give_an_image_yaml(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[274] = 6  # a quarter turn
    write_image(tmp_path / "in/b.jpg", exif=turned)
    write_image(tmp_path / "in/sub/a.png")
    (tmp_path / "in/notes.txt").write_text("left out")
    captions = write_json(tmp_path / "c.json", {"a": ["one", "two"], "b": "three"})
    run(tmp_path / "in", tmp_path / "out", "--captions", captions)
    assert yaml.safe_load((tmp_path / "out/x.yaml").read_text()) == {
        "img": "x.img.tsv",
        "caption": "x.caption.tsv",
        "caption_linelist": "x.linelist.tsv",
        "image": True,
    }
    rows = read_rows(tmp_path / "out")
    assert [(id_, len(fields)) for id_, *fields in rows] == [("b", 1), ("a", 1)]
    assert picture(rows[0][1]).size == (48, 64)
    assert read_rows(tmp_path / "out", "linelist.tsv") == [["0", "0"], ["1", "0"], ["1", "1"]]


@pytest.mark.parametrize("with_image", [False, True])
def test_videos_of_one_frame_are_no_images(tmp_path: Path, with_image: bool) -> None:
    write_video(tmp_path / "a.mp4", frames=1)
    if with_image:
        write_image(tmp_path / "b.png")
    run(tmp_path, tmp_path / "out", "--captions", write_json(tmp_path / "c.json", {"a": ["a"], "b": ["b"]}))
    assert len(read_rows(tmp_path / "out")) == 1 + with_image
    assert "image" not in yaml.safe_load((tmp_path / "out/x.yaml").read_text())


def test_a_picture_is_one_whatever_its_ending(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.jpg")
    shutil.copy(tmp_path / "a.jpg", tmp_path / "b.dat")
    run(write_csv(tmp_path / "c.csv", [("a.jpg", "a"), ("b.dat", "b")], "image"), tmp_path / "out")
    rows = read_rows(tmp_path / "out")
    assert [id_ for id_, _ in rows] == ["a", "b"] and rows[0][1] == rows[1][1]


def test_csv_with_everything_that_captions_have(tmp_path: Path) -> None:
    write_video(tmp_path / "in/a b.mp4", frames=2)
    write_video(tmp_path / "in/é.mp4", frames=2)
    texts = ['she says "hello", twice', "naïve 猫 on a roof 🐈", "a tab\tand a\nline break, \u2028 and \\t"]
    rows = [("in/é.mp4", texts[0]), ("in/a b.mp4", texts[1]), ("./in/é.mp4", texts[2]), ("in/a b.mp4", "  ")]
    run(write_csv(tmp_path / "c.csv", rows, encoding="utf-8-sig"), tmp_path / "out")
    assert read_captions(tmp_path / "out") == {"é": [texts[0], texts[2]], "a b": [texts[1]]}
    assert [id_ for id_, *_ in read_rows(tmp_path / "out")] == ["é", "a b"]
    assert read_rows(tmp_path / "out", "linelist.tsv") == [["0", "0"], ["0", "1"], ["1", "0"]]


def test_lineidx_points_at_rows(four: Path, tmp_path: Path) -> None:
    run(four, tmp_path / "out")
    for name in ("img", "caption"):
        data = (tmp_path / f"out/x.{name}.tsv").read_bytes()
        offsets = [int(line) for line in (tmp_path / f"out/x.{name}.lineidx").read_text().split("\n")[:-1]]
        assert [data[offset:].split(b"\t")[0] for offset in offsets] == [b"clip0", b"clip2", b"clip3"]


def test_tsv_frames_are_kept_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    jpeg = base64.b64encode(write_image(tmp_path / "a.jpg").read_bytes())
    longer = base64.b64encode((tmp_path / "a.jpg").read_bytes() + b"\0" * 9)  # bytes after the end do no harm
    rows = [b"a\t" + jpeg, b"b\tfield\t" + longer, b"c\t" + jpeg]
    rows += [b"d\t" + jpeg[:400], b"e\t%s\t%s" % (jpeg, base64.b64encode(b"GIF89a")), b"f\tfield", b"g\t"]
    source = tmp_path / "old.tsv"
    source.write_bytes(b"\n".join(rows))  # without a line break at the end
    captions = write_json(tmp_path / "c.json", {id_: [f"caption {id_}"] for id_ in "abdefgxy"})
    run(source, tmp_path / "out", "--captions", captions)
    assert "old.tsv has no file for the captions of 2 ids, first x" in capsys.readouterr().out
    assert (tmp_path / "out/x.img.tsv").read_bytes() == b"a\t%s\nb\t%s\n" % (jpeg, longer)
    assert read_captions(tmp_path / "out") == {"a": ["caption a"], "b": ["caption b"]}
    assert yaml.safe_load((tmp_path / "out/x.yaml").read_text())["image"] is True
    assert list(failures(tmp_path / "out")) == ["c", "d", "e", "f", "g"]
    assert failures(tmp_path / "out")["c"] == "no caption"


# ---- What cannot be used ----


def test_bad_files_are_listed_and_stop_nothing(tmp_path: Path) -> None:
    write_video(tmp_path / "good.mp4", frames=40, movflags="faststart")
    cut_video(tmp_path / "good.mp4", tmp_path / "cut.mp4", packets=25)
    unindexed = write_video(tmp_path / "headless.mp4", frames=40).read_bytes()
    (tmp_path / "headless.mp4").write_bytes(unindexed[: len(unindexed) // 2])
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "empty.mp4").touch()
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        silence.sample_rate = 8000
        container.mux(stream.encode(silence))
        container.mux(stream.encode())
    (tmp_path / "half.jpg").write_bytes(write_image(tmp_path / "half.jpg").read_bytes()[:600])
    names = ["cut.mp4", "headless.mp4", "gone.mp4", "text.mp4", "good.mp4", "empty.mp4", "sound.mp4"]
    table = tmp_path / "c.csv"
    rows = [f"{name},,a caption" for name in names] + ["nocaption.mp4,, ", ",half.jpg,half"]
    table.write_text("\n".join(["video,image,caption", *rows]))
    run(table, tmp_path / "out", workers=2)
    assert [id_ for id_, *_ in read_rows(tmp_path / "out")] == ["good"]
    reasons = failures(tmp_path / "out")
    assert list(reasons) == ["cut", "headless", "gone", "text", "empty", "sound", "nocaption", "half"]
    assert "of 1.60 seconds" in reasons["cut"]
    assert "no moov atom" in reasons["headless"] and "it is text" in reasons["text"]
    assert "No such file" in reasons["gone"]
    assert "no video stream" in reasons["sound"]
    assert reasons["nocaption"] == "no caption"
    assert "truncated" in reasons["half"].lower()


def test_a_little_missing_is_let_pass(tmp_path: Path) -> None:
    write_video(tmp_path / "whole.mp4", frames=60, movflags="faststart")
    cut_video(tmp_path / "whole.mp4", tmp_path / "a.mp4", packets=59)
    run(write_csv(tmp_path / "c.csv", [("a.mp4", "a clip")]), tmp_path / "out", "--frames", 4)
    numbers = frame_numbers(read_rows(tmp_path / "out")[0][1:])
    assert numbers[0] == 0 and 54 <= numbers[3] < 60


def test_no_row_at_all_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("not a video")
    with pytest.raises(UserError, match="no row could be made"):
        run(write_csv(tmp_path / "c.csv", [("a.mp4", "a clip")]), tmp_path / "out")
    assert set(all_bytes(tmp_path / "out")) == {"x.failures.tsv"}


def test_an_id_that_would_break_the_table_is_left_out(tmp_path: Path) -> None:
    write_image(tmp_path / "a\tb.png")
    write_image(tmp_path / "c.png")
    run(tmp_path, tmp_path / "out", "--captions", write_json(tmp_path / "c.json", {"a\tb": "a", "c": "c"}))
    assert [id_ for id_, *_ in read_rows(tmp_path / "out")] == ["c"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("video,caption\na.mp4,one, two\n", "line 2: .* double quotes"),
        ('video,caption\na.mp4,"one\nb.mp4,two\n', "not readable as UTF-8 CSV"),
        ("file,text\na.mp4,one\n", "needs `video`"),
        ("video,caption\na.mp4,na\xefve\n", "UTF-8"),
        ("video,caption\n", "no video"),
        ("video,caption\nx/a.mp4,one\ny/a.mp4,two\n", "same id"),
    ],
)
def test_a_bad_csv_says_what_is_wrong(tmp_path: Path, table: str, message: str) -> None:
    (tmp_path / "c.csv").write_text(table, encoding="latin-1")
    with pytest.raises(UserError, match=message):
        run(tmp_path / "c.csv", tmp_path / "out")


def test_bad_sources_and_captions_say_what_is_wrong(tmp_path: Path) -> None:
    write_image(tmp_path / "in/a.png")
    for captions in ([], {"a": 3}, {"a": [3]}, {"a": None}, {"a": ["b", None]}, {"a": float("nan")}):
        with pytest.raises(UserError, match="captions"):
            run(tmp_path / "in", tmp_path / "out", "--captions", write_json(tmp_path / "c.json", captions))
    with pytest.raises(UserError, match="give --captions"):
        run(tmp_path / "in", tmp_path / "out")
    with pytest.raises(UserError, match="check the path"):
        run(tmp_path / "nowhere", tmp_path / "out", "--captions", write_json(tmp_path / "c.json", {}))
    write_image(tmp_path / "in/sub/a.jpg")
    with pytest.raises(UserError, match="same id"):
        run(tmp_path / "in", tmp_path / "out", "--captions", write_json(tmp_path / "c.json", {"a": ["a"]}))


# ---- Many processes, and kills ----


def test_order_and_bytes_do_not_depend_on_the_workers(tmp_path: Path) -> None:
    lengths = [60, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]  # the first is the last to be ready
    for number, frames in enumerate(lengths):
        write_video(tmp_path / f"{number}.mp4", frames, size=(640, 480) if number == 0 else (32, 32))
    rows = [(f"{number}.mp4", f"caption {number}") for number in range(len(lengths))]
    table = write_csv(tmp_path / "c.csv", [*rows[:5], ("gone.mp4", "gone"), *rows[5:]])
    for workers in (0, 2):
        run(table, tmp_path / f"out{workers}", workers=workers)
    assert [int(id_) for id_, *_ in read_rows(tmp_path / "out0")] == list(range(len(lengths)))
    assert all_bytes(tmp_path / "out0") == all_bytes(tmp_path / "out2")


class Crash(Item):
    """An item that ends the process that gets it, as a decoder's crash would."""

    def __reduce__(self) -> tuple:
        return os._exit, (1,)


def test_a_crash_costs_one_row_and_a_killed_worker_none(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", frames=3)
    items = [Item(str(number), ("a clip",), tmp_path / "a.mp4", "video") for number in range(20)]
    items[4] = Crash("4", ("a clip",), tmp_path / "a.mp4", "video")
    rows = make_tsv.make_rows(items, Sampling(), workers=2)
    first = next(rows)
    for child in active_children():
        os.kill(child.pid, signal.SIGKILL)
    made = [first, *rows]
    assert "ended the process" in made.pop(4).failure
    assert [(row.frames, row.failure) for row in made] == [(3, "")] * 19


class Killed(BaseException):
    """Stands for a kill, which no code can catch."""


def run_and_kill(
    monkeypatch: pytest.MonkeyPatch, source: Path, output: Path, at: int, *options: object
) -> None:
    """Run until the turn of this clip, then die."""

    def make_row_or_die(item: Item, sampling: Sampling) -> Row:
        if item.id == f"clip{at}":
            raise Killed
        return clips.make_row(item, sampling)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(make_tsv, "make_row", make_row_or_die)
        run(source, output, *options)


@pytest.mark.parametrize("at", [0, 2])
@pytest.mark.parametrize(
    "damage", ["none", "half a row more", "half a row less", "no rows", "half a journal line"]
)
def test_a_killed_run_goes_on_to_the_same_bytes(
    four: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, damage: str
) -> None:
    run(four, tmp_path / "whole")
    output = tmp_path / "out"
    run_and_kill(monkeypatch, four, output, at)
    rows, journal = output / "x.part/img.tsv", output / "x.part/journal.jsonl"
    assert [path.name for path in output.iterdir()] == ["x.part"]
    if damage == "half a row more":
        rows.write_bytes(rows.read_bytes() + b"clip3\t/9j/half a pict")
    elif damage == "half a row less":
        rows.write_bytes(rows.read_bytes()[:-100])
    elif damage == "no rows":
        rows.unlink()
    elif damage == "half a journal line":
        journal.write_bytes(journal.read_bytes()[:-3])
    run_and_kill(monkeypatch, four, output, 3)
    run(four, output)
    assert all_bytes(output) == all_bytes(tmp_path / "whole")


def test_what_is_done_is_not_done_again(four: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_and_kill(monkeypatch, four, tmp_path / "out", 3)
    opened = []
    monkeypatch.setattr(
        make_tsv, "make_row", lambda item, s: opened.append(item.id) or clips.make_row(item, s)
    )
    run(four, tmp_path / "out")
    assert opened == ["clip3"]


@pytest.mark.parametrize("moved", [0, 1, 4, 6, 7])
def test_a_kill_while_finishing_loses_nothing(
    four: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: int
) -> None:
    run(four, tmp_path / "whole")
    run(four, tmp_path / "out", "--frames", 2)

    def die(*arguments: object) -> None:
        raise Killed

    def replace_or_die(path: Path, target: Path) -> None:
        if path.parent.name == "x.part" and len(list(path.parent.iterdir())) == 9 - moved:
            raise Killed
        os.replace(path, target)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Path, "replace", replace_or_die)
        run(four, tmp_path / "out", "--overwrite")
    monkeypatch.setattr(make_tsv, "make_row", die)  # no item is opened again
    run(four, tmp_path / "out", "--overwrite")
    assert all_bytes(tmp_path / "out") == all_bytes(tmp_path / "whole")


def test_other_settings_start_over_and_say_so(
    four: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    run_and_kill(monkeypatch, four, tmp_path / "out", 3, "--frames", 2)
    capsys.readouterr()
    run(four, tmp_path / "out", "--frames", 3)
    assert "'frames': 2" in capsys.readouterr().out
    assert [len(fields) for _, *fields in read_rows(tmp_path / "out")] == [3, 3, 3]


def test_a_changed_file_starts_over(four: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_and_kill(monkeypatch, four, tmp_path / "out", 3)
    write_video(tmp_path / "clip1.mp4", frames=2)  # was not a video
    run(four, tmp_path / "out")
    assert [id_ for id_, *_ in read_rows(tmp_path / "out")] == ["clip0", "clip1", "clip2", "clip3"]


def test_finished_files_are_left_alone(four: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    output = tmp_path / "out"
    run(four, output)
    before = {path.name: path.stat().st_mtime_ns for path in output.iterdir()}
    assert set(before) == FILES
    capsys.readouterr()
    run(four, output)
    assert "complete, with these settings" in capsys.readouterr().out
    with pytest.raises(UserError, match="'frames': 32"):
        run(four, output, "--frames", 2)
    assert {path.name: path.stat().st_mtime_ns for path in output.iterdir()} == before
    run(four, output, "--frames", 2, "--overwrite")
    assert [len(fields) for _, *fields in read_rows(output)] == [2, 2, 2]


def test_a_killed_overwrite_leaves_the_finished_files(
    four: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(four, tmp_path / "out")
    before = all_bytes(tmp_path / "out")
    run_and_kill(monkeypatch, four, tmp_path / "out", 2, "--frames", 2, "--overwrite")
    assert before.items() <= all_bytes(tmp_path / "out").items()
    run(four, tmp_path / "out", "--frames", 2, "--overwrite")
    run(four, tmp_path / "whole", "--frames", 2)
    assert all_bytes(tmp_path / "out") == all_bytes(tmp_path / "whole")


def test_a_source_is_not_overwritten(tmp_path: Path) -> None:
    jpeg = base64.b64encode(write_image(tmp_path / "a.jpg").read_bytes())
    (tmp_path / "x.img.tsv").write_bytes(b"a\t" + jpeg + b"\n")
    captions = write_json(tmp_path / "c.json", {"a": ["a"]})
    with pytest.raises(UserError):
        run(tmp_path / "x.img.tsv", tmp_path, "--captions", captions)
    assert (tmp_path / "x.img.tsv").read_bytes() == b"a\t" + jpeg + b"\n"


def run_until(seconds: float, source: Path, output: Path, *options: object) -> None:
    """Run, and be killed after so long, wherever that is."""
    tqdm.set_lock(threading.RLock())  # tests and this process share tqdm's own, which would die with it
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # which ends a process as SIGKILL does: no code runs
    signal.setitimer(signal.ITIMER_REAL, seconds)
    run(source, output, *options)


@pytest.mark.parametrize("options", [(), ("--shard_gb", 1e-5, "--frames_only", "--fps", 10)])
def test_ten_kills_at_random_change_nothing(tmp_path: Path, options: tuple) -> None:
    for number in range(24):
        write_video(tmp_path / f"{number}.mp4", frames=4 + number)
    (tmp_path / "7.mp4").write_text("not a video")
    source = write_csv(tmp_path / "c.csv", [(f"{number}.mp4", f"caption {number}") for number in range(24)])
    start = time.perf_counter()
    run(source, tmp_path / "whole", *options)
    needed = time.perf_counter() - start
    random, fork, kills = np.random.default_rng(0), multiprocessing.get_context("fork"), 0
    while kills < 10:
        seconds = random.uniform(0.01, 0.5) * needed
        process = fork.Process(target=run_until, args=(seconds, source, tmp_path / "out", *options))
        process.start()
        process.join()
        kills += process.exitcode == -signal.SIGALRM
        if process.exitcode == 0:
            assert all_bytes(tmp_path / "out") == all_bytes(tmp_path / "whole")
            shutil.rmtree(tmp_path / "out")
    run(source, tmp_path / "out", *options)
    assert all_bytes(tmp_path / "out") == all_bytes(tmp_path / "whole")


def test_what_takes_too_long_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "a.tsv")  # opening it waits for a writer that never comes
    write_video(tmp_path / "b.mp4", frames=3)
    monkeypatch.setattr(make_tsv, "TIMEOUT", 5.0)
    items = [
        Item("a", ("a clip",), tmp_path / "a.tsv", "row"),
        Item("b", ("a clip",), tmp_path / "b.mp4", "video"),
    ]
    first, second = make_tsv.make_rows(items, Sampling(), workers=2)
    assert first.failure == "reading it took more than 5 seconds"
    assert (second.frames, second.failure) == (3, "")


# ---- Layouts ----


def test_shards_hold_the_same_rows_and_a_composite_yaml_names_them(tmp_path: Path) -> None:
    for number in range(6):
        write_video(tmp_path / f"clip{number}.mp4", frames=3)
    (tmp_path / "clip2.mp4").write_text("not a video")
    source = write_csv(
        tmp_path / "c.csv", [(f"clip{n}.mp4", f"{n}{text}") for n in range(6) for text in "ab"]
    )
    run(source, tmp_path / "one")
    bytes_per_row = len((tmp_path / "one/x.img.tsv").read_bytes()) / 5
    run(source, tmp_path / "out", "--shard_gb", 2.5 * bytes_per_row / 1e9)
    names = yaml.safe_load((tmp_path / "out/x.yaml").read_text())
    assert names["img"] == [f"x.img.{shard}.tsv" for shard in range(3)] and names["composite"] is True
    for kind in ("img", "caption"):
        joined = b"".join((tmp_path / "out" / name).read_bytes() for name in names[kind])
        assert joined == (tmp_path / f"one/x.{kind}.tsv").read_bytes()
    assert max((tmp_path / "out" / name).stat().st_size for name in names["img"]) <= 2.5 * bytes_per_row
    pairs = [tuple(map(int, row)) for row in read_rows(tmp_path / "out", "linelist.tsv")]
    assert pairs == [
        (shard, row, text) for shard, row in [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)] for text in (0, 1)
    ]
    entries = [json.loads(line) for line in (tmp_path / "out/x.manifest.jsonl").read_text().splitlines()[1:]]
    assert [entry["shard"] for entry in entries if not entry["failure"]] == [0, 0, 1, 1, 2]


def test_frames_alone_need_no_captions(four: Path, tmp_path: Path) -> None:
    (tmp_path / "n.csv").write_text("video\nclip0.mp4\nclip1.mp4\n")
    run(tmp_path / "n.csv", tmp_path / "out", "--frames_only")
    endings = ("tsv", "lineidx", "fieldidx.npy", "id2lineidx.pkl", "failures.tsv", "manifest.jsonl")
    assert set(all_bytes(tmp_path / "out")) == {f"img_x.{ending}" for ending in endings}
    videos = Videos(tmp_path / "out/img_x.tsv")
    assert list(videos.rows) == ["clip0"] and len(videos["clip0"]) == 1 + 6


def test_the_manifest_says_what_was_made_of_what(four: Path, tmp_path: Path) -> None:
    run(four, tmp_path / "out", "--frames", 4)
    settings, *entries = [json.loads(line) for line in (tmp_path / "out/x.manifest.jsonl").open()]
    assert (settings["frames"], settings["quality"], settings["link"]) == (4, 90, False)
    assert [entry["id"] for entry in entries] == [f"clip{number}" for number in range(4)]
    assert "it is text" in entries.pop(1)["failure"]
    for entry, seconds in zip(entries, (0.24, 0.32, 0.36), strict=True):
        assert (entry["frames"], entry["seconds"]) == (4, pytest.approx(seconds))
        assert entry["sha256"] == hashlib.sha256(Path(entry["source"]).read_bytes()).hexdigest()


def test_linked_rows_are_the_stored_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within JPEG loss: the same frames, turned, with square pixels, from wherever the script is started."""
    write_video(tmp_path / "in/a.mp4", frames=40, aspect=Fraction(4, 3))
    write_video(tmp_path / "in/large.mp4", frames=3, size=(640, 360))
    write_image(tmp_path / "in/b.png", size=(400, 300))
    lines = ("a.mp4,,a,a,", "a.mp4,,part,b,0.4", "large.mp4,,large,c,", ",b.png,b,d,")
    rows = "".join(f"{line}\n" for line in lines)
    (tmp_path / "in/c.csv").write_text("video,image,id,caption,start\n" + rows)
    monkeypatch.chdir(tmp_path)
    run(Path("in/c.csv"), Path("stored"), "--quality", 100)
    run(Path("in/c.csv"), Path("linked"), "--link")
    names = ["../in/a.mp4", "../in/a.mp4", "../in/large.mp4", "../in/b.png"]
    assert [row[1] for row in read_rows(Path("linked"))] == names
    monkeypatch.chdir("/")
    for stored, linked in zip(read_rows(tmp_path / "stored"), read_rows(tmp_path / "linked"), strict=True):
        pictures = [
            row_frames([field.encode() for field in row], tmp_path / name)
            for row, name in ((stored, "stored"), (linked, "linked"))
        ]
        numbers = list(range(len(pictures[0])))
        assert len(pictures[1]) == len(numbers) == {"a": 32, "part": 30, "large": 3, "b": 1}[stored[0]]
        for one, other in zip(*(frames.read(numbers) for frames in pictures), strict=True):
            assert one.shape == other.shape
            assert (one.float() - other.float()).abs().mean() < 1.5


def test_proxies_hold_the_frames_that_rows_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_video(Path("in/a.mp4"), 50, size=(640, 480), aspect=Fraction(4, 3))
    write_video(Path("in/b.mp4"), 30, size=(98, 66))
    Image.new("RGB", (61, 41), (10, 20, 30)).save("in/c.png")
    write_csv(Path("in/c.csv"), [("a.mp4", "one"), ("b.mp4", "two"), ("c.png", "three")])
    run(Path("in/c.csv"), Path("out"), "--proxy", "--fps", "5")
    proxies = sorted(Path("out/x.proxies").rglob("*.mp4"))
    assert len(proxies) == 3
    for proxy in proxies:
        with av.open(str(proxy)) as container:
            assert all(frame.key_frame for frame in container.decode(video=0))
    rows = read_rows(Path("out"))
    first, second, third = (row_frames([field.encode() for field in row], Path("out")) for row in rows)
    assert [len(first), len(second), len(third)] == [10, 6, 1]
    assert first.read([0])[0].shape == (3, 224, 398)  # square pixels, its shorter side 224
    assert second.read([0])[0].shape == (3, 66, 98)  # no side grows
    assert third.read([0])[0].shape == (3, 42, 62)  # but for one pixel: H.264 takes even sides
    levels = [round(float(frame.float().mean())) for frame in first.read(range(10))]
    assert np.allclose(levels, [number * 5 * STEP for number in range(10)], atol=3)
    before = {path: path.read_bytes() for path in proxies}
    run(Path("in/c.csv"), Path("out"), "--proxy", "--fps", "5", "--overwrite", workers=2)
    assert {path: path.read_bytes() for path in proxies} == before
    with pytest.raises(SystemExit):
        run(Path("in/c.csv"), Path("out"), "--proxy", "--link", "--overwrite")
