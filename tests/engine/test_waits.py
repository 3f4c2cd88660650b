"""No training step makes the host wait for the device.

The steps run on torch's `meta` device, whose tensors have no values: all that the host would have to wait for
(`.item()`, `.tolist()`, `nonzero`, an index of booleans, a copy to the CPU) raises an error there. Copies to
the device, for which CUDA waits unless they are `non_blocking`, are refused by `NoCopies` and `NoConstants`.
"""

import contextlib
import functools
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import AdamW
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import agent
from batch import SpecialTokens
from engine.profiling import Profile
from engine.recorder import Recorder
from lib import Config, World
from model import PretrainModel
from mvm_targets import TARGETS
from tasks.pretraining import mask
from tasks.qa.model import ChoiceModel, MaskModel
from tasks.retrieval.model import RetrievalModel
from teachers.base import Stopwatch
from tests.conftest import SWIN, small_teacher, tiny_bert

DEVICE = torch.device("meta")
SPECIAL = SpecialTokens(pad=0, cls=2, sep=3, mask=4)


class NoConstants(TorchFunctionMode):
    """Refuses tensors made of Python's numbers on the device: they are made on the CPU and copied."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func in (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor):
            assert made.device != DEVICE, "the host waits for a copy"
        return made


class NoCopies(TorchDispatchMode):
    """Refuses copies to the device for which the host waits."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func.overloadpacket.__name__
        if name == "_to_copy":
            target = torch.device(kwargs.get("device") or args[0].device)
            assert target == args[0].device or kwargs.get("non_blocking"), "the host waits for a copy"
        if name == "copy_":
            waits = args[0].device != args[1].device and not (args[2:] or [False])[0]
            assert not waits, "the host waits for a copy"
        return func(*args, **kwargs)


@pytest.fixture
def on_meta(monkeypatch) -> None:
    """The parts of torch that know no meta device: mixed precision, clocks, the fused optimiser."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    monkeypatch.setattr(Stopwatch, "running", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(agent, "make_optimizer", lambda groups, lr, _: Fused(groups, lr))


class Fused(AdamW):
    """In place of the fused kernel, which looks by itself whether a gradient of fp16 is finite."""

    _step_supports_amp_scaling = True

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(group["lr"] * parameter.grad)


def batch_of(kind: str) -> dict[str, Any]:
    """Four clips of bytes on the CPU, as the loader gives them."""
    size = 4
    txt = torch.randint(5, 128, (size, 3, 8) if kind == "options" else (size, 8))
    return {
        "img": torch.randint(0, 256, (size, 2, 3, 64, 64), dtype=torch.uint8),
        "txt": txt,
        "mask": torch.ones_like(txt),
        "valid": torch.ones(size, dtype=torch.bool),
        "answer": torch.arange(size) % 3,
        "place": torch.full((size,), 3),
        "video": torch.arange(size),
        "index": torch.arange(size),
        "id": [str(number) for number in range(size)],
        "corpus": ["clips"] * size,
    }


def train(folder, model: torch.nn.Module, batch: dict[str, Any], prepare=lambda batch, _: batch, **values):
    """Steps of the training loop between two lines of figures."""
    config = Config(path_output=str(folder), task="tiny", logging_steps=100, **values)
    loop = agent.Agent(config, World(DEVICE), model, prepare)
    loop.total, loop.step, loop.saved = 50, 1, time.monotonic()
    loop.recorder, loop.profile = Recorder(folder, loop.world, loop.total), Profile(0, folder)
    loop.train_part(iter([batch]), until=1)  # constants are copied to the device, once
    with NoConstants(), NoCopies():
        loop.train_part(iter([batch]), until=2)
    assert (loop.step, len(loop.recorder.window)) == (3, 2)
    loop.recorder.close()


CASES = [("pixel", "off"), ("pixel", "fp16"), *((name, "bf16") for name in TARGETS)]


@pytest.mark.parametrize(("name", "amp"), CASES)
def test_pretraining(on_meta, tmp_path, name, amp):
    with DEVICE:
        bert = tiny_bert(dropout=0.1)
        teacher = small_teacher(name)
        given = {name: teacher} if teacher else {}
        tasks = ["mlm", "vtm", "mvm", *(["vtc"] if name == "pixel" else [])]
        model = PretrainModel(bert, bert, SWIN, tasks, targets=[name], teachers=given)
    config = Config(mvm_target=[name], pretrain_masks=["rm", "bm"], p_mask=0.4)
    tokens: Any = type("Words", (), {"special": SPECIAL})
    prepare = functools.partial(mask, model=model, config=config, tokens=tokens)
    train(tmp_path, model, batch_of("captions"), prepare, amp=amp, mvm_target=[name])


BERT = tiny_bert(dropout=0.1)
MODELS: dict[str, Callable[[], torch.nn.Module]] = {
    "options": lambda: ChoiceModel(BERT, BERT, SWIN),
    "words": lambda: MaskModel(BERT, BERT, SWIN, task_row=2),
    "numbers": lambda: MaskModel(BERT, BERT, SWIN, choices=[5, 6, 7]),
    "captions": lambda: RetrievalModel(BERT, BERT, SWIN, pair_batch=4),
}


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
@pytest.mark.parametrize("kind", MODELS)
def test_fine_tuning(on_meta, tmp_path, kind, amp):
    with DEVICE:
        model = MODELS[kind]()
    train(tmp_path, model, batch_of(kind), amp=amp)


@pytest.mark.parametrize("kind", MODELS)
def test_an_evaluated_batch_is_waited_for_at_its_end_alone(on_meta, kind):
    with DEVICE:
        model = MODELS[kind]().eval()
    moved = agent.to_device(batch_of(kind), DEVICE)
    with torch.no_grad(), NoConstants(), NoCopies():
        output = model(moved)
    tensors = [value for value in output.predictions.values() if isinstance(value, torch.Tensor)]
    assert tensors and all(tensor.device == DEVICE for tensor in tensors)


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: x[x > 0],
        lambda x: (x > 0).nonzero(),
        lambda x: x.cpu(),
        lambda x: bool(x.any()),
        lambda x: torch.tensor([1.0], device=x.device),
        lambda x: torch.ones(3).to(x.device),
        lambda x: x.copy_(torch.ones(3)),
        lambda x: x.new_tensor(3),
    ],
)
def test_each_kind_of_wait_is_found(wait):
    with pytest.raises((RuntimeError, NotImplementedError, AssertionError)), NoConstants(), NoCopies():
        wait(torch.ones(3, device=DEVICE))
