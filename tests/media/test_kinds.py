"""Kinds of files by content, ids by names, orientation, depth, transparency, the structure of a GIF."""

import io
import os
import struct
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from media.decoding import is_cut_gif, read_frames, to_rgb
from media.kinds import as_arguments, file_id, kind_of
from tests.tools.test_make_tsv import failures, read_rows, run, write_video

# ---- Ids ----


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("video7010.mp4", "video7010"),
        ("a/b/video7010.MP4", "video7010"),
        ("11@N01_1_aa.mov.mp4", "11@N01_1_aa"),
        ("11@N01_1_aa.mov", "11@N01_1_aa"),
        ("22@N01_2_bb.", "22@N01_2_bb"),
        ("22@N01_2_bb..mp4", "22@N01_2_bb"),
        ("33@N01_3_cc.3g2", "33@N01_3_cc"),
        ("44@N01_4_dd.m2ts.mp4", "44@N01_4_dd"),
        ("1001_American_Beauty_00.00.51.926-00.00.54.129", "1001_American_Beauty_00.00.51.926-00.00.54.129"),
        (
            "1001_American_Beauty_00.00.51.926-00.00.54.129.avi",
            "1001_American_Beauty_00.00.51.926-00.00.54.129",
        ),
        ("-AbCdEfGhIj_5_15.avi", "-AbCdEfGhIj_5_15"),
        ("00000000.jpg", "00000000"),
        ("b.dat", "b"),
        (".mp4", ".mp4"),
        ("...", "..."),
    ],
)
def test_one_rule_makes_ids(name: str, want: str) -> None:
    assert file_id(name) == want
    assert file_id(Path("folder") / name) == want
    assert file_id(want) == want


def test_didemo_names_are_found_whatever_their_endings(tmp_path: Path, capsys) -> None:
    video = write_video(tmp_path / "one.mp4", frames=3).read_bytes()
    names = {
        "flickr": [
            "11@N01_1_aa.mov",
            "22@N01_2_bb.",
            "33@N01_3_cc.3g2",
            "44@N01_4_dd.m2ts",
            "55@N01_5_ee.mp4",
        ],
        "aws": ["11@N01_1_aa.mov.mp4", "22@N01_2_bb..mp4", "33@N01_3_cc.3g2.mp4", "44@N01_4_dd.m2ts.mp4"],
    }
    for folder, files in names.items():
        (tmp_path / folder).mkdir()
        for name in files:
            (tmp_path / folder / name).write_bytes(video)
        (tmp_path / folder / "list.txt").write_text("a list")
        (tmp_path / folder / "._hidden.mp4").write_bytes(b"\0\5\x16\7")
        run(tmp_path / folder, tmp_path / f"out_{folder}", "--frames_only", "--frames", 1)
        made = [row[0] for row in read_rows(tmp_path / f"out_{folder}", "img_x.tsv", name="")]
        ids = ["11@N01_1_aa", "22@N01_2_bb", "33@N01_3_cc", "44@N01_4_dd", "55@N01_5_ee"]
        assert made == ids[: len(files)]
        assert "2 files ignored (neither video nor picture, or hidden): ._hidden.mp4, list.txt" in (
            capsys.readouterr().out
        )


def test_a_folder_of_frames_has_no_ending(tmp_path: Path) -> None:
    names = [f"1001_American_Beauty_00.00.51.926-00.00.54.{end}" for end in (129, 778)] + ["v1.final"]
    for name in names:
        (tmp_path / "frames" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "frames" / name / "1.jpg")
    run(tmp_path / "frames", tmp_path / "out", "--frame_folders", "--frames_only")
    assert [row[0] for row in read_rows(tmp_path / "out", "img_x.tsv", name="")] == names


def test_a_name_that_is_no_utf8_is_listed(tmp_path: Path, capsys) -> None:
    (tmp_path / "in").mkdir()
    write_video(tmp_path / "in" / "good.mp4", frames=3)
    os.link(tmp_path / "in" / "good.mp4", os.fsencode(tmp_path / "in") + b"/caf\xe9.mp4")
    (Path(os.fsdecode(os.fsencode(tmp_path / "in") + b"/\xff.txt"))).touch()
    run(tmp_path / "in", tmp_path / "out", "--frames_only")
    assert [row[0] for row in read_rows(tmp_path / "out", "img_x.tsv", name="")] == ["good"]
    assert "no UTF-8" in next(iter(failures(tmp_path / "out", "img_x").values()))
    assert r"hidden): \udcff.txt" in capsys.readouterr().out


def test_a_file_whose_name_begins_with_a_dash_is_no_option(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "-AbC.mp4").touch()
    (tmp_path / "--x").touch()
    assert as_arguments(["run", "-AbC.mp4", "--x", "-h", "a man"]) == [
        "run",
        "./-AbC.mp4",
        "./--x",
        "-h",
        "a man",
    ]


# ---- Kinds and reasons ----

ATOM = struct.pack(">I4s", 16, b"ftyp") + b"isom\0\0\2\0"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>error</html>", "is a web page"),
        (b"\xef\xbb\xbf \n<HTML lang=en>", "is a web page"),
        (b"<!-- x --><html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "is a git-lfs pointer"),
        (ATOM + struct.pack(">I4s", 400, b"mdat") + b"\1" * 60, "no moov atom: it is cut off"),
        (ATOM + struct.pack(">I4sQ", 1, b"mdat", 1 << 40) + b"\1" * 60, "no moov atom: it is cut off"),
        (ATOM + struct.pack(">I4s", 400, b"moov") + b"\1" * 60, "moov atom is cut off"),
        (b"PK\3\4" + b"\1" * 40, "zip archive"),
        (b"\0" * 5000, "zeros"),
        (b'{"error": "gone"}', "is text"),
        (b"\xfa\x01\x99" * 200, "decoder cannot read it"),
    ],
)
@pytest.mark.parametrize("ending", ["mp4", "avi", "gif", "jpg"])
def test_what_a_file_is_instead(tmp_path: Path, content: bytes, reason: str, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        list(read_frames(path))


def test_reasons_are_in_the_list_of_failures(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_video(tmp_path / "in" / "good.mp4", frames=3)
    (tmp_path / "in" / "empty.avi").touch()
    (tmp_path / "in" / "page.avi").write_text("<html>")
    run(tmp_path / "in", tmp_path / "out", "--frames_only")
    assert failures(tmp_path / "out", "img_x") == {
        "empty": "it is empty",
        "page": "it is a web page (6 bytes), which came instead of the file",
    }


def animation(format: str) -> bytes:
    """Six frames, each of its own brightness."""
    frames = [Image.new("RGB", (32, 32), (40 * i,) * 3) for i in range(6)]
    file = io.BytesIO()
    frames[0].save(file, format, save_all=True, append_images=frames[1:], duration=100, loop=0)
    return file.getvalue()


@pytest.mark.parametrize("format", ["WEBP", "PNG", "GIF"])
@pytest.mark.parametrize("ending", ["gif", "webp", "png", "mp4", "dat", ""])
def test_content_goes_before_the_ending(tmp_path: Path, format: str, ending: str) -> None:
    path = tmp_path / "in" / f"a.{ending}"
    path.parent.mkdir()
    path.write_bytes(animation(format))
    assert kind_of(path) == ("video" if format == "GIF" else "picture")
    run(tmp_path / "in", tmp_path / "out", "--frames_only", "--frames", 6)
    [[id_, *frames]] = read_rows(tmp_path / "out", "img_x.tsv", name="")
    assert (id_, len(frames)) == ("a", 6)


# ---- Orientation ----

QUADRANTS = np.zeros((64, 96, 3), np.uint8)
QUADRANTS[:32, :48], QUADRANTS[:32, 48:], QUADRANTS[32:, :48], QUADRANTS[32:, 48:] = (
    (255, 0, 0),
    (0, 255, 0),
    (0, 0, 255),
    (255, 255, 255),
)
COLOURS = {(1, 0, 0): "R", (0, 1, 0): "G", (0, 0, 1): "B", (1, 1, 1): "W"}


def seen(picture: Image.Image) -> str:
    """The colours of its quadrants, row by row."""
    pixels = np.asarray(picture)
    height, width = pixels.shape[:2]
    at = [(y, x) for y in (height // 4, 3 * height // 4) for x in (width // 4, 3 * width // 4)]
    names = [COLOURS[tuple(int(v > 128) for v in pixels[place])] for place in at]
    return f"{names[0]}{names[1]}/{names[2]}{names[3]}"


@pytest.mark.parametrize(
    ("matrix", "want"),
    [
        ((1, 0, 0, 1), "RG/BW"),
        ((0, 1, -1, 0), "BR/WG"),
        ((-1, 0, 0, -1), "WB/GR"),
        ((0, -1, 1, 0), "GW/RB"),
        ((-1, 0, 0, 1), "GR/WB"),
        ((1, 0, 0, -1), "BW/RG"),
        ((0, 1, 1, 0), "RB/GW"),
        ((0, -1, -1, 0), "WG/BR"),
    ],
)
def test_all_eight_orientations(tmp_path: Path, matrix: tuple[int, ...], want: str) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv444p"
        stream.codec_context.sample_aspect_ratio = 2
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(QUADRANTS, format="rgb24")))
        container.mux(stream.encode())
    data = bytearray(path.read_bytes())
    place = data.find(b"tkhd") + 8 + (20 if data[data.find(b"tkhd") + 4] == 0 else 32) + 16
    a, b, c, d = (number << 16 for number in matrix)
    data[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    frame = next(read_frames(path))
    assert seen(frame.picture()) == want
    assert frame.picture().size == ((96, 64) if matrix[0] else (64, 96))
    assert frame.aspect == (2.0 if matrix[0] else 0.5)


# ---- Depth, transparency, colour models ----


def first_picture(path: Path) -> np.ndarray:
    return np.asarray(next(read_frames(path)).picture())


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_sixteen_bits_are_scaled(tmp_path: Path, ending: str) -> None:
    levels = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    Image.fromarray(levels).save(tmp_path / f"a.{ending}")
    assert np.abs(first_picture(tmp_path / f"a.{ending}")[..., 0] - levels / 257.0).max() <= 1


@pytest.mark.parametrize(
    ("values", "want"),
    [
        ([0, 100, 255], [0, 100, 255]),
        ([0, 32768, 65535], [0, 128, 255]),
        ([0, 1 << 20, 1 << 21], [0, 128, 255]),
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
        ([float("nan"), 0.25, 0.5], [0, 64, 128]),
    ],
)
def test_thirty_two_bits_are_scaled(tmp_path: Path, values: list, want: list[int]) -> None:
    kind = np.float32 if isinstance(values[0], float) else np.int32
    Image.fromarray(np.array([values] * 4, kind)).save(tmp_path / "a.tif")
    assert first_picture(tmp_path / "a.tif")[0, :, 0].tolist() == want


def transparent(mode: str) -> Image.Image:
    """Left red, right transparent black."""
    picture = Image.new("RGBA", (16, 8), (255, 0, 0, 255))
    picture.paste((0, 0, 0, 0), (8, 0, 16, 8))
    return picture.quantize() if mode == "P" else picture.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.parametrize("ending", ["png", "webp", "gif", "tif"])
def test_transparency_is_laid_on_white(tmp_path: Path, mode: str, ending: str) -> None:
    picture = transparent(mode)
    if (ending, mode) in (("tif", "P"), ("gif", "P"), ("gif", "LA")):
        picture = picture.convert("RGBA")  # Pillow does not write these
        mode = "RGBA" if mode == "P" else mode
    picture.save(tmp_path / f"a.{ending}", **({"lossless": True} if ending == "webp" else {}))
    pixels = first_picture(tmp_path / f"a.{ending}").astype(int)
    assert pixels[4, 12].min() > 250
    assert abs(pixels[4, 3] - ([76] * 3 if mode == "LA" else [255, 0, 0])).max() < 4


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_transparent_colour_is_white(tmp_path: Path, mode: str) -> None:
    black = 0 if mode == "L" else (0, 0, 0)
    Image.new(mode, (8, 8), black).save(tmp_path / "a.png", transparency=black)
    assert first_picture(tmp_path / "a.png").min() == 255


def test_a_video_with_transparency_is_laid_on_white(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mov"), "w") as container:
        stream = container.add_stream("qtrle", rate=5)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "argb"
        pixels = np.zeros((16, 32, 4), np.uint8)
        pixels[:, :16] = (255, 255, 0, 0)  # alpha first
        for _ in range(2):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="argb")))
        container.mux(stream.encode())
    picture = first_picture(tmp_path / "a.mov")
    assert picture[8, 4].tolist() == [255, 0, 0] and picture[8, 24].tolist() == [255] * 3


@pytest.mark.parametrize("ending", ["jpg", "tif"])
def test_cmyk(tmp_path: Path, ending: str) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / f"a.{ending}")
    assert np.abs(first_picture(tmp_path / f"a.{ending}").astype(int) - [255, 0, 0]).max() < 6


def test_lab_and_one_bit() -> None:
    assert np.asarray(to_rgb(Image.new("LAB", (4, 4), (255, 128, 128)))).min() > 250
    assert np.asarray(to_rgb(Image.new("1", (4, 4), 1))).min() == 255


# ---- GIFs ----


def test_a_gif_is_whole_by_its_structure(tmp_path: Path) -> None:
    whole = animation("GIF")
    assert whole.endswith(b";")
    ends = {"whole": whole, "no_mark": whole[:-1], "zeros": whole + bytes(100), "more": whole + b"x;y" * 18}
    ends |= {
        "padded": whole[:-1] + bytes(3000),
        "cut": whole[:-9],
        "headless": whole[:10],
        "head": whole[:13],
    }
    (tmp_path / "in").mkdir()
    for name, content in ends.items():
        (tmp_path / "in" / f"{name}.gif").write_bytes(content)
        cut = name in ("cut", "headless", "head")
        assert is_cut_gif(tmp_path / "in" / f"{name}.gif") == cut, name
    run(tmp_path / "in", tmp_path / "out", "--frames_only")
    made = {row[0]: len(row) - 1 for row in read_rows(tmp_path / "out", "img_x.tsv", name="")}
    assert made == dict.fromkeys(["more", "no_mark", "padded", "whole", "zeros"], 6)
    run(tmp_path / "in", tmp_path / "kept", "--frames_only", "--keep_damaged")
    made = {row[0] for row in read_rows(tmp_path / "kept", "img_x.tsv", name="")}
    assert "cut" in made


@pytest.mark.parametrize("step", [1, 7])
def test_a_gif_cut_anywhere_in_its_last_image_is_cut(tmp_path: Path, step: int) -> None:
    whole, path = animation("GIF"), tmp_path / "a.gif"
    last = whole.rindex(b"\x2c\0\0\0\0")
    for end in range(last + 1, len(whole) - 1, step):
        path.write_bytes(whole[:end])
        assert is_cut_gif(path), end
