"""A checkpoint in use from Python, handed on to others, and what a config lacks."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image

import eval_retrieval_tsv
import main_pretrain_yaml
import main_qamc_tsv
import main_qamc_tsv_mlm_gen_ans_idx
import main_qaoe_tsv_lsmdc_fib
import main_qaoe_tsv_mlm_head
import main_retrieval_tsv
import results
import violet
from _tools import weights
from lib import MISTAKE, Config, UserError
from media.frames import Transform, normalise
from media.tokens import Tokens
from media.tsv import Videos
from model import PretrainModel, encoder_arguments
from tasks.qa.kinds import FillInTheBlank, OpenEnded, OptionNumber
from tasks.qa.model import ChoiceModel, MaskModel
from tasks.qa.questions import Annotation
from tasks.retrieval.model import RetrievalModel
from tests.conftest import write_videos
from weights.needs import cached, lacking, offered
from weights.published import PUBLISHED
from weights.tensor_files import read_tensors

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    offered.cache_clear()


def write_clip(path: Path, frames: int = 9) -> Path:
    """A film of noise that changes from frame to frame."""
    random = np.random.default_rng(3)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height = 96, 64
        for _ in range(frames):
            picture = np.kron(random.integers(0, 255, (4, 6, 3)), np.ones((16, 16, 1))).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture
def config(question_bert):
    return Config(
        task="demo-qa",
        type="qaoe",
        txt_backbone=str(question_bert),
        fusion_encoder=str(question_bert),
        vis_backbone_size="demo",
        size_img=64,
        size_frame=3,
        size_txt=24,
        device="cpu",
    )


@pytest.fixture
def run(tmp_path, config, monkeypatch):
    """A run's folder with a checkpoint of both heads, in a folder with a clip."""
    monkeypatch.chdir(tmp_path)
    write_clip(tmp_path / "clip.mp4")
    folder = tmp_path / "_snapshot" / "mine"
    folder.mkdir(parents=True)
    (folder / "args.json").write_text(config.to_json())
    torch.save(
        PretrainModel(**encoder_arguments(config)).state_dict(), folder / "ckpt_violet_demo-qa_best.pt"
    )
    return folder


def example() -> str:
    """The lines of violet.py's docstring."""
    lines = re.findall(r"^    ((?:from|violet|video|print).*)$", violet.__doc__ or "", re.MULTILINE)
    assert 5 <= len(lines) <= 6
    return "\n".join(lines)


def test_the_example_runs_and_is_that_of_the_docs(run, capsys):
    exec(example(), {})
    scores, answers = (eval(line) for line in capsys.readouterr().out.splitlines())
    assert len(scores) == 2
    assert len(answers) == 5
    assert sum(share for _, share in answers) <= 1 + 1e-6
    assert answers == sorted(answers, key=lambda pair: -pair[1])
    page = (ROOT / "docs/python.md").read_text()
    assert all(line in page for line in example().splitlines())


def test_the_command_line_matches_asks_and_takes_keys_of_the_config(run, capsys):
    violet.main([str(run), "clip.mp4", "a red star", "what is it ?", "--device", "cpu", "--size_frame", "2"])
    matched, answered = capsys.readouterr().out.splitlines()
    want = violet.load(run, size_frame=2).match("clip.mp4", ["a red star"])[0]
    assert matched == f"a red star  ->  {want:.3f}"
    assert answered.startswith("what is it ?  ->  ") and answered.count("%") == 5
    with pytest.raises(SystemExit):
        violet.main([str(run), "clip.mp4", "a red star", "--size_frames", "2"])


@torch.inference_mode()
def test_scores_and_answers_are_those_of_the_tasks_own_models(run, config, tmp_path):
    """Through other code: the datasets and models by which the scripts evaluate."""
    loaded = violet.load(run)
    texts = ["a red star moves left", "the circle", "a small blue square grows"]
    video = loaded.encode_video("clip.mp4")
    tokens = Tokens(config.txt_backbone, config.size_txt)
    rows = [tokens(text) for text in texts]
    txt, mask = torch.stack([a for a, _ in rows]), torch.stack([b for _, b in rows])
    retrieval = RetrievalModel(**encoder_arguments(config)).eval()
    retrieval.load_state_dict(read_tensors(run), strict=False)
    want = retrieval.scores(video[None], retrieval.enc_txt(txt, mask), mask)[0]
    assert loaded.match(video, texts) == pytest.approx(want.tolist(), abs=1e-5)
    assert loaded.match("clip.mp4", texts) == pytest.approx(want.tolist(), abs=1e-5)
    encoded = loaded.encode_text(texts[1])
    assert encoded.shape == (4, 32)
    assert loaded.match(video, [encoded, texts[0]]) == pytest.approx(want[[1, 0]].tolist(), abs=1e-5)

    model = MaskModel(**encoder_arguments(config)).eval()
    model.load_state_dict(read_tensors(run), strict=False)
    videos = Videos(write_videos(tmp_path))
    item = {"video": "clip0", "number": 0, "answer": "red"}
    options = ["red star", "blue circle", "the square"]
    asked = {
        OpenEnded: {**item, "question": "what color is the star?"},
        FillInTheBlank: {**item, "question": "a [MASK] star moves left"},
        OptionNumber: {
            **item,
            "question": "which shape?",
            "answer": 1,
            **{f"option_{i}": option for i, option in enumerate(options)},
        },
    }
    transform = Transform(["img_center_crop"], 64)
    for kind, row in asked.items():
        annotation = Annotation(Path("a.json"), {"test": [row]}, {})
        questions = kind(annotation, "test", [row], videos, tokens, transform, 3, size_option=3)
        sample = questions.sample(0)
        ids, seen = sample["txt"][None], sample["mask"][None]
        place = torch.tensor([sample["place"]])
        logits = model.name_word(video[None], model.enc_txt(ids, seen), seen, place)[0]
        if kind is OptionNumber:
            shares = logits[OptionNumber.choices(tokens, 3)].softmax(0)
            want = {option: float(share) for option, share in zip(options, shares, strict=True)}
            got = dict(loaded.answer(video, row["question"], options))
        else:
            names = tokens.tokenizer.convert_ids_to_tokens(range(len(logits)))
            want = dict(zip(names, logits.softmax(0).tolist(), strict=True))
            got = dict(loaded.answer(video, row["question"], best=len(want)))
        assert got == pytest.approx(want, abs=1e-6)


@torch.inference_mode()
def test_frames_are_those_of_an_evaluation(run):
    loaded = violet.load(run)
    with av.open("clip.mp4") as container:
        stored = [torch.from_numpy(f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]
    picked = [stored[i].permute(2, 0, 1) for i in (0, 4, 8)]
    want = loaded.network.enc_img(normalise(loaded.transform(picked, None))[None])[0]
    torch.testing.assert_close(loaded.encode_video("clip.mp4"), want)


@torch.inference_mode()
def test_a_video_may_be_a_path_bytes_an_array_or_pictures(run):
    loaded = violet.load(run)
    want = loaded.encode_video("clip.mp4")
    with av.open("clip.mp4") as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    pictures = [Image.fromarray(frame) for frame in frames]
    forms = [Path("clip.mp4"), Path("clip.mp4").read_bytes(), frames, pictures, list(frames), tuple(pictures)]
    for video in forms:
        torch.testing.assert_close(loaded.encode_video(video), want)
        assert loaded.match(video, "a star") == pytest.approx(loaded.match(want, ["a star"]), abs=1e-5)
    batch = loaded.encode_video(forms)
    torch.testing.assert_close(batch, want.expand(len(forms), -1, -1), atol=1e-5, rtol=1e-4)
    one = loaded.encode_video([frames[::-1].copy()])
    assert one.shape == (1, *want.shape) and not torch.allclose(one[0], want)
    still = loaded.encode_video(pictures[0])
    assert still.shape == (5, 32) and torch.equal(still, loaded.encode_video(frames[:1]))
    for wrong in (frames / 255, frames[..., 0], frames[:0], [frames[0, :, :, :1]], 3):
        with pytest.raises(UserError, match="a video is a path, the bytes of a file, an array of frames"):
            loaded.encode_video(wrong)
    with pytest.raises(UserError, match="the batch is empty"):
        loaded.encode_video([])
    with pytest.raises(UserError, match="only videos or only pictures"):
        loaded.encode_video([frames, pictures[0]])
    for wrong in (batch, forms):
        with pytest.raises(UserError, match="one video"):
            loaded.match(wrong, "a star")


@torch.inference_mode()
def test_a_part_of_a_video(run):
    loaded = violet.load(run)
    with av.open("clip.mp4") as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    for start, end, first, last in [(0.2, 0.6, 2, 6), (0.5, None, 5, 9), (0, 0.35, 0, 4)]:
        part = loaded.encode_video("clip.mp4", start=start, end=end)
        torch.testing.assert_close(part, loaded.encode_video(frames[first:last]))
    for start, end in [(-1, None), (1, 1), (0.5, 0.2)]:
        with pytest.raises(UserError, match="0 <= start < end"):
            loaded.encode_video("clip.mp4", start, end)
    with pytest.raises(UserError, match="no frame in its part from 7"):
        loaded.encode_video("clip.mp4", 7)
    with pytest.raises(UserError, match="frames have no times"):
        loaded.encode_video(frames, 1)


@torch.inference_mode()
def test_a_string_is_one_text(run):
    loaded = violet.load(run)
    video = loaded.encode_video("clip.mp4")
    want = loaded.match(video, ["a red star"])
    assert loaded.match(video, "a red star") == want and len(want) == 1
    assert loaded.match(video, loaded.encode_text("a red star")) == pytest.approx(want)
    with pytest.raises(UserError, match="3 is no text"):
        loaded.match(video, [3])
    for question, options in [("what ?", "red"), ("what ?", [3]), (["what ?"], [])]:
        with pytest.raises(UserError, match="a question is a text"):
            loaded.answer(video, question, options)


def test_a_name_that_begins_with_a_dash(run, capsys):
    Path("clip.mp4").rename("-AbC.mp4")
    violet.main([str(run), "-AbC.mp4", "a red star", "--device", "cpu"])
    assert capsys.readouterr().out.startswith("a red star  ->  ")


@torch.inference_mode()
def test_a_checkpoint_in_use_can_be_exported(run):
    loaded = violet.load(run, size_img=96)
    encoder, clip = loaded.network.enc_img, torch.randn(1, 3, 3, 96, 96)
    exported = torch.export.export(encoder, (clip,), strict=False)
    torch.testing.assert_close(exported.module()(clip), encoder(clip))


def test_random_numbers_of_the_user_are_left_alone(run):
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    loaded = violet.load(run)
    assert torch.equal(torch.rand(3), want)
    assert not any(module.training for module in loaded.network.modules())


def test_a_head_that_is_not_there_is_named(tmp_path, config):
    torch.save(ChoiceModel(**encoder_arguments(config)).state_dict(), tmp_path / "a.pt")
    (tmp_path / "args.json").write_text(config.to_json())
    loaded = violet.load(tmp_path / "a.pt")
    write_clip(tmp_path / "clip.mp4")
    assert len(loaded.match(tmp_path / "clip.mp4", ["a star"])) == 1
    with pytest.raises(UserError, match="has no fc_mtm, without which it cannot answer"):
        loaded.answer(tmp_path / "clip.mp4", "what?")
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    for name in ("broken.mp4", "none.mp4"):
        with pytest.raises(UserError, match=name):
            loaded.encode_video(tmp_path / name)
    (tmp_path / "args.json").unlink()
    with pytest.raises(UserError, match=r"has no args\.json"):
        violet.load(tmp_path / "a.pt")


# ---------------------------------------------------------------------------------------- weights.py


def test_export_then_load_is_the_identity(run, tmp_path):
    before = torch.load(run / "ckpt_violet_demo-qa_best.pt", weights_only=True)
    torch.save({**before, "raft.x": torch.zeros(2)}, run / "ckpt_violet_demo-qa_best.pt")
    weights.main(["export", str(run), "--output", str(tmp_path / "out")])
    published = torch.load(tmp_path / "out" / "ckpt_violet_demo-qa.pt", weights_only=True)
    assert list(published) == sorted(before)  # a flat state dict without teachers, indices and all
    for state in (published, read_tensors(tmp_path / "out" / "model.safetensors")):
        assert state.keys() == before.keys()
        assert all(torch.equal(state[key].view(torch.uint8), before[key].view(torch.uint8)) for key in before)
    stored = json.loads((tmp_path / "out" / "config.json").read_text())
    assert stored["path_ckpt"] == str(tmp_path / "out" / "model.safetensors")
    assert not [need for need in lacking(Config(**stored)) if not need.is_data]  # a script can run it
    moved = tmp_path / "elsewhere"
    (tmp_path / "out").rename(moved)
    loaded = violet.load(moved)
    assert loaded.config.txt_backbone == str(moved / "text")  # it needs nothing that lies elsewhere
    state = loaded.network.state_dict()
    assert all(torch.equal(state[key], before[key]) for key in before if key in state)
    assert loaded.answer("clip.mp4", "what color?") == violet.load(run).answer("clip.mp4", "what color?")


def test_check_names_what_is_damaged_and_what_can_run(tmp_path, capsys, monkeypatch, run):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "_snapshot"
    content = bytearray((run / "ckpt_violet_demo-qa_best.pt").read_bytes())
    (folder / "whole.pt").write_bytes(content)
    content[len(content) // 2] ^= 1
    (folder / "flipped.pt").write_bytes(content)
    (folder / "raft_large_C_T_SKHT_V2-ff5fadd5.pth").write_bytes(b"x")
    with pytest.raises(SystemExit) as ended:
        weights.main(["check"])
    assert ended.value.code == 1
    lines = capsys.readouterr().out.splitlines()
    assert re.match(r"ERROR .*flipped\.pt: .*checksum", lines[0])
    assert re.match(r"ERROR .*raft.*: it has 1 bytes, not the published 21106607", lines[1])
    assert re.match(r"ok .*whole\.pt: \d+ tensors", lines[2])
    state = next(line for line in lines if line.startswith("_args/_best/args_msvd-qa.json: lacks"))
    assert all(name in state for name in ("bert-base-uncased", "ckpt_violet_msvd-qa.pt", "img_msvd.tsv"))


def test_list_and_fetch_name_every_published_file(capsys, tmp_path):
    weights.main(["list"])
    text = capsys.readouterr().out
    listed = (ROOT / "_snapshot" / "README.md").read_text()
    for name, entry in PUBLISHED.items():
        assert name in text
        assert entry.page in text
        assert re.sub(r"(ckpt_violet)_.*", r"\1_TASK.pt", name) in listed
        assert entry.page in listed
    with pytest.raises(UserError, match="has no direct address: see https://drive"):
        weights.main(["fetch", "ckpt_violet_msvd-qa.pt", "--folder", str(tmp_path)])
    with pytest.raises(UserError, match=r"did you mean 'encoder\.pkl'"):
        weights.main(["fetch", "encoder.pk"])


# ----------------------------------------------------------------------------------------------- needs

SCRIPTS = {
    "pretrain": [main_pretrain_yaml],
    "tgif-action": [main_qamc_tsv_mlm_gen_ans_idx],
    "tgif-transition": [main_qamc_tsv_mlm_gen_ans_idx],
    "msrvtt-mc": [main_qamc_tsv],
    "lsmdc-mc": [main_qamc_tsv],
    "lsmdc-fib": [main_qaoe_tsv_lsmdc_fib],
    **{name: [main_qaoe_tsv_mlm_head] for name in ("tgif-frame", "msrvtt-qa", "msvd-qa")},
    **{
        f"{name}-retrieval": [main_retrieval_tsv, eval_retrieval_tsv]
        for name in ("msrvtt", "didemo", "lsmdc")
    },
}
CONFIGS = sorted([*ROOT.glob("_args/args_*.json"), *ROOT.glob("_args/_best/args_*.json")])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT / "_args")))
def test_every_published_config_starts_and_names_all_that_is_missing(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = json.loads(path.read_text())
    wanted = ["bert-base-uncased"]
    if given["type"] == "pretrain":
        wanted += ["_snapshot/swin_base_patch244_window877_kinetics600_22k.pth"]
        wanted += ["timm/swin_base_patch4_window7_224.ms_in22k"]
        wanted += [*given["train_yaml"].values(), *given["val_yaml"].values()]
    else:
        wanted += [given["path_ckpt"], f"_data/img_{given['dataset']}.tsv", f"_data/txt_{given['task']}.json"]
    for script in SCRIPTS[path.stem.removeprefix("args_")]:
        monkeypatch.setattr(sys, "argv", ["x.py", "--config", str(path), "--device", "cpu"])
        with pytest.raises(UserError) as stopped:
            script.main()
        message = str(stopped.value)
        assert message.startswith(f"{given['task']} cannot start: {len(wanted)} required files")
        for name in wanted:
            assert message.count(f": {name}") == 1, name
    assert list(tmp_path.iterdir()) == []  # no run's folder is left


def test_the_message_is_all_that_is_printed(tmp_path):
    """In a process of its own, with its exit code."""
    path = ROOT / "_args" / "_best" / "args_msvd-qa.json"
    command = [sys.executable, str(ROOT / "main_qaoe_tsv_mlm_head.py"), "--config", str(path)]
    environment = {"PATH": "/usr/bin", "HF_HUB_OFFLINE": "1", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == MISTAKE
    assert ended.stdout == ""
    lines = ended.stderr.splitlines()
    assert lines[0] == "msvd-qa cannot start: 4 required files or models are missing."
    assert len(lines) == 7  # two titles, four things


def test_what_is_there_is_not_missing(tmp_path, config, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_videos(tmp_path, "d")
    (tmp_path / "txt_demo-qa.json").write_text("{}")
    swin = "_snapshot/swin_demo.pth"
    with pytest.raises(UserError, match="no Video Swin weights were published for vis_backbone_size demo"):
        lacking(config)
    config = dataclasses.replace(config, vis_backbone_path=swin)
    names = {need.name for need in lacking(config)}
    # BERT's is a folder with sizes and words, but without weights
    assert names == {config.txt_backbone, swin, "_data/img_.tsv", "_data/txt_demo-qa.json"}
    found = Config(
        **{
            **vars(config),
            "data_dir": str(tmp_path),
            "dataset": "d",
            "vis_backbone_init": "random",
            "txt_backbone_rand_init": True,
            "fusion_encoder_rand_init": True,
        }
    )
    assert lacking(found) == []
    assert not cached("no/such/name", ["config.json"])


@pytest.mark.parametrize(("status", "there"), [(200, True), (401, False), (404, False), (503, True)])
def test_the_hub_is_asked_once(monkeypatch, status, there):
    asked = []

    def answer(url, timeout):
        asked.append((url, timeout))
        if status != 200:
            raise HfHubHTTPError("no", response=SimpleNamespace(status_code=status, headers={}, request=None))

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", answer)
    assert [offered("some/model") for _ in range(3)] == [there] * 3
    [(url, timeout)] = asked
    assert url.endswith("/some/model/resolve/main/config.json") and timeout <= 5


@pytest.mark.parametrize("name", ["some/model", "a b", "no/such/path/here"])
def test_without_the_hub_nothing_is_offered(name):
    assert not offered(name)


def test_files_that_a_corpus_names_are_looked_for(tmp_path):
    (tmp_path / "a.yaml").write_text("img: [x.tsv, y.tsv]\ncaption: c.tsv\n")
    (tmp_path / "y.tsv").write_text("")
    config = Config(train_yaml={"a": str(tmp_path / "a.yaml")}, mvm_target=["pixel"])
    names = [need.name for need in lacking(config) if need.is_data]
    assert names == ["x.tsv", "c.tsv"]


# --------------------------------------------------------------------------------------------- results


def write_evaluation(folder: Path, name: str, figures: dict, /, samples: int = 0, **changed: object) -> Path:
    """A run folder: the config of `_args/_best/` with what is `changed`, and a row of figures."""
    folder.mkdir()
    best = json.loads((results.BEST / f"args_{name}.json").read_text())
    defaults = {"text_rules": "published", "mask_pos": "append", "multi_clip_testing": True}
    defaults |= {"eval_split": "test", "rerank": 0}
    (folder / "args.json").write_text(json.dumps({**defaults, **best, "size_epoch": 0, **changed}))
    published = samples or results.TASKS[name].published["test"]
    data = {"sha256": "00ff", "samples": published, "videos": published}
    protocol = {"precision": "off", "checkpoint": "12ab", "data": {"test": data}}
    (folder / "eval.jsonl").write_text(json.dumps({"step": 0, **figures, "protocol": protocol}) + "\n")
    return folder


def test_results_are_filled_from_evaluations_of_released_checkpoints_alone(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{results.START}\n{results.END}\nafter\n")
    write_evaluation(tmp_path / "_msvd-qa_1", "msvd-qa", {"test_acc": 0.6, "test_acc_adjusted": 0.5461})
    write_evaluation(tmp_path / "_msvd-qa_2", "msvd-qa", {"test_acc": 0.9}, size_epoch=3)  # it trained
    write_evaluation(tmp_path / "_msvd-qa_3", "msvd-qa", {"test_acc": 0.9}, path_ckpt="mine.pt")
    ranked = {"t2v_r1": 0.251, "t2v_r5": 0.442, "t2v_r10": 0.549}
    write_evaluation(tmp_path / "_lsmdc-retrieval_4", "lsmdc-retrieval", ranked, size_epoch=20)
    write_evaluation(tmp_path / "_lsmdc-retrieval_5", "lsmdc-retrieval", {"test_acc": 1, "test_acc_t2v": 1})
    others = [{"multi_clip_testing": False}, {"text_rules": "fixed"}, {"eval_split": "val"}]  # protocols
    best = dict.fromkeys(ranked, 1.0)
    for number, other in enumerate(others, 6):
        write_evaluation(tmp_path / f"_lsmdc-retrieval_{number}", "lsmdc-retrieval", best, **other)
    write_evaluation(tmp_path / "_lsmdc-retrieval_9", "lsmdc-retrieval", {**best, "split": "val"})
    results.main([*(str(path) for path in tmp_path.glob("_*")), "--write", str(page)])
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "| msvd-qa | accuracy | 54.7 | 54.6 | 54.6 |" in text
    assert "| 24.0 / 43.5 / 54.1 | 25.1 / 44.2 / 54.9 | 25.1 / 44.2 / 54.9 |" in text
    assert "| tgif-frame | accuracy | 72.8 | 72.7 |  |" in text
    results.main([str(tmp_path / "none"), "--write", str(page)])
    assert page.read_text() == text  # what was measured stays


def change_protocol(folder: Path, **values: object) -> None:
    """Change the protocol of a run's evaluation."""
    row = json.loads((folder / "eval.jsonl").read_text())
    row["protocol"] |= values
    (folder / "eval.jsonl").write_text(json.dumps(row) + "\n")


def test_results_say_why_a_run_does_not_count(tmp_path, capsys):
    ranked = {"t2v_r1": 0.25, "t2v_r5": 0.44, "t2v_r10": 0.55}
    task = "lsmdc-retrieval"
    right = write_evaluation(tmp_path / "_a_1", task, ranked, data_dir="/elsewhere")
    reasons = {
        write_evaluation(
            tmp_path / "_a_2", task, ranked, samples=7
        ): "7 samples, the published test split has 1000",
        write_evaluation(tmp_path / "_a_3", task, ranked, size_frame=4): "size_frame is 4, the protocol's 5",
        write_evaluation(tmp_path / "_a_4", task, ranked, rerank=32): "rerank is 32, the protocol's 0",
        write_evaluation(tmp_path / "_a_5", "msvd-qa", {"val_acc": 0.5}): "not of the test split",
        write_evaluation(tmp_path / "_a_6", task, ranked, task="mine"): "the table has no task 'mine'",
        write_evaluation(tmp_path / "_a_7", task, ranked): "its protocol is not that of _a_1: precision",
        write_evaluation(tmp_path / "_a_8", task, ranked): "does not say its protocol",
        tmp_path / "_a_9": "it has no evaluation",
    }
    (tmp_path / "_a_9").mkdir()
    change_protocol(tmp_path / "_a_7", precision="bf16")
    change_protocol(tmp_path / "_a_8", data={})
    assert results.found_in([right, *reasons]) == {task: "25.0 / 44.0 / 55.0"}
    printed = capsys.readouterr().out
    for folder, reason in reasons.items():
        (line,) = [line for line in printed.splitlines() if line.startswith(f"{folder}: not counted, ")]
        assert reason in line
    assert f"{right}:" not in printed


def test_the_readmes_table_is_the_tools():
    text = (ROOT / "README.md").read_text()
    _, within, _ = results.split(text, ROOT / "README.md")
    assert within.strip() == results.table(results.cells(within))


# -- embeddings


@pytest.fixture
def embedding_run(run, config):
    """The run's folder, its checkpoint with the heads of embeddings."""
    model = PretrainModel(**encoder_arguments(config), tasks=("mlm", "vtm", "vtc"))
    torch.save(model.state_dict(), run / "ckpt_violet_demo-qa_best.pt")
    return run


def test_embeddings_of_videos_and_texts_are_unit_vectors_of_their_tokens(embedding_run):
    loaded, clip = violet.load(embedding_run), Path("clip.mp4")
    frames = [np.random.default_rng(i).integers(0, 255, (5, 64, 80, 3), np.uint8) for i in range(20)]
    pictures = [Image.fromarray(frame) for frame in frames[0]]
    given = [clip, clip.read_bytes(), *frames, pictures]  # more than a batch
    found = loaded.embed_video(given)
    assert found.shape == (23, 256) and found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)
    np.testing.assert_allclose(found[2], found[22], atol=1e-6)
    np.testing.assert_allclose(found[7], loaded.embed_video(frames[5])[0], atol=1e-5)
    tokens = loaded.encode_video(frames[5])
    patches = tokens.view(3, -1, tokens.shape[1])[:, 1:].flatten(0, 1).mean(dim=0)
    own = torch.nn.functional.normalize(loaded.network.fc_vtc.video(patches), dim=0)
    np.testing.assert_allclose(found[7], own.detach(), atol=1e-5)
    part = loaded.embed_video(clip, start=0.4, end=0.8)
    assert np.abs(part - found[0]).max() > 1e-3
    texts = loaded.embed_text(["a red star", "a blue circle moves left", "a"])
    np.testing.assert_allclose(texts[2], loaded.embed_text("a")[0], atol=1e-5)  # padding is not seen
    assert texts.shape == (3, 256) and np.abs(texts[0] - texts[1]).max() > 1e-3
    with pytest.raises(UserError, match="list of strings"):
        loaded.embed_text([])
    with pytest.raises(UserError, match="did you mean 'pooled'"):
        loaded.embed_video(frames[0], features="poled")


def test_features_of_the_video_encoder_stand_in_where_there_are_no_embeddings(run, caplog):
    loaded, picture = violet.load(run), Image.new("RGB", (80, 64))
    clip = np.random.default_rng(0).integers(0, 255, (5, 64, 80, 3), np.uint8)
    with caplog.at_level("WARNING", "violet"):
        pooled = loaded.embed_video([clip, picture])
    assert "has no fc_vtc" in caplog.text
    frames = loaded.embed_video([clip, clip], features="frames")
    width = loaded.network.enc_img.swin.width
    assert pooled.shape == (2, width) and frames.shape == (2, 3, width)
    np.testing.assert_allclose(frames[0].mean(axis=0), pooled[0], atol=1e-5)
    with pytest.raises(UserError, match="holds only videos or only pictures"):
        loaded.embed_video([clip, picture], features="frames")
    for embed in (lambda: loaded.embed_text("a"), lambda: loaded.embed_video(clip, features="embedding")):
        with pytest.raises(UserError, match="has no fc_vtc, without which it cannot make embeddings"):
            embed()
