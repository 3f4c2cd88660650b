"""Captions of retrieval: paragraphs, pairs, and the videos and texts of a split."""

import json

import numpy as np
import pytest
import torch

from lib import Config, UserError
from media.frames import Transform, every_clip, read_clip, read_clips
from media.tokens import Tokens
from media.tsv import Videos
from tasks.retrieval.captions import Caption, Pairs, read_captions, read_gallery
from tests.conftest import write_videos


def items_of(*pairs):
    return [{"video": video, "caption": text, "number": i} for i, (video, text) in enumerate(pairs)]


def test_a_list_of_sentences_is_one_caption(tmp_path):
    items = items_of(("a", "one "), ("b", ["two.", " three."]))
    got = read_captions(tmp_path, "test", items, join=False)
    assert [caption.text for caption in got] == ["one", "two. three."]


def test_didemo_joins_all_sentences_of_a_video(tmp_path):
    items = items_of(("a", "one."), ("b", "two."), ("a", ["three.", "four."]))
    got = read_captions(tmp_path, "test", items, join=True)
    assert [(c.video, c.text) for c in got] == [("a", "one. three. four."), ("b", "two.")]


@pytest.mark.parametrize("text", [None, 3, [], ["a", 3]])
def test_what_is_no_caption_is_named(tmp_path, text):
    with pytest.raises(UserError, match="val 0: its caption is neither text"):
        read_captions(tmp_path, "val", items_of(("a", text)), join=False)


def test_in_training_any_number_of_sentences_in_any_order():
    caption, random = Caption("a", ("x", "y", "z")), np.random.default_rng(0)
    drawn = [caption.draw(random).split() for _ in range(300)]
    assert all(len(set(words)) == len(words) for words in drawn)
    assert {len(words) for words in drawn} == {1, 2, 3}
    assert len({tuple(words) for words in drawn}) == 3 + 6 + 6
    assert {tuple(Caption("a", ("x y",)).draw(random) for _ in range(9))} == {("x y",) * 9}


@pytest.fixture
def pairs(tmp_path, bert_folder):
    videos = Videos(write_videos(tmp_path, rows=3))
    captions = [Caption(f"clip{i}", ("a red star", "moves up")) for i in (0, 1, 9, 2)]
    tokens, transform = Tokens(str(bert_folder), 8), Transform(["img_rand_crop"], 32)
    return lambda train: Pairs(captions, videos, tokens, transform, 2, train)


def test_a_missing_video_is_left_out_of_training_and_not_found_in_evaluation(pairs):
    train, test = pairs(True), pairs(False)
    assert [train.read(i, None)["id"] for i in range(len(train))] == ["clip0", "clip1", "clip2"]
    assert len(test) == 4
    missing = test.read(2, None)
    assert (missing["id"], missing["valid"]) == ("clip9", False)
    assert missing["img"].shape == test.read(0, None)["img"].shape == (2, 3, 32, 32)


def test_training_draws_frames_crops_and_sentences_evaluation_none(pairs):
    train, test = pairs(True), pairs(False)
    drawn = [train.read(0, np.random.default_rng(seed)) for seed in range(8)]
    assert len({tuple(sample["txt"].tolist()) for sample in drawn}) > 2
    assert len({float(sample["img"].sum()) for sample in drawn}) > 2
    first, again = test.read(0, None), test.read(0, None)
    assert torch.equal(first["img"], again["img"]) and torch.equal(first["txt"], again["txt"])
    assert first["mask"].sum() == 2 + 5


def test_every_clip_of_a_video_is_the_frames_of_each_start(tmp_path):
    fields = Videos(write_videos(tmp_path, rows=1))["clip0"]  # seven frames
    transform = Transform(["img_center_crop"], 32)
    clips = read_clips(fields, 3, transform)
    assert clips.shape == (3, 3, 3, 32, 32)
    for clip, numbers in zip(clips, every_clip(7, 3), strict=True):
        for frame, number in zip(clip, numbers, strict=True):
            torch.testing.assert_close(frame, read_clip([b"a", fields[2 + number]], 1, transform, None)[0])


def gallery_config(folder, pairs, **values):
    (folder / "txt_mine.json").write_text(json.dumps({"test": pairs}))
    return Config(
        type="retrieval",
        data_dir=str(folder),
        dataset="clips",
        task="mine",
        size_img=32,
        size_frame=2,
        **values,
    )


def test_a_gallery_has_each_video_once_and_each_text(tmp_path):
    write_videos(tmp_path, rows=3)
    pairs = [{"video": f"clip{i}", "caption": f"text {n}"} for n, i in enumerate([1, 0, 1, 2])]
    for clips, values in ((4, {}), (1, {"text_rules": "fixed", "multi_clip_testing": False})):
        gallery = read_gallery(gallery_config(tmp_path, pairs, **values))
        assert gallery.clips.names == ["clip1", "clip0", "clip2"]
        assert (gallery.texts, gallery.owner) == ([f"text {n}" for n in range(4)], [0, 1, 0, 2])
        assert gallery.clips.read(0, None)["img"].shape == (clips, 2, 3, 32, 32)
    with pytest.raises(UserError, match="none of the videos"):
        read_gallery(gallery_config(tmp_path, [{"video": "other", "caption": "a"}]))
    with pytest.raises(UserError, match="nothing under val to rank; --eval_split test ranks test"):
        read_gallery(gallery_config(tmp_path, pairs, eval_split="val"))
