"""Exported encoders give what the model gives, for any number of videos."""

import numpy as np
import pytest
import torch

from media.frames import normalise
from model import PretrainModel
from tasks.retrieval.serving import export, programs
from tests.conftest import SWIN, tiny_bert

SHAPES = {"video_features": (3, 2, 64, 64), "video_embedding": (3, 2, 64, 64), "text_embedding": (10,)}


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return PretrainModel(tiny_bert(), tiny_bert(), SWIN, tasks=["mlm", "vtm", "vtc"]).eval()


def inputs(name: str, count: int) -> tuple[torch.Tensor, ...]:
    random = torch.Generator().manual_seed(count)
    if name == "text_embedding":
        ids = torch.randint(5, 128, (count, 10), generator=random)
        mask = (torch.arange(10) < torch.arange(3, 3 + count)[:, None]).long()
        return ids * mask, mask
    return (torch.randint(0, 256, (count, 3, 3, 64, 64), generator=random, dtype=torch.uint8),)


def test_the_modules_are_the_models_own_passes(network):
    made = {name: module for name, module, _ in programs(network, 3, 64, 10)}
    (clips,) = inputs("video_embedding", 2)
    with torch.inference_mode():
        video = network.enc_img(normalise(clips))
        want = network.fc_vtc.of_video(video, 3)
        torch.testing.assert_close(made["video_embedding"](clips), want)
        assert made["video_features"](clips).shape == (2, 3, 2, 2, network.enc_img.swin.width)
    assert made.keys() == SHAPES.keys()
    plain = PretrainModel(tiny_bert(), tiny_bert(), SWIN, tasks=["mlm"])
    assert [name for name, *_ in programs(plain, 3, 64, 10)] == ["video_features"]


def test_exported_programs_equal_eager(network, tmp_path):
    export(network, 3, 64, 10, tmp_path, onnx=False)
    for name, module, _ in programs(network, 3, 64, 10):
        program = torch.export.load(tmp_path / f"{name}.pt2").module()
        for count in (1, 5):
            given = inputs(name, count)
            with torch.inference_mode():
                torch.testing.assert_close(program(*given), module(*given), rtol=0, atol=1e-5)


def test_onnx_equals_eager(network, tmp_path):
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package, reason="ONNX needs the packages onnx, onnxscript and onnxruntime")
    runtime = pytest.importorskip("onnxruntime", reason="the test of ONNX runs its files by onnxruntime")
    export(network, 3, 64, 10, tmp_path, onnx=True)
    for name, module, _ in programs(network, 3, 64, 10):
        session = runtime.InferenceSession(str(tmp_path / f"{name}.onnx"), providers=["CPUExecutionProvider"])
        for count in (1, 5):
            given = inputs(name, count)
            feeds = {
                node.name: tensor.numpy() for node, tensor in zip(session.get_inputs(), given, strict=True)
            }
            (found,) = session.run(None, feeds)
            with torch.inference_mode():
                np.testing.assert_allclose(found, module(*given).numpy(), rtol=0, atol=1e-5)
