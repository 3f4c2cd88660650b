"""Teachers: small ones of the libraries' own classes, saved as published, loaded as configs name them."""

import dataclasses
import os
import pickle
import sys
from pathlib import Path

import cv2
import pytest
import timm
import torch
from torchvision.models.optical_flow import raft_large
from torchvision.transforms import Normalize
from transformers import DPTImageProcessor

from batch import SpecialTokens
from lib import Config, UserError
from masking import mask_batch
from media.frames import MEAN, STD, normalise
from model import PretrainModel
from teachers.base import FrameTeacher, Teacher, to_pixels
from teachers.dalle_encoder import DalleEncoder, load_dalle
from teachers.depth import DptTeacher
from teachers.features import VideoSwinTeacher
from teachers.flow import DisTeacher, RaftTeacher, dis_of_clip
from teachers.make import make_teachers, worker_truths
from tests.conftest import SWIN, tiny_bert, tiny_dpt
from video_swin import SIZES, VideoSwin
from weights.checkpoint import read_tensors


@pytest.fixture(scope="module")
def picture() -> torch.Tensor:
    """A real photograph: (3, 256, 256) uint8."""
    from skimage.data import astronaut

    return torch.from_numpy(cv2.resize(astronaut(), (256, 256), interpolation=cv2.INTER_AREA)).movedim(2, 0)


def as_frames(picture: torch.Tensor) -> torch.Tensor:
    """(3, H, W) uint8 -> (1, 1, 3, H, W), as batches hold it."""
    return ((picture / 255 - MEAN) / STD)[None, None]


def teacher_of(target: str, **config) -> Teacher:
    return make_teachers(Config(mvm_target=[target], **config))[target]


def frames_of(size: int = 64, clips: int = 2, number: int = 3) -> torch.Tensor:
    pixels = torch.rand(clips, number, 3, size, size)
    return (pixels - MEAN) / STD


# -- calling


class Brightness(FrameTeacher):
    def look(self, pixels):
        self.parts.append(len(pixels))
        assert torch.is_inference_mode_enabled()
        self.mixed_types.add((pixels.mean(1) @ pixels.mean(1)).dtype)
        return pixels.mean(1, keepdim=True)


def brightness(**options) -> Brightness:
    teacher = Brightness(width=1, **options)
    teacher.parts, teacher.mixed_types = [], set()
    return teacher


def test_teacher_sees_the_pixels_in_parts_of_a_bounded_size():
    teacher, frames = brightness(batch=4), frames_of(clips=3)
    truth = teacher(frames)
    assert teacher.parts == [4, 4, 1]
    torch.testing.assert_close(truth, (frames * STD + MEAN).mean(2, keepdim=True))


def test_what_a_teacher_says_can_be_learnt_from():
    truth = brightness()(frames_of())
    predicted = torch.zeros_like(truth, requires_grad=True)
    (predicted * truth).sum().backward()  # autograd keeps the truth, which inference tensors forbid
    assert torch.equal(predicted.grad, truth)


def test_precision_of_the_run_where_it_is_safe():
    teacher, exact = brightness(), brightness()
    exact.autocast = False
    with torch.autocast("cpu", torch.bfloat16):
        teacher(frames_of())
        exact(frames_of())
    assert (teacher.mixed_types, exact.mixed_types) == ({torch.bfloat16}, {torch.float32})
    teacher(frames_of())
    assert teacher.mixed_types == {torch.bfloat16, torch.float32}


def test_teacher_of_another_device_gives_the_truth_where_the_frames_are():
    teacher = VideoSwinTeacher(VideoSwin(SWIN), device="cpu")
    assert teacher(frames_of()).device == torch.device("cpu")
    with pytest.raises(UserError, match="device 'nonsense' is unknown"):
        brightness(device="nonsense")(frames_of())


# -- weights


@pytest.mark.parametrize(
    ("target", "key", "named"),
    [
        ("3d_feature", "feature_teacher", r"swin_base_patch244_window877_kinetics600_22k\.pth.*github"),
        ("2d_feature", "image_teacher", r"swin_base_patch4_window7_224\.ms_in22k.*huggingface"),
        ("2d_clip_feature", "clip_teacher", r"vit_base_patch32_clip_224\.openai.*huggingface"),
        ("optical_flow", "flow_teacher", r"ff5fadd5\.pth.*21 MB.*pytorch\.org"),
        ("depth", "depth_teacher", r"dpt-large.*1\.37 GB.*huggingface"),
        ("vq", "dalle_model_path", r"encoder\.pkl.*215 MB.*openai"),
    ],
)
def test_missing_weights_are_named(target, key, named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=rf"(?s){named}.*config key {key}"):
        teacher_of(target)


def test_only_the_chosen_targets_have_their_teacher_loaded():
    assert make_teachers(Config(mvm_target=["pixel", "hog"])) == {}
    assert list(make_teachers(Config(mvm_target=["pixel", "optical_flow"], flow_teacher="dis"))) == [
        "optical_flow"
    ]


def test_random_teachers_say_so(caplog, monkeypatch):
    monkeypatch.setattr("lib.log.propagate", True)
    teacher_of("optical_flow", teacher_init="random")
    assert "teacher_init random: the teachers of optical_flow" in caplog.text
    caplog.clear()
    teacher_of("optical_flow", flow_teacher="dis", teacher_init="random")
    assert not caplog.text


def randomise(network: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.05 * torch.randn_like(parameter))
    return network.eval()


@torch.no_grad()
def test_video_swin_of_its_own_layout_and_of_violets(tmp_path, monkeypatch):
    monkeypatch.setitem(SIZES, "test", SWIN)
    swin, frames = randomise(VideoSwin(SWIN)), frames_of()
    own = {f"backbone.{k}": v for k, v in swin.state_dict().items()} | {"cls_head.weight": torch.zeros(1)}
    torch.save({"state_dict": own}, tmp_path / "swin.pth")
    torch.save({f"enc_img.swin.{k}": v for k, v in swin.state_dict().items()}, tmp_path / "violet.pt")
    for name in ("swin.pth", "violet.pt"):
        teacher = teacher_of("3d_feature", feature_teacher=str(tmp_path / name))
        assert teacher.width == swin.width
        torch.testing.assert_close(teacher(frames), swin(frames.transpose(1, 2)).transpose(1, 2))
    del own["backbone.layers.1.blocks.0.norm1.weight"]
    torch.save({"state_dict": own}, tmp_path / "swin.pth")
    with pytest.raises(UserError, match=r"lacks layers\.1\.blocks\.0\.norm1\.weight"):
        teacher_of("3d_feature", feature_teacher=str(tmp_path / "swin.pth"))


def test_video_swin_of_no_known_size_is_refused(tmp_path):
    swin = VideoSwin(SWIN)
    torch.save({f"enc_img.swin.{k}": v for k, v in swin.state_dict().items()}, tmp_path / "violet.pt")
    with pytest.raises(UserError, match="16 wide with 1-1-2-1 blocks: not one of demo, tiny"):
        teacher_of("3d_feature", feature_teacher=str(tmp_path / "violet.pt"))


IMAGE_TEACHERS = {
    "2d_feature": (
        "image_teacher",
        "swin_base_patch4_window7_224",
        {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4]},
    ),
    "2d_clip_feature": (
        "clip_teacher",
        "vit_base_patch32_clip_224",
        {"embed_dim": 32, "depth": 2, "num_heads": 2},
    ),
}


def save_timm(folder: Path, architecture: str, sizes: dict) -> torch.nn.Module:
    """A small network of an architecture in the layout of the hub; the network."""
    network = randomise(timm.create_model(architecture, pretrained=False, num_classes=10, **sizes))
    timm.models.save_for_hf(network, str(folder), model_args=sizes, safe_serialization=True)
    return network


@pytest.mark.parametrize("target", IMAGE_TEACHERS)
@torch.no_grad()
def test_timm_networks(tmp_path, target, picture):
    key, architecture, sizes = IMAGE_TEACHERS[target]
    network = save_timm(tmp_path, architecture, sizes)
    teacher = teacher_of(target, **{key: str(tmp_path)})
    frames = as_frames(picture[:, 16:240, 16:240])
    cfg = network.pretrained_cfg
    pixels = picture[None, :, 16:240, 16:240] / 255
    if hasattr(network, "layers"):  # a Swin: as published, the features before its last LayerNorm
        network.norm = torch.nn.Identity()
    features = network.forward_features(Normalize(cfg["mean"], cfg["std"])(pixels))
    want = features[0] if features.ndim == 4 else features[0, 1:].unflatten(0, (7, 7))
    torch.testing.assert_close(teacher(frames)[0, 0].movedim(0, -1), want, rtol=1e-3, atol=1e-4)
    assert teacher.width == want.shape[-1]
    for size in (64, 96, 256):
        assert teacher(frames_of(size)).shape == (2, 3, teacher.width, size // 32, size // 32)


FAMILIES = {  # architectures of timm's whose grid is not that of 32 x 32 pixels, or which are no transformers
    "vit_small_patch14_reg4_dinov2": {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 70},
    "vit_small_patch16_dinov3": {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 64},
    "vit_base_patch16_siglip_224": {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 64},
    "convnext_atto": {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 32)},
    "swinv2_tiny_window8_256": {
        "embed_dim": 16,
        "depths": (1, 1, 1, 1),
        "num_heads": (1, 2, 2, 4),
        "img_size": 64,
    },
    "resnet18": {},
}


@pytest.mark.parametrize("key", ["image_teacher", "clip_teacher"])
@pytest.mark.parametrize("architecture", FAMILIES)
@torch.no_grad()
def test_any_image_network_of_timm_is_a_teacher(tmp_path, architecture, key):
    network = save_timm(tmp_path, architecture, FAMILIES[architecture]).eval()
    target = "2d_feature" if key == "image_teacher" else "2d_clip_feature"
    teacher = teacher_of(target, **{key: str(tmp_path)})
    assert teacher.width == network.feature_info[-1]["num_chs"]
    for size in (64, 96):
        assert teacher(frames_of(size)).shape == (2, 3, teacher.width, size // 32, size // 32)
    # what is bright in one corner of the frame has its features in that corner of the grid
    dark, lit = torch.full((1, 1, 3, 96, 96), -1.0), torch.full((1, 1, 3, 96, 96), -1.0)
    lit[..., :32, 64:] = 2.0
    changed = (teacher(lit) - teacher(dark))[0, 0].square().sum(dim=0)
    assert changed.flatten().argmax() == 2


@pytest.mark.parametrize("architecture", ["tf_efficientnet_lite0", "mobilenetv2_050"])
@torch.no_grad()
def test_channels_are_those_of_the_last_map(tmp_path, architecture):
    """These networks have more channels behind the map than in it: 1280 in place of 320."""
    network = save_timm(tmp_path, architecture, {})
    teacher = teacher_of("2d_feature", image_teacher=str(tmp_path))
    assert teacher.width == network.feature_info[-1]["num_chs"] < network.num_features
    assert teacher(frames_of(96)).shape == (2, 3, teacher.width, 3, 3)


def test_clip_has_its_own_mean():
    teacher = teacher_of("2d_clip_feature", clip_teacher="none", teacher_init="random")
    assert teacher.mean == (0.48145466, 0.4578275, 0.40821073)
    assert teacher.width == 768


def test_timm_weights_are_all_asked_for(tmp_path):
    key, architecture, sizes = IMAGE_TEACHERS["2d_clip_feature"]
    network = save_timm(tmp_path, architecture, sizes)
    state = network.state_dict()
    state["blocks.1.mlp.fc1.weight"] = torch.zeros(3, 3)
    os.remove(tmp_path / "model.safetensors")
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"blocks\.1\.mlp\.fc1\.weight \(3, 3\), not \(128, 32\)"):
        teacher_of("2d_clip_feature", **{key: str(tmp_path)})
    del state["blocks.1.mlp.fc1.weight"]
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"lacks blocks\.1\.mlp\.fc1\.weight"):
        teacher_of("2d_clip_feature", **{key: str(tmp_path)})
    os.remove(tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"neither model\.safetensors nor"):
        teacher_of("2d_clip_feature", **{key: str(tmp_path)})
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"no config\.json that names a timm architecture"):
        teacher_of("2d_clip_feature", **{key: str(tmp_path)})


# -- depth


@torch.no_grad()
def test_dpt_folder(tmp_path):
    network = tiny_dpt()
    network.save_pretrained(tmp_path)
    teacher = teacher_of("depth", depth_teacher=str(tmp_path))
    frames = frames_of(64)
    want = network(to_pixels(frames).flatten(0, 1) * 2 - 1).predicted_depth
    assert want.shape[-1] == 64
    torch.testing.assert_close(teacher(frames), want.unflatten(0, (2, 3))[:, :, None])
    assert teacher(frames_of(96)).shape == (2, 3, 1, 96, 96)


def test_dpt_weights_are_all_asked_for(tmp_path):
    network = tiny_dpt()
    state = network.state_dict()
    unused = [key for key in state if "fusion_stage.layers.0.residual_layer1" in key]
    network.save_pretrained(tmp_path, state_dict={k: v for k, v in state.items() if k not in unused})
    teacher_of("depth", depth_teacher=str(tmp_path))  # as the published file lacks them
    lacking = {k: v for k, v in state.items() if k not in (*unused, "head.head.0.weight")}
    network.save_pretrained(tmp_path, state_dict=lacking)
    with pytest.raises(UserError, match=r"lacks head\.head\.0\.weight"):
        teacher_of("depth", depth_teacher=str(tmp_path))


def test_dpt_preprocessing_is_the_librarys(picture):
    network = tiny_dpt()
    network.config.image_size = 384
    got = DptTeacher(network, width=1).preprocess(to_pixels(as_frames(picture))[0])
    want = DPTImageProcessor()(picture.movedim(0, 2).numpy(), return_tensors="pt")["pixel_values"]
    assert got.shape == want.shape == (1, 3, 384, 384)
    torch.testing.assert_close(got, want, atol=1e-6, rtol=0)


# -- flow


def test_raft_file_and_preprocessing(tmp_path, picture):
    from torchvision.models.optical_flow import Raft_Large_Weights

    network = randomise(raft_large())
    torch.save(network.state_dict(), tmp_path / "raft.pth")
    teacher = teacher_of("optical_flow", flow_teacher=str(tmp_path / "raft.pth"))
    first, second = picture[None, :, :160, :136], picture[None, :, 8:168, 8:144]
    ours = [teacher.preprocess(to_pixels(as_frames(part[0]))[0]) for part in (first, second)]
    library = Raft_Large_Weights.C_T_SKHT_V2.transforms()(first, second)
    for got, want in zip(ours, library, strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
    frames = torch.cat([as_frames(first[0]), as_frames(second[0])], dim=1)
    with torch.no_grad():
        torch.testing.assert_close(teacher(frames)[0], network(*ours)[-1])
    state = network.state_dict()
    del state["mask_predictor.conv.bias"]
    torch.save(state, tmp_path / "raft.pth")
    with pytest.raises(UserError, match=r"lacks mask_predictor\.conv\.bias"):
        teacher_of("optical_flow", flow_teacher=str(tmp_path / "raft.pth"))


def test_raft_of_small_and_odd_frames_scales_its_flow():
    def network(first, second):
        assert first.shape[-2:] == (128, 136)
        return [torch.ones(len(first), 2, 128, 136)]

    teacher = RaftTeacher(torch.nn.Identity(), width=2)
    teacher.network = network
    flow = teacher.follow(torch.rand(2, 3, 64, 130), torch.rand(2, 3, 64, 130))
    assert flow.shape == (2, 2, 64, 130)
    torch.testing.assert_close(flow[:, 0], torch.full((2, 64, 130), 130 / 136))
    torch.testing.assert_close(flow[:, 1], torch.full((2, 64, 130), 0.5))


@pytest.mark.parametrize("shift", [(3, 0), (-2, 5)], ids=str)
def test_dis_recovers_a_shift(picture, shift):
    right, down = shift
    moved = torch.roll(picture, (down, right), dims=(1, 2))
    crops = [as_frames(part[:, 16:240, 16:240]) for part in (picture, moved)]
    flow = DisTeacher(width=2)(torch.cat(crops, dim=1))[0, 0, :, 16:-16, 16:-16]
    assert flow.flatten(1).median(dim=1).values.tolist() == pytest.approx([right, down], abs=0.1)
    assert (flow - torch.tensor([right, down])[:, None, None]).abs().mean() < 0.5


def test_flow_has_one_picture_less_than_frames():
    teacher = DisTeacher(width=2)
    assert teacher(frames_of(64)).shape == (2, 2, 2, 64, 64)
    assert teacher(frames_of(32, number=1)).shape == (2, 0, 2, 32, 32)


# -- dall-e


def published_encoder(path: Path, **sizes) -> torch.nn.Module:
    """DALL-E's own encoder, pickled as OpenAI published it."""
    encoder = pytest.importorskip("dall_e.encoder").Encoder(use_mixed_precision=False, **sizes)
    torch.save(randomise(encoder), path)
    return encoder


def test_dalle_pickle_is_read_without_its_classes(tmp_path, monkeypatch):
    encoder = published_encoder(tmp_path / "encoder.pkl", n_hid=64, vocab_size=512, n_blk_per_group=1)
    from dall_e import map_pixels

    pixels = torch.rand(2, 3, 32, 48)
    with torch.no_grad():
        want = encoder(map_pixels(pixels))
    monkeypatch.setitem(sys.modules, "dall_e", None)  # to be imported is to fail
    with torch.no_grad():
        torch.testing.assert_close(load_dalle(tmp_path / "encoder.pkl")(pixels), want)
    teacher = teacher_of("vq", dalle_model_path=str(tmp_path / "encoder.pkl"))
    words = teacher(((pixels - MEAN) / STD)[None])
    assert teacher.width == 512
    assert (words[0, :, 0] == want.argmax(1)).float().mean() > 0.95  # normalising and back rounds


def test_dalle_as_published_has_its_parameters():
    with torch.device("meta"):
        assert sum(p.numel() for p in DalleEncoder().parameters()) == 53_786_240


def test_dalle_pickle_with_a_missing_or_misshapen_key_is_refused(tmp_path):
    path = tmp_path / "encoder.pkl"
    encoder = published_encoder(path, n_hid=64, vocab_size=512)
    encoder.blocks.group_2.block_1.res_path.conv_3.b = torch.nn.Parameter(torch.zeros(7))
    torch.save(encoder, path)
    with pytest.raises(UserError, match=r"blocks\.group_2\.block_1\.res_path\.conv_3\.b \(7,\), not \(32,\)"):
        load_dalle(path)
    del encoder.blocks.group_2.block_1.res_path.conv_3.b
    torch.save(encoder, path)
    with pytest.raises(UserError, match=r"lacks blocks\.group_2\.block_1\.res_path\.conv_3\.b"):
        load_dalle(path)


class Trap:
    def __reduce__(self):
        return os.mkdir, (os.environ["TRAP"],)


@pytest.mark.parametrize("kind", ["pickle", "zip", "within"])
def test_pickle_that_runs_code_is_refused(tmp_path, monkeypatch, kind):
    trap, path = tmp_path / "sprung", tmp_path / "encoder.pkl"
    monkeypatch.setenv("TRAP", str(trap))
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Trap(), protocol=2))
    elif kind == "zip":
        torch.save({"state_dict": Trap()}, path)
    else:
        encoder = published_encoder(path, n_hid=64, vocab_size=512)
        encoder.hook = Trap()
        torch.save(encoder, path)
    with pytest.raises(UserError, match=r"cannot be read as DALL-E's encoder: .*mkdir"):
        load_dalle(path)
    with pytest.raises(UserError, match="cannot be read as a checkpoint of tensors"):
        read_tensors(path)
    assert not trap.exists()


def test_workers_compute_the_flow_that_the_teacher_would():
    clip = (
        torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
        .repeat_interleave(6, 2)
        .repeat_interleave(6, 3)
    )
    clip[1:] = clip[:1].roll(2, -1)
    flow = dis_of_clip(clip)
    assert flow.shape == (2, 2, 96, 96) and flow.dtype == torch.float32
    taught = DisTeacher(width=2)(normalise(clip)[None])[0]
    assert (flow - taught).abs().mean() < 1e-3
    assert dis_of_clip(clip[:1]).shape == (0, 2, 96, 96)
    assert not worker_truths(Config(mvm_target=["optical_flow"]))
    assert not worker_truths(Config(mvm_target=["pixel"], flow_teacher="dis"))
    chosen = Config(mvm_target=["optical_flow", "pixel"], flow_teacher="dis")
    assert worker_truths(chosen) == {"optical_flow": dis_of_clip}
    assert not worker_truths(dataclasses.replace(chosen, pretrain_tasks=["mlm"]))


def test_a_truth_that_is_known_is_not_computed_again():
    model = PretrainModel(tiny_bert(), tiny_bert(), SWIN, targets=["depth"])  # without its teacher
    txt = torch.tensor([[2, 7, 8, 3]] * 2)
    batch = {"img": torch.randn(2, 2, 3, 64, 64), "txt": txt, "mask": torch.ones_like(txt)}
    batch |= {"valid": torch.ones(2, dtype=torch.bool), "truth_depth": torch.zeros(2, 2, 1, 64, 64)}
    special, generator = SpecialTokens(pad=0, cls=2, sep=3, mask=4), torch.Generator().manual_seed(0)
    batch = mask_batch(batch, ["rm"], 0.5, special, 32, generator, reads=model.reads, places=model.places)
    zero = model.eval()(batch).losses["mvm_depth"].value
    batch["truth_depth"] += 3.0
    assert abs(model(batch).losses["mvm_depth"].value - zero) > 0.1
