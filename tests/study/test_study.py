"""The study: what the generator knows, teachers in miniature, runs that go on, the report."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import make_tsv
from dataset import pretrain_loader
from demo import make as make_demo
from demo.world import choose_scenes, load_scenes, render, visible_masks
from engine.step import to_device
from lib import Config, UserError, World
from media.frames import MEAN, STD
from media.tokens import Tokens
from study import oracle, runs
from study import report as study_report
from study import run as study
from study import teachers as study_teachers
from teachers.make import make_teachers

SIZE = study_teachers.SIZE


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A world of few clips with the files that the study reads."""
    data = tmp_path_factory.mktemp("world")
    counts = {"train": 72, "val": 2, "test": 2, "names": 8, "names-val": 8}
    make_demo.main([f"--output={data}", *(f"--{name}={count}" for name, count in counts.items())])
    for name in ("train", "names", "names_val"):
        make_tsv.main([f"{data / name}.csv", "--output", str(data), "--name", name, "--frames", "8"])
    return data


# -- the generator's depth and flow


def moving(behaviour: str):
    """A scene of one object that does this."""
    return next(
        scene
        for scene in choose_scenes("names", 200, seed=3)
        if scene.objects[0].behaviour == behaviour and scene.width == scene.height
    )


@pytest.mark.parametrize("behaviour", ["left", "down", "turn", "grow", "shrink"])
def test_true_flow_leads_to_where_the_object_is(behaviour):
    scene = moving(behaviour)
    size, first, second = scene.width, 2, 12
    flow = oracle.flow(scene, first, second, size)
    pictures = [render(scene, frame).astype(np.float32) for frame in (first, second)]
    at = np.stack(np.meshgrid(np.arange(size), np.arange(size))).astype(np.float32)
    warped = cv2.remap(pictures[1], *(at + flow).astype(np.float32), cv2.INTER_LINEAR)
    inside = cv2.erode(visible_masks(scene, first)[0], np.ones((5, 5))) > 0.99
    assert np.abs(flow[:, inside]).max() > 1
    assert np.abs(warped - pictures[0])[inside].mean() < 8  # of 255
    assert not flow[:, cv2.dilate(visible_masks(scene, first)[0], np.ones((3, 3))) == 0].any()


def test_flow_is_in_pixels_of_the_frames_that_it_is_of():
    scene = moving("right")
    whole, small = (oracle.flow(scene, 0, 8, size) for size in (scene.width, SIZE))
    assert small[0].max() == pytest.approx(whole[0].max() * SIZE / scene.width, rel=0.05)


def test_what_vanishes_or_rests_does_not_move():
    for behaviour in ("still", "blink"):
        assert not oracle.flow(moving(behaviour), 0, 5, SIZE).any()


def test_true_depth_orders_what_covers_what():
    scene = next(s for s in choose_scenes("train", 50, seed=3) if len(s.objects) == 3)
    depth = oracle.inverse_depth(scene, 0, min(scene.width, scene.height))
    masks = visible_masks(scene, 0)
    left = (scene.width - depth.shape[1]) // 2
    top = (scene.height - depth.shape[0]) // 2
    for item, mask in zip(scene.objects, masks, strict=True):
        mask = mask[top : top + depth.shape[0], left : left + depth.shape[1]]
        if (mask > 0.99).any():
            assert np.allclose(depth[mask > 0.99], 1 - (item.depth - 1) / 4)
    shown = masks[:, top : top + depth.shape[0], left : left + depth.shape[1]].sum(0)
    assert (depth[shown == 0] == 0.25).all()


def test_oracles_know_training_frames_and_no_others(world, tmp_path):
    oracle.write_index(world, tmp_path / "oracle.npz", SIZE)
    config = Config(
        train_yaml={"demo": str(world / "train.yaml")},
        txt_backbone=str(world / "bert"),
        img_transform=["img_center_crop"],
        size_img=SIZE,
        size_frame=4,
        size_batch=4,
        n_workers=0,
    )
    loader = pretrain_loader(config, World(torch.device("cpu")), Tokens(config.txt_backbone, 32), train=True)
    batch = next(iter(loader.epoch(0)))
    frames = to_device(batch, torch.device("cpu"))["img"]
    scenes = {scene.id: scene for scene in load_scenes(world / "train.scenes.jsonl")}
    depths = oracle.DepthOracle(world, tmp_path / "oracle.npz", width=1)
    seen = depths.seen(frames)
    assert [clip[0][0].id for clip in seen] == batch["id"]
    assert all([number for _, number in clip] == sorted({number for _, number in clip}) for clip in seen)
    truth = depths(frames)
    stored = oracle.inverse_depth(scenes[batch["id"][0]], seen[0][0][1], SIZE)
    assert truth.shape == (4, 4, 1, SIZE, SIZE)
    np.testing.assert_array_equal(truth[0, 0, 0].numpy(), stored)
    assert oracle.FlowOracle(world, tmp_path / "oracle.npz", width=2)(frames).shape == (4, 3, 2, SIZE, SIZE)
    with pytest.raises(UserError, match="did not draw"):
        depths(frames.flip(-1))


# -- teachers


def test_small_teachers_are_loaded_as_published_ones_are(world, tmp_path):
    study_teachers.main([f"--data={world}", f"--output={tmp_path}", "--steps=2"])
    config = Config(**{
        **study.pretraining("none", world, tmp_path, Path("none")),
        "mvm_target": ["2d_feature", "2d_clip_feature", "depth", "vq"],
    })  # fmt: skip
    teachers = make_teachers(config)
    frames = (torch.rand(2, 4, 3, SIZE, SIZE) - MEAN) / STD
    shapes = {name: tuple(teacher(frames).shape[2:]) for name, teacher in teachers.items()}
    assert shapes == {
        "2d_feature": (256, 2, 2),
        "2d_clip_feature": (128, 2, 2),
        "depth": (1, SIZE, SIZE),
        "vq": (1, SIZE // 8, SIZE // 8),
    }
    assert teachers["vq"].width == study_teachers.DALLE["vocabulary"]
    assert (tmp_path / "oracle.npz").exists()


# -- runs and their report


def test_a_finished_run_is_not_run_again(tmp_path, monkeypatch, capsys):
    started = []

    def no_process(command, **_):
        started.append([command[i + 1] for i, part in enumerate(command) if part in ("--targets", "--seeds")])
        return type("Done", (), {"returncode": 1})()

    monkeypatch.setattr(runs.subprocess, "run", no_process)
    options = study.parse(
        [
            "--targets",
            "none",
            "depth, true",
            "--seeds",
            "1",
            "2",
            f"--results={tmp_path}",
            f"--output={tmp_path}",
        ]
    )
    write_run(tmp_path, "none", 1, 0.5, 0.2)
    runs.run_all("study.run", options, study.GIVEN, study.summary)
    assert sorted(started) == [["depth, true", "1"], ["depth, true", "2"], ["none", "2"]]
    assert "1 of 4 runs are done" in capsys.readouterr().out


def write_run(folder: Path, condition: str, seed: int, answered: float, found: float) -> None:
    result = {
        "condition": condition,
        "seed": seed,
        "steps": study.STEPS,
        "qa": {"test_acc": answered},
        "retrieval": {"t2v_r1": found, "t2v_r5": 2 * found, "t2v_r10": 3 * found},
    }
    runs.place(folder, condition, seed).write_text(json.dumps(result))


def test_report_gives_means_gains_and_what_is_beyond_noise(tmp_path):
    for seed, shift in zip(study.SEEDS, (0.0, 0.1, 0.2), strict=True):  # seeds differ; conditions hardly
        write_run(tmp_path, "none", seed, 0.40 + shift, 0.10)
        write_run(tmp_path, "pixel", seed, 0.44 + shift + 0.001 * (seed == 89), 0.10 + 0.02 * (seed - 89))
        write_run(tmp_path, "hog", seed, 0.40 + shift - 0.001 * (seed == 88), 0.10)
    runs = study_report.read_runs(tmp_path)
    gained = study_report.gains(runs, "questions")
    mean, width = gained["pixel"]
    assert mean == pytest.approx(4.0 + 0.1 / 3) and width < 0.2
    assert study_report.spread(runs, "questions")[0] == pytest.approx(10, rel=0.05)
    page = tmp_path / "STUDY.md"
    readme = tmp_path / "README.md"
    readme.write_text("before <!-- study -->\nold\n<!-- end of study --> behind")
    study_report.write_report(tmp_path, page, tmp_path / "study.png", readme)
    rows = {line.split(" | ")[0].strip("| "): line for line in page.read_text().splitlines() if "|" in line}
    assert "**+4.0 ± 0.1**" in rows["pixel"] and "68.3" in rows["pixel"]
    assert "**" not in rows["hog"]
    assert (tmp_path / "study.png").stat().st_size > 1000
    quoted = readme.read_text()
    assert "| pixel | 54.0 ± " in quoted and quoted.startswith("before") and quoted.endswith("behind")
    assert "old" not in quoted


def test_report_keeps_what_was_written_around_the_table(tmp_path):
    write_run(tmp_path, "none", 88, 0.4, 0.1)
    page = tmp_path / "STUDY.md"
    study_report.write_report(tmp_path, page, tmp_path / "study.png")
    page.write_text(page.read_text() + "\nWhat we think of it.\n")
    write_run(tmp_path, "none", 89, 0.6, 0.1)
    study_report.write_report(tmp_path, page, tmp_path / "study.png")
    assert page.read_text().endswith("\nWhat we think of it.\n")
    assert "| none | 2 | 50.0" in page.read_text()


def test_runs_of_other_steps_are_not_mixed_in(tmp_path):
    write_run(tmp_path, "none", 88, 0.4, 0.1)
    path = runs.place(tmp_path, "none", 88)
    path.write_text(json.dumps({**json.loads(path.read_text()), "steps": study.QUICK}))
    assert study_report.read_runs(tmp_path) == {}


def test_conditions_are_balanced_and_none_has_nothing_to_balance(tmp_path):
    for condition in study.CONDITIONS:
        config = Config(**study.pretraining(condition, tmp_path, tmp_path, tmp_path))
        assert (config.mvm_weight, config.mvm_share) == ("balanced", 0.1)
        assert ("mvm" in config.pretrain_tasks) == (condition != "none")


def test_rank_correlation():
    assert study_report.rank_correlation([1, 2, 3, 4], [10, 20, 40, 30]) == pytest.approx(0.8)
    assert study_report.rank_correlation([1, 2, 2, 4], [3, 5, 5, 9]) == pytest.approx(1)
