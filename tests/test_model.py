"""What the pre-training model computes of a masked batch, and what it starts from."""

import pytest
import torch
from conftest import SWIN, tiny_bert
from torch import nn
from torch.nn import functional as F
from transformers import BertForMaskedLM

from checkpoint import load_checkpoint
from lib import Config, UserError
from masking import SpecialTokens, mask_batch
from model import PretrainModel, bert_config, read_bert
from mvm_targets import TARGETS, hog_picture, make_targets

SPECIAL = SpecialTokens(pad=0, cls=2, sep=3, mask=4)


def masked_batch(size=5, frames=3, pixels=64, p=0.4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    txt = torch.randint(5, 128, (size, 8), generator=generator)
    txt[:, 0], txt[:, 5], txt[:, 6:] = 2, 3, 0
    batch = {
        "img": torch.randn(size, frames, 3, pixels, pixels, generator=generator),
        "txt": txt,
        "mask": (txt > 0).long(),
        "valid": torch.ones(size, dtype=torch.bool),
    }
    return mask_batch(batch, ["rm"], p, SPECIAL, 32, generator)


@pytest.mark.parametrize("size", [1, 2, 5])
@torch.inference_mode()
def test_losses_equal_those_of_full_separate_passes(tiny_model, size):
    """Read positions alone and a shared matched pass change no value."""
    model, batch = tiny_model.eval(), masked_batch(size)
    output = model(batch)
    video, text = model.encode(batch["masked_img"], batch["masked_txt"], batch["mask"])
    fused = model.fuse(video, text, batch["mask"])
    words = model.fc_mtm(fused[:, video.shape[1] :])
    mlm = F.cross_entropy(words.transpose(1, 2), batch["ans_mlm"], ignore_index=-1)
    torch.testing.assert_close(output.losses["mlm"].value, mlm)
    rows = []
    for i, others in enumerate(batch["negatives"].tolist()):
        pairs = [
            model.fuse(video[i : i + 1], text[[j]], batch["mask"][[j]])[:, video.shape[1]]
            for j in [i, *others]
        ]
        rows.append(model.fc(torch.cat(pairs))[:, 0] / 0.05)
    vtm = F.cross_entropy(torch.stack(rows), torch.zeros(size, dtype=torch.long))
    torch.testing.assert_close(output.losses["vtm"].value, vtm, rtol=1e-4, atol=1e-5)
    for name, target in model.targets.items():
        want = target.loss(fused[:, : video.shape[1]], batch["img"], batch["mvm_mask"]).value
        torch.testing.assert_close(output.losses[f"mvm_{name}"].value, want)


@torch.inference_mode()
def test_accuracies_count_right_answers_and_no_bad_row(tiny_model):
    batch = masked_batch()
    output = tiny_model.eval()(batch)
    named = [word for row in output.predictions["mlm"] for word in row]
    answers = batch["ans_mlm"][batch["ans_mlm"] >= 0].tolist()
    assert len(named) == len(answers)
    right = sum(a == b for a, b in zip(named, answers, strict=True))
    assert output.scores["mlm_acc"].value == pytest.approx(right / len(answers))
    assert output.scores["vtm_acc"].total == sum(output.predictions["vtm"])
    batch["valid"] = torch.zeros_like(batch["valid"])
    for score in tiny_model(batch).scores.values():
        assert score.total == 0
        assert score.count > 0


def test_nothing_hidden_gives_zero_losses_that_still_reach_every_head(tiny_model):
    """Else a step without a masked word would stall DistributedDataParallel."""
    output = tiny_model(masked_batch(p=0.0))
    for name in ("mlm", "mvm_pixel", "mvm_hog"):
        assert output.losses[name].value == 0
    sum(mean.value for mean in output.losses.values()).backward()
    lacking = [n for n, p in tiny_model.named_parameters() if p.requires_grad and p.grad is None]
    assert lacking == []


@pytest.mark.parametrize("tasks", [["mlm"], ["vtm"], ["mvm"], ["mlm", "vtm"]])
def test_tasks_are_chosen_and_heads_of_others_do_not_train(tasks):
    model = PretrainModel(tiny_bert(), tiny_bert(), SWIN, tasks=tasks)
    output = model(masked_batch())
    assert {name.split("_")[0] for name in output.losses} == set(tasks)
    sum(mean.value for mean in output.losses.values()).backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())


def test_activation_checkpointing_changes_no_gradient():
    gradients = []
    for use_checkpoint in (False, True):
        torch.manual_seed(0)
        bert = tiny_bert(dropout=0.1)
        model = PretrainModel(bert, bert, SWIN, use_checkpoint=use_checkpoint)
        sum(mean.value for mean in model(masked_batch()).losses.values()).backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_is_close(tiny_model, dtype):
    batch = masked_batch()
    want = tiny_model.eval()(batch).losses
    with torch.autocast("cpu", dtype):
        got = tiny_model(batch).losses
    for name, mean in want.items():
        assert got[name].value.dtype == torch.float32
        torch.testing.assert_close(got[name].value, mean.value, rtol=0.05, atol=0.05)
    sum(mean.value for mean in got.values()).backward()


def test_pixel_loss_is_the_published_normalisation():
    target = make_targets(["pixel"], 16)["pixel"]
    frames, visual = torch.randn(1, 2, 3, 64, 64), torch.randn(1, 2 * 5, 16)
    mask = torch.zeros(1, 2, 2, 2)
    mask[0, 1, 0, 1] = 1
    token = visual[0, 5 + 1 + 1]
    got = target.heads["decoder_pixel"][1](target.heads["decoder_pixel"][0](token[None, :, None, None]))
    error = (got - frames[0, 1, :, :32, 32:]).abs().sum() / (3 * 32 * 32 + 1e-5) / 3
    torch.testing.assert_close(target.loss(visual, frames, mask).value, error)
    picture = target.reconstruct(visual, (2, 2, 2))
    torch.testing.assert_close(picture[0, 1, :, :32, 32:], got[0])


@pytest.mark.parametrize("shape", [(3, 64, 64), (3, 50, 67), (3, 8, 8), (2, 2, 3, 24, 32)], ids=str)
def test_hog_equals_scikit_image(shape):
    from skimage.feature import hog

    frames = (torch.rand(shape) * 255).round() / 50
    got = hog_picture(frames)
    assert got.shape == (*shape[:-3], *shape[-2:])
    for frame, picture in zip(frames.reshape(-1, *shape[-3:]), got.reshape(-1, *shape[-2:]), strict=True):
        _, want = hog(frame.permute(1, 2, 0).numpy(), 9, (8, 8), (1, 1), visualize=True, channel_axis=-1)
        assert (picture - torch.from_numpy(want)).abs().max() < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_targets_are_float32_under_autocast(dtype):
    target = make_targets(["hog"], 16)["hog"]
    frames, mask = torch.randn(1, 1, 3, 32, 32), torch.ones(1, 1, 1, 1)
    with torch.autocast("cpu", dtype):
        patches = target.hidden_patches(frames, mask)
    assert torch.equal(patches[0, 0], hog_picture(frames[0, 0]))


def test_two_targets_of_one_head_name_are_an_error(monkeypatch):
    class Other(TARGETS["pixel"]):
        name = "other"

    monkeypatch.setitem(TARGETS, "other", Other)
    with pytest.raises(ValueError, match="head called decoder_pixel"):
        PretrainModel(tiny_bert(), tiny_bert(), SWIN, targets=["pixel", "other"])


def test_hog_of_flat_and_of_tiny_frames():
    assert (hog_picture(torch.ones(3, 32, 32)) == 0).all()
    with pytest.raises(UserError, match="at least 8 px"):
        hog_picture(torch.ones(3, 4, 32))


def test_a_target_without_a_class_is_named():
    with pytest.raises(UserError, match="mvm_target depth is not built; there are pixel, hog"):
        make_targets(["pixel", "depth"], 8)
    assert {"pixel", "hog"} <= set(TARGETS)


# -- weights


def test_starts_from_a_bert_folder(tmp_path):
    bert = BertForMaskedLM(tiny_bert())
    bert.save_pretrained(tmp_path)
    config = Config(
        txt_backbone=str(tmp_path),
        fusion_encoder=str(tmp_path),
        vis_backbone_size="demo",
        vis_backbone_init="random",
    )
    model = PretrainModel.from_config(config)
    state = model.state_dict()
    torch.testing.assert_close(
        state["enc_txt.emb_txt.word_embeddings.weight"], bert.bert.embeddings.word_embeddings.weight.detach()
    )
    torch.testing.assert_close(model.trsfr.state_dict(), bert.bert.encoder.state_dict())
    torch.testing.assert_close(
        state["fc_mtm.predictions.transform.dense.weight"],
        bert.cls.predictions.transform.dense.weight.detach(),
    )
    x, mask = torch.randn(2, 6, 32), torch.ones(2, 6)
    want = bert.bert.encoder(x, attention_mask=None).last_hidden_state
    torch.testing.assert_close(model.eval().trsfr(x, mask.bool()[:, None, None]), want)


def test_whole_bert_as_text_encoder(bert_folder):
    config = Config(
        txt_backbone=str(bert_folder),
        fusion_encoder=str(bert_folder),
        txt_backbone_rand_init=True,
        fusion_encoder_rand_init=True,
        txt_backbone_embed_only=False,
        vis_backbone_size="demo",
        vis_backbone_init="random",
    )
    model = PretrainModel.from_config(config).eval()
    ids, mask = torch.tensor([[2, 6, 7, 3, 0, 0]]), torch.tensor([[1, 1, 1, 1, 0, 0]])
    text = model.enc_txt(ids, mask)
    assert not torch.allclose(text, model.enc_txt.emb_txt.embeddings(ids))


def test_berts_that_are_missing_or_unlike_say_so(tmp_path, bert_folder, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="neither a folder"):
        bert_config(str(tmp_path / "none"))
    with pytest.raises(UserError, match="txt_backbone_rand_init"):
        read_bert(str(bert_folder))
    wide = tiny_bert()
    wide.hidden_size = 64
    wide.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="equally wide"):
        PretrainModel.from_config(Config(txt_backbone=str(bert_folder), fusion_encoder=str(tmp_path)))


def published(model: nn.Module) -> dict[str, torch.Tensor]:
    """A state dict with what published checkpoints hold beyond a model's own keys."""
    extra = {"feature_model.norm.weight": torch.zeros(3), "enc_txt.emb_txt.position_ids": torch.zeros(1, 4)}
    return {f"module.{k}": v for k, v in {**model.state_dict(), **extra}.items()}


def test_checkpoint_round_trip_and_published_layout(tmp_path, tiny_model):
    torch.save(published(tiny_model), tmp_path / "a.pt")
    other = PretrainModel(tiny_bert(), tiny_bert(), SWIN, targets=["pixel", "hog"])
    load_checkpoint(other, str(tmp_path / "a.pt"))
    torch.testing.assert_close(other.state_dict(), tiny_model.state_dict(), rtol=0, atol=0)


def test_checkpoint_may_lack_heads_but_no_part_of_an_encoder(tmp_path, tiny_model):
    state = tiny_model.state_dict()
    del state["decoder_hog.0.weight"]
    torch.save(state, tmp_path / "a.pt")
    load_checkpoint(tiny_model, str(tmp_path / "a.pt"))
    del state["trsfr.layer.1.output.dense.weight"]
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"lacks trsfr\.layer\.1\.output\.dense\.weight"):
        load_checkpoint(tiny_model, str(tmp_path / "a.pt"))
    with pytest.raises(UserError, match="does not exist"):
        load_checkpoint(tiny_model, str(tmp_path / "none.pt"))
