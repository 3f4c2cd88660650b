"""Video files of all sorts: the right frames, upright, at the right times, whole or by seeking.

pytest tests/test_decoding.py
"""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from lib import UserError
from media import decoding
from media.decoding import by_key_frame, frames_at, read_frames, stated_times
from media.frames import row_frames
from media.tsv import BadRow
from tests.tools.test_make_tsv import cut_video, failures, picture, read_rows, run, write_csv, write_image

STEP = 20  # brightness from one frame to the next
FORMATS = [
    ("mp4", "libx264", "yuv420p"),
    ("mov", "libx264", "yuv420p"),
    ("mkv", "libx264", "yuv420p10le"),
    ("mkv", "libx264", "yuv444p"),
    ("mp4", "libx264", "yuv422p"),
    ("avi", "mpeg4", "yuv420p"),
    ("avi", "mjpeg", "yuvj444p"),
    ("webm", "libvpx-vp9", "yuv420p"),
    ("webm", "libvpx-vp9", "yuva420p"),
    ("mov", "qtrle", "argb"),
    ("mkv", "ffv1", "bgr0"),
    ("gif", "gif", "pal8"),
    ("ts", "mpeg2video", "yuv422p"),
]


def number_of(frame: decoding.Frame) -> int:
    """That of a test video's frame, by its brightness."""
    level = float(np.asarray(frame.picture()).mean())
    assert abs(level - STEP * round(level / STEP)) < 0.4 * STEP
    return round(level / STEP)


def write_video(
    path: Path,
    frames: int = 12,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    size: tuple[int, int] = (64, 48),
    times: list[float] | None = None,
    turn: int = 0,
    metadata: dict[str, str] | None = None,
    **options: str,
) -> Path:
    """A video whose frame i has brightness i * STEP everywhere, at 25 a second or at `times`."""
    with av.open(str(path), "w") as container:
        container.metadata.update(metadata or {})
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height = size
        stream.pix_fmt = {"pal8": "rgb8"}.get(pixels, pixels)
        stream.codec_context.time_base = Fraction(1, 100 if times else 25)
        if turn:
            stream.set_display_rotation(turn)
        for number in range(frames):
            shade = np.full((size[1], size[0], 3), number * STEP % 260, np.uint8)
            frame = av.VideoFrame.from_ndarray(shade, format="rgb24").reformat(format=stream.pix_fmt)
            frame.pts = round(times[number] * 100) if times else number
            frame.time_base = stream.codec_context.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(("ending", "codec", "pixels"), FORMATS)
def test_formats(tmp_path: Path, ending: str, codec: str, pixels: str) -> None:
    path = write_video(tmp_path / f"a.{ending}", codec=codec, pixels=pixels)
    shown = list(read_frames(path))
    assert [number_of(frame) for frame in shown] == list(range(12))
    assert [frame.time for frame in shown] == stated_times(path)
    assert np.diff([frame.time for frame in shown]) == pytest.approx([0.04] * 11, abs=2e-3)
    times = [shown[number].time for number in (0, 5, 11)]
    sought = frames_at(path, times)
    assert [frame.time for frame in sought] == times
    for frame, number in zip(sought, (0, 5, 11), strict=True):
        assert np.array_equal(np.asarray(frame.picture()), np.asarray(shown[number].picture()))


@pytest.mark.parametrize("gop", ["1", "5", "250"])
@pytest.mark.parametrize("ending", ["mp4", "mkv", "avi", "ts"])
def test_seeking_finds_the_frame_that_is_on_screen(tmp_path: Path, ending: str, gop: str) -> None:
    codec = "mpeg4" if ending == "avi" else "libx264"
    path = write_video(tmp_path / f"a.{ending}", 100, codec, g=gop)
    shown = list(read_frames(path))
    first = shown[0].time
    wanted = [0, 1, 17, 18, 49, 50, 98, 99]
    for shift in (0.0, 0.015):  # between two frames it is the earlier
        sought = frames_at(path, [first + number * 0.04 + shift for number in wanted])
        assert [number_of(frame) for frame in sought] == [number % 13 for number in wanted]
        assert [frame.time for frame in sought] == pytest.approx([first + n * 0.04 for n in wanted], abs=2e-3)
    with pytest.raises(ValueError, match="a frame is wanted at"):
        frames_at(path, [first, first + 6])


def test_what_is_sought_is_not_decoded_from_the_beginning(tmp_path: Path, monkeypatch) -> None:
    path = write_video(tmp_path / "a.mp4", 100, g="10", sc_threshold="0")
    decoded = []

    def watch(*arguments: object, **options: object):
        for frame in video_frames(*arguments, **options):
            decoded.append(frame.time)
            yield frame

    video_frames = decoding.video_frames
    monkeypatch.setattr(decoding, "video_frames", watch)
    frames_at(path, [0.04 * number for number in (3, 6, 33, 98)])
    assert len(decoded) <= 7 + 4 + 9


def write_moving(path: Path, codec: str = "libx264", frames: int = 60, **options: str) -> Path:
    """A video of a texture that moves, so that frames build on each other, with frames between them."""
    chance = np.random.default_rng(0)
    texture = np.asarray(Image.fromarray(chance.integers(0, 256, (12, 16, 3), np.uint8)).resize((128, 96)))
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options={"bf": "3", **options})
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for number in range(frames):
            moved = np.roll(texture, (number, 2 * number), (0, 1)) // 2 + chance.integers(0, 9, texture.shape)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(moved.astype(np.uint8), format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", {"b-pyramid": "normal"}),
        ("a.mkv", "libx264", {"b-pyramid": "normal"}),
        ("a.mp4", "libx264", {"x264-params": "open-gop=1"}),
        ("a.mp4", "mpeg4", {}),
        ("a.ts", "mpeg2video", {}),
        ("a.mp4", "libx265", {}),
    ],
)
def test_frames_that_no_other_builds_on_are_left_out_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, codec: str, options: dict[str, str]
) -> None:
    path = write_moving(tmp_path / name, codec, g="30", **options)
    want = [(frame.time, np.asarray(frame.picture())) for frame in read_frames(path)]
    given = []

    def watch(*arguments: object) -> Iterator:
        for frame in decoded(*arguments):
            given.append(frame)
            yield frame

    decoded = decoding.decoded
    monkeypatch.setattr(decoding, "decoded", watch)
    for time, pixels in want:
        [frame] = frames_at(path, [time + 0.01])
        assert frame.time == time and not frame.damaged
        assert np.array_equal(np.asarray(frame.picture()), pixels)
    several = [want[i][0] for i in (5, 6, 40, 59)]
    given.clear()
    assert [frame.time for frame in frames_at(path, several)] == several
    if codec in ("libx264", "mpeg4"):  # of which the containers have an index
        assert len(given) <= 30


def test_an_index_that_is_read_late_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Matroska's is known after the first seek: without it each of these would be sought on its own."""
    path = write_moving(tmp_path / "a.mkv", frames=200, g="200", sc_threshold="0")
    groups = []
    monkeypatch.setattr(decoding, "by_key_frame", lambda *a: groups.extend(by_key_frame(*a)) or groups)
    frames_at(path, [0.4, 3.2, 6.4])
    assert groups == [[0.4, 3.2, 6.4]]


def flip(path: Path, packet: int) -> None:
    """Change some bits in the middle of one packet of a video."""
    with av.open(str(path)) as container:
        found = [p for p in container.demux(video=0) if p.size][packet]
        middle = found.pos + found.size // 2
    data = bytearray(path.read_bytes())
    for place in range(middle, middle + 8):
        data[place] ^= 0x55
    path.write_bytes(data)


def test_damage_that_a_decoder_conceals(tmp_path: Path) -> None:
    path = write_moving(tmp_path / "a.mp4", g="20", bf="0", sc_threshold="0")
    whole = [np.asarray(frame.picture()).astype(int) for frame in read_frames(path)]
    table = write_csv(tmp_path / "c.csv", [("a.mp4", "a clip")])
    run(table, tmp_path / "linked", "--link", "--frames", 60)
    row = [field.encode() for field in read_rows(tmp_path / "linked")[0]]
    flip(path, 25)
    shown = list(read_frames(path))
    assert [i for i, frame in enumerate(shown) if frame.damaged] == list(
        range(25, 40)
    )  # to the next key frame
    smudges = [np.abs(np.asarray(f.picture()) - w).max() for f, w in zip(shown, whole, strict=True)]
    assert max(smudges[:25] + smudges[40:]) == 0 < min(smudges[25:40])
    run(table, tmp_path / "kept", "--keep_damaged")
    assert len(read_rows(tmp_path / "kept")[0]) == 33
    run(table, tmp_path / "few", "--frames", 2)  # the first and the last, which are whole
    assert len(read_rows(tmp_path / "few")[0]) == 3
    with pytest.raises(UserError, match="no row could be"):
        run(table, tmp_path / "out")
    assert "damaged: the decoder had to guess the picture at 1." in failures(tmp_path / "out")["a"]
    frames = row_frames(row, tmp_path / "linked")
    assert len(frames.read([0, 24, 40])) == 3
    with pytest.raises(BadRow, match=r"a\.mp4: damaged: .* at 1\.20 seconds"):
        frames.read([0, 30])


@pytest.mark.parametrize("codec", ["mpeg4", "mjpeg"])
def test_an_avi_that_is_cut_is_noticed(tmp_path: Path, codec: str) -> None:
    """FFmpeg takes what is left for the whole of it where each packet is a key frame."""
    pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    cut_video(write_video(tmp_path / "b.avi", 50, codec, pixels), tmp_path / "a.avi", packets=30)
    run(write_csv(tmp_path / "c.csv", [("a.avi", "a"), ("b.avi", "b")]), tmp_path / "out")
    assert [id_ for id_, *_ in read_rows(tmp_path / "out")] == ["b"]
    assert "of 2.00 seconds could be decoded" in failures(tmp_path / "out")["a"]


def test_times_are_grouped_by_key_frame() -> None:
    assert by_key_frame([0, 1, 2, 7], keys=[0, 1.5, 5, 6]) == [[0, 1], [2], [7]]
    assert by_key_frame([0, 1, 2, 7], keys=[]) == [[0, 1, 2], [7]]


def test_a_video_that_is_turned_comes_out_upright(tmp_path: Path) -> None:
    plain = next(read_frames(write_marked(tmp_path / "plain.mp4", 0)))
    for turn in (90, 180, 270):
        frame = next(read_frames(write_marked(tmp_path / f"{turn}.mp4", turn)))
        want = plain.picture().rotate(turn, expand=True)
        assert frame.picture().size == want.size
        assert np.abs(np.asarray(frame.picture()).astype(int) - np.asarray(want)).max() <= 2
        assert frame.aspect == pytest.approx(0.75 if turn == 180 else 4 / 3)
    assert plain.aspect == pytest.approx(0.75)


def write_marked(path: Path, turn: int) -> Path:
    """A video with one bright corner, of pixels three quarters as wide as high, that asks to be turned."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(3, 4)
        if turn:
            stream.set_display_rotation(turn)
        shade = np.zeros((48, 64, 3), np.uint8)
        shade[:16, :16] = 255
        container.mux(stream.encode(av.VideoFrame.from_ndarray(shade, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_variable_frame_rate_goes_by_the_clock(tmp_path: Path) -> None:
    times = [0, 0.1, 0.2, 0.3, 2.0, 2.1, 5.0, 5.5]
    path = write_video(tmp_path / "a.mkv", 8, times=times)
    assert [frame.time for frame in read_frames(path)] == times
    assert [number_of(frame) for frame in frames_at(path, [1.0, 2.05, 4.9, 5.2])] == [3, 4, 5, 6]
    run(write_csv(tmp_path / "c.csv", [("a.mkv", "a clip")]), tmp_path / "out", "--fps", 1)
    levels = [np.asarray(picture(field)).mean() / STEP for field in read_rows(tmp_path / "out")[0][1:]]
    assert np.round(levels).tolist() == [0, 3, 4, 5, 6]  # on screen after 0, 1, 2, 3 (and 4), 5 seconds
    run(tmp_path / "c.csv", tmp_path / "window", "--start", 0.1, "--end", 2, "--frames", 2)
    assert [len(row) - 1 for row in read_rows(tmp_path / "window")] == [2]  # though 0.3 to 2 has no frame


def test_metadata_that_are_not_utf8(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", metadata={"title": "XXXX"})
    path.write_bytes(path.read_bytes().replace(b"XXXX", b"na\xefv"))
    with pytest.raises(UnicodeDecodeError), av.open(str(path)):
        pass
    assert len(list(read_frames(path))) == 12


def write_webp(path: Path, frames: int = 5) -> Path:
    """An animation whose frame i has brightness i * STEP and lasts (i + 1) tenths of a second."""
    pictures = [Image.new("RGB", (64, 48), (number * STEP,) * 3) for number in range(frames)]
    lengths = [100 * (number + 1) for number in range(frames)]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=lengths, lossless=True)
    return path


def test_animated_webp_is_a_video(tmp_path: Path) -> None:
    path = write_webp(tmp_path / "a.webp")
    shown = list(read_frames(path))
    assert [(number_of(frame), frame.time) for frame in shown] == [
        (0, 0),
        (1, 0.1),
        (2, 0.3),
        (3, 0.6),
        (4, 1),
    ]
    assert [number_of(frame) for frame in frames_at(path, [0.2, 0.7])] == [1, 3]
    write_image(tmp_path / "still.webp")
    run(write_csv(tmp_path / "c.csv", [("a.webp", "a"), ("still.webp", "b")]), tmp_path / "out", "--fps", 5)
    assert [len(row) - 1 for row in read_rows(tmp_path / "out")] == [5, 1]
    run(tmp_path, tmp_path / "folder", "--frames_only")
    rows = read_rows(tmp_path / "folder", "img_x.tsv", name="")
    assert [(id_, len(fields)) for id_, *fields in rows] == [("a", 5), ("still", 1)]


def test_folders_of_frames(tmp_path: Path) -> None:
    for video, frames in (("a", 12), ("b", 3)):
        (tmp_path / "in" / video).mkdir(parents=True)
        for number in range(frames):
            Image.new("RGB", (64, 48), (number * STEP,) * 3).save(tmp_path / f"in/{video}/frame{number}.png")
    (tmp_path / "in/b/frame1.png").write_bytes(b"not a picture")
    run(tmp_path / "in", tmp_path / "out", "--frame_folders", "--frames_only", "--frames", 4)
    [[id_, *fields]] = read_rows(tmp_path / "out", "img_x.tsv", name="")
    levels = [np.asarray(picture(field)).mean() / STEP for field in fields]
    assert (id_, np.round(levels).tolist()) == ("a", [0, 4, 7, 11])  # frame10 comes after frame9
    assert "frame1.png" in failures(tmp_path / "out", "img_x")["b"]
    run(tmp_path / "in", tmp_path / "rate", "--frame_folders", "--frames_only", "--fps", 1, "--rate", 4)
    rows = read_rows(tmp_path / "rate", "img_x.tsv", name="")
    assert [(id_, len(fields)) for id_, *fields in rows] == [("a", 3), ("b", 1)]
    with pytest.raises(UserError, match="no row could be"):
        run(tmp_path / "in", tmp_path / "none", "--frame_folders", "--frames_only", "--fps", 1)
    assert "say --rate" in failures(tmp_path / "none", "img_x")["a"]


def test_videos_of_one_frame_and_of_none(tmp_path: Path) -> None:
    write_video(tmp_path / "one.mp4", frames=1)
    with av.open(str(tmp_path / "none.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
    run(write_csv(tmp_path / "c.csv", [("one.mp4", "a"), ("none.mp4", "b")]), tmp_path / "out", "--fps", 3)
    assert [len(row) for row in read_rows(tmp_path / "out")] == [2]
    assert list(failures(tmp_path / "out")) == ["none"]


@pytest.mark.parametrize("gop", ["5", "250"])
def test_clips_of_a_video(tmp_path: Path, gop: str) -> None:
    write_video(tmp_path / "a.mp4", 100, g=gop)
    table = tmp_path / "c.csv"
    table.write_text(
        "id,video,start,end,caption\none,a.mp4,0,0.16,x\ntwo,a.mp4,1.2,1.4,x\nrest,a.mp4,3.8,,x\n"
        "short,a.mp4,2.01,2.02,x\nbeyond,a.mp4,9,10,x\npart,a.mp4,3.9,20,x\n"
    )
    run(table, tmp_path / "out")
    rows = {id_: fields for id_, *fields in read_rows(tmp_path / "out")}
    want = {"one": range(4), "two": range(30, 35), "rest": range(95, 100), "short": [50], "part": [98, 99]}
    assert list(rows) == list(want)
    for id_, numbers in want.items():
        levels = [np.asarray(picture(field)).mean() / STEP for field in rows[id_]]
        assert np.round(levels).tolist() == [number % 13 for number in numbers], id_
    assert "begins at 9.0 seconds" in failures(tmp_path / "out")["beyond"]
    run(table, tmp_path / "first", "--end", 0.08, "--overwrite")  # not that of clips with their own
    assert [len(row) - 1 for row in read_rows(tmp_path / "first")] == [4, 5, 5, 1, 2]
    write_csv(tmp_path / "d.csv", [("a.mp4", "x")])
    run(tmp_path / "d.csv", tmp_path / "window", "--start", 0.4, "--end", 0.8, "--frames", 3)
    levels = [np.asarray(picture(f)).mean() / STEP for f in read_rows(tmp_path / "window")[0][1:]]
    assert np.round(levels).tolist() == [10, 14 % 13, 19 % 13]
