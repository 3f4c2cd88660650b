"""The loss of each target, and the picture of HOG."""

import pytest
import torch

from lib import Config, UserError
from mvm_targets import make_targets
from teachers.features import VideoSwinTeacher
from teachers.hog import hog_picture
from teachers.make import make_teachers
from tests.conftest import SWIN, Noise, noise_teachers
from video_swin import VideoSwin


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
        truth = target.hidden_truth(frames, (1, 1, 1), target.places(mask))
    assert torch.equal(truth[0, 0], hog_picture(frames[0, 0]))


def test_hog_of_flat_and_of_tiny_frames():
    assert (hog_picture(torch.ones(3, 32, 32)) == 0).all()
    with pytest.raises(UserError, match="at least 8 px"):
        hog_picture(torch.ones(3, 4, 32))


def test_flow_is_read_and_learnt_at_either_frame_of_a_pair():
    target = make_targets(["optical_flow"], 16)["optical_flow"]
    mask = torch.zeros(1, 4, 2, 2, dtype=torch.bool)
    mask[0, 1, 0, 1] = True
    assert target.hidden(mask)[0, :, 0, 1].tolist() == [True, True, False]
    assert target.reads(mask)[0, :, 0, 1].tolist() == [True, True, True, False]
    assert target.hidden(mask).sum() == 2
    assert target.reads(mask).sum() == 3


def test_pair_that_moves_too_far_is_left_out():
    target = make_targets(["optical_flow"], 16, teachers={"optical_flow": Noise(2, 32, pairs=True)})[
        "optical_flow"
    ]
    frames, visual = torch.randn(1, 3, 3, 64, 64), torch.randn(1, 3 * 5, 16)
    visual.requires_grad_()
    mask, flow = torch.ones(1, 3, 2, 2), torch.zeros(1, 2, 2, 64, 64)
    flow[0, 0, :, 5, 5] = torch.tensor([2.0, -50.0])
    target.truth = lambda _: flow
    places = target.places(mask)
    predicted, truth = target.compare(visual, frames, (3, 2, 2), places)
    assert torch.equal(truth[:4].isnan(), torch.ones(4, 2, 32, 32, dtype=torch.bool))
    loss = target.error(predicted, truth)
    torch.testing.assert_close(loss.total, predicted[4:].abs().sum())
    assert loss.count == pytest.approx(2 * predicted[4:].numel())
    (gradient,) = torch.autograd.grad(loss.total, predicted)
    assert (gradient[:4] == 0).all() and (gradient[4:] != 0).any()
    flow[0, 0, :, 5, 5] = torch.tensor([49.9, 49.9])  # as published its length, 70.6 px, does not count
    assert target.compare(visual, frames, (3, 2, 2), places)[1].isfinite().all()


@pytest.mark.parametrize("shape", [(4, 2, 3), (1, 1, 1), (2, 3, 2)], ids=str)
def test_reconstructions_are_shaped_as_the_truth(shape):
    frames = torch.randn(2, shape[0], 3, 32 * shape[1], 32 * shape[2])
    visual = torch.randn(2, shape[0] * (1 + shape[1] * shape[2]), 32)
    teachers = noise_teachers()
    for name, target in make_targets([*teachers, "pixel", "hog"], 32, teachers=teachers).items():
        picture = target.reconstruct(visual, shape)
        truth = target.truth(frames)
        assert picture.shape == truth.shape, name
        assert picture.is_floating_point() == truth.is_floating_point(), name


def test_loss_is_that_of_the_masked_patches_alone():
    target = make_targets(["3d_feature"], 16, teachers={"3d_feature": Noise(24)})["3d_feature"]
    frames, visual = torch.randn(2, 3, 3, 64, 64), torch.randn(2, 3 * 5, 16)
    target.head.eval()
    mask = torch.zeros(2, 3, 2, 2)
    mask[1, 2, 1, 0] = 1
    error = target.head(visual[1, 2 * 5 + 1 + 2]) - target.truth(frames)[1, 2, :, 1, 0]
    want = error.abs().sum() / 3 / (1 + 1e-5)
    torch.testing.assert_close(target.loss(visual, frames, mask).value, want)


def test_target_without_its_teacher_says_so():
    target = make_targets(["depth"], 16)["depth"]
    with pytest.raises(UserError, match="depth was made without its teacher"):
        target.truth(torch.zeros(1, 1, 3, 32, 32))


def test_visible_patches_are_those_that_are_not_masked_of_clips_that_are_there():
    target = make_targets(["clip_visible"], 8)["clip_visible"]
    mask = torch.zeros(2, 2, 2, 2, dtype=torch.bool)
    mask[0, 0, 1, 0] = True
    seen = [number for number in range(8) if number != 2]
    assert target.places(mask, torch.tensor([True, False])).tolist() == seen
    assert target.reads(mask).sum() == 15
    features = torch.randn(5, 768, 1, 1)
    assert target.error(3 * features, features).value < 1e-6  # the length does not count
    assert target.error(-features, features).value == pytest.approx(4.0)


def test_latent_follows_the_encoder_and_is_normalised():
    encoder, teacher = VideoSwin(SWIN), VideoSwinTeacher(VideoSwin(SWIN))
    target = make_targets(["latent"], 8, teachers={"latent": teacher})["latent"]
    first = next(encoder.parameters()).detach().clone()
    target.follow(encoder, 0.0)
    average = next(teacher.network.parameters())
    assert torch.equal(average, first) and not average.requires_grad
    with torch.no_grad():
        next(encoder.parameters()).add_(1.0)
    target.follow(encoder, 1e-9)
    torch.testing.assert_close(average, first + 0.002)
    target.follow(encoder, 1.0)  # at the end of a run nothing moves
    torch.testing.assert_close(average, first + 0.002)
    truth = target.truth(torch.randn(1, 2, 3, 64, 64))
    assert truth.shape == (1, 2, encoder.width, 2, 2)
    torch.testing.assert_close(truth.mean(dim=2), torch.zeros(1, 2, 2, 2), atol=1e-5, rtol=0)
    torch.testing.assert_close(truth.var(dim=2, correction=0), torch.ones(1, 2, 2, 2), atol=1e-2, rtol=0)


def test_the_random_features_are_the_same_in_every_run():
    config = Config(mvm_target=["random_feature"], vis_backbone_size="demo")
    frames = torch.randn(1, 2, 3, 64, 64)
    state = torch.get_rng_state()
    one, other = (make_teachers(config)["random_feature"](frames) for _ in range(2))
    assert torch.equal(one, other) and one.std() > 0
    assert torch.equal(torch.get_rng_state(), state)
