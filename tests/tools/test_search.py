"""Searching a folder and a TSV by words; pages that stand by themselves; the demo's captions."""

import base64
import dataclasses
import hashlib
import html.parser
import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import embed
import search
from demo import retrieval as demo_retrieval
from lib import Config, UserError
from media.frames import Stored
from tasks.retrieval.index import Index
from tasks.retrieval.model import RetrievalModel
from tasks.retrieval.pages import report, strip
from tasks.retrieval.ranking import figures
from tests.conftest import demo_network, jpeg, write_corpus, write_videos
from violet import Pretrained, load

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
    load = search.load

    def counted(*given, **changes):
        violet = load(*given, **changes)
        violet.network.enc_img.register_forward_hook(lambda *_: encoded.append(1))
        return violet

    monkeypatch.setattr(search, "load", counted)
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
    assert len(encoded) == 6  # another checkpoint's tokens are of no use
    assert len(list(folder.parent.glob("_snapshot/search/videos-*/tokens/*"))) == 2  # and are deleted


def test_each_text_is_a_search_and_what_cannot_be_read_is_left_out(folder, checkpoint, capsys, caplog):
    (folder / "broken.mp4").write_bytes(b"nothing")
    search.main([str(folder), "a red star", "blue", "--top", "1", *checkpoint])
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if line in ("a red star", "blue")] == ["a red star", "blue"]
    assert out.count("\n  1 ") == 2 and "\n  2 " not in out
    assert "left out:" in caplog.text and "broken.mp4" in caplog.text


def test_a_name_that_is_no_utf8_is_left_out_at_once_and_the_folder_stays_as_it_is(
    folder, checkpoint, capsys, caplog
):
    os.link(folder / "one.avi", os.fsencode(folder) + b"/caf\xe9.avi")
    before = sorted(os.listdir(os.fsencode(folder)))
    search.main([str(folder), "a red star", "--cache", str(folder.parent / "kept"), *checkpoint])
    assert table(capsys.readouterr().out).keys() == {"one.avi", "two.avi", "a & b/three.avi"}
    assert r"left out: caf\udce9.avi: its name is not printable UTF-8; rename it" in caplog.text
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
    assert kept.name.startswith("img_clips-") and len(list(kept.glob("tokens/*.npy"))) == 3
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


# -- embeddings: the index, and files of features


@pytest.fixture
def embedding(checkpoint):
    """The arguments of a checkpoint with the heads of embeddings."""
    config = Config(**json.loads((Path(checkpoint[1]).parent / "args.json").read_text()))
    model = RetrievalModel.from_config(dataclasses.replace(config, vtc=True))
    torch.save(model.state_dict(), checkpoint[1])
    return checkpoint


def test_the_index_follows_its_folder_and_is_refused_to_another_checkpoint(folder, embedding, capsys):
    search.main([str(folder), "a red star", "--rerank", "0", *embedding])
    first = table(capsys.readouterr().out)
    assert first.keys() == {"one.avi", "two.avi", "a & b/three.avi"}
    found = load(embedding[1])
    sources = {name: folder / name for name in first}
    rows = found.embed_video(list(sources.values())) @ found.embed_text("a red star")[0]
    assert first == pytest.approx(dict(zip(sources, rows.tolist(), strict=True)), abs=1e-3)
    (folder / "one.avi").write_bytes((folder / "two.avi").read_bytes())
    (folder / "two.avi").unlink()
    (folder / "broken.mp4").write_bytes(b"nothing")
    search.main([str(folder), "a red star", "--rerank", "0", *embedding])
    out, err = capsys.readouterr()
    assert table(out) == {"one.avi": first["two.avi"], "a & b/three.avi": first["a & b/three.avi"]}
    assert "broken.mp4" in err
    search.main([str(folder), "a red star", *embedding])
    by_transformer = table(capsys.readouterr().out)
    match = found.match(folder / "one.avi", ["a red star"])[0]
    assert by_transformer["one.avi"] == pytest.approx(match, abs=1e-3)
    state = torch.load(embedding[1], weights_only=True)
    torch.save({**state, "fc.3.bias": state["fc.3.bias"] + 1}, embedding[1])
    with pytest.raises(UserError, match="index of another checkpoint"):
        search.main([str(folder), "a red star", *embedding])


def unit_rows(count, seed=0, size=16):
    rows = np.random.default_rng(seed).normal(size=(count, size)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_an_index_is_exact_at_first_and_clustered_beyond_and_the_same_when_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr("tasks.retrieval.index.EXACT", 1000)
    monkeypatch.setattr("tasks.retrieval.index.LISTS", 8)
    monkeypatch.setattr("tasks.retrieval.index.PROBES", 8)
    rows = unit_rows(1500)
    index = Index(tmp_path / "index", "me", 16)
    for start in range(0, 1500, 300):
        part = range(start, start + 300)
        index.add([f"v{i}" for i in part], ["1"] * 300, rows[part])
        assert len(index) == start + 300
        index.save()
        index = Index(tmp_path / "index", "me", 16)
    index.remove(["v7", "v1200"])
    index.add(["v3"], ["2"], rows[[7]])  # v3 has changed
    index.save()
    index = Index(tmp_path / "index", "me", 16)
    kept = [i for i in range(1500) if i not in (3, 7, 1200)]
    names, there = [f"v{i}" for i in kept] + ["v3"], np.concatenate([rows[kept], rows[[7]]])
    for query in unit_rows(5, seed=1):
        scores = there @ query
        want = [names[i] for i in np.argsort(-scores)[:10]]
        (found,) = index.search(query[None], 10)  # all clusters are looked into
        assert [name for name, _ in found] == want
        np.testing.assert_allclose([score for _, score in found], np.sort(scores)[::-1][:10], atol=1e-5)
    assert index.outdated({"v3": "2", "v4": "1", "new": "1"}) == ["new"] and len(index) == 2
    with pytest.raises(UserError, match="index of another checkpoint"):
        Index(tmp_path / "index", "you", 16)
    next((tmp_path / "index").glob("*.faiss")).write_bytes(b"broken")
    with pytest.raises(UserError, match="delete the folder"):
        Index(tmp_path / "index", "me", 16)


def test_a_file_of_features_is_the_same_again_and_follows_its_folder(tmp_path, folder, embedding, capsys):
    (folder / "broken.mp4").write_bytes(b"nothing")
    cv2.imwrite(str(folder / "still.png"), np.full((48, 64, 3), 90, np.uint8))
    out = tmp_path / "features.npz"
    given = [str(folder), *embedding, "--output", str(out)]
    embed.main(given)
    printed, err = capsys.readouterr()
    assert "embedding of 4 videos, 4 of them new, 0 gone, 1 cannot be read" in printed
    assert "cannot be read: broken.mp4" in err
    first, content = out.read_bytes(), dict(np.load(out))
    assert content["ids"].tolist() == ["a & b/three.avi", "one.avi", "still.png", "two.avi"]
    assert content["damaged"].tolist() == ["broken.mp4"]
    assert content["checkpoint"] == hashlib.sha256(Path(embedding[1]).read_bytes()).hexdigest()
    assert content["times"][1].tolist() == pytest.approx([0.0, 0.5]) and np.isnan(content["times"][2, 1])
    want = load(embedding[1]).embed_video([folder / name for name in content["ids"]])
    np.testing.assert_allclose(content["vectors"], want, atol=1e-6)
    for again in (given, [*given[:-1], str(tmp_path / "more.npz")]):
        embed.main(again)
        assert Path(again[-1]).read_bytes() == first
    (folder / "one.avi").unlink()
    embed.main(given)
    assert "embedding of 3 videos, 0 of them new, 1 gone" in capsys.readouterr().out.splitlines()[-1]
    assert dict(np.load(out))["ids"].tolist() == ["a & b/three.avi", "still.png", "two.avi"]
    with pytest.raises(UserError, match="was made by another checkpoint"):
        embed.main([*given, "--features", "pooled"])


def test_an_interrupted_file_of_features_goes_on_to_the_same_bytes(tmp_path, embedding, monkeypatch):
    monkeypatch.setattr("tasks.retrieval.sources.BATCH", 2)
    monkeypatch.setattr("tasks.retrieval.vectors.EVERY", -1.0)  # saved after every batch
    path, other = write_videos(tmp_path, rows=5), tmp_path / "other.npz"
    embed.main([str(path), *embedding, "--output", str(other), "--n_workers", "0"])
    whole, calls = Pretrained.embed_clips, []

    def stop(self, *given):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(self, *given)

    monkeypatch.setattr(Pretrained, "embed_clips", stop)
    out = tmp_path / "features.npz"
    given = [str(path), *embedding, "--output", str(out), "--n_workers", "0"]
    with pytest.raises(KeyboardInterrupt):
        embed.main(given)
    assert dict(np.load(out))["ids"].tolist() == ["clip0", "clip1"]
    embed.main(given)
    assert len(calls) == 4 and out.read_bytes() == other.read_bytes()


def test_features_of_frames_of_a_corpus_from_a_checkpoint_without_embeddings(tmp_path, checkpoint):
    yaml, out = write_corpus(tmp_path, "films", rows=3), tmp_path / "features.npz"
    embed.main([str(yaml), *checkpoint, "--output", str(out), "--features", "frames"])
    content = dict(np.load(out))
    assert content["ids"].tolist() == ["films0", "films1", "films2"]
    assert content["vectors"].shape == (3, 2, 256) and content["features"] == "frames"
    with pytest.raises(UserError, match="it has no key img"):
        (tmp_path / "other.yaml").write_text("a: b")
        embed.main([str(tmp_path / "other.yaml"), *checkpoint, "--output", str(tmp_path / "other.npz")])
