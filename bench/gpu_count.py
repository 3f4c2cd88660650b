"""Count the kernels, bytes and waits of a training step on a GPU, without one, and predict its time.

    python -m bench.gpu_count
    python -m bench.gpu_count --scripts main_pretrain_yaml --amp off

The step is the agent's own, at published size, on torch's `meta` device, whose tensors have shapes and no
values. A step that made the host wait for the device would end in an error there; blocking copies to the
device are counted. CUDA's autocast, attention and dropout are imitated, the fused optimiser is left out. A
kernel takes the longest of: its products at the rate that a card attains, its bytes at the card's bandwidth,
2.5 microseconds. Nothing here is measured; bench/GPU.md discusses the figures.
"""

import argparse
import contextlib
import functools
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.flop_counter import flop_registry
from transformers import BertConfig

import agent
from batch import SpecialTokens
from engine.parallel import AMP
from lib import SCRIPTS, Config, World, run_script
from model import PretrainModel
from tasks.pretraining import mask
from tasks.qa.model import ChoiceModel, MaskModel
from tasks.retrieval.model import RetrievalModel
from tasks.retrieval.scoring import PairScorer
from video_swin import SIZES

META = torch.device("meta")
SPECIAL = SpecialTokens(pad=0, cls=101, sep=102, mask=103)
# FLOP/s of products in half precision, in float32, and of attention, bytes/s: about what kernels attain
CARDS = {"A100": (230e12, 17e12, 80e12, 1.7e12), "H100": (650e12, 50e12, 120e12, 2.9e12)}
LAUNCH = 2.5e-6
FOREACH = "torch.utils._foreach_utils._get_foreach_kernels_supported_devices"
PRODUCTS = {F.linear, F.conv2d, F.conv3d, torch.matmul, torch.bmm, Tensor.matmul, Tensor.__matmul__}
IN_FLOAT32 = {F.layer_norm, F.softmax, F.cross_entropy, F.l1_loss, torch.softmax, Tensor.softmax, torch.cdist}
NOT_KERNELS = {
    "detach",
    "alias",
    "lift_fresh",
    "_unsafe_view",
    "empty",
    "empty_like",
    "new_empty",
    "empty_strided",
}


class Autocast(TorchFunctionMode):
    """CUDA's autocast: products in half precision, each weight cast once, norms and losses in float32."""

    def __init__(self) -> None:
        self.dtype: torch.dtype | None = None
        self.cast: dict[Tensor, Tensor] = {}

    @contextlib.contextmanager
    def __call__(self, _: str, dtype: torch.dtype | None = None, enabled: bool = True) -> Iterator[None]:
        """In place of `torch.autocast`."""
        before, self.dtype = self.dtype, (dtype or self.dtype) if enabled else None
        try:
            yield
        finally:
            self.dtype = before
            if before is None and enabled:
                self.cast.clear()

    def to(self, value: Any, dtype: torch.dtype) -> Any:
        """A float32 or half-precision tensor in `dtype`; anything else as it is."""
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == dtype:
            return value
        if not isinstance(value, nn.Parameter):
            return value.to(dtype)
        if value not in self.cast:
            self.cast[value] = value.to(dtype)
        return self.cast[value]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """A call of torch."""
        kwargs, attention = kwargs or {}, func is F.scaled_dot_product_attention
        if func is F.dropout:
            return self.drop(*args, **kwargs)
        half = self.dtype if func in PRODUCTS or attention else torch.float32 if func in IN_FLOAT32 else None
        if self.dtype is not None and half is not None:
            args, kwargs = tree_map(lambda value: self.to(value, half), (args, kwargs))
        return self.attend(*args, **kwargs) if attention else func(*args, **kwargs)

    def drop(self, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        """By CUDA's one kernel; that of other devices is four."""
        return torch.native_dropout(x, p, True)[0] if training and p else x

    def attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor, dropout: float = 0.0) -> Tensor:
        """By the kernel that CUDA takes for a mask or a bias."""
        if bias.dtype == torch.bool:
            bias = torch.zeros_like(bias, dtype=query.dtype).masked_fill_(~bias, -torch.inf)
        bias = bias.expand(*query.shape[:3], key.shape[2])
        grads = torch.is_grad_enabled()
        kernel = torch.ops.aten._scaled_dot_product_efficient_attention
        return kernel(query, key, value, bias, grads, dropout)[0]


@dataclass
class Count(TorchDispatchMode):
    """Kernels, their bytes, their time on each card, and copies to the device that the host waits for."""

    kernels: int = 0
    waits: int = 0
    bytes: Counter[str] = field(default_factory=Counter)  # in products, attention and the rest
    seconds: Counter[str] = field(default_factory=Counter)  # on each card

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """A call of ATen."""
        found, name = func(*args, **(kwargs or {})), func.overloadpacket.__name__
        tensors = [x for x in tree_flatten((args, kwargs, found))[0] if isinstance(x, Tensor)]
        if not any(x.device == META for x in tensors) or func.is_view or name in NOT_KERNELS:
            return found
        if any(x.device != META and x.dim() for x in tensors):
            self.waits += not (kwargs or {}).get("non_blocking", False)
        self.add(func.overloadpacket, name, args, kwargs or {}, found, tensors)
        return found

    def add(self, op: Any, name: str, args: Any, kwargs: Any, found: Any, tensors: list[Tensor]) -> None:
        """Count a kernel."""
        flops = flop_registry[op](*args, **kwargs, out_val=found) if op in flop_registry else 0
        kind = "attention" if "attention" in name else "products" if flops else "rest"
        moved = sum(read_once(x) for x in tensors)
        self.kernels += 1
        self.bytes[kind] += moved
        half = any(x.dtype in (torch.bfloat16, torch.float16) for x in tensors)
        for card, (in_half, in_float, in_attention, bandwidth) in CARDS.items():
            rate = in_attention if kind == "attention" else in_half if half else in_float
            self.seconds[card] += max(flops / rate, moved / bandwidth, LAUNCH)


def read_once(tensor: Tensor) -> int:
    """Bytes of a tensor; dimensions over which it is broadcast are read once."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return functools.reduce(lambda size, at: size * (at[0] if at[1] else 1), sizes, tensor.element_size())


def batch_of(size: int, frames: int, words: int, options: int = 0) -> dict[str, Any]:
    """Clips of bytes and texts on the CPU, as a loader gives them."""
    txt = torch.randint(1000, 30000, (size, options, words) if options else (size, words))
    txt[..., 0], txt[..., -1] = SPECIAL.cls, SPECIAL.sep
    return {
        "img": torch.zeros(size, frames, 3, 224, 224, dtype=torch.uint8),
        "txt": txt,
        "mask": torch.ones_like(txt),
        "valid": torch.ones(size, dtype=torch.bool),
        "answer": torch.zeros(size, dtype=torch.long),
        "place": torch.full((size,), words - 2),
        "video": torch.arange(size),
    }


def models() -> dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]]:
    """For each script a model at published size and a batch of the published configs."""
    bert, size = BertConfig(), SIZES["base"]
    return {
        "main_pretrain_yaml": (lambda: PretrainModel(bert, bert, size), batch_of(20, 4, 32)),
        "main_qamc_tsv": (lambda: ChoiceModel(bert, bert, size), batch_of(10, 5, 25, options=5)),
        "main_qamc_tsv_mlm_gen_ans_idx": (lambda: MaskModel(bert, bert, size), batch_of(10, 5, 100)),
        "main_qaoe_tsv_mlm_head": (lambda: MaskModel(bert, bert, size), batch_of(10, 5, 25)),
        "main_qaoe_tsv_lsmdc_fib": (lambda: MaskModel(bert, bert, size), batch_of(10, 5, 25)),
        "main_retrieval_tsv": (lambda: RetrievalModel(bert, bert, size), batch_of(10, 5, 25)),
        "eval_retrieval_tsv": (lambda: RetrievalModel(bert, bert, size), batch_of(10, 5, 25)),
    }


def rank(model: Any, batch: dict[str, Any], dtype: torch.dtype) -> None:
    """A block of a retrieval evaluation: ten videos, each with the ten texts of the batch."""
    model = model.eval()
    moved = agent.to_device(batch, META)
    with torch.autocast("meta", dtype):
        video, text = model.enc_img(moved["img"]), model.enc_txt(moved["txt"], moved["mask"])
    PairScorer(model, dtype).scores(video, text, moved["mask"])


def count(script: str, amp: str, probe: bool = False) -> Count:
    """Count a step of a script, or a block of an evaluation; `probe`: a step that measures gradients."""
    make, batch = models()[script]
    autocast, found = Autocast(), Count()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        config = Config(path_output=folder, amp=amp, device="cpu")
        for name, stand_in in (("autocast", autocast), ("is_autocast_enabled", lambda _: True)):
            stack.enter_context(mock.patch.object(torch, name, stand_in))
        stack.enter_context(mock.patch.object(agent, "make_optimizer", lambda groups, *_: Unmoved(groups)))
        stack.enter_context(mock.patch(FOREACH, lambda: ["meta"]))  # norms of all gradients at once
        with META:
            model = make()
        stack.enter_context(autocast)
        if script == "eval_retrieval_tsv":
            with found, torch.no_grad():
                rank(model, batch, AMP.get(amp, torch.float32))
            return found
        tokens: Any = argparse.Namespace(special=SPECIAL)
        masks = functools.partial(mask, model=model, config=config, tokens=tokens)
        pretrains = script == "main_pretrain_yaml"
        loop = agent.Agent(config, World(META), model, masks if pretrains else lambda given, _: given)
        loop.model.train()
        loop.train_step([batch])  # constants are copied to the device, once
        loop.step = 1 if probe else 3
        with found:
            loop.train_step([batch])
    return found


class Unmoved(torch.optim.SGD):
    """In place of AdamW, whose fused kernel there is not on `meta`: moves nothing."""

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, lr=0.0)

    def step(self, closure: Any = None) -> None:
        """Nothing."""


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scripts", nargs="+", default=list(SCRIPTS), choices=list(SCRIPTS))
    parser.add_argument("--probe", action="store_true", help="a step that measures each loss's gradient")
    parser.add_argument("--amp", choices=["off", *AMP], default="bf16")
    options = parser.parse_args()
    columns = [
        "script",
        "waits",
        "kernels",
        "GB in products",
        "in attention",
        "outside",
        *(f"ms {c}" for c in CARDS),
    ]
    print("| " + " | ".join(columns) + " |\n|" + " --- |" * len(columns))
    for script in options.scripts:
        found = count(script, options.amp, options.probe)
        sizes = [f"{found.bytes[kind] / 1e9:.1f}" for kind in ("products", "attention", "rest")]
        times = [f"{1e3 * found.seconds[card]:.0f}" for card in CARDS]
        print("| " + " | ".join([f"`{script}`", str(found.waits), str(found.kernels), *sizes, *times]) + " |")


if __name__ == "__main__":
    run_script(main)
