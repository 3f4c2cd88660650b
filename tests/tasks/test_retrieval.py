"""Retrieval: the model, the scores of all pairs, and the scripts from the command line to their files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import eval_retrieval_tsv
import main_retrieval_tsv
from _tools import rank_epochs
from batch import best_alone
from lib import Config, UserError
from media.frames import normalise
from media.tokens import Tokens
from tasks.retrieval.captions import read_gallery
from tasks.retrieval.evaluation import Blocks
from tasks.retrieval.model import RetrievalModel
from tasks.retrieval.ranking import both_ways
from tasks.retrieval.reranking import candidates, combine
from tasks.retrieval.scoring import PairScorer, all_pairs, chunks
from tests.conftest import SWIN, WORDS, demo_network, run_script, tiny_bert, write_videos
from tests.test_agent import free_port, lines, protocols

ROOT = Path(__file__).parents[2]


def model_of(layers=3, **arguments) -> RetrievalModel:
    bert = tiny_bert()
    bert.num_hidden_layers = layers
    return RetrievalModel(bert, tiny_bert(), SWIN, **arguments)


def texts_of(lengths, size=9, seed=1):
    """Token ids and mask of texts of these lengths."""
    generator = torch.Generator().manual_seed(seed)
    txt = torch.randint(5, 128, (len(lengths), size), generator=generator)
    mask = (torch.arange(size) < torch.tensor(lengths)[:, None]).long()
    return txt * mask, mask


def batch_of(clips=4, seed=1):
    txt, mask = texts_of([3 + i % 6 for i in range(clips)], seed=seed)
    generator = torch.Generator().manual_seed(seed)
    img = torch.randn(clips, 2, 3, 32, 32, generator=generator)
    valid, video = torch.ones(clips, dtype=torch.bool), torch.arange(clips)
    return {"img": img, "txt": txt, "mask": mask, "valid": valid, "video": video}


# -- scores of all pairs


def plain_scores(model, video, text, mask):
    """Every pair materialised, nothing cut or kept: the output at [CLS] of a whole forward pass."""
    rows = []
    for tokens in video:
        fused = model.fuse(tokens.expand(len(text), -1, -1), text, mask)
        rows.append(model.fc(fused[:, video.shape[1]])[:, 0])
    return torch.stack(rows)


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
@pytest.mark.parametrize("pairs", [1, 3, 7, 1000])
@torch.inference_mode()
def test_cached_and_trimmed_scores_are_those_of_a_plain_pass(layers, pairs):
    model = model_of(layers).eval()
    video = torch.randn(5, 10, 32)
    txt, mask = texts_of([2, 3, 3, 5, 6, 9, 9])  # the shortest and the fullest
    text = model.enc_txt(txt, mask)
    want = plain_scores(model, video, text, mask)
    got = all_pairs(PairScorer(model), video, text, mask, pairs)
    assert want.std() > 1e-3
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4 * want.abs().max().item())


@torch.inference_mode()
def test_text_in_any_order_and_scores_in_bf16():
    model = model_of().eval()
    video, (txt, mask) = torch.randn(3, 10, 32), texts_of([9, 2, 6])
    text = model.enc_txt(txt, mask)
    want = plain_scores(model, video, text, mask)
    torch.testing.assert_close(all_pairs(PairScorer(model), video, text, mask, 2), want, rtol=0, atol=1e-5)
    half = all_pairs(PairScorer(model, torch.bfloat16), video, text, mask, 2)
    assert half.dtype == torch.float32
    assert (half - want).abs().max() < 0.05 * want.abs().max() < 100 * (half - want).abs().max()
    assert model.fc[1].weight.dtype == torch.float32  # the model itself is left as it is


def test_a_chunk_is_within_its_size_and_each_pair_in_one():
    lengths = torch.tensor([2, 3, 3, 8, 9])
    for videos, pairs in [(4, 1), (4, 2), (4, 5), (4, 7), (4, 12), (4, 100), (1, 3)]:
        seen = torch.zeros(videos, len(lengths))
        for rows, columns, longest in chunks(lengths, videos, pairs):
            assert seen[rows, columns].numel() <= pairs
            assert longest == lengths[columns].max()
            seen[rows, columns] += 1
        assert (seen == 1).all()


@torch.inference_mode()
def test_words_beyond_the_longest_are_never_computed(monkeypatch):
    model = model_of().eval()
    scorer, lengths = PairScorer(model), []
    scores = scorer.scores
    monkeypatch.setattr(
        scorer, "scores", lambda v, text, mask: (lengths.append(text.shape[1]), scores(v, text, mask))[1]
    )
    txt, mask = texts_of([2, 3, 5, 9])
    all_pairs(scorer, torch.randn(3, 10, 32), model.enc_txt(txt, mask), mask, pairs=2)
    assert lengths == [3, 9] * 3


# -- training


def gradients(model, batch) -> dict[str, torch.Tensor]:
    model.zero_grad()
    output = model(batch)
    output.losses["match"].value.backward()
    return {"loss": output.losses["match"].value.detach()} | {
        name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None
    }


@pytest.mark.parametrize("pair_batch", [1, 3, 4, 5, 100])
def test_gradients_in_chunks_are_those_of_the_whole(pair_batch):
    batch, plain = batch_of(), model_of().train()
    parts = model_of(pair_batch=pair_batch).train()
    parts.load_state_dict(plain.state_dict())
    whole, chunked = gradients(plain, batch), gradients(parts, batch)
    assert {n for n, p in plain.named_parameters() if p.requires_grad} == whole.keys() - {"loss"}
    for name, value in whole.items():
        torch.testing.assert_close(chunked[name], value, rtol=1e-4, atol=2e-5, msg=lambda m, n=name: n + m)


def test_chunks_keep_less_for_the_backward_pass():
    """Bytes that autograd holds on to: sixteen clips in chunks of the pairs of four."""

    def kept(model, clips):
        storages = {}

        def note(tensor):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            model(batch_of(clips))
        return sum(size for place, size in storages.items() if place not in parameters)

    assert kept(model_of(pair_batch=16).train(), 16) < kept(model_of().train(), 4)
    assert kept(model_of().train(), 16) > 7 * kept(model_of().train(), 4)


def test_another_caption_of_the_same_video_is_no_wrong_one():  # Deviation 14
    model, batch = model_of().eval(), batch_of(3)
    batch["img"][1] = batch["img"][0]
    batch["video"] = torch.tensor([7, 7, 8])
    loss = model(batch).losses["match"].total
    parts = [model({k: v[rows] for k, v in batch.items()}) for rows in ([0, 2], [1, 2])]
    video, text = model.encode(batch["img"], batch["txt"], batch["mask"])
    scores = model.scores(video, text, batch["mask"]) / 0.05
    lone = sum(torch.logsumexp(s, 0) - s[2] for s in (scores[2], scores[:, 2]))  # 2 beside both of the others
    shared = [part.losses["match"].total for part in parts]
    twice = [
        torch.logsumexp(s[rows], 0) - s[2] for rows in ([0, 2], [1, 2]) for s in (scores[2], scores[:, 2])
    ]
    torch.testing.assert_close(loss, sum(shared) - sum(twice) + lone)


def test_each_is_to_find_its_own_and_ties_never_help():
    scores = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 3.0], [0.0, 1.0, 1.0]])
    assert best_alone(scores, torch.arange(3)).tolist() == [True, False, False]
    model = model_of(temperature=0.5).eval()
    output = model.judge(scores, scores.T, torch.arange(3), torch.tensor([True, True, True]))
    by_video = [torch.logsumexp(2 * scores[i], 0) - 2 * scores[i, i] for i in range(3)]
    by_text = [torch.logsumexp(2 * scores[:, i], 0) - 2 * scores[i, i] for i in range(3)]
    torch.testing.assert_close(output.losses["match"].value, sum(by_video + by_text) / 3)
    assert output.predictions["v2t"].tolist() == [True, False, False]
    assert output.predictions["t2v"].tolist() == [True, True, False]
    output = model.judge(scores, scores.T, torch.arange(3), torch.tensor([False, True, True]))
    assert output.predictions["t2v"].tolist() == [False, True, False]


# -- the scripts


@pytest.fixture
def arguments(tmp_path, bert_folder):
    """Writes eight videos with their captions; returns the command line of a run on them."""
    write_videos(tmp_path, rows=8)
    random = np.random.default_rng(0)
    pairs = [{"video": f"clip{i}", "caption": " ".join(random.choice(WORDS, 2 + i))} for i in range(8)]
    content = {"train": pairs, "val": pairs[:5], "test": pairs}
    (tmp_path / "txt_found.json").write_text(json.dumps(content))
    values = {
        "type": "retrieval",
        "data_dir": str(tmp_path),
        "dataset": "clips",
        "task": "found",
        **demo_network(bert_folder),
        "size_img": 32,
        "size_frame": 2,
        "size_txt": 12,
        "size_batch": 3,
        "n_workers": 0,
        "logging_steps": 1,
        "path_output": str(tmp_path / "out"),
        "device": "cpu",
    }
    (tmp_path / "config.json").write_text(json.dumps(values))
    return ["--config", str(tmp_path / "config.json")]


@pytest.fixture
def trained(monkeypatch, arguments):
    """The command line of an evaluation of a checkpoint."""
    folder = run_script(monkeypatch, main_retrieval_tsv, [*arguments, "--max_steps", "2", "--lr", "1e-2"])
    weights = str(folder / "ckpt_violet_found_last.pt")
    return [*arguments, "--path_ckpt", weights, "--multi_clip_testing", "false"]


def plain_matrix(given: list[str]) -> np.ndarray:
    """The scores of an evaluation, each pair by itself, from files to the head."""
    values = json.loads(Path(given[1]).read_text())
    weights = given[given.index("--path_ckpt") + 1]
    config = Config(**{**values, "path_ckpt": weights, "multi_clip_testing": False})
    model = RetrievalModel.from_config(config).eval()
    gallery = read_gallery(config)
    tokens = Tokens(config.txt_backbone, config.size_txt)
    videos = torch.cat([model.enc_img(normalise(gallery.clips.read(i, None)["img"])) for i in range(8)])
    txt, mask = (torch.stack(rows) for rows in zip(*(tokens(text) for text in gallery.texts), strict=True))
    with torch.inference_mode():
        return plain_scores(model, videos, model.enc_txt(txt, mask), mask).numpy()


def test_training_writes_accuracy_within_batches_and_evaluation_ranks_everything(monkeypatch, trained):
    (evaluation,) = lines(Path(trained[3]).parent / "eval.jsonl")
    rows = lines(Path(trained[3]).parent / "predictions_test_1.jsonl")
    assert [row["among"] for row in rows] == [3, 3, 3, 3, 3, 3, 2, 2]
    hits = [sum(row[way] for row in rows) / 8 for way in ("right_v2t", "right_t2v")]  # acc as published
    assert [evaluation["test_acc"], evaluation["test_acc_t2v"]] == hits
    assert evaluation["test_acc_mean"] == sum(hits) / 2
    folder = run_script(monkeypatch, eval_retrieval_tsv, trained)
    scores = np.load(folder / "scores.npy")
    want = plain_matrix(trained)
    np.testing.assert_allclose(scores, want, rtol=0, atol=1e-4 * np.abs(want).max())
    found = both_ways(want, np.arange(8))
    rows = lines(folder / "ranks.jsonl")
    assert [row["rank"] for row in rows if row["direction"] == "t2v"] == found[0].tolist()
    assert [row["rank"] for row in rows if row["direction"] == "v2t"] == found[1].tolist()
    for row in rows[:8]:
        assert row["best"][0]["score"] == max(scores[:, int(row["video"][4:])])
    (evaluation,) = lines(folder / "eval.jsonl")
    assert evaluation["t2v_r5"] == (found[0] <= 5).mean()
    assert evaluation["v2t_median"] == np.median(found[1])
    (told,) = protocols(folder / "eval.jsonl")
    data = {"file": "txt_found.json", "split": "test", "samples": 8, "videos": 8, "missing_videos": 0}
    assert data.items() <= told["data"]["test"].items() and len(told["data"]["test"]["sha256"]) == 64
    assert (told["rerank"], told["multi_clip_testing"], len(told["checkpoint"])) == (0, False, 64)
    page = (folder / "retrieval.html").read_text()
    assert page.count("data:image/jpeg") >= 8 * 5 and "http" not in page
    assert not list(folder.parent.glob("_scores_*"))


def test_an_interrupted_evaluation_goes_on_from_its_scores(monkeypatch, trained):
    whole = np.load(run_script(monkeypatch, eval_retrieval_tsv, trained) / "scores.npy")
    out = Path(json.loads(Path(trained[1]).read_text())["path_output"])
    write = Blocks.write

    def stop(self, number, scores):
        if number == 2:
            raise KeyboardInterrupt
        write(self, number, scores)

    monkeypatch.setattr(Blocks, "write", stop)
    with pytest.raises(KeyboardInterrupt):
        run_script(monkeypatch, eval_retrieval_tsv, trained)
    (folder,) = out.glob("_scores_*")
    assert Blocks(folder).done() == [0, 1]
    marked = Blocks(folder).read(0) + 100  # what is read again is not computed again
    write(Blocks(folder), 0, marked)
    monkeypatch.setattr(Blocks, "write", write)
    encoded = []
    average = RetrievalModel.average
    monkeypatch.setattr(
        RetrievalModel, "average", lambda *given: (encoded.append(len(given[1])), average(*given))[1]
    )
    last = run_script(monkeypatch, eval_retrieval_tsv, trained)
    scores = np.load(last / "scores.npy")
    assert encoded == [2] and "2 of 3 blocks" in (last / "log.txt").read_text()
    np.testing.assert_array_equal(scores[:3], whole[:3] + 100)
    np.testing.assert_array_equal(scores[3:], whole[3:])


@pytest.mark.parametrize("change", ["weights", "text", "frames"])
def test_scores_of_anything_else_are_not_gone_on_from(monkeypatch, trained, change):
    monkeypatch.setattr(Blocks, "remove", lambda self: None)  # as if it had been interrupted at the end
    first = run_script(monkeypatch, eval_retrieval_tsv, trained)
    folder = Path(json.loads(Path(trained[1]).read_text())["data_dir"])
    if change == "weights":
        state = torch.load(trained[3], weights_only=True)
        state["fc.3.bias"] += 1
        torch.save(state, trained[3])
    elif change == "text":
        content = json.loads((folder / "txt_found.json").read_text())
        content["test"][7]["caption"] = "a star"
        (folder / "txt_found.json").write_text(json.dumps(content))
    else:
        write_videos(folder, rows=8, frames=6)
    second = run_script(monkeypatch, eval_retrieval_tsv, trained)
    assert not np.array_equal(np.load(first / "scores.npy"), np.load(second / "scores.npy"))
    assert len(list(first.parent.glob("_scores_*"))) == 2


def test_a_video_that_is_missing_or_damaged_is_last_and_hinders_no_other(monkeypatch, trained):
    whole = np.load(run_script(monkeypatch, eval_retrieval_tsv, trained) / "scores.npy")
    folder = Path(json.loads(Path(trained[1]).read_text())["data_dir"])
    rows = (folder / "img_clips.tsv").read_bytes().splitlines(keepends=True)
    rows[3] = b"\t".join([*rows[3].split(b"\t")[:2], b"AAAA\n"])
    (folder / "img_clips.tsv").write_bytes(b"".join(rows[:6] + rows[7:]))
    found = run_script(monkeypatch, eval_retrieval_tsv, [*trained, "--max_bad_ratio", "0.2"])
    scores = np.load(found / "scores.npy")
    lost = [3, 6]
    assert np.isneginf(scores[lost]).all()
    kept = [0, 1, 2, 4, 5, 7]
    np.testing.assert_array_equal(scores[kept], whole[kept])
    texts = [row for row in lines(found / "ranks.jsonl") if row["direction"] == "t2v"]
    assert [texts[i]["rank"] for i in lost] == [9, 9]  # beyond the candidates: not found at any depth


def test_two_processes_give_the_scores_of_one(monkeypatch, trained):
    one = run_script(monkeypatch, eval_retrieval_tsv, trained)
    before = set(one.parent.iterdir())
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    command += [f"--master_port={free_port()}", "eval_retrieval_tsv.py", *trained]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    (two,) = set(one.parent.iterdir()) - before
    np.testing.assert_array_equal(np.load(one / "scores.npy"), np.load(two / "scores.npy"))
    assert lines(one / "eval.jsonl") == lines(two / "eval.jsonl")


def test_a_run_learns_its_videos_and_ranks_them_first(monkeypatch, arguments):
    given = [*arguments, "--size_batch", "8", "--size_epoch", "1", "--lr", "1e-3"]
    content = json.loads((Path(arguments[1]).parent / "txt_found.json").read_text())
    content["train"] *= 200  # steps: with half of them some seeds have not found the videos
    (Path(arguments[1]).parent / "txt_found.json").write_text(json.dumps(content))
    folder = run_script(monkeypatch, main_retrieval_tsv, given)
    checkpoint = folder / "ckpt_violet_found_best.pt"
    found = run_script(monkeypatch, eval_retrieval_tsv, [*given, "--path_ckpt", str(checkpoint)])
    (evaluation,) = lines(found / "eval.jsonl")
    assert evaluation["t2v_r1"] >= 0.5  # chance 0.125


def test_what_has_no_checkpoint_is_not_evaluated(monkeypatch, arguments):
    with pytest.raises(UserError, match="path_ckpt is empty"):
        run_script(monkeypatch, eval_retrieval_tsv, arguments)


def test_a_ranking_averages_all_clips_of_a_video_as_published(monkeypatch, trained):
    given = trained[: trained.index("--multi_clip_testing")]
    scores = np.load(run_script(monkeypatch, eval_retrieval_tsv, given) / "scores.npy")
    one = np.load(run_script(monkeypatch, eval_retrieval_tsv, trained) / "scores.npy")
    values = json.loads(Path(given[1]).read_text())
    config = Config(**{**values, "path_ckpt": given[given.index("--path_ckpt") + 1]})
    model, gallery = RetrievalModel.from_config(config).eval(), read_gallery(config)
    tokens = Tokens(config.txt_backbone, config.size_txt)
    txt, mask = (torch.stack(rows) for rows in zip(*(tokens(text) for text in gallery.texts), strict=True))
    with torch.inference_mode():
        clips = [normalise(gallery.clips.read(i, None)["img"]) for i in range(8)]
        videos = torch.stack([model.enc_img(part).mean(dim=0) for part in clips])
        want = plain_scores(model, videos, model.enc_txt(txt, mask), mask).numpy()
    np.testing.assert_allclose(scores, want, rtol=0, atol=1e-4 * np.abs(want).max())
    assert not np.allclose(scores, one, rtol=0, atol=1e-5)


def test_every_epoch_is_ranked_on_val_and_the_best_on_test(monkeypatch, arguments):
    given = [*arguments, "--keep_epochs", "--size_epoch", "2", "--lr", "1e-2"]
    folder = run_script(monkeypatch, main_retrieval_tsv, given)
    kept = sorted(path.stem.removeprefix("ckpt_violet_found_") for path in folder.glob("ckpt_*"))
    assert kept == ["1", "2", "best", "last"]
    monkeypatch.setattr(
        "engine.runs.time.strftime", lambda layout, *_: str(len(list(folder.parent.iterdir())) + 5)
    )
    rank_epochs.main([str(folder), "--device", "cpu"])
    content = json.loads((folder / "epochs.json").read_text())
    assert list(content["val"]) == ["1", "2"]
    best = max(content["val"], key=lambda n: (content["val"][n]["t2v_r1"], content["val"][n]["t2v_r10"]))
    assert str(content["best"]) == best
    assert (content["test"]["split"], content["val"]["1"]["split"]) == ("test", "val")
    for path in folder.glob("ckpt_violet_found_[0-9]*"):
        path.unlink()
    with pytest.raises(UserError, match="train with --keep_epochs"):
        rank_epochs.main([str(folder)])


# -- re-ranking


def test_candidates_are_the_most_similar_both_ways_and_rank_before_all_others():
    similar = np.array([[0.9, 0.1, 0.2], [0.8, 0.7, 0.0], [-0.5, 0.3, 0.1], [-np.inf] * 3])
    chosen = candidates(similar, 1)
    want = [[True, False, True], [True, False, False], [False, True, False], [False] * 3]
    want[1][1] = True  # text 1 finds video 1, whose own best text is 0
    assert chosen.tolist() == want
    scores = np.where(chosen, [[1.0, 0, -7.0], [3.0, 2.0, 0], [0, np.nan, 0], [0, 0, 0]], 99.0)
    ranked = combine(scores, similar, chosen)
    assert ranked[chosen & np.isfinite(scores)].tolist() == [1.0, -7.0, 3.0, 2.0]
    others = ranked[~chosen & np.isfinite(similar)]
    assert others.max() < -7.0
    assert (np.argsort(others) == np.argsort(similar[~chosen & np.isfinite(similar)])).all()
    assert np.isneginf(ranked[3]).all() and np.isnan(ranked[2, 1])
    assert candidates(similar, 99).sum() == 9


def test_reranking_fuses_the_most_similar_pairs_alone(monkeypatch, arguments):
    given = [*arguments, "--max_steps", "2", "--lr", "1e-2", "--vtc"]
    folder = run_script(monkeypatch, main_retrieval_tsv, given)
    given = [*arguments, "--path_ckpt", str(folder)]
    whole = np.load(run_script(monkeypatch, eval_retrieval_tsv, given) / "scores.npy")
    everything = run_script(monkeypatch, eval_retrieval_tsv, [*given, "--rerank", "8"])
    np.testing.assert_allclose(np.load(everything / "scores.npy"), whole, rtol=0, atol=1e-5)
    fused = []
    scores = PairScorer.scores
    monkeypatch.setattr(
        PairScorer, "scores", lambda self, v, t, m: (fused.append(len(v) * len(t)), scores(self, v, t, m))[1]
    )
    out = run_script(monkeypatch, eval_retrieval_tsv, [*given, "--rerank", "2"])
    found = np.load(out / "scores.npy")
    (figures,) = lines(out / "eval.jsonl")
    assert figures["fused_pairs"] == sum(fused) < figures["all_pairs"] == 64
    (same,) = lines(everything / "eval.jsonl")
    for name in ("embedding_t2v_r1", "embedding_v2t_mean"):  # whatever is fused
        assert figures[name] == same[name]
    best = np.sort(found, axis=0)[-2:]  # of each text both candidates, at least, rank first
    assert np.isin(best.round(5), whole.round(5)).all()
    log = (out / "log.txt").read_text()
    assert "embeddings alone, text to video" in log and f"{sum(fused)} of 64 pairs were fused" in log


def test_a_checkpoint_without_embeddings_cannot_rerank(monkeypatch, trained):
    with pytest.raises(UserError, match="has no fc_vtc"):
        run_script(monkeypatch, eval_retrieval_tsv, [*trained, "--rerank", "2"])


def test_weights_that_are_not_numbers_are_refused(monkeypatch, trained):
    state = torch.load(trained[3], weights_only=True)
    state["fc.1.weight"][0, 0] = float("nan")
    torch.save(state, trained[3])
    with pytest.raises(UserError, match=r"not finite in fc\.1\.weight: the checkpoint is unusable"):
        run_script(monkeypatch, eval_retrieval_tsv, trained)
