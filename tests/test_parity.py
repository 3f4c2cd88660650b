"""The published implementation's outputs, reproduced: `PARITY_NPZ` names the file (default: our copy)."""

import base64
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from einops import rearrange
from transformers import BertConfig

from engine.schedule import MIN_LR, parameter_groups, warmup_linear
from layers.fusion import take, visible
from media.frames import STD, Transform, decode_frame, even_frames, every_clip, normalise
from model import PretrainModel
from mvm_targets import make_targets
from tasks.qa.model import ChoiceModel, MaskModel
from tasks.retrieval.model import RetrievalModel
from tasks.retrieval.scoring import PairScorer, all_pairs
from teachers.hog import hog_picture
from tests.seeded import fill, seeded_tensor
from video_swin import Size, VideoSwin

PATH = Path(os.environ.get("PARITY_NPZ", Path(__file__).parent / "fixtures" / "original.npz"))
NPZ = np.load(PATH)
SEEDED = json.loads(str(NPZ["meta"]))["seeded"]


def keys(prefix: str) -> list[str]:
    return [key for key in NPZ.files if key.startswith(prefix)]


def expected(key: str) -> torch.Tensor:
    return torch.from_numpy(NPZ[key])


def seeded(key: str) -> torch.Tensor:
    name, shape = SEEDED[key]
    return seeded_tensor(name, *shape)


def assert_close(got: torch.Tensor, key: str, tolerance: float = 1e-4) -> None:
    """Within `tolerance` of the largest magnitude."""
    want = expected(key)
    assert got.shape == want.shape
    assert (got - want).abs().max() <= tolerance * want.abs().max()


def names(model: torch.nn.Module) -> list[str]:
    return sorted(f"{key}:{tuple(value.shape)}" for key, value in model.state_dict().items())


def shape_of(model: str, key: str) -> tuple[int, ...]:
    """A parameter's shape in a list of published keys."""
    found = {entry.split(":")[0]: entry.split(":")[1] for entry in NPZ[f"{model}/keys"].tolist()}
    return tuple(json.loads(found[key].replace("(", "[").replace(",)", ")").replace(")", "]")))


def swin_size() -> Size:
    """The fixture's Video Swin, its window read off the bias tables and its heads too."""
    embed = shape_of("swin", "patch_embed.proj.weight")[0]
    blocks = {k.split(":")[0] for k in NPZ["swin/keys"].tolist() if "qkv.weight" in k}
    depths = [sum(k.startswith(f"layers.{i}.") for k in blocks) for i in range(4)]
    table = "layers.{}.blocks.0.attn.relative_position_bias_table"
    heads = [shape_of("swin", table.format(i))[1] for i in range(4)]
    return Size(embed, tuple(depths), tuple(heads))


@pytest.fixture(scope="module")
def model() -> PretrainModel:
    bert = bert_of("pretrain")
    return fill(PretrainModel(bert, bert, swin_size())).eval()


@pytest.fixture(scope="module")
def tokens(model):
    with torch.inference_mode():
        return model.encode(seeded("img"), expected("input/txt"), expected("input/mask"))


@pytest.fixture(scope="module")
def fused(model, tokens):
    with torch.inference_mode():
        return model.fuse(*tokens, expected("input/mask"))


@pytest.mark.parametrize("key", [key for key in keys("swin/") if key != "swin/keys"])
@torch.inference_mode()
def test_video_swin(key):
    swin = fill(VideoSwin(swin_size())).eval()
    assert names(swin) == sorted(NPZ["swin/keys"].tolist())
    assert_close(swin(seeded(key)), key)


def test_keys_are_the_published_ones(model):
    assert names(model) == sorted(NPZ["pretrain/keys"].tolist())


def test_encoders(tokens):
    video, text = tokens
    assert_close(video, "enc_img/feat")
    assert video.shape[:2] == expected("enc_img/mask").shape
    assert_close(text, "enc_txt/feat")


@torch.inference_mode()
def test_fusion(model, tokens, fused):
    video, text = tokens
    assert_close(fused, "fusion/out")
    assert_close(fused[:, : video.shape[1]], "mvm/out_visual")
    mask = visible(expected("input/mask"), video.shape[1], seq2seq=True)
    assert_close(model.trsfr(torch.cat([video, text], dim=1), mask), "fusion/out_seq2seq")


@torch.inference_mode()
def test_positions_alone_are_the_same_values(model, tokens, fused):
    positions = torch.stack([torch.randperm(fused.shape[1])[:7] for _ in fused])
    at = model.fuse(*tokens, expected("input/mask"), positions)
    torch.testing.assert_close(at, take(fused, positions))


@torch.inference_mode()
def test_mlm_logits(model, tokens, fused):
    assert_close(model.fc_mtm(fused[:, tokens[0].shape[1] :]), "pretrain/out_mtm")


@torch.inference_mode()
def test_matching_scores_of_all_pairs(model, tokens):
    """Every text is the matched one once; the others come as negatives, in the model's own code path."""
    video, text = tokens
    size, mask = len(video), expected("input/mask")
    others = torch.tensor([[j for j in range(size) if j != i] for i in range(size)])
    cls = torch.full((size, 1), video.shape[1])
    read = model.fuse_with_others(video, text, {"mask": mask, "positions": cls, "negatives": others})
    scores = model.fc(torch.cat(read, dim=1))[..., 0]
    order = torch.cat([torch.arange(size)[:, None], others], dim=1)
    assert_close(torch.empty(size, size).scatter(1, order, scores), "pretrain/vtm_scores")


def bert_of(model: str) -> BertConfig:
    """The fixture's BERT, by the keys of one of its models."""
    vocabulary, width = shape_of(model, "enc_txt.emb_txt.word_embeddings.weight")
    layers = {k.split(".")[2] for k in NPZ[f"{model}/keys"].tolist() if k.startswith("trsfr.layer")}
    return BertConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=len(layers),
        num_attention_heads=4,
        intermediate_size=shape_of(model, "trsfr.layer.0.intermediate.dense.weight")[0],
    )


@torch.inference_mode()
def test_multiple_choice():
    bert, want = bert_of("qamc"), expected("qamc/logits")
    model = fill(ChoiceModel(bert, bert, swin_size())).eval()
    assert names(model) == sorted(NPZ["qamc/keys"].tolist())
    txt, mask = (expected(f"input/qamc_{part}").unflatten(0, want.shape) for part in ("txt", "mask"))
    assert_close(model.scores(seeded("img"), txt, mask), "qamc/logits")


@pytest.fixture(scope="module")
def mask_model() -> MaskModel:
    bert = bert_of("qamc_gen")
    return fill(MaskModel(bert, bert, swin_size())).eval()


@torch.inference_mode()
def test_option_numbers(mask_model):
    assert names(mask_model) == sorted(NPZ["qamc_gen/keys"].tolist())
    answers = expected("input/gen_ans")
    place = (answers >= 0).long().argmax(dim=1)
    txt, mask = expected("input/gen_txt"), expected("input/gen_mask")
    assert_close(mask_model.logits(seeded("img"), txt, mask, place), "qamc_gen/logits_at_mask")
    batch = {"img": seeded("img"), "txt": txt, "mask": mask, "place": place, "answer": answers.amax(dim=1)}
    output = mask_model({**batch, "valid": torch.ones(len(txt), dtype=torch.bool)})
    assert_close(output.losses["answer"].value, "qamc_gen/loss")


@torch.inference_mode()
def test_open_ended_questions(mask_model):
    txt, mask = expected("input/oe_txt"), expected("input/oe_mask")
    place = (txt == 103).long().argmax(dim=1)
    assert_close(mask_model.logits(seeded("img"), txt, mask, place), "qaoe/logits_at_mask")


@pytest.fixture(scope="module")
def retrieval_model() -> RetrievalModel:
    bert = bert_of("pretrain")
    return fill(RetrievalModel(bert, bert, swin_size())).eval()


@torch.inference_mode()
def test_retrieval(retrieval_model):
    txt, mask = expected("input/txt"), expected("input/mask")
    video, text = retrieval_model.encode(seeded("img"), txt, mask)
    scores = retrieval_model.scores(video, text, mask)
    assert_close(scores, "retrieval/scores")
    assert_close(all_pairs(PairScorer(retrieval_model), video, text, mask, pairs=2), "retrieval/scores")
    batch = {"img": seeded("img"), "txt": txt, "mask": mask, "valid": mask[:, 0].bool()}
    batch["video"] = torch.arange(len(txt))
    assert_close(retrieval_model(batch).losses["match"].value, "retrieval/loss")


@torch.inference_mode()
def test_tokens_of_several_clips(retrieval_model):
    clips, want = seeded("clips"), expected("retrieval/multi_clip_scores")
    txt, mask = (expected(f"input/{part}")[: len(want)] for part in ("txt", "mask"))
    for at_once in (1, 4, 100):
        video = retrieval_model.average(clips, at_once)
        assert_close(video, "retrieval/multi_clip_feat")
    scores = all_pairs(PairScorer(retrieval_model), video, retrieval_model.enc_txt(txt, mask), mask, pairs=3)
    assert_close(scores.diagonal(), "retrieval/multi_clip_scores")


@torch.inference_mode()
def test_attention_received(model):
    got = model.attention_received(seeded("img"), expected("input/txt"), expected("input/mask"))
    assert_close(got, "attention/scores")


def truth_of(name, grid):
    """What the teacher of a target made, in our layout (B, S, C, rows, columns)."""
    clips, frames, height = len(expected("mvm/patch_mask")), *grid[:2]
    if name == "pixel":
        return seeded("img")
    if name == "vq":
        return rearrange(expected("mvm/vq_target").long(), "(b t) h w -> b t 1 h w", b=clips)
    truth = seeded(f"mvm/{name}_target")
    if name == "hog":
        return truth.abs()[:, :, None]
    if name == "depth":
        return rearrange(truth.abs(), "(b t) h w -> b t 1 h w", b=clips)
    if name == "optical_flow":
        truth = 5 * truth
        truth[0] = 60.0
        return truth.unflatten(0, (clips, frames - 1))
    if name == "3d_feature":
        return rearrange(truth, "b c t h w -> b t c h w")
    return rearrange(truth, "(b t) (h w) c -> b t c h w", b=clips, h=height)


@pytest.mark.parametrize("name", [key[4:-5] for key in keys("mvm/") if key.endswith("_loss")])
@torch.inference_mode()
def test_mvm_loss(name, model):
    visual, patches = expected("mvm/out_visual"), expected("mvm/patch_mask")
    target = make_targets([name], visual.shape[2])[name]
    heads = torch.nn.ModuleDict(target.heads)
    fill(heads.eval())
    target.truth = lambda frames: truth_of(name, patches.shape[1:])
    predicted, truth = target.compare(visual, seeded("img"), patches.shape[1:], target.places(patches))
    assert_close(target.error(predicted, truth).value, f"mvm/{name}_loss")
    for score, mean in target.scores(predicted, truth).items():
        assert_close(mean.value, f"mvm/{name}_{score}")


def test_vq_keys():
    heads = torch.nn.ModuleDict(make_targets(["vq"], expected("mvm/out_visual").shape[2])["vq"].heads)
    assert names(heads) == sorted(NPZ["vq/keys"].tolist())


def test_schedule():
    lr = NPZ["schedule/lr"]
    total = int(np.flatnonzero(lr == lr.min())[1])  # where it first comes back to the floor
    got = [max(MIN_LR, warmup_linear(step, total, 0.1)) for step in range(len(lr))]
    np.testing.assert_allclose(got, lr, rtol=1e-12)


def test_optimizer_groups(model):
    groups = parameter_groups(model, lr=1.0, decay=1e-3, swin_lr_mul=1.0)
    for i, group in enumerate(groups):
        assert sorted(group["names"]) == sorted(NPZ[f"optimizer/group{i}"].tolist())
    assert [group["weight_decay"] for group in groups] == NPZ["optimizer/decay"].tolist()


@pytest.mark.parametrize("key", keys("temporal/"))
def test_frames_picked(key):
    stored, wanted = map(int, key.split("/")[-1].split("_"))
    pick = even_frames if "/eval/" in key else every_clip
    assert pick(stored, wanted).tolist() == NPZ[key].tolist()


@pytest.mark.parametrize("key", [key for key in keys("transform/") if not key.endswith("jpeg")])
def test_transform(key):
    name = key.split("/")[-1]
    stored = base64.b64encode(NPZ[key.replace(name, "jpeg")].tobytes())
    want = expected(key)
    got = normalise(Transform([name], want.shape[-1])([decode_frame(stored, 0)], random=None))[0]
    assert ((got - want) * STD).abs().max() <= 2 / 255 + 1e-6


@pytest.mark.parametrize("key", keys("hog/"))
def test_hog(key):
    frame = expected(key.replace("hog/", "transform/") + "/img_center_crop")
    assert (hog_picture(frame[None]) - expected(key)).abs().max() < 1e-4
