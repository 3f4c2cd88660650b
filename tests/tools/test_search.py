"""Searching a folder and a TSV by words; pages that stand by themselves; the demo's captions."""

import base64
import html.parser
import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import search
from demo import retrieval as demo_retrieval
from lib import Config, UserError
from media.frames import Stored
from tasks.retrieval.model import RetrievalModel
from tasks.retrieval.pages import report, strip
from tasks.retrieval.ranking import figures
from tests.conftest import demo_network, jpeg, write_videos

VOID = {"meta", "img", "br", "link"}


class Checker(html.parser.HTMLParser):
    """Collects tags, and sees that each is closed where it was opened."""

    def __init__(self):
        super().__init__()
        self.open, self.found = [], []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def tags(path: Path) -> list[tuple[str, dict]]:
    checker = Checker()
    checker.feed(path.read_text())
    assert not checker.open
    return checker.found


@pytest.fixture
def checkpoint(tmp_path, bert_folder, monkeypatch):
    """A model that knows nothing, in its run's folder; the arguments that name it."""
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    run.mkdir()
    config = Config(
        type="retrieval",
        task="found",
        **demo_network(bert_folder),
        size_img=32,
        size_frame=2,
        size_txt=10,
        device="cpu",
    )
    (run / "args.json").write_text(config.to_json())
    torch.save(RetrievalModel.from_config(config).state_dict(), run / "model.pt")
    return ["--checkpoint", str(run / "model.pt")]


@pytest.fixture
def folder(tmp_path):
    """Three videos, one of them in a folder whose name needs care in an address, and a file that is none."""
    videos = tmp_path / "videos"
    (videos / "a & b").mkdir(parents=True)
    for number, name in enumerate(["one.avi", "two.avi", "a & b/three.avi"]):
        writer = cv2.VideoWriter(str(videos / name), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
        for i in range(6):
            writer.write(np.full((48, 64, 3), 30 + 60 * number + 5 * i, np.uint8))
        writer.release()
    (videos / "notes.txt").write_text("no video")
    return videos


def table(text: str) -> dict[str, float]:
    rows = [line.split(maxsplit=2) for line in text.splitlines() if line[:3].strip().isdigit()]
    return {name: float(score) for _, score, name in rows}


def test_a_folder_is_encoded_once_and_only_what_is_new_again(monkeypatch, folder, checkpoint, capsys):
    encoded = []
    encode = search.RetrievalModel.from_config

    def counted(config):
        model = encode(config)
        model.enc_img.register_forward_hook(lambda *_: encoded.append(1))
        return model

    monkeypatch.setattr(search.RetrievalModel, "from_config", counted)
    search.main([str(folder), "a red star", *checkpoint])
    first = table(capsys.readouterr().out)
    assert len(encoded) == 3 and first.keys() == {"one.avi", "two.avi", "a & b/three.avi"}
    assert list(first.values()) == sorted(first.values(), reverse=True)
    search.main([str(folder), "a red star", *checkpoint])
    assert table(capsys.readouterr().out) == first and len(encoded) == 3
    (folder / "one.avi").write_bytes((folder / "two.avi").read_bytes())
    (folder / "two.avi").unlink()
    search.main([str(folder), "a red star", *checkpoint])
    second = table(capsys.readouterr().out)
    assert len(encoded) == 4
    assert second["one.avi"] == first["two.avi"] and "two.avi" not in second
    state = torch.load(checkpoint[1], weights_only=True)
    torch.save({**state, "fc.3.bias": state["fc.3.bias"] + 1}, checkpoint[1])
    search.main([str(folder), "a red star", *checkpoint])
    assert len(encoded) == 6  # another checkpoint's features are of no use


def test_each_text_is_a_search_and_what_cannot_be_read_is_left_out(folder, checkpoint, capsys):
    (folder / "broken.mp4").write_bytes(b"nothing")
    search.main([str(folder), "a red star", "blue", "--top", "1", *checkpoint])
    out, err = capsys.readouterr()
    assert [line for line in out.splitlines() if line in ("a red star", "blue")] == ["a red star", "blue"]
    assert out.count("\n  1 ") == 2 and "\n  2 " not in out
    assert "broken.mp4 cannot be read" in err


def test_a_name_that_is_no_utf8_is_left_out_at_once_and_the_folder_stays_as_it_is(folder, checkpoint, capsys):
    os.link(folder / "one.avi", os.fsencode(folder) + b"/caf\xe9.avi")
    before = sorted(os.listdir(os.fsencode(folder)))
    search.main([str(folder), "a red star", "--cache", str(folder.parent / "kept"), *checkpoint])
    out, err = capsys.readouterr()
    assert table(out).keys() == {"one.avi", "two.avi", "a & b/three.avi"}
    assert err.startswith(r"left out: caf\udce9.avi: its name is not printable UTF-8; rename it")
    assert sorted(os.listdir(os.fsencode(folder))) == before
    assert [path.name[:7] for path in (folder.parent / "kept").iterdir()] == ["videos-"]
    assert not (folder.parent / "_snapshot").exists()


def test_the_page_plays_its_videos(tmp_path, folder, checkpoint):
    page = tmp_path / "pages" / "found.html"
    search.main([str(folder), "a <red> star", "--html", str(page), *checkpoint])
    found = tags(page)
    videos = [given for tag, given in found if tag == "video"]
    assert len(videos) == 3
    for given in videos:
        assert given["poster"].startswith("data:image/jpeg;base64,")
        assert {"controls", "tabindex"} <= given.keys()  # without scripts, and with the keyboard alone
    assert [tag for tag, _ in found].count("script") == 1
    assert "../videos/a%20%26%20b/three.avi" in [given["src"] for given in videos]
    assert "a &lt;red&gt; star" in page.read_text()
    assert any(given.get("name") == "viewport" for tag, given in found if tag == "meta")


def test_thumbnails_are_sharper_than_what_the_model_sees(tmp_path, folder, checkpoint):
    """It sees 32 px; stripes of 2 in 256 would be grey in its frames."""
    writer = cv2.VideoWriter(str(folder / "fine.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (256, 192))
    stripes = np.tile(np.uint8([0, 0, 255, 255]), (192, 64))
    for _ in range(4):
        writer.write(np.repeat(stripes[..., None], 3, axis=2))
    writer.release()
    page = tmp_path / "found.html"
    search.main([str(folder), "a red star", "--html", str(page), *checkpoint])
    poster = next(g["poster"] for tag, g in tags(page) if tag == "video" and g["src"].endswith("fine.avi"))
    raw = np.frombuffer(base64.b64decode(poster.split(",")[1]), np.uint8)
    assert cv2.imdecode(raw, cv2.IMREAD_GRAYSCALE).std(axis=1).mean() > 60


def test_a_tsv_is_searched_as_well(tmp_path, checkpoint, capsys):
    path = write_videos(tmp_path, rows=3)
    search.main([str(path), "a red star", "--html", str(tmp_path / "found.html"), *checkpoint])
    assert table(capsys.readouterr().out).keys() == {"clip0", "clip1", "clip2"}
    [kept] = (tmp_path / "_snapshot/search").iterdir()
    assert kept.name.startswith("img_clips-") and kept.suffix == ".safetensors"
    assert len([tag for tag, _ in tags(tmp_path / "found.html") if tag == "img"]) == 3
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no video file in it"):
        search.main([str(tmp_path / "empty"), "a", *checkpoint])


def test_the_report_shows_the_best_and_the_worst_and_where_the_right_one_is():
    scores = np.eye(12) * 3
    scores[0, 0] = -1.0
    rows = [
        {
            "direction": "t2v",
            "text": f"text {i}",
            "video": f"v{i}",
            "rank": 12 if i == 0 else 1,
            "score": float(scores[i, i]),
            "best": [{"video": f"v{j}", "score": float(scores[j, i])} for j in np.argsort(-scores[:, i])[:5]],
        }
        for i in range(12)
    ]
    text = report(rows, figures(scores, np.arange(12)), lambda name: Stored([jpeg(), jpeg(90)]), queries=3)
    worst = text[text.index("Worst queries") :]
    assert worst.index("text 0") < worst.index("its own, at 12: v0")
    assert "text 0" not in text[: text.index("Worst queries")]
    assert text.count('class="right"') == 6  # three best, three worst
    everything = report(rows, figures(scores, np.arange(12)), lambda name: Stored([jpeg()]), queries=12)
    assert "Worst" not in everything  # no heading over nothing
    assert "91.7%" in text and "8.3%" in text  # 11 of 12, chance 1 of 12


def test_a_strip_is_frames_side_by_side():
    picture = strip(Stored([jpeg(30), jpeg(128), jpeg(220)]), count=3, height=32)
    raw = np.frombuffer(base64.b64decode(picture.split(",")[1]), np.uint8)
    levels = cv2.imdecode(raw, cv2.IMREAD_GRAYSCALE)
    assert levels.shape == (32, 120)
    assert levels[:, :40].mean() < 60 < 100 < levels[:, 40:80].mean() < 160 < levels[:, 80:].mean()


def test_the_demos_captions_are_in_the_published_format(tmp_path):
    for split, count in (("train", 2), ("val", 1), ("test", 1)):
        scenes = [
            {"id": f"{split}{i}", "captions": [f"text {i} {n}" for n in range(count)]} for i in range(3)
        ]
        (tmp_path / f"{split}.scenes.jsonl").write_text("".join(json.dumps(s) + "\n" for s in scenes))
    demo_retrieval.main(["--data", str(tmp_path)])
    content = json.loads((tmp_path / "txt_demo-retrieval.json").read_text())
    assert {split: len(pairs) for split, pairs in content.items()} == {"train": 6, "val": 3, "test": 3}
    assert content["test"][1] == {"video": "test1", "caption": "text 1 0"}
    (tmp_path / "val.scenes.jsonl").write_text(
        '{"id": "a", "captions": ["x"]}\n{"id": "b", "captions": ["x"]}\n'
    )
    with pytest.raises(UserError, match="two videos have the same caption"):
        demo_retrieval.main(["--data", str(tmp_path)])
