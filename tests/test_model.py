"""What the pre-training model computes of a masked batch, and what it starts from."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import BertForMaskedLM

from layers.norm import LayerNorm
from lib import Config, UserError
from masking import hide_patches
from media.tokens import Tokens
from model import PretrainModel
from mvm_targets import TARGETS
from tasks import pretraining
from teachers.depth import DptTeacher
from tests.conftest import SWIN, demo_network, masked_batch, noise_teachers, tiny_bert
from weights.bert import bert_config, read_bert
from weights.checkpoint import load_checkpoint


def test_a_norm_of_half_precision_casts_its_parameters_and_their_gradients():
    norm, x = LayerNorm(6), torch.randn(4, 6, dtype=torch.bfloat16)
    nn.init.normal_(norm.weight)
    with torch.autocast("cpu", torch.bfloat16):
        found = norm(x)
    found.float().square().sum().backward()
    weight, bias = (p.detach().bfloat16().requires_grad_() for p in (norm.weight, norm.bias))
    want = F.layer_norm(x, (6,), weight, bias, norm.eps)
    want.float().square().sum().backward()
    assert torch.equal(found, want)
    for parameter, like in ((norm.weight, weight), (norm.bias, bias)):
        assert parameter.grad.dtype == torch.float32
        assert torch.equal(parameter.grad, like.grad.float())


@pytest.mark.parametrize("size", [1, 2, 5])
@torch.inference_mode()
def test_losses_equal_those_of_full_separate_passes(tiny_model, size):
    """Read positions alone and one pass of all pairs change no value."""
    model, batch = tiny_model.eval(), masked_batch(size)
    passes: list[int] = []
    hook = model.trsfr.register_forward_pre_hook(lambda _, given: passes.append(len(given[0])))
    output = model(batch)
    hook.remove()
    assert passes == [size * (1 + batch["negatives"].shape[1])]
    shown = hide_patches(batch["img"], batch["mvm_mask"])
    video, text = model.encode(shown, batch["masked_txt"], batch["mask"])
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


def test_text_cut_to_the_longest_changes_no_loss_and_no_gradient(tiny_model):
    found = []
    for cut in (False, True):
        batch = masked_batch(cut=cut)
        tiny_model.zero_grad()
        losses = {name: mean.value for name, mean in tiny_model(batch).losses.items()}
        torch.stack(list(losses.values())).sum().backward()
        found.append([batch["txt"].shape, losses, tiny_model.enc_img.emb_cls.grad.clone()])
    assert (found[0][0], found[1][0]) == ((5, 8), (5, 6))
    torch.testing.assert_close(found[0][1:], found[1][1:], rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_accuracies_count_right_answers_and_no_bad_row(tiny_model):
    batch = masked_batch()
    output = tiny_model.eval()(batch)
    named = output.predictions["mlm"].tolist()
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
    weight = state.pop("decoder_hog.0.weight")
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"only a part of decoder_hog: it lacks decoder_hog\.0\.weight"):
        load_checkpoint(tiny_model, str(tmp_path / "a.pt"))
    del state["decoder_hog.0.bias"]
    torch.save(state, tmp_path / "a.pt")
    load_checkpoint(tiny_model, str(tmp_path / "a.pt"))
    torch.save(
        {**state, "decoder_hog.0.weight": weight * torch.nan, "decoder_hog.0.bias": weight[:, 0, 0, 0]},
        tmp_path / "a.pt",
    )
    with pytest.raises(UserError, match=r"not finite in decoder_hog\.0\.weight: the checkpoint is unusable"):
        load_checkpoint(tiny_model, str(tmp_path / "a.pt"))
    del state["trsfr.layer.1.output.dense.weight"]
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"lacks trsfr\.layer\.1\.output\.dense\.weight"):
        load_checkpoint(tiny_model, str(tmp_path / "a.pt"))
    with pytest.raises(UserError, match="does not exist"):
        load_checkpoint(tiny_model, str(tmp_path / "none.pt"))


ALL = ["3d_feature", "2d_feature", "2d_clip_feature", "pixel", "hog", "optical_flow", "depth", "vq"]
ALL += ["clip_visible", "latent", "random_feature"]


def model_of(targets, **options) -> PretrainModel:
    return PretrainModel(
        tiny_bert(), tiny_bert(), SWIN, targets=targets, teachers=noise_teachers(), **options
    )


@pytest.mark.parametrize("targets", [*([name] for name in ALL), ["2d_feature", "pixel"], ALL], ids=str)
def test_every_target_trains_its_head_and_the_encoders(targets):
    model = model_of(targets)
    output = model(masked_batch(reads=model.reads))
    assert [name for name in output.losses if name.startswith("mvm")] == [f"mvm_{name}" for name in targets]
    torch.stack([mean.value for name, mean in output.losses.items() if "mvm" in name]).sum().backward()
    trained = [*model.mvm_heads.values(), model.trsfr, model.enc_img.swin]
    for name, parameter in nn.ModuleList(trained).named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0 or "key.bias" in name, name


def test_positions_that_a_target_reads_are_those_that_it_needs():
    model = model_of(ALL).eval()
    batch = masked_batch(reads=model.reads)
    everything = {**batch, "positions": torch.arange(3 * 5 + 8).expand(5, -1)}
    for name, mean in model(everything).losses.items():
        torch.testing.assert_close(model(batch).losses[name].value, mean.value)


def test_several_targets_keep_their_own_heads():
    model = model_of(["2d_feature", "2d_clip_feature", "vq", "pixel"])
    assert list(model.mvm_heads) == [
        "fc_mvm_2d_feature",
        "fc_mvm_2d_clip_feature",
        "decoder_vq",
        "fc_mvm_vq",
        "decoder_pixel",
    ]
    assert list(model_of(["vq", "pixel"]).mvm_heads) == ["decoder_vq", "fc_mvm", "decoder_pixel"]
    assert list(model_of(["optical_flow", "depth", "hog"]).mvm_heads) == [
        "decoder_flow",
        "decoder_depth",
        "decoder_hog",
    ]


def test_teachers_are_in_no_state_dict():
    teacher = nn.Linear(3, 3)
    model = PretrainModel(
        tiny_bert(), tiny_bert(), SWIN, targets=["depth"], teachers={"depth": DptTeacher(teacher, width=1)}
    )
    assert not any(teacher.weight is parameter for parameter in model.parameters())
    assert {name.split(".")[0] for name in model.state_dict()} == {
        "enc_img",
        "enc_txt",
        "trsfr",
        "fc",
        "fc_mtm",
        "decoder_depth",
    }
    assert not teacher.weight.requires_grad


def test_weight_of_a_target_counts_in_the_sum_alone():
    plain, weighted = model_of(["pixel", "hog"]), model_of(["pixel", "hog"], mvm_weight={"hog": 3.0})
    weighted.load_state_dict(plain.state_dict())
    outputs = [model.eval()(masked_batch()) for model in (plain, weighted)]
    assert [output.weight("mvm_hog") for output in outputs] == [1.0, 3.0]
    assert [output.weight("mvm_pixel") for output in outputs] == [1.0, 1.0]
    assert outputs[0].losses["mvm_hog"].value == outputs[1].losses["mvm_hog"].value


def test_images_without_mvm_ask_no_teacher_but_keep_the_heads_in_the_graph():
    model = model_of(["depth", "vq"], mvm_on_images=False)
    output = model(masked_batch(frames=1))
    assert [float(output.losses[f"mvm_{name}"].value.detach()) for name in ("depth", "vq")] == [0, 0]
    assert [teacher.asked for teacher in (t.teacher for t in model.targets.values())] == [0, 0]
    torch.stack([mean.value for mean in output.losses.values()]).sum().backward()
    for head in model.mvm_heads.values():
        assert all(not parameter.grad.any() for parameter in head.parameters())
    assert model(masked_batch(frames=2)).losses["mvm_depth"].value > 0


def test_flow_of_a_one_frame_clip_is_no_loss():
    model = model_of(["optical_flow"])
    loss = model(masked_batch(frames=1)).losses["mvm_optical_flow"]
    assert (float(loss.value), float(loss.count)) == (0, pytest.approx(0, abs=1e-4))
    loss.value.backward()
    assert all(not parameter.grad.any() for parameter in model.decoder_flow.parameters())


@pytest.mark.parametrize(
    ("stored", "wanted", "moves"),
    [
        (["2d_feature"], ["2d_feature"], {"fc_mvm": "fc_mvm"}),
        (["2d_feature"], ["3d_feature"], {"fc_mvm": "fc_mvm"}),
        (["2d_feature"], ["pixel", "2d_clip_feature", "2d_feature"], {"fc_mvm": "fc_mvm_2d_feature"}),
        (["2d_feature", "3d_feature"], ["3d_feature"], {"fc_mvm_2d_feature": "fc_mvm"}),
        (["vq"], ["2d_feature", "vq"], {"decoder_vq": "decoder_vq", "fc_mvm": "fc_mvm_vq"}),
        (["2d_feature"], ["2d_clip_feature"], {}),
        (["2d_feature"], ["vq"], {}),
        (["pixel"], ["hog"], {}),
    ],
    ids=str,
)
def test_heads_of_a_checkpoint_go_to_the_targets_that_they_fit(tmp_path, stored, wanted, moves):
    source, model = model_of(stored), model_of(wanted)
    torch.save(source.state_dict(), tmp_path / "a.pt")
    before = {name: head.state_dict() for name, head in model_of(wanted).mvm_heads.items()}
    start = {k: v.clone() for k, v in model.state_dict().items()}
    load_checkpoint(model, str(tmp_path / "a.pt"), model.match_heads)
    for old, new in moves.items():
        torch.testing.assert_close(
            model.mvm_heads[new].state_dict(), source.mvm_heads[old].state_dict(), rtol=0, atol=0
        )
    for name in before.keys() - moves.values():
        for key, value in model.mvm_heads[name].state_dict().items():
            assert torch.equal(value, start[f"{name}.{key}"])


def test_registry_holds_the_targets_of_the_config():
    assert sorted(TARGETS) == sorted(ALL)


@pytest.mark.parametrize("tasks", [["mlm", "vtm"], ["mlm", "vtm", "mvm"]])
def test_patches_are_hidden_only_where_they_are_asked_for(tmp_path, bert_folder, tasks):
    model = PretrainModel(tiny_bert(), tiny_bert(), SWIN, tasks=tasks, targets=["pixel"])
    config = Config(pretrain_tasks=tasks, pretrain_masks=["rm"], p_mask=0.9)
    tokens = Tokens(str(bert_folder), 8)
    given = {key: value for key, value in masked_batch().items() if key in ("img", "txt", "mask", "valid")}
    batch = pretraining.mask(given, torch.Generator().manual_seed(0), model, config, tokens)
    assert batch["mvm_mask"].any().item() is ("mvm" in tasks)
    assert (batch["ans_mlm"] >= 0).any()


@torch.inference_mode()
def test_the_attention_that_all_queries_give_is_that_which_positions_receive(tiny_model):
    x, mask = torch.randn(2, 7, 32), torch.ones(2, 1, 1, 7, dtype=torch.bool)
    mask[1, ..., 5:] = False
    given = [tiny_model.trsfr.attention_given(x, mask, torch.full((2,), place)) for place in range(7)]
    torch.testing.assert_close(2 * sum(given), tiny_model.trsfr.attention_received(x, mask))
    torch.testing.assert_close(given[0].sum(dim=1), torch.ones(2))


def test_a_loaded_model_has_the_truth_of_its_own_encoder(tmp_path, bert_folder):
    """Also where no training makes the average of `latent` follow: a picture of the target shows it."""
    values = {**demo_network(bert_folder), "mvm_target": ["latent"]}
    first = PretrainModel.from_config(Config(**values))
    torch.save(first.state_dict(), tmp_path / "a.pt")
    model = PretrainModel.from_config(Config(**values, path_ckpt=str(tmp_path / "a.pt")))
    frames = torch.randn(1, 2, 3, 64, 64)
    features = model.enc_img.swin.eval()(frames.movedim(1, 2)).movedim(1, 2)
    want = torch.nn.functional.layer_norm(features.movedim(2, -1), features.shape[2:3]).movedim(-1, 2)
    torch.testing.assert_close(model.targets["latent"].truth(frames), want.detach())
