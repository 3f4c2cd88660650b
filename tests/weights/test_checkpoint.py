"""Weights of every layout into modules, and files that are not what they say they are."""

import dataclasses
import json
import os
import pickle
import re
import struct
import zipfile
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import nn
from transformers import BertForMaskedLM

from lib import Config, UserError
from media.tsv import unpickle_index
from model import PretrainModel, Violet, start
from tasks.qa.model import ChoiceModel, MaskModel
from tasks.retrieval.model import RetrievalModel
from teachers.dalle_encoder import load_dalle
from tests.conftest import SWIN, tiny_bert
from tests.test_parity import NPZ, bert_of, swin_size
from video_swin import Size, VideoSwin, relative_position_index
from weights.bert import read_bert
from weights.checkpoint import compare, load_checkpoint, load_tensors, resize_table, window_of
from weights.swin import load_backbone
from weights.tensor_files import checkpoint_in, read_tensors

# ----------------------------------------------------------------------------------- published layouts


def published_state(model: str) -> dict[str, torch.Tensor]:
    """Noise under exactly the keys and shapes of a published model."""
    state = {}
    for entry in NPZ[f"{model}/keys"].tolist():
        key, shape = entry.split(":", 1)
        sizes = [int(number) for number in re.findall(r"\d+", shape)]
        state[key] = torch.randn(sizes)
        if key.endswith("relative_position_index"):
            state[key] = relative_position_index((8, 7, 7))
    if "fc_mtm.predictions.bias" in state:
        state["fc_mtm.predictions.decoder.bias"] = state["fc_mtm.predictions.bias"]
    return state


@pytest.mark.parametrize(
    ("layout", "kind"),
    [("pretrain", PretrainModel), ("qamc", ChoiceModel), ("qamc", RetrievalModel), ("qamc_gen", MaskModel)],
)
def test_published_state_dicts_load_whole(tmp_path, layout, kind):
    state = published_state(layout)
    extra = {
        "feature_model.norm.weight": torch.zeros(3),
        "raft.x": torch.zeros(1),
        "dpt.y": torch.zeros(1),
        "dalle.z": torch.zeros(1),
        "enc_txt.emb_txt.position_ids": torch.arange(512).expand(1, -1),
    }
    torch.save({f"module.{key}": value for key, value in (state | extra).items()}, tmp_path / "a.pt")
    bert = bert_of(layout)
    model = kind(bert, bert, swin_size())
    report = load_checkpoint(model, str(tmp_path / "a.pt"))
    assert report.missing == []
    assert report.unexpected == []
    assert set(extra) <= set(report.ignored)
    assert "feature_model.norm.weight" in str(report)
    own = model.state_dict()
    assert own.keys() == state.keys()
    assert all(torch.equal(own[key], state[key]) for key in own)


def test_a_head_that_is_missing_is_named_and_a_backbone_key_is_an_error(tmp_path):
    bert = tiny_bert()
    model, source = RetrievalModel(bert, bert, SWIN), MaskModel(bert, bert, SWIN)
    torch.save(source.state_dict(), tmp_path / "a.pt")
    report = load_checkpoint(model, str(tmp_path / "a.pt"))
    assert report.missing == ["fc.1.weight", "fc.1.bias", "fc.3.weight", "fc.3.bias"]
    assert {key.split(".")[0] for key in report.unexpected} == {"fc_mtm", "emb_task"}
    assert re.search(r"missing, random weights: fc\.1\.weight, .*not used: emb_task", str(report), re.DOTALL)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = {k: torch.zeros_like(v) for k, v in source.state_dict().items() if not k.startswith("trsfr")}
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"lacks trsfr\.layer.* and 27 more \(trsfr 32\)"):
        load_checkpoint(model, str(tmp_path / "a.pt"))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_head_that_nothing_trains_is_not_evaluated(tmp_path):
    bert = tiny_bert()
    model = RetrievalModel(bert, bert, SWIN)
    torch.save(MaskModel(bert, bert, SWIN).state_dict(), tmp_path / "a.pt")
    config = Config(type="retrieval", task="t-retrieval", path_ckpt=str(tmp_path / "a.pt"))
    start(model, config, ["fc"])  # it will be trained
    with pytest.raises(UserError, match=r"has no fc: t-retrieval cannot be evaluated"):
        start(model, dataclasses.replace(config, size_epoch=0), ["fc"])


@pytest.mark.parametrize("kept", ["predictions.bias", "predictions.decoder.bias"])
def test_the_tied_bias_is_found_under_either_name(tmp_path, kept):
    bert = tiny_bert()
    model, state = MaskModel(bert, bert, SWIN), MaskModel(bert, bert, SWIN).state_dict()
    state["fc_mtm.predictions.bias"].uniform_()
    other = {"predictions.bias": "predictions.decoder.bias"}.get(kept, "predictions.bias")
    torch.save({k: v for k, v in state.items() if k != f"fc_mtm.{other}"}, tmp_path / "a.pt")
    report = load_checkpoint(model, str(tmp_path / "a.pt"))
    assert report.missing == []
    assert torch.equal(model.fc_mtm.predictions.decoder.bias, state["fc_mtm.predictions.bias"])
    assert model.fc_mtm.predictions.decoder.bias is model.fc_mtm.predictions.bias


def test_another_vocabulary_says_what_to_set(tmp_path):
    torch.save(Violet(tiny_bert(100), tiny_bert(100), SWIN).state_dict(), tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"\(100, 32\), not \(128, 32\).*set txt_backbone and tokenizer"):
        load_checkpoint(Violet(tiny_bert(), tiny_bert(), SWIN), str(tmp_path / "a.pt"))


@pytest.mark.parametrize(("frames", "side"), [(3, 2), (9, 20), (6, 14)])
def test_embeddings_of_frames_and_patches_are_cut_or_extended(tmp_path, frames, side):
    bert = tiny_bert()
    source = Violet(bert, bert, SWIN)
    torch.save(source.state_dict(), tmp_path / "a.pt")
    model = Violet(bert, bert, SWIN, max_frames=frames, max_patches=side)
    start = {key: value.clone() for key, value in model.state_dict().items()}
    report = load_checkpoint(model, str(tmp_path / "a.pt"))
    assert set(report.adapted) == ({"enc_img.emb_len", "enc_img.emb_pos"} if frames != 6 else set())
    for name, axis, size in (("emb_len", 1, frames), ("emb_pos", 2, 1 + side**2)):
        old, new = getattr(source.enc_img, name).data, getattr(model.enc_img, name).data
        both = min(old.shape[axis], size)
        assert new.shape[axis] == size
        assert torch.equal(new.narrow(axis, 0, both), old.narrow(axis, 0, both))
        left = size - both  # as the model has them
        assert torch.equal(new.narrow(axis, both, left), start[f"enc_img.{name}"].narrow(axis, both, left))


# --------------------------------------------------------------------------------------------- windows


@pytest.mark.parametrize("window", [(8, 7), (4, 4), (1, 12), (5, 5), (16, 7), (2, 2)])
def test_a_window_is_known_by_its_table_and_index(window):
    t, s = window
    table = torch.zeros((2 * t - 1) * (2 * s - 1) ** 2, 1)
    assert window_of(table, torch.zeros(t * s * s, t * s * s)) == window
    assert window_of(table, None) in (window, None)  # (5, 5) may be (41, 2)
    assert window_of(table[1:], torch.zeros(t * s * s, t * s * s)) is None


def test_a_resized_table_is_torchs_bicubic_in_space_and_keeps_time():
    table = torch.randn(3 * 7 * 7, 2)
    got = resize_table(table, (2, 4), (2, 7)).T.reshape(2, 3, 13, 13)
    space = table.T.reshape(2, 3, 7, 7)
    want = nn.functional.interpolate(space, (13, 13), mode="bicubic", align_corners=False)
    torch.testing.assert_close(got, want)
    centre = resize_table(table, (2, 4), (5, 6)).T.reshape(2, 9, 11, 11)
    assert centre.shape == (2, 9, 11, 11)
    assert torch.equal(resize_table(table, (2, 4), (2, 4)), table)
    mirrored = table.reshape(3, 7, 7, 2).flip(0, 1, 2).reshape(-1, 2)
    for new in ((2, 7), (5, 3)):  # what is symmetric stays so
        flipped = resize_table(mirrored, (2, 4), new).flip(0)
        torch.testing.assert_close(flipped, resize_table(table, (2, 4), new))


def test_a_checkpoint_of_another_window_is_resized(tmp_path):
    wide = Size(16, (1, 1, 2, 1), (1, 2, 4, 8), window=(2, 3, 3), drop_path=0.0, init_std=None)
    source, swin = VideoSwin(wide), VideoSwin(SWIN)
    state = {f"backbone.{key}": value for key, value in source.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "a.pth")
    report = load_backbone(swin, "3d", tmp_path / "a.pth")
    assert len(report.adapted) == 5
    assert "resized (bicubic) from window 2x3x3 to 2x2x2" in str(report)
    name = "layers.2.blocks.1.attn.relative_position_bias_table"
    want = resize_table(source.state_dict()[name], (2, 3), (2, 2))
    assert torch.equal(swin.state_dict()[name], want)
    for key, value in swin.state_dict().items():
        if key.endswith("relative_position_index"):
            assert torch.equal(value, relative_position_index((2, 2, 2))), key


def test_an_index_of_another_order_is_refused_and_none_is_taken_from_a_file(tmp_path):
    swin = VideoSwin(SWIN)
    state = {f"backbone.{key}": value for key, value in swin.state_dict().items()}
    state["backbone.layers.0.blocks.0.attn.relative_position_index"] = torch.full((8, 8), 10**9)
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(UserError, match="another order"):
        load_backbone(swin, "3d", tmp_path / "a.pth")


def test_an_image_swin_of_another_window_is_resized_then_inflated(tmp_path):
    swin, state = VideoSwin(SWIN), {}
    for key, value in swin.state_dict().items():
        if key.endswith("bias_table"):
            value = torch.randn(25, value.shape[1])  # windows of 3 x 3
        elif key == "patch_embed.proj.weight":
            value = torch.randn(16, 3, 4, 4)
        if not key.endswith("index"):
            state[key] = value
    torch.save({"model": {**state, "head.weight": torch.zeros(2, 2)}}, tmp_path / "b.pth")
    report = load_backbone(swin, "2d", tmp_path / "b.pth")
    assert report.ignored == ["head.weight"]
    assert report.missing == []
    name = "layers.1.blocks.0.attn.relative_position_bias_table"
    assert torch.equal(swin.state_dict()[name], resize_table(state[name], (1, 3), (1, 2)).repeat(3, 1))


# ----------------------------------------------------------------------------------------------- BERTs


def test_a_bert_that_lacks_a_layer_is_an_error_and_one_without_a_head_is_not(tmp_path, caplog):
    bert = BertForMaskedLM(tiny_bert())
    bert.save_pretrained(tmp_path)
    state = {key: value.clone() for key, value in bert.state_dict().items()}
    headless = {key: value for key, value in state.items() if not key.startswith("cls.")}
    save_file(headless, tmp_path / "model.safetensors", metadata={"format": "pt"})
    transformers.utils.logging.enable_propagation()  # to be seen by caplog
    with caplog.at_level("INFO"):
        got = read_bert(str(tmp_path)).state_dict()
    transformers.utils.logging.disable_propagation()
    assert [record.name for record in caplog.records] == ["violet"]  # our report, and no word of corruption
    assert all(torch.equal(got[key], value) for key, value in headless.items())
    del headless["bert.encoder.layer.1.output.dense.weight"]
    save_file(headless, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"BERT .* lacks bert\.encoder\.layer\.1\.output\.dense\.weight"):
        read_bert(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"x" * 20)
    with pytest.raises(UserError, match="no weights that can be read"):
        read_bert(str(tmp_path))


# ----------------------------------------------------------------------------------------- run folders


def test_a_run_folder_is_its_best_epoch_else_its_last_else_its_state(tmp_path):
    model = Violet(tiny_bert(), tiny_bert(), SWIN)

    def write(name: str, value: float, wrap: bool = False) -> None:
        state = {
            key: torch.full_like(t, value) for key, t in model.state_dict().items() if "index" not in key
        }
        torch.save({"model": state, "progress": {"step": 3}} if wrap else state, tmp_path / name)

    def loaded() -> float:
        load_checkpoint(model, str(tmp_path))
        return model.enc_img.norm.weight[0].item()

    with pytest.raises(UserError, match="holds no checkpoint"):
        checkpoint_in(tmp_path)
    for number, name in enumerate(
        [
            "last.pt",
            "ckpt_violet_t_2.pt",
            "ckpt_violet_t_10.pt",
            "ckpt_violet_t_last.pt",
            "ckpt_violet_t_best.pt",
        ]
    ):
        write(name, float(number), wrap=not number)
        assert loaded() == number


# ------------------------------------------------------------------------------------- files that bite


class Trap:
    def __reduce__(self):
        return os.mkdir, (os.environ["TRAP"],)


def legacy(path, content) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


BITING = {
    "legacy pickle": ("a.pt", legacy, read_tensors),
    "zip": ("a.pt", lambda path, trap: torch.save(trap, path), read_tensors),
    "within a state dict": (
        "a.pth",
        lambda path, trap: torch.save({"state_dict": {"backbone.x": torch.zeros(1), "y": trap}}, path),
        lambda path: load_backbone(VideoSwin(SWIN), "3d", path),
    ),
    "encoder.pkl": ("encoder.pkl", lambda path, trap: torch.save({"w": trap}, path), load_dalle),
    "id2lineidx.pkl": (
        "a.id2lineidx.pkl",
        lambda path, trap: path.write_bytes(pickle.dumps({"clip": trap})),
        unpickle_index,
    ),
}


@pytest.mark.parametrize("kind", BITING)
def test_what_would_run_code_is_refused_and_does_not(tmp_path, monkeypatch, kind):
    name, write, read = BITING[kind]
    monkeypatch.setenv("TRAP", str(tmp_path / "sprung"))
    write(tmp_path / name, Trap())
    with pytest.raises(UserError, match=r"cannot be read.*mkdir"):
        read(tmp_path / name)
    assert not (tmp_path / "sprung").exists()
    if kind == "legacy pickle":  # the trap itself works
        pickle.loads(pickle.dumps(Trap()))
        assert (tmp_path / "sprung").exists()


def claims_huge_storage(path):
    """A legacy file whose pickle says that its storage holds 2**44 numbers."""
    legacy(path, {"w": torch.zeros(2**20 - 1)})
    content = path.read_bytes()
    small = b"J" + struct.pack("<i", 2**20 - 1)
    assert small in content
    path.write_bytes(content.replace(small, b"\x8a\x06" + (2**44).to_bytes(6, "little")))


def endless_archive(path):
    """A zip whose part of zeros is a thousandth of what it unpacks to."""
    torch.save({"w": torch.zeros(1 << 20)}, path)
    with zipfile.ZipFile(path) as archive:
        parts = {info: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for info, content in parts.items():
            archive.writestr(info.filename, content)


def shape_beyond_its_data(path):
    """One number, seen as 10**15 of them."""
    torch.save({"w": torch.zeros(1).expand(10**15)}, path)


def header_beyond_its_file(path):
    header = json.dumps({"w": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 16)


@pytest.mark.parametrize(
    ("name", "write", "why"),
    [
        ("a.pt", claims_huge_storage, "claims to hold"),
        ("a.pt", endless_archive, "compressed"),
        ("a.pt", shape_beyond_its_data, "more than the file holds"),
        ("a.safetensors", header_beyond_its_file, "cannot be read"),
        ("a.pt", lambda path: torch.save({"w": torch.zeros(3, device="meta")}, path), "not a plain tensor"),
        ("a.pt", lambda path: torch.save({"w": torch.zeros(3, 3).to_sparse()}, path), "not a plain tensor"),
        ("a.pt", lambda path: torch.save([1, 2], path), "no tensors"),
    ],
)
def test_what_claims_more_than_it_has_is_refused(tmp_path, name, write, why):
    write(tmp_path / name)
    with pytest.raises(UserError, match=why):
        read_tensors(tmp_path / name)


def test_a_file_cut_anywhere_is_refused_and_changes_nothing(tmp_path):
    model = Violet(tiny_bert(), tiny_bert(), SWIN)
    torch.save(model.state_dict(), tmp_path / "a.pt")
    content = (tmp_path / "a.pt").read_bytes()
    for share in (0.0, 0.1, 0.5, 0.999):
        (tmp_path / "cut.pt").write_bytes(content[: int(share * len(content))])
        with pytest.raises(UserError, match="cannot be read"):
            read_tensors(tmp_path / "cut.pt")


def test_tensors_are_mapped_not_copied(tmp_path):
    """Memory is used for what a module takes: a checkpoint with teachers needs no more than one without."""
    torch.save({"w": torch.arange(8.0), "raft.x": torch.zeros(1 << 22)}, tmp_path / "a.pt")
    tensors = read_tensors(tmp_path / "a.pt")
    module = nn.ParameterDict({"w": torch.zeros(8)})
    load_tensors(module, tensors, "a")
    assert module["w"].tolist() == list(range(8))
    maps = Path("/proc/self/maps")
    assert not maps.exists() or str(tmp_path / "a.pt") in maps.read_text()


def test_half_precision_is_taken_as_it_is_meant():
    module = nn.Linear(3, 2)
    state = {key: value.half() for key, value in nn.Linear(3, 2).state_dict().items()}
    report, fitting = compare(module.state_dict(), state, "a")
    module.load_state_dict(fitting)
    assert report.loaded == ["weight", "bias"]
    assert module.weight.dtype == torch.float32
    assert torch.equal(module.weight, state["weight"].float())


def test_positions_and_layers_beyond_the_checkpoint_are_not_evaluated(tmp_path, caplog):
    bert = tiny_bert()
    torch.save(RetrievalModel(bert, bert, SWIN, max_frames=3, max_patches=2).state_dict(), tmp_path / "a.pt")
    model = RetrievalModel(bert, bert, SWIN, max_frames=6, max_patches=4)
    given = {"type": "retrieval", "task": "t", "path_ckpt": str(tmp_path / "a.pt")}
    for sizes, message in (
        ({"size_frame": 4, "size_img": 64}, r"no emb_len for more than 3 frames \(size_frame 4\)"),
        ({"size_frame": 3, "size_img": 96}, r"no emb_pos for 9 patches of a frame \(size_img 96\)"),
    ):
        start(model, Config(**given, **sizes), ["fc"])
        assert "trained from random weights" in caplog.text
        with pytest.raises(UserError, match=message):
            start(model, Config(**given, **sizes, size_epoch=0), ["fc"])
    start(model, Config(**given, size_frame=3, size_img=64, size_epoch=0), ["fc"])

    larger = tiny_bert()
    larger.num_hidden_layers = 3
    torch.save(RetrievalModel(larger, bert, SWIN).state_dict(), tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"more layers .*trsfr\.layer\.2.*set fusion_encoder"):
        load_checkpoint(model, str(tmp_path / "a.pt"))
    deeper = dataclasses.replace(SWIN, depths=(1, 1, 3, 1))
    torch.save(RetrievalModel(bert, bert, deeper).state_dict(), tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"more layers .*blocks\.2.*set vis_backbone_size"):
        load_checkpoint(model, str(tmp_path / "a.pt"))
    torch.save(model.state_dict(), tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"lacks .*set vis_backbone_size"):
        load_checkpoint(RetrievalModel(bert, bert, deeper), str(tmp_path / "a.pt"))
