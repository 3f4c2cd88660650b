"""Video Swin against torchvision's, its windows, its weights files."""

import warnings

import pytest
import torch
from einops import rearrange
from torch import nn
from torchvision.models.video.swin_transformer import SwinTransformer3d

from lib import UserError
from video_swin import (
    KEPT,
    SIZES,
    Reorder,
    Size,
    VideoSwin,
    add,
    fit_window,
    relative_position_index,
    shift_regions,
    window_order,
)
from weights.swin import load_backbone

TINY = Size(16, (2, 2, 2, 2), (1, 2, 4, 8))
SMALL = Size(16, (1, 1, 2, 1), (1, 2, 4, 8), window=(2, 2, 2), drop_path=0.0, init_std=None)


def like_torchvision(size: Size) -> tuple[VideoSwin, SwinTransformer3d]:
    """The same network twice: ours with torchvision's weights."""
    other = SwinTransformer3d(
        [2, 4, 4], size.embed_dim, list(size.depths), list(size.heads), list(size.window), num_classes=7
    )
    names = {}
    for key, value in other.state_dict().items():
        key = key.replace("mlp.0.", "mlp.fc1.").replace("mlp.3.", "mlp.fc2.")
        if key.startswith("features."):
            _, stage, rest = key.split(".", 2)
            inner = "downsample" if int(stage) % 2 else f"blocks.{rest.split('.', 1)[0]}"
            rest = rest if int(stage) % 2 else rest.split(".", 1)[1]
            key = f"layers.{int(stage) // 2}.{inner}.{rest}"
        names[key] = value
    names = {k: v for k, v in names.items() if not k.startswith("head.")}
    ours = VideoSwin(size)
    index = {k for k in ours.state_dict() if k.endswith("relative_position_index")}
    names = {k: v.view_as(ours.state_dict()[k]) if k in index else v for k, v in names.items()}
    ours.load_state_dict(names)
    return ours.eval(), other.eval()


@pytest.mark.parametrize(
    "dims", [(4, 64, 64), (8, 224, 224), (16, 96, 160), (5, 72, 104), (1, 32, 32)], ids=str
)
@torch.inference_mode()
def test_blocks_equal_torchvision(dims):
    """From the patch embedding on, where both are defined alike (torchvision's halves the time)."""
    ours, other = like_torchvision(TINY)
    frames = torch.randn(1, 3, *dims)
    patches = ours.patch_embed(frames)
    x = patches
    for stage in ours.layers:
        x = stage(x, iter([None] * len(stage.blocks)), use_checkpoint=False)
    torch.testing.assert_close(ours.norm(x), other.norm(other.features(patches)), rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_patch_embedding_equals_torchvision_on_a_doubled_clip():
    """At a stride of two frames, torchvision sees the pairs (0, 1), (2, 3); ours steps through all."""
    ours, other = like_torchvision(TINY)
    frames = torch.randn(1, 3, 6, 32, 32)
    torch.testing.assert_close(ours.patch_embed(frames)[:, ::2], other.patch_embed(frames))


def test_time_is_kept_and_odd_sizes_are_padded():
    swin = VideoSwin(SMALL).eval()
    for frames, height, width in [(1, 32, 32), (3, 64, 96), (5, 70, 33)]:
        out = swin(torch.randn(2, 3, frames, height, width))
        assert out.shape == (2, 128, frames, -(-height // 32), -(-width // 32))


def test_a_dimension_within_its_window_is_not_shifted():
    assert fit_window((4, 56, 7), (8, 7, 7), shifted=True) == ((4, 7, 7), (0, 3, 0))
    assert fit_window((16, 8, 8), (8, 7, 7), shifted=False) == ((8, 7, 7), (0, 0, 0))


@pytest.mark.parametrize("strict", [False, True])
def test_an_export_leaves_nothing_behind(strict):
    """A call after it computes, with the same result, and dynamo has nothing to warn of."""
    torch._dynamo.reset()
    KEPT.clear()
    size = Size(8, (2,), (1,), window=(2, 2, 2), drop_path=0.0, init_std=None)
    model, frames = VideoSwin(size).eval(), torch.randn(1, 3, 3, 32, 32)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*lru_cache.*|.*functools.*")
        exported = torch.export.export(model, (frames,), strict=strict)
        assert all(type(mask) is torch.Tensor for mask in KEPT.values())
        with torch.inference_mode():
            want = model(frames)
    assert KEPT and torch.isfinite(want).all()
    torch.testing.assert_close(exported.module()(frames), want)
    model(frames).sum().backward()  # what inference has kept can train


def test_regions_part_what_the_roll_joined():
    """Along each axis the last window holds the clip's end and its rolled-over start."""
    regions = shift_regions((1, 4, 2), (1, 2, 2), (0, 1, 0), torch.device("cpu"))
    assert regions.shape == (2, 4)
    assert len(regions[0].unique()) == 1
    apart = regions[1][:, None] != regions[1][None, :]
    assert apart.tolist() == [[a != b for b in (0, 0, 1, 1)] for a in (0, 0, 1, 1)]


@pytest.mark.parametrize("shift", [(0, 0, 0), (0, 1, 1), (1, 0, 1)])
def test_windows_hold_what_a_roll_brings_into_them(shift):
    dims, window = (4, 6, 4), (2, 3, 2)
    there, back = window_order(dims, window, shift, torch.device("cpu"))
    x = torch.randn(2, *dims, 3, dtype=torch.double, requires_grad=True)
    rolled = x.roll([-s for s in shift], dims=(1, 2, 3))
    places = "(t h w nt nh nw)" if any(shift) else "(nt nh nw t h w)"
    want = rearrange(rolled, f"b (nt t) (nh h) (nw w) c -> b {places} c", t=2, h=3, w=2)
    found = Reorder.apply(x.flatten(1, 3), there, back)
    assert torch.equal(found, want)
    assert torch.equal(Reorder.apply(found, back, there).view_as(x), x)
    assert torch.autograd.gradcheck(lambda x: Reorder.apply(x, there, back).square(), x.flatten(1, 3))


def test_relative_positions_are_distinct_and_symmetric_about_self():
    index = relative_position_index((2, 3, 2))
    assert index.shape == (12, 12)
    assert index.diagonal().unique().numel() == 1
    assert torch.equal(index + index.T, torch.full_like(index, 2 * int(index[0, 0])))


def test_activation_checkpointing_changes_no_gradient():
    frames = torch.randn(1, 3, 2, 32, 64)
    gradients = []
    for use_checkpoint in (False, True):
        torch.manual_seed(1)
        swin = VideoSwin(SMALL, use_checkpoint).train()
        swin(frames).square().sum().backward()
        gradients.append([p.grad for p in swin.parameters()])
    torch.testing.assert_close(*gradients)


def test_published_sizes():
    with torch.device("meta"):
        widths = {name: VideoSwin(size).width for name, size in SIZES.items()}
    assert widths == {"demo": 256, "tiny": 768, "small": 768, "base": 1024, "large": 1536}


def test_video_swin_file_loads_without_its_classifier(tmp_path):
    theirs, ours = VideoSwin(SMALL), VideoSwin(SMALL)
    state = {f"backbone.{k}": v for k, v in theirs.state_dict().items()}
    torch.save({"state_dict": {**state, "cls_head.fc_cls.weight": torch.zeros(3)}}, tmp_path / "a.pth")
    load_backbone(ours, "3d", tmp_path / "a.pth")
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


def test_image_swin_file_is_inflated_to_see_a_still_clip_as_its_picture(tmp_path):
    """A kernel of two equal halves on two equal frames is the image kernel; the bias ignores time."""
    swin = VideoSwin(SMALL)
    state = {}
    for key, value in swin.state_dict().items():
        if "relative_position_index" in key:
            value = torch.zeros(4, 4)
        elif "bias_table" in key:
            value = torch.randn(9, value.shape[1])
        elif key == "patch_embed.proj.weight":
            value = torch.randn(16, 3, 4, 4)
        state[key] = value
    torch.save({"model": {**state, "head.weight": torch.zeros(2, 2)}}, tmp_path / "b.pth")
    load_backbone(swin, "2d", tmp_path / "b.pth")
    picture = torch.randn(1, 3, 32, 32)
    want = nn.functional.conv2d(
        picture, state["patch_embed.proj.weight"], swin.patch_embed.proj.bias, stride=4
    )
    got = swin.patch_embed.proj(picture[:, :, None].expand(-1, -1, 2, -1, -1))[:, :, 0]
    torch.testing.assert_close(got, want)
    table = swin.layers[0].blocks[0].attn.relative_position_bias_table
    torch.testing.assert_close(
        table, state["layers.0.blocks.0.attn.relative_position_bias_table"].repeat(3, 1)
    )


def test_weights_files_that_do_not_fit_say_so(tmp_path):
    path = tmp_path / "c.pth"
    swin = VideoSwin(SMALL)
    with pytest.raises(UserError, match="does not exist"):
        load_backbone(swin, "3d", path)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match="cannot be read"):
        load_backbone(swin, "3d", path)
    torch.save({"state_dict": {"encoder.x": torch.zeros(1)}}, path)
    with pytest.raises(UserError, match=r"backbone\."):
        load_backbone(swin, "3d", path)
    state = {f"backbone.{k}": v for k, v in swin.state_dict().items()}
    missing = state.pop("backbone.norm.weight")
    torch.save({"state_dict": state}, path)
    with pytest.raises(UserError, match=r"lacks norm\.weight"):
        load_backbone(swin, "3d", path)
    torch.save({"state_dict": {**state, "backbone.norm.weight": missing[:5]}}, path)
    with pytest.raises(UserError, match=r"norm\.weight \(5,\), not \(128,\)"):
        load_backbone(swin, "3d", path)


def test_a_weights_file_that_would_run_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("executed",)

    torch.save({"state_dict": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match="cannot be read"):
        load_backbone(VideoSwin(SMALL), "3d", tmp_path / "evil.pth")


def test_stochastic_depth_drops_the_change_of_whole_clips():
    """At a rate that rises from block to block, and keeps the mean; evaluation drops nothing."""
    swin = VideoSwin(Size(8, (1, 2), (1, 1), window=(2, 2, 2), drop_path=0.5)).train()
    x, change = torch.zeros(2000, 1, 2, 1, 3), torch.ones(2000, 1, 2, 1, 3)
    drawn = swin.draw(x)
    for rate, keep in zip((0.0, 0.25, 0.5), drawn, strict=True):
        for each in keep:
            added = add(x, change, each).flatten(1)
            assert torch.equal(added, added[:, :1].expand_as(added))
            assert set(added.unique().tolist()) <= {0.0, torch.tensor(1 / (1 - rate)).item()}
            assert (added == 0).float().mean() == pytest.approx(rate, abs=0.04)
            assert added.mean() == pytest.approx(1.0, abs=0.08)
    assert not torch.equal(drawn[2][0], drawn[2][1])
    assert swin.eval().draw(x) == [None] * 3
    assert torch.equal(add(x, change, None), change)
    assert "drop_paths" not in swin.state_dict()
