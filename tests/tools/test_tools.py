"""The demo's programs and the pictures of reconstructions."""

import json

import cv2
import numpy as np
import pytest
import torch
from matplotlib import pyplot

import show_mvm
from demo import backbone as make_backbone
from demo import run as run_demo
from demo import scores as demo_scores
from lib import Config, UserError
from model import PretrainModel
from tasks import pictures
from tests.conftest import SWIN, demo_network, noise_teachers, tiny_bert, write_corpus
from video_swin import SIZES, VideoSwin
from weights.swin import load_backbone


@pytest.fixture
def config(tmp_path, bert_folder):
    corpus = write_corpus(tmp_path, "clips")
    return Config(
        train_yaml={"clips": str(corpus)},
        val_yaml={"clips": str(corpus)},
        **demo_network(bert_folder),
        size_img=64,
        size_frame=2,
        size_txt=10,
        mvm_target=["pixel", "hog"],
        n_workers=0,
    )


def saved(config, folder) -> list[str]:
    """A run's folder with a checkpoint of nothing learnt; the arguments that name it."""
    (folder / "args.json").write_text(config.to_json())
    model = PretrainModel.from_config(config)
    torch.save(model.state_dict(), folder / "model.pt")
    return ["--checkpoint", str(folder / "model.pt"), "--device", "cpu"]


def test_a_picture_per_target(tmp_path, config):
    show_mvm.main([*saved(config, tmp_path), "--rows", "2"])
    for name in ("pixel", "hog"):
        picture = cv2.imread(str(tmp_path / f"mvm_{name}.png"))
        assert picture.shape[1] > picture.shape[0] / 2 > 100
        assert picture.std() > 10


@pytest.mark.parametrize(("clips", "columns", "frames"), [(1, 0, 1), (3, 1, 2), (4, 2, 2), (3, 0, 4)])
@pytest.mark.parametrize("words", [0, 3, 12, 60])
def test_a_caption_of_any_length_covers_nothing(tmp_path, monkeypatch, clips, columns, frames, words):
    monkeypatch.setattr(pyplot, "close", lambda _: None)
    rows = [("frames", np.zeros((clips, frames, 8, 8, 3))), ("masked", np.zeros((clips, frames, 8, 8, 3)))]
    captions = ["colours " * words, *["a dog"] * (clips - 1)][::-1]  # the long one last
    show_mvm.draw(rows, captions, tmp_path / "a.png", columns)
    figure = pyplot.gcf()
    figure.draw_without_rendering()  # at its own resolution, not the file's
    shown = [axis.get_window_extent() for axis in figure.axes if axis.images]
    texts = [text.get_window_extent() for axis in figure.axes for text in axis.texts]
    assert len(texts) == clips and all(box.y1 <= figure.bbox.y1 for box in texts)
    assert not any(text.overlaps(picture) for text in texts if text.width for picture in shown)


def test_pictures_of_a_video_file_and_of_other_targets(tmp_path, config, capsys):
    video = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter_fourcc(*"MJPG"), 10, (96, 80))
    for i in range(12):
        writer.write(np.full((80, 96, 3), 20 * i, np.uint8))
    writer.release()
    arguments = [*saved(config, tmp_path), "--mvm_target", '["optical_flow"]', "--flow_teacher", "dis"]
    show_mvm.main([*arguments, "--video", str(video), "--caption", "red", "--output", str(tmp_path / "out")])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mvm_optical_flow.png"]
    assert str(tmp_path / "out" / "mvm_optical_flow.png") in capsys.readouterr().out
    with pytest.raises(UserError, match=r"model\.pt cannot be read as a video"):
        show_mvm.main([*arguments, "--video", str(tmp_path / "model.pt")])


def test_what_is_seen_is_left_as_it_is():
    names = [name for name in pictures.COLOURS if name != "optical_flow"]
    model = PretrainModel(tiny_bert(), tiny_bert(), SWIN, targets=names, teachers=noise_teachers()).eval()
    txt = torch.full((1, 4), 9)
    mask = torch.zeros(1, 1, 2, 2, dtype=torch.bool)
    mask[0, 0, 1, 0] = True
    img = torch.randn(1, 1, 3, 64, 64)
    batch = {"img": img, "masked_txt": txt, "mask": torch.ones_like(txt), "mvm_mask": mask}
    for name, (made, truth) in pictures.reconstruct(model, batch).items():
        changed = (made != truth).any(2)[0, 0]
        half = changed.shape[0] // 2
        assert changed[half:, :half].float().mean() > 0.9, name
        assert changed.sum() == changed[half:, :half].sum(), name


@pytest.mark.parametrize("name", pictures.COLOURS)
def test_colours_mean_the_same_in_both_pictures(name):
    channels = {"pixel": 3, "hog": 1, "depth": 1, "optical_flow": 2, "vq": 1}.get(name, 20)
    truth = torch.randn(2, 3, channels, 8, 8)
    truth = (truth.abs() * 50).long().float() if name == "vq" else truth
    made = truth.clone()
    made[0, 0, :, :4] = 2 * made[0, 0, :, :4]  # half a picture is twice too strong, the rest is right
    ours, theirs = pictures.COLOURS[name](made, truth)
    assert ours.shape == theirs.shape == (2, 3, 8, 8, 3)
    assert 0 <= ours.min() <= ours.max() <= 1
    assert np.array_equal(ours[0, 0, 4:], theirs[0, 0, 4:])
    assert np.array_equal(ours[1], theirs[1])
    assert not np.array_equal(ours[0, 0, :4], theirs[0, 0, :4])


def test_flow_to_the_right_is_red_and_no_flow_white():
    flow = torch.zeros(1, 1, 2, 1, 2)
    flow[..., 0, 0, 0] = 5.0
    assert pictures.wheel(flow, flow)[1][0, 0, 0].tolist() == [[1, 0, 0], [1, 1, 1]]


def test_chance_is_the_best_that_a_constant_reaches(tmp_path, config):
    rows = '{"hidden": ["red", "a"]}\n{"hidden": ["red"]}\n{"hidden": ["blue"]}\n'
    (tmp_path / "predictions_0.jsonl").write_text(rows)
    (tmp_path / "args.json").write_text(config.to_json())
    demo_scores.main([str(tmp_path)])
    chance = json.loads((tmp_path / "chance.json").read_text())
    assert (chance["mlm_acc"], chance["vtm_acc"]) == (0.5, 1 / 3)  # the batch has three texts
    assert 0 < chance["mvm_hog"] < chance["mvm_pixel"] < 0.5  # normalised pixels: about 1 / 3 off


def test_chance_of_questions_knows_the_training_answers_alone(tmp_path):
    def asked(*pairs: tuple[str, int]) -> list[dict[str, object]]:
        return [{"video": "v", "question": "?", "type": kind, "answer": answer} for kind, answer in pairs]

    train = asked(("colour", 0), ("colour", 0), ("count", 1), ("count", 1), ("count", 2), ("colour", 0))
    test = asked(("colour", 0), ("count", 1), ("count", 0), ("size", 0))
    words = {"red": 0, "one": 1, "two": 2, "three": 3}
    (tmp_path / "txt.json").write_text(json.dumps({"train": train, "test": test, "ans2label": words}))
    chances = demo_scores.question_chances(tmp_path / "txt.json")
    assert chances == {"chance": 0.25, "frequent": 0.75, "frequent_by_type": 0.5}
    options = [{"answer": 3, **{f"option_{i}": "x" for i in range(5)}}] * 4
    (tmp_path / "txt.json").write_text(json.dumps({"train": options, "test": options}))
    assert demo_scores.question_chances(tmp_path / "txt.json")["chance"] == 0.2


def test_tables_of_the_demo():
    chance = {"mlm_acc": 0.1, "vtm_acc": 0.25, "mvm_pixel": 0.3}
    text = demo_scores.pretraining_table({**chance, "loss": 1.0}, {**chance, "mlm_acc": 0.9}, chance)
    assert "90.0%" in text
    assert "MVM: pixel loss" in text
    heads, row = demo_scores.task_table({"five options": {"accuracy": 0.5, "no_pre-training": 0.25}}).split(
        "\n"
    )
    assert heads.split() == ["accuracy", "no", "pre-training"]
    assert row.split() == ["five", "options", "50.0%", "25.0%"]


def test_figures_of_the_demo_are_those_of_its_runs(tmp_path):
    demo = run_demo.Demo(tmp_path / "data", tmp_path / "out")
    scores = {run_demo.PRETRAINED: 0.5, run_demo.ENCODER: 0.25}
    for start, score in scores.items():
        for task in run_demo.TASKS:
            for time, value in ((1, 0.0), (2, score)):  # an older run is of no account
                folder = demo.output / start / f"_{task}_{time}"
                folder.mkdir(parents=True)
                (folder / "best.json").write_text(json.dumps({"test_acc": value}))
        folder = demo.output / start / "ranking" / "_demo-retrieval_2"
        folder.mkdir(parents=True)
        ranked = {"t2v_r1": score / 5, "t2v_r5": score / 2, "t2v_r10": score, "videos": 256}
        (folder / "eval.jsonl").write_text(json.dumps(ranked) + "\n")
    demo.data.mkdir()
    questions = {
        "train": [{"answer": 0}],
        "test": [{"answer": 0}, {"answer": 1}],
        "ans2label": {"a": 0, "b": 1},
    }
    (demo.data / "txt_demo-qa.json").write_text(json.dumps(questions))
    runs = {start: demo.runs(start) for start in scores}
    assert runs["pretrained"]["demo-qa"] == {"training": "pretrained/_demo-qa_2"}
    [row] = demo.compare("demo-qa", runs).values()
    assert row == {
        "accuracy": 0.5,
        "no_pre-training": 0.25,
        "chance": 0.5,
        "frequent": 0.5,
        "frequent_by_type": 0.5,
    }
    ranks = demo.compare("demo-retrieval", runs)
    assert ranks["text-to-video retrieval, R@5"] == {
        "accuracy": 0.25,
        "no_pre-training": 0.125,
        "chance": 5 / 256,
    }


def test_backbone_learns_and_is_saved_in_the_published_layout(tmp_path):
    """Colour alone: still pictures of one of the colours."""
    random = np.random.default_rng(0)
    colours = len(make_backbone.NAMES["colour"])
    labels = torch.from_numpy(np.stack([random.integers(n, size=64) for n in (2, 2, colours)], axis=1))
    shades = torch.linspace(0, 255, colours).to(torch.uint8)[labels[:, 2]]
    frames = shades[:, None, None, None, None].expand(-1, 3, 3, 32, 32).contiguous()
    clips = make_backbone.Clips(frames, labels)
    model = make_backbone.Namer()
    before = make_backbone.accuracies(model.eval(), clips)["colour"]
    make_backbone.train(model.train(), clips, 1, steps=60, batch=16, lr=2e-3, seed=0)
    assert make_backbone.accuracies(model.eval(), clips)["colour"] > max(0.5, 2 * before)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "swin.pth")
    swin = VideoSwin(SIZES["demo"])
    load_backbone(swin, "3d", tmp_path / "swin.pth")
    torch.testing.assert_close(swin.state_dict(), model.backbone.state_dict())


def test_a_mirrored_clip_moves_the_other_way():
    names = make_backbone.NAMES["behaviour"]
    for table, name, becomes in [
        (make_backbone.MIRRORED, "left", "right"),
        (make_backbone.MIRRORED, "up", "up"),
        (make_backbone.REVERSED, "up", "down"),
        (make_backbone.REVERSED, "shrink", "grow"),
        (make_backbone.REVERSED, "blink", "blink"),
    ]:
        assert names[table[names.index(name)]] == becomes
    frames = torch.arange(4 * 2 * 3 * 1 * 2).view(4, 2, 3, 1, 2)
    labels = torch.tensor([[names.index("left"), 0, 0]] * 4)
    seen, named = make_backbone.augment(frames, labels, np.random.default_rng(3))
    for before, after, label in zip(frames, seen, named[:, 0].tolist(), strict=True):
        flips = torch.equal(after, before.flip(3)) + torch.equal(after, before.flip(0))
        assert names[label] == ("right" if flips else "left")
