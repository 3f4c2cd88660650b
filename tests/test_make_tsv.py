"""_tools/make_tsv.py: the right frames, every caption, nothing lost to a bad file or a kill.

pytest tests/test_make_tsv.py
"""

import base64
import csv
import fcntl
import io
import json
import multiprocessing
import os
import signal
from pathlib import Path

import av
import numpy as np
import pytest
import yaml
from PIL import Image

import tsv
from _tools import make_tsv

STEP = 4  # brightness from one frame of a test video to the next
ENDINGS = {*make_tsv.FINISHED, "failures.tsv", "settings.json"}


def write_video(
    path: Path, frames: int, size: tuple[int, int] = (64, 48), rate: int = 25, **options: str
) -> Path:
    """A video whose frame i has brightness i * STEP everywhere."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
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


def run(source: Path, output: Path, *options: object, workers: int = 1) -> int:
    arguments = [source, "--output", output, "--name", "x", "--workers", workers, *options]
    return make_tsv.main([str(argument) for argument in arguments])


def read_rows(output: Path, ending: str = "img.tsv") -> list[list[str]]:
    lines = (output / f"x.{ending}").read_bytes().decode().split("\n")
    assert lines.pop() == "", "the last row has its line break"
    return [line.split("\t") for line in lines]


def read_captions(output: Path) -> dict[str, list[str]]:
    rows = {id_: json.loads(entries) for id_, entries in read_rows(output, "caption.tsv")}
    return {id_: [entry["caption"] for entry in entries] for id_, entries in rows.items()}


def failures(output: Path) -> dict[str, str]:
    return {id_: reason for id_, _, reason in read_rows(output, "failures.tsv")}


def picture(field: str) -> Image.Image:
    image = Image.open(io.BytesIO(base64.b64decode(field, validate=True)))
    assert image.format == "JPEG"
    return image


def frame_numbers(fields: list[str]) -> list[int]:
    return [round(float(np.asarray(picture(field)).mean()) / STEP) for field in fields]


def all_bytes(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in output.iterdir()}


@pytest.fixture
def clips(tmp_path: Path) -> Path:
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
        (["--fps", 5, "--max_frames", 3], [0, 20, 35]),
        (["--fps", 100], list(range(40))),
    ],
)
def test_picked_frames(tmp_path: Path, options: list, expected: list[int]) -> None:
    write_video(tmp_path / "a.mp4", frames=40)
    assert run(write_csv(tmp_path / "c.csv", [("a.mp4", "a clip")]), tmp_path / "out", *options) == 0
    [[id_, *fields]] = read_rows(tmp_path / "out")
    assert id_ == "a"
    assert frame_numbers(fields) == expected


def test_fps_goes_by_time_and_not_by_number() -> None:
    times = [7.0, 7.1, 8.0, 8.05, 9.2]  # seen after 0, 0.5, 1, 1.5 and 2 seconds: the last on screen by then
    assert make_tsv.Sampling(fps=2).pick(times) == [0, 1, 2, 3]
    assert make_tsv.Sampling(fps=2).pick([]) == []


def test_decoding_corrects_what_the_packets_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    item = make_tsv.Item("a", write_video(tmp_path / "a.mp4", frames=40), "video")
    expected = make_tsv.make_row(item, make_tsv.Sampling(frames=4))
    for wrong in ([], [0.0, 0.1, 0.2], [number / 25 for number in range(50)]):
        monkeypatch.setattr(make_tsv, "packet_times", lambda path, wrong=wrong: wrong)
        assert make_tsv.make_row(item, make_tsv.Sampling(frames=4)) == expected


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


def test_shrinking_takes_the_mean_of_areas(tmp_path: Path) -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "a.png")
    run(write_csv(tmp_path / "c.csv", [("a.png", "stripes")], column="image"), tmp_path / "out", "--size", 32)
    grey = np.asarray(picture(read_rows(tmp_path / "out")[0][1]))
    assert np.abs(grey.astype(int) - 127).max() <= 2


# ---- What is written ----


def test_images_give_an_image_yaml(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[274] = 6  # a quarter turn
    write_image(tmp_path / "in/b.jpg", exif=turned)
    write_image(tmp_path / "in/sub/a.png")
    (tmp_path / "in/notes.txt").write_text("left out")
    captions = write_json(tmp_path / "c.json", {"a": ["one", "two"], "b": "three"})
    assert run(tmp_path / "in", tmp_path / "out", "--captions", captions) == 0
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


def test_csv_with_everything_that_captions_have(tmp_path: Path) -> None:
    write_video(tmp_path / "in/a b.mp4", frames=2)
    write_video(tmp_path / "in/é.mp4", frames=2)
    texts = ['she says "hello", twice', "naïve 猫 on a roof 🐈", "a tab\tand a\nline break, \u2028 and \\t"]
    rows = [("in/é.mp4", texts[0]), ("in/a b.mp4", texts[1]), ("./in/é.mp4", texts[2]), ("in/a b.mp4", "  ")]
    run(write_csv(tmp_path / "c.csv", rows, encoding="utf-8-sig"), tmp_path / "out")
    assert read_captions(tmp_path / "out") == {"é": [texts[0], texts[2]], "a b": [texts[1]]}
    assert [id_ for id_, *_ in read_rows(tmp_path / "out")] == ["é", "a b"]
    assert read_rows(tmp_path / "out", "linelist.tsv") == [["0", "0"], ["0", "1"], ["1", "0"]]


def test_lineidx_points_at_rows(clips: Path, tmp_path: Path) -> None:
    run(clips, tmp_path / "out")
    for name in ("img", "caption"):
        data = (tmp_path / f"out/x.{name}.tsv").read_bytes()
        offsets = [int(line) for line in (tmp_path / f"out/x.{name}.lineidx").read_text().split("\n")[:-1]]
        assert [data[offset:].split(b"\t")[0] for offset in offsets] == [b"clip0", b"clip2", b"clip3"]


def test_tsv_rows_are_kept_as_they_are(tmp_path: Path) -> None:
    jpeg = base64.b64encode(write_image(tmp_path / "a.jpg").read_bytes())
    longer = base64.b64encode((tmp_path / "a.jpg").read_bytes() + b"\0" * 9)  # bytes after the end do no harm
    rows = [b"a\t" + jpeg, b"b\tfield\t" + longer, b"c\t" + jpeg, b"a\t" + jpeg]
    rows += [b"d\t" + jpeg[:400], b"e\t%s\t%s" % (jpeg, base64.b64encode(b"GIF89a")), b"f\tfield", b"g"]
    source = tmp_path / "old.tsv"
    source.write_bytes(b"\n".join(rows))  # without a line break at the end
    captions = write_json(tmp_path / "c.json", {id_: [f"caption {id_}"] for id_ in "abdefg"})
    assert run(source, tmp_path / "out", "--captions", captions) == 0
    assert (tmp_path / "out/x.img.tsv").read_bytes() == rows[0] + b"\n" + rows[1] + b"\n"
    assert read_captions(tmp_path / "out") == {"a": ["caption a"], "b": ["caption b"]}
    assert yaml.safe_load((tmp_path / "out/x.yaml").read_text())["image"] is True
    reasons = failures(tmp_path / "out")
    assert reasons["c"] == "no caption"
    assert reasons["a"] == "row 3 repeats the id of row 0"
    assert "frame 0" in reasons["d"] and "frame 1" in reasons["e"]
    assert "no frames" in reasons["f"] and "no frames" in reasons["g"]


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
    assert run(table, tmp_path / "out", workers=2) == 0
    assert [id_ for id_, *_ in read_rows(tmp_path / "out")] == ["good"]
    reasons = failures(tmp_path / "out")
    assert list(reasons) == ["cut", "headless", "gone", "text", "empty", "sound", "nocaption", "half"]
    assert "of 1.60 seconds" in reasons["cut"]
    assert "Invalid data" in reasons["headless"] and "Invalid data" in reasons["text"]
    assert "No such file" in reasons["gone"]
    assert reasons["sound"] == "no video stream in it"
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
    assert run(write_csv(tmp_path / "c.csv", [("a.mp4", "a clip")]), tmp_path / "out") == 1
    assert set(all_bytes(tmp_path / "out")) == {"x.failures.tsv"}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("video,caption\na.mp4,one, two\n", "line 2: 3 values for 2 columns"),
        ('video,caption\na.mp4,"one\nb.mp4,two\n', "not readable as UTF-8 CSV"),
        ("file,text\na.mp4,one\n", "columns"),
        ("video,caption\na.mp4,na\xefve\n", "UTF-8"),
        ("video,caption\n", "no video"),
        ("video,caption\nx/a.mp4,one\ny/a.mp4,two\n", "same id"),
    ],
)
def test_a_bad_csv_says_what_is_wrong(tmp_path: Path, table: str, message: str) -> None:
    (tmp_path / "c.csv").write_text(table, encoding="latin-1")
    with pytest.raises(SystemExit, match=message):
        run(tmp_path / "c.csv", tmp_path / "out")


def test_bad_sources_and_captions_say_what_is_wrong(tmp_path: Path) -> None:
    write_image(tmp_path / "in/a.png")
    for captions in ([], {"a": 3}, {"a": [3]}):
        with pytest.raises(SystemExit, match="captions"):
            run(tmp_path / "in", tmp_path / "out", "--captions", write_json(tmp_path / "c.json", captions))
    with pytest.raises(SystemExit, match="give --captions"):
        run(tmp_path / "in", tmp_path / "out")
    with pytest.raises(SystemExit, match="check the path"):
        run(tmp_path / "nowhere", tmp_path / "out")
    write_image(tmp_path / "in/sub/a.jpg")
    with pytest.raises(SystemExit, match="same id"):
        run(tmp_path / "in", tmp_path / "out", "--captions", write_json(tmp_path / "c.json", {"a": ["a"]}))


# ---- Many processes, and kills ----


def test_order_and_bytes_do_not_depend_on_the_workers(tmp_path: Path) -> None:
    lengths = [60, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]  # the first is the last to be ready
    for number, frames in enumerate(lengths):
        write_video(tmp_path / f"{number}.mp4", frames, size=(640, 480) if number == 0 else (32, 32))
    rows = [(f"{number}.mp4", f"caption {number}") for number in range(len(lengths))]
    table = write_csv(tmp_path / "c.csv", [*rows[:5], ("gone.mp4", "gone"), *rows[5:]])
    for workers in (1, 2):
        run(table, tmp_path / f"out{workers}", workers=workers)
    assert [int(id_) for id_, *_ in read_rows(tmp_path / "out1")] == list(range(len(lengths)))
    assert all_bytes(tmp_path / "out1") == all_bytes(tmp_path / "out2")


def test_a_worker_that_is_killed_costs_no_row(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", frames=3)
    items = [make_tsv.Item(str(number), tmp_path / "a.mp4", "video") for number in range(20)]
    rows = make_tsv.make_rows(items, make_tsv.Sampling(), workers=2)
    first = next(rows)
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGKILL)
    assert [first, *rows] == list(make_tsv.make_rows(items, make_tsv.Sampling(), workers=1))


class Crash(make_tsv.Item):
    """An item that ends the process that gets it, as a decoder's crash would."""

    def __reduce__(self) -> tuple:
        return os._exit, (1,)


def test_a_crash_costs_one_row(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", frames=3)
    items = [make_tsv.Item(str(number), tmp_path / "a.mp4", "video") for number in range(12)]
    items[4] = Crash("4", tmp_path / "a.mp4", "video")
    rows = list(make_tsv.make_rows(items, make_tsv.Sampling(), workers=2))
    assert "ended the process" in rows.pop(4)[1]
    assert [(len(fields), reason) for fields, reason in rows] == [(3, "")] * 11


class Killed(BaseException):
    """Stands for a kill, which no code can catch."""


def run_and_kill(
    monkeypatch: pytest.MonkeyPatch, source: Path, output: Path, after: int, *options: object
) -> None:
    """Run until so many items are done, then die."""
    add = make_tsv.Output.add

    def add_or_die(self: make_tsv.Output, *result: object) -> None:
        if len(self.done) == after:
            raise Killed
        add(self, *result)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(make_tsv.Output, "add", add_or_die)
        run(source, output, *options)


@pytest.mark.parametrize("after", [0, 2, 3])
@pytest.mark.parametrize(
    "damage", ["none", "half a row more", "half a row less", "no rows", "half a journal line"]
)
def test_a_killed_run_goes_on_to_the_same_bytes(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int, damage: str
) -> None:
    run(clips, tmp_path / "whole")
    output = tmp_path / "out"
    run_and_kill(monkeypatch, clips, output, after)
    part, journal = output / "x.img.tsv.part", output / "x.part.jsonl"
    assert not (output / "x.img.tsv").exists()
    if damage == "half a row more":
        part.write_bytes(part.read_bytes() + b"clip3\t/9j/half a pict")
    elif damage == "half a row less":
        part.write_bytes(part.read_bytes()[:-100])
    elif damage == "no rows":
        part.unlink()
    elif damage == "half a journal line":
        journal.write_bytes(journal.read_bytes()[:-3])
    run_and_kill(monkeypatch, clips, output, 3)
    assert run(clips, output) == 0
    assert all_bytes(output) == all_bytes(tmp_path / "whole")


def test_what_is_done_is_not_done_again(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    run_and_kill(monkeypatch, clips, tmp_path / "out", 3)
    opened = []
    make_row = make_tsv.make_row
    monkeypatch.setattr(make_tsv, "make_row", lambda item, s: opened.append(item.id) or make_row(item, s))
    run(clips, tmp_path / "out")
    assert opened == ["clip3"]
    assert "going on after 3 of 4 items" in capsys.readouterr().out


def test_a_kill_while_finishing_loses_nothing(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(clips, tmp_path / "whole")
    run(clips, tmp_path / "out", "--frames", 2)

    def die(*arguments: object) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(tsv, "write_lineidx", die)
        run(clips, tmp_path / "out", "--overwrite")
    with pytest.raises(SystemExit, match="made otherwise"):  # the rows are new, the captions old
        run(clips, tmp_path / "out", "--frames", 2)
    monkeypatch.setattr(make_tsv, "make_row", die)  # no item is opened again
    assert run(clips, tmp_path / "out") == 0
    assert all_bytes(tmp_path / "out") == all_bytes(tmp_path / "whole")


def test_other_settings_start_over_and_say_so(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    run_and_kill(monkeypatch, clips, tmp_path / "out", 3, "--frames", 2)
    capsys.readouterr()
    run(clips, tmp_path / "out", "--frames", 3)
    assert "frames 2 -> 3" in capsys.readouterr().out
    assert [len(fields) for _, *fields in read_rows(tmp_path / "out")] == [3, 3, 3]


def test_a_changed_file_starts_over(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_and_kill(monkeypatch, clips, tmp_path / "out", 3)
    write_video(tmp_path / "clip1.mp4", frames=2)  # was not a video
    run(clips, tmp_path / "out")
    assert [id_ for id_, *_ in read_rows(tmp_path / "out")] == ["clip0", "clip1", "clip2", "clip3"]


def test_finished_files_are_left_alone(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    output = tmp_path / "out"
    run(clips, output)
    before = {path.name: path.stat().st_mtime_ns for path in output.iterdir()}
    assert set(before) == {f"x.{ending}" for ending in ENDINGS}
    capsys.readouterr()
    assert run(clips, output) == 0
    assert "finished before" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="frames 32 -> 2"):
        run(clips, output, "--frames", 2)
    assert {path.name: path.stat().st_mtime_ns for path in output.iterdir()} == before
    assert run(clips, output, "--frames", 2, "--overwrite") == 0
    assert [len(fields) for _, *fields in read_rows(output)] == [2, 2, 2]
    (output / "x.linelist.tsv").unlink()
    assert run(clips, output, "--frames", 2) == 0
    assert len(read_rows(output, "linelist.tsv")) == 3


def test_a_killed_overwrite_leaves_the_finished_files(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(clips, tmp_path / "out")
    before = all_bytes(tmp_path / "out")
    run_and_kill(monkeypatch, clips, tmp_path / "out", 2, "--frames", 2, "--overwrite")
    assert before.items() <= all_bytes(tmp_path / "out").items()
    run(clips, tmp_path / "out", "--frames", 2, "--overwrite")
    run(clips, tmp_path / "whole", "--frames", 2)
    assert all_bytes(tmp_path / "out") == all_bytes(tmp_path / "whole")


def test_two_at_once_are_refused(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with (tmp_path / "out/x.part.jsonl").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(SystemExit, match="at work"):
            run(clips, tmp_path / "out")
    assert run(clips, tmp_path / "out") == 0


def test_a_source_is_not_overwritten(tmp_path: Path) -> None:
    jpeg = base64.b64encode(write_image(tmp_path / "a.jpg").read_bytes())
    (tmp_path / "x.img.tsv").write_bytes(b"a\t" + jpeg + b"\n")
    captions = write_json(tmp_path / "c.json", {"a": ["a"]})
    with pytest.raises(SystemExit):
        run(tmp_path / "x.img.tsv", tmp_path, "--captions", captions, "--overwrite")
    assert (tmp_path / "x.img.tsv").read_bytes() == b"a\t" + jpeg + b"\n"
