"""Embeddings in training: the contrastive loss, hard negatives, and what starts from older checkpoints."""

import json

import pytest
import torch
from torch.nn import functional as F

import main_pretrain_yaml
import main_retrieval_tsv
from layers.embedding import Embedding, draw_hard
from lib import Config, UserError
from masking import hide_patches
from model import PretrainModel
from tasks.retrieval.model import RetrievalModel
from tests.conftest import SWIN, masked_batch, run_script, tiny_bert
from tests.tasks.test_retrieval import arguments as pairs  # noqa: F401  (a fixture)
from tests.tasks.test_retrieval import batch_of
from tests.test_agent import lines


def pretrain_model(tasks=("mlm", "vtm", "vtc"), **arguments) -> PretrainModel:
    return PretrainModel(tiny_bert(), tiny_bert(), SWIN, tasks=tasks, **arguments)


def plain_loss(model, img, txt, mask, numbers) -> torch.Tensor:
    """InfoNCE pair by pair, from whole passes."""
    video = model.enc_img(img)
    patches = video.view(*img.shape[:2], -1, video.shape[-1])[:, :, 1:].flatten(1, 2)
    videos = F.normalize(model.fc_vtc.video(patches.mean(dim=1)), dim=1)
    texts = []
    for ids, seen in zip(txt, mask, strict=True):  # each text alone, without its padding
        words = model.enc_txt(ids[None, : seen.sum()], seen[None, : seen.sum()])
        sees = torch.ones(1, 1, 1, words.shape[1], dtype=torch.bool)
        texts.append(F.normalize(model.fc_vtc.text(model.trsfr(words, sees)[:, 0]), dim=1)[0])
    total = torch.zeros(())
    for ones, others in ((videos, texts), (texts, videos)):
        for own, one in enumerate(ones):
            kept = [i for i in range(len(videos)) if i == own or numbers[i] != numbers[own]]
            logits = torch.stack([one @ others[i] for i in kept]) / 0.07
            total = total + torch.logsumexp(logits, 0) - logits[kept.index(own)]
    return total / 2


def test_the_loss_is_symmetric_infonce_of_masked_videos_and_whole_texts():
    model, batch = pretrain_model().eval(), masked_batch()
    batch["video"] = torch.tensor([3, 7, 8, 7, 9])  # two captions of one video
    output, shown = model(batch), hide_patches(batch["img"], batch["mvm_mask"])
    want = plain_loss(model, shown, batch["txt"], batch["mask"], [3, 7, 8, 7, 9])
    torch.testing.assert_close(output.losses["vtc"].total, want)
    assert output.losses["vtc"].count == 5
    retrieval, batch = RetrievalModel(tiny_bert(), tiny_bert(), SWIN, vtc=True).eval(), batch_of(4)
    want = plain_loss(retrieval, batch["img"], batch["txt"], batch["mask"], range(4))
    torch.testing.assert_close(retrieval(batch).losses["vtc"].total, want)


def test_every_head_learns_and_the_published_losses_stay_what_they_are():
    batch = {**masked_batch(), "video": torch.arange(5)}
    model = pretrain_model().train()
    output = model(batch)
    sum(mean.value for mean in output.losses.values()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() for p in model.fc_vtc.parameters())
    plain = pretrain_model(("mlm", "vtm"))
    assert not any("vtc" in key for key in plain.state_dict())
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "vtc" not in k})
    for name, mean in plain(batch).losses.items():
        torch.testing.assert_close(mean.value, output.losses[name].value)


def test_a_temperature_never_turns_negative_and_similarities_are_float32_under_autocast():
    heads = Embedding(8)
    ones = F.normalize(torch.randn(3, 8), dim=1)
    with torch.no_grad():
        heads.log_scale.fill_(50.0)
    with torch.autocast("cpu", torch.bfloat16):
        found = heads.logits(ones, ones)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.diagonal(), torch.full((3,), 100.0))


def test_hard_negatives_are_drawn_in_proportion_to_their_similarity():
    logits = torch.tensor([[9.0, 0.0, 1.0, 2.0]] * 4)
    same = torch.zeros(4, 4, dtype=torch.bool)
    same[0, 3] = True
    torch.manual_seed(0)
    drawn = torch.stack([draw_hard(logits, same, 1)[:, 0] for _ in range(4000)])
    assert not (drawn == torch.arange(4)).any()  # never its own
    shares = [(drawn[:, 0] == i).float().mean().item() for i in range(4)]
    odds = torch.tensor([0.0, 1.0]).softmax(0).tolist()
    assert shares == pytest.approx([0.0, *odds, 0.0], abs=0.03)
    shares = [(drawn[:, 1] == i).float().mean().item() for i in range(4)]
    odds = torch.tensor([9.0, 1.0, 2.0]).softmax(0).tolist()
    assert shares == pytest.approx([odds[0], 0.0, *odds[1:]], abs=0.03)
    several = draw_hard(logits, same, 3)  # too few others: the text of the same video comes last
    assert several.sort(dim=1).values.tolist() == [[j for j in range(4) if j != i] for i in range(4)]
    assert several[0, 2] == 3


def test_hard_negatives_replace_the_random_ones_in_training_alone(monkeypatch):
    batch = {**masked_batch(), "video": torch.arange(5)}
    hard = torch.tensor([[1, 2, 3], [0, 2, 3], [0, 1, 4], [4, 1, 0], [3, 1, 0]])
    monkeypatch.setattr("model.draw_hard", lambda *_: hard)
    model = pretrain_model(hard_negatives=True).train()
    plain = pretrain_model().train()
    plain.load_state_dict(model.state_dict())
    found = model(batch).losses["vtm"].value
    torch.testing.assert_close(found, plain({**batch, "negatives": hard}).losses["vtm"].value)
    torch.testing.assert_close(model.eval()(batch).losses["vtm"].value, plain(batch).losses["vtm"].value)
    with pytest.raises(UserError, match="add vtc to pretrain_tasks"):
        PretrainModel.from_config(Config(vtm_negatives="hard"))


def test_a_checkpoint_without_the_heads_starts_them_anew_and_says_so(monkeypatch, arguments):
    given = [*arguments, "--max_steps", "1"]
    first = run_script(monkeypatch, main_pretrain_yaml, given)
    more = ["--pretrain_tasks", "mlm", "vtm", "mvm", "vtc", "--vtm_negatives", "hard"]
    second = run_script(monkeypatch, main_pretrain_yaml, [*given, *more, "--path_ckpt", str(first)])
    log = (second / "log.txt").read_text()
    assert "has no fc_vtc: trained from random weights" in log
    figures = lines(second / "eval.jsonl")[-1]
    assert {"vtc", "vtc_acc", "clips_vtc", "cc3m_vtc"} <= figures.keys()
    third = run_script(monkeypatch, main_pretrain_yaml, [*given, "--path_ckpt", str(second)])
    assert "not used: fc_vtc" in (third / "log.txt").read_text()
    assert not any("vtc" in key for key in torch.load(third / "ckpt_violet_pretrain_1.pt"))


def test_retrieval_trains_embeddings_where_the_key_asks_for_them(monkeypatch, pairs):  # noqa: F811
    folder = run_script(monkeypatch, main_retrieval_tsv, [*pairs, "--max_steps", "2", "--vtc"])
    state = torch.load(folder / "ckpt_violet_found_best.pt")
    assert state["fc_vtc.video.weight"].shape == (256, state["fc.1.weight"].shape[1])
    assert {"test_vtc", "test_vtc_acc", "test_acc"} <= lines(folder / "eval.jsonl")[-1].keys()
    assert json.loads((folder / "args.json").read_text())["vtc"] is True
    with pytest.raises(UserError, match="has no fc_vtc"):
        plain = run_script(monkeypatch, main_retrieval_tsv, [*pairs, "--max_steps", "1"])
        arguments = [*pairs, "--size_epoch", "0", "--vtc", "--path_ckpt", str(plain)]
        run_script(monkeypatch, main_retrieval_tsv, arguments)
