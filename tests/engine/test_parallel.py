"""However processes share a training, its parameters are those of one process."""

import functools
import itertools
import os
import re
import traceback
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.distributed import HashStore
from torch.distributed.tensor import DTensor

from agent import Agent
from batch import Mean, Output
from engine.parallel import (
    AMP,
    choose_checkpoint,
    choose_compile,
    choose_kernels,
    choose_parallel,
    choose_precision,
    report,
    unsharded,
    wrap,
)
from engine.processes import Agreement, agree_on_name, distributed
from engine.resume import gather_to_cpu, load_model, load_optimizer, optimizer_state
from engine.step import compile_encoders
from lib import Config, UserError, World, log
from masking import mask_batch, numbers_of
from model import PretrainModel, Violet
from mvm_targets import TARGETS
from tasks.qa.model import ChoiceModel, MaskModel
from tasks.retrieval.model import RetrievalModel
from teachers.features import VideoSwinTeacher
from tests.conftest import SWIN, masked_batch, noise_teachers, tiny_bert
from tests.test_agent import SPECIAL, agent_of, free_port, part, tiny_config
from video_swin import Size, VideoSwin, WindowAttention, use_kernels

ALONE = World(torch.device("cpu"))
# figures of how the samples differ that a process sees at a time
OF_A_BATCH = re.compile("_(rank|similarity|variance|repeats)$|^gradient_")
WAYS = {
    "ddp": {},
    "ddp, accumulated": {"accumulate": 2},
    "zero1": {"parallel": "zero1"},
    "fsdp": {"parallel": "fsdp"},
    "fsdp, accumulated, activation checkpointing": {
        "parallel": "fsdp",
        "accumulate": 2,
        "use_checkpoint": True,
    },
}


def pretrain_batch(size: int = 8) -> dict:
    """Every quarter hides as many words and patches: an accumulated gradient is the mean of its parts'.

    Negatives are within a quarter, which is what a process can see of them.
    """
    generator = torch.Generator().manual_seed(3)
    txt = torch.randint(5, 128, (size, 8), generator=generator)
    txt[:, 0], txt[:, 7] = 2, 3
    batch = {
        "img": torch.randn(size, 2, 3, 32, 32, generator=generator, dtype=torch.double),
        "txt": txt,
        "mask": torch.ones_like(txt),
        "valid": torch.ones(size, dtype=torch.bool),
    }
    quarter = part(batch, list(range(size // 4)))
    masked = mask_batch(quarter, ["rm"], 0.6, SPECIAL, 32, generator)
    mask, positions, hidden = (
        torch.cat([tensor] * 4)
        for tensor in (masked["mvm_mask"], masked["positions"], masked["ans_mlm"] >= 0)
    )
    assert mask.any() and hidden.any()
    other = [(i + 1) % (size // 4) for i in range(size // 4)] * 4
    return {
        **batch,
        "masked_txt": txt.masked_fill(hidden, SPECIAL.mask),
        "ans_mlm": txt.masked_fill(~hidden, -1),
        "mvm_mask": mask,
        "positions": positions,
        "negatives": torch.tensor([n + i - i % (size // 4) for i, n in enumerate(other)])[:, None],
        "id": [str(i) for i in range(size)],
        "video": torch.tensor([0, *range(1, size - 1), 0]),  # two of different halves are of one video
    }


def caption_batch(size: int = 8) -> dict:
    """Texts of different lengths; two of different halves are of one video (Deviation 14)."""
    generator = torch.Generator().manual_seed(2)
    txt = torch.randint(5, 128, (size, 8), generator=generator)
    mask = (torch.arange(8) < torch.tensor([3 + i % 6 for i in range(size)])[:, None]).long()
    return {
        "img": torch.randn(size, 2, 3, 32, 32, generator=generator, dtype=torch.double),
        "txt": txt * mask,
        "mask": mask,
        "video": torch.tensor([0, *range(1, size - 1), 0]),
        "valid": torch.ones(size, dtype=torch.bool),
        "id": [str(i) for i in range(size)],
    }


def question_batch(size: int = 8) -> dict:
    generator = torch.Generator().manual_seed(1)
    txt = torch.randint(5, 128, (size, 3, 8), generator=generator)
    return {
        "img": torch.randn(size, 2, 3, 32, 32, generator=generator, dtype=torch.double),
        "txt": txt,
        "mask": torch.ones_like(txt),
        "answer": torch.arange(size) % 3,
        "valid": torch.ones(size, dtype=torch.bool),
        "id": [str(i) for i in range(size)],
    }


BATCHES = {"pretrain": pretrain_batch, "questions": question_batch, "retrieval": caption_batch}
BATCHES |= {"pretrain, vtc": pretrain_batch, "retrieval, vtc": caption_batch}


def shares(batch: dict, rank: int, processes: int, accumulate: int) -> list[dict]:
    """A process's batches of a step."""
    size = len(batch["id"]) // processes // accumulate
    starts = [(rank * accumulate + number) * size for number in range(accumulate)]
    parts = [part(batch, list(range(start, start + size))) for start in starts]
    return [
        {**p, "negatives": p["negatives"] - start, "mlm_at": numbers_of(p["ans_mlm"] >= 0)}
        if "negatives" in p
        else p
        for p, start in zip(parts, starts, strict=True)
    ]


def make(kind: str, use_checkpoint: bool, world: World = ALONE) -> nn.Module:
    """In double precision: Adam makes a step of its own out of a rounding error where a gradient is zero."""
    arguments = (tiny_bert(), tiny_bert(), SWIN)
    if kind == "questions":
        return ChoiceModel(*arguments, use_checkpoint=use_checkpoint).double()
    if kind.startswith("retrieval"):
        pair_batch, shared = 5 if world.size > 1 else 0, {"vtc": True, "vtc_world": world}
        given = shared if kind.endswith("vtc") else {}
        return RetrievalModel(*arguments, world=world, pair_batch=pair_batch, **given).double()
    tasks = ["mlm", "vtm", "mvm", *(["vtc"] if kind.endswith("vtc") else [])]
    given = {"tasks": tasks, "targets": ["pixel", "hog"], "use_checkpoint": use_checkpoint, "world": world}
    return PretrainModel(*arguments, **given).double()


def five_steps(folder: Path, world: World, kind: str, values: dict) -> dict[str, dict]:
    """The figures and gradients of the first step, and the parameters after the fifth, shards joined."""
    torch.manual_seed(world.rank)  # the processes begin with the parameters of the first
    agent = agent_of(folder, make(kind, values.get("use_checkpoint", False), world), world, **values)
    batches = shares(BATCHES[kind](), world.rank, world.size, agent.config.accumulate)
    named = dict(agent.model.named_parameters())
    for agent.step in range(1, 6):
        agent.set_rates()
        means = agent.train_step(batches)
        if agent.step == 1:
            joined = {name: mean for name, mean in means.items() if not OF_A_BATCH.search(name)}
            figures = {name: mean.value.clone() for name, mean in joined.items()}
            gradients = {name: joint(p.grad) for name, p in named.items() if p.grad is not None}
    parameters = {name: joint(p.detach()) for name, p in named.items()}
    return {"figures": figures, "gradients": gradients, "parameters": parameters}


def joint(tensor: torch.Tensor) -> torch.Tensor:
    """A copy, its shards joined."""
    return tensor.full_tensor().clone() if isinstance(tensor, DTensor) else tensor.clone()


def on_two_processes(work) -> None:
    """Do `work(world)` on two processes that begin with all that this one has imported."""
    port, children = free_port(), []
    for rank in range(2):
        child = os.fork()
        if child:
            children.append(child)
            continue
        code = 1
        try:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            with distributed(Config(device="cpu")) as world:
                work(world)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]


@pytest.mark.parametrize(
    ("kind", "ways"),
    [
        ("pretrain", list(WAYS)),
        ("questions", ["ddp", "zero1", "fsdp, accumulated, activation checkpointing"]),
        ("retrieval", ["ddp", "zero1", "fsdp"]),
        ("pretrain, vtc", ["ddp", "zero1", "fsdp"]),
        ("retrieval, vtc", ["ddp", "fsdp"]),
    ],
)
def test_two_processes_train_as_one_whatever_they_share(tmp_path, kind, ways):
    def work(world):
        found = {way: five_steps(tmp_path, world, kind, WAYS[way]) for way in ways}
        if world.is_main:
            torch.save(found, tmp_path / "two.pt")

    on_two_processes(work)
    alone = five_steps(tmp_path, ALONE, kind, {})
    found = torch.load(tmp_path / "two.pt", weights_only=True)
    if kind == "pretrain":
        found["accumulated"] = five_steps(tmp_path, ALONE, kind, {"accumulate": 4})
        found["activation checkpointing"] = five_steps(tmp_path, ALONE, kind, {"use_checkpoint": True})
    for way, values in found.items():
        for what, wanted in alone.items():
            assert values[what].keys() == wanted.keys()
            for name, tensor in wanted.items():
                worst = (values[what][name] - tensor).abs().max()
                assert worst <= 1e-6 * max(1.0, tensor.abs().max()), f"{way}, {what}: {name} {worst:.1e}"


@pytest.mark.parametrize("kinds", [("fsdp", "zero1"), ("zero1", "ddp")])
def test_a_state_does_not_depend_on_how_processes_share_the_work(tmp_path, kinds):
    """What one way saved another goes on from, evaluation between them."""

    def work(world):
        wanted = five_steps(tmp_path, world, "pretrain", {})["parameters"]
        torch.manual_seed(world.rank)
        first, second = (agent_of(tmp_path, make("pretrain", False), world, parallel=kind) for kind in kinds)
        batches = shares(pretrain_batch(), world.rank, world.size, 1)
        model, moments = {}, {}
        for number, agent in enumerate((first, second)):
            if number:
                load_model(agent.model, model)
                load_optimizer(agent.optimizer, moments)
            for agent.step in (range(1, 4), range(4, 6))[number]:
                agent.model.train()
                agent.set_rates()
                agent.train_step(batches)
            with unsharded(agent.model), torch.inference_mode():
                for _ in range(1 + world.rank):  # as many batches as a process has
                    agent.model.eval()(batches[0])
            state = (
                gather_to_cpu(agent.model.state_dict(), world.is_main),
                optimizer_state(agent.optimizer, world.is_main),
            )
            model, moments = world.gather(state)[0]
        for name, tensor in wanted.items():
            assert (model[name] - tensor).abs().max() <= 1e-6 * max(1.0, tensor.abs().max()), name

    on_two_processes(work)


def test_a_group_that_is_started_again_does_not_meet_those_who_died():
    store, groups = HashStore(), []
    for first in (0, 1, 2, 1):  # who comes first may find what the group before has left
        ranks = sorted(range(3), key=lambda rank: rank != first)
        with ThreadPoolExecutor() as threads:
            names = [threads.submit(agree_on_name, store, ranks[0], 3)]
            wait(names, timeout=0.1)
            names += [threads.submit(agree_on_name, store, rank, 3) for rank in ranks[1:]]
            (group,) = {name.result(timeout=20) for name in names}
        groups.append(group)
    assert len(set(groups)) == 4


def test_a_process_may_have_nothing_to_evaluate(tmp_path):
    """Where a split has fewer batches than there are processes."""

    class Counted(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(1))

        def forward(self, batch):
            return Output(losses={"error": Mean((batch["x"] * self.w).sum(), torch.tensor(len(batch["x"])))})

    class Split:
        batches = SimpleNamespace(sizes={"numbers": 2})

        def __init__(self, rank):
            self.items = [{"x": torch.tensor([1.0, 4.0]), "id": ["a", "b"]}][rank:]

        def __len__(self):
            return len(self.items)

        def epoch(self, _):
            return iter(self.items)

        def sources(self):
            return {}

    def work(world):
        agent = Agent(tiny_config(tmp_path, size_epoch=0), world, Counted())
        assert agent.fit(None, Split(world.rank)) == {"loss": 2.5, "error": 2.5}

    on_two_processes(work)


def test_deepspeed_of_published_configs_is_half_precision_and_zero1(monkeypatch):
    config, two = Config(deepspeed=True), World(torch.device("cpu"), 0, 2)
    monkeypatch.setattr("engine.parallel.emulates_bf16", lambda _: False)
    assert (choose_precision(config, two.device), choose_parallel(config, two)) == ("bf16", "ddp")
    with monkeypatch.context() as slow:
        slow.setattr("engine.parallel.emulates_bf16", lambda device: device.type == "cpu")
        assert choose_precision(config, two.device) == "off"
        assert choose_precision(Config(deepspeed=True, amp="bf16"), two.device) == "bf16"
    with monkeypatch.context() as small:
        small.setattr("engine.parallel.short_of_memory", lambda _: True)
        assert choose_parallel(config, two) == "zero1"
        assert choose_parallel(Config(parallel="fsdp", compile=False, deepspeed=True), two) == "fsdp"
    assert choose_parallel(config, ALONE) == "none"
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: False)
    assert choose_precision(config, torch.device("cuda")) == "fp16"
    assert choose_precision(Config(deepspeed=True, amp="bf16"), torch.device("cuda")) == "bf16"
    assert choose_precision(Config(), two.device) == "off"
    with pytest.raises(UserError, match="set amp to bf16"):
        choose_parallel(Config(parallel="fsdp", amp="fp16"), two)


def test_fsdp_on_cpus_needs_a_torch_that_can(monkeypatch):
    """As torch 2.6 cannot."""
    two = World(torch.device("cpu"), 0, 2)
    assert choose_parallel(Config(parallel="fsdp"), two) == "fsdp"
    monkeypatch.delattr(torch.cpu.Stream, "record_event")
    assert choose_parallel(Config(parallel="fsdp"), ALONE) == "none"
    with pytest.raises(UserError, match=r"torch 2.* cannot shard on CPUs; install a newer torch"):
        choose_parallel(Config(parallel="fsdp"), two)


@pytest.mark.parametrize(("gigabytes", "saves"), [(16, True), (24, False), (80, False)])
def test_defaults_fit_the_card(monkeypatch, gigabytes, saves):
    card, cpu = torch.device("cuda", 0), torch.device("cpu")
    properties = SimpleNamespace(total_memory=gigabytes * 1e9)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: properties)
    assert choose_checkpoint(Config(), card) is saves
    assert choose_parallel(Config(deepspeed=True), World(card, 0, 2)) == ("zero1" if saves else "ddp")
    assert choose_checkpoint(Config(use_checkpoint=True), card) and not choose_checkpoint(Config(), cpu)
    assert choose_compile(Config(), "ddp", card) and not choose_compile(Config(), "ddp", cpu)
    assert not choose_compile(Config(), "fsdp", card) and not choose_compile(
        Config(compile=False), "ddp", card
    )
    assert choose_compile(Config(compile=True), "none", cpu)
    for capability, able in (((7, 5), False), ((8, 0), True), ((9, 0), True)):
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda _, found=capability: found)
        assert choose_kernels(Config(), card) is able
    assert choose_kernels(Config(window_kernels=True), card)
    assert not choose_kernels(Config(window_kernels=False), card) and not choose_kernels(Config(), cpu)
    with pytest.raises(UserError, match="window_kernels true needs a CUDA device, not cpu"):
        choose_kernels(Config(window_kernels=True), cpu)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: (7, 5))
    with pytest.raises(UserError, match=r"capability 8\.0"):
        choose_kernels(Config(window_kernels=True), card)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert not choose_compile(Config(), "ddp", card) and not choose_kernels(Config(), card)
    with pytest.raises(UserError, match="Triton"):
        choose_kernels(Config(window_kernels=True), card)


def test_kernels_are_used_where_heads_fit_them():
    found = []
    for width in (8, 16, 24, 32):
        swin = VideoSwin(Size(2 * width, (2,), (2,), window=(2, 2, 2)))
        use_kernels(swin)
        found.append([module.kernels for module in swin.modules() if isinstance(module, WindowAttention)])
    assert found == [[False] * 2, [True] * 2, [False] * 2, [True] * 2]


def test_processes_agree_every_few_seconds(monkeypatch):
    now, exchanged = [0.0], []
    monkeypatch.setattr("engine.processes.time.monotonic", lambda: now[0])
    monkeypatch.setattr(World, "most", lambda _, value: exchanged.append(value) or value)
    agreement = Agreement(World(torch.device("cpu"), 0, 2), seconds=2.0)
    found = []
    for _ in range(200):
        now[0] += 0.125  # seconds of a step
        before = len(exchanged)
        assert agreement.most(2) == (2 if len(exchanged) > before else 0)
        found.append(len(exchanged) > before)
    places = [place for place, at in enumerate(found) if at]
    assert places[0] == 0
    assert [after - before for before, after in itertools.pairwise(places)][-3:] == [16, 16, 16]
    assert Agreement(ALONE).most(1) == 1


@pytest.mark.parametrize("precision", ["off", "bf16"])
def test_the_encoders_compile_in_whole_graphs_once_and_give_the_same(monkeypatch, recwarn, precision):
    """To the compiler's front end, where graphs break; what it generates of them takes minutes."""
    monkeypatch.setattr(
        nn.Module, "compile", functools.partialmethod(nn.Module.compile, fullgraph=True, backend="eager")
    )
    swin = Size(8, (2,), (1,), window=(2, 2, 2), drop_path=0.1)  # one shifted block among them
    bert = tiny_bert(dropout=0.1)
    plain, compiled = (Violet(bert, bert, swin, max_patches=4).eval() for _ in range(2))
    compiled.load_state_dict(plain.state_dict())
    compile_encoders(compiled)
    assert compiled.state_dict().keys() == plain.state_dict().keys()

    img, txt = torch.randn(2, 3, 3, 16, 16), torch.randint(5, 128, (2, 6))
    positions = torch.tensor([[0, 3], [5, 51]])
    found = []
    autocast = torch.autocast("cpu", AMP.get(precision), enabled=precision in AMP)
    for model in (plain, compiled):
        with autocast:
            video, text = model.encode(img, txt, torch.ones_like(txt))
            output = model.fuse(video, text, torch.ones_like(txt), positions)
        output.sum().backward()
        found.append((output, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    torch.testing.assert_close(found[1], found[0])
    for training in (True, False):
        graphs = []
        # as the steps of a training on clips and pictures: clips, frames, words, positions that are read
        for clips, frames, words, read in STEPS:
            compiled.train(training)
            with torch.inference_mode(not training), autocast:
                video = compiled.enc_img(torch.randn(clips, frames, 3, 16, 16))
                text, mask = torch.randn(clips, words, 32), torch.ones(clips, words)
                output = compiled.fuse(video, text, mask, torch.arange(read).repeat(clips, 1))
            if training:
                output.sum().backward()
            graphs.append(counters["stats"]["unique_graphs"])
        assert [after - before for before, after in itertools.pairwise(graphs)] == [0, 0, 1, 0, 1, 0, 0, 0]
    assert not counters["graph_break"]
    assert not [w for w in recwarn if "lru_cache" in str(w.message)]


def test_whole_graphs_train_in_ddp_whose_buckets_they_fill(monkeypatch):
    """With activation checkpoints, in bf16: where DDP exchanges gradients early it splits the graphs."""
    torch._dynamo.reset()
    monkeypatch.setattr(nn.Module, "compile", functools.partialmethod(nn.Module.compile, backend="aot_eager"))
    buckets = functools.partial(nn.parallel.DistributedDataParallel, bucket_cap_mb=0.05)
    monkeypatch.setattr("engine.parallel.DistributedDataParallel", buckets)
    monkeypatch.setattr(torch.distributed, "_DEFAULT_FIRST_BUCKET_BYTES", 1000)
    torch.distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        sizes = (tiny_bert(), tiny_bert(), SWIN)
        plain, compiled = (MaskModel(*sizes, use_checkpoint=True) for _ in range(2))
        compiled.load_state_dict(plain.state_dict())
        compile_encoders(compiled)
        wrapped = wrap(compiled, ALONE, "ddp")
        batch = masked_batch() | {"answer": torch.arange(5) % 2, "place": torch.full((5,), 3)}
        with torch.autocast("cpu", torch.bfloat16):
            wanted, found = (gradients_of(model, batch) for model in (plain, wrapped))
    finally:
        torch.distributed.destroy_process_group()
    found = {name.removeprefix("module."): gradient for name, gradient in found.items()}
    torch.testing.assert_close(found, wanted, rtol=0.1, atol=0.01)


def gradients_of(model: nn.Module, batch: dict) -> dict[str, torch.Tensor]:
    """The losses of a batch and the gradients of their sum."""
    torch.manual_seed(0)  # of the heads' dropout
    model.zero_grad()
    losses = model(batch).losses
    torch.stack([mean.value for mean in losses.values()]).sum().backward()
    found = {name: mean.value.detach() for name, mean in losses.items()}
    return found | {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_compiled_steps_equal_eager_ones(monkeypatch):
    """Of every target and task: the graphs of forward and backward pass, run without generated code."""
    torch._dynamo.reset()
    monkeypatch.setattr(nn.Module, "compile", functools.partialmethod(nn.Module.compile, backend="aot_eager"))
    sizes = (tiny_bert(), tiny_bert(), SWIN)
    compiled, batch = Violet(*sizes), masked_batch()
    compile_encoders(compiled)
    encoders = {place: compiled.get_submodule(place) for place in ("enc_img", "trsfr")}
    options = batch["txt"][:, None].expand(-1, 2, -1)
    question = batch | {"answer": torch.arange(5) % 2, "place": torch.full((5,), 3)}
    pretrain = {"tasks": ["mlm", "vtm", "mvm", "vtc"], "targets": list(TARGETS)}
    steps = [
        (PretrainModel(*sizes, **pretrain, teachers=noise_teachers()), batch | {"video": torch.arange(5)}),
        (ChoiceModel(*sizes), question | {"txt": options, "mask": (options > 0).long()}),
        (MaskModel(*sizes), question),
        (RetrievalModel(*sizes, pair_batch=4), batch | {"video": torch.arange(5)}),
    ]
    for model, given in steps:
        for place, encoder in encoders.items():
            model.get_submodule(place).load_state_dict(encoder.state_dict())
        wanted = gradients_of(model, given)
        for place, encoder in encoders.items():
            setattr(model, place, encoder)
        found = gradients_of(model, given)
        assert found.keys() == wanted.keys() and any(name.startswith("enc_img") for name in found)
        for name, tensor in wanted.items():
            worst = (found[name] - tensor).abs().max()
            assert worst <= 1e-6 * max(1.0, tensor.abs().max()), f"{type(model).__name__}: {name} {worst:.1e}"


def test_an_encoder_that_was_exported_still_works():
    swin = VideoSwin(Size(8, (2,), (1,), window=(2, 2, 2), drop_path=0.0)).eval()
    frames = torch.randn(1, 3, 3, 16, 16)
    exported = torch.export.export(swin, (frames,)).module()
    torch.testing.assert_close(swin(frames), exported(frames))


# clips, frames, words, positions; one graph more for one position, and one for pictures
STEPS = [(2, 3, 7, 3), (2, 3, 8, 5), (2, 3, 6, 9), (2, 3, 7, 1), (2, 3, 9, 1)]
STEPS += [(6, 1, 8, 6), (2, 3, 8, 2), (3, 3, 7, 4), (5, 1, 6, 3)]


@pytest.mark.parametrize("has", [True, False])
def test_bf16_on_a_processor_that_only_emulates_it_is_warned_of(monkeypatch, has):
    found = {"architecture": "x86_64", "avx512_bf16": has, "amx_bf16": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    warned: list[str] = []
    monkeypatch.setattr(log, "warning", lambda text, *_: warned.append(text))
    report(Config(amp="bf16"), "none", "bf16", torch.device("cpu"))
    assert len(warned) == (not has)


def run_state(folder: Path, world: World, values: dict) -> tuple[dict, dict]:
    """The state of running means and balanced weights after three steps, and the last step's figures."""
    torch.manual_seed(0)
    targets = ["pixel", "hog"]
    model = PretrainModel(tiny_bert(), tiny_bert(), SWIN, targets=targets, mvm_weight="balanced")
    agent = agent_of(folder, model.double(), world, **values)
    agent.weigh = model.weigh
    for agent.step in range(3):
        means = agent.train_step(shares(pretrain_batch(), world.rank, world.size, 1))
        model.follow(agent.step / 10, world)
    state = {name: dict(module.state_dict()) for name, module in model.followers().items()}
    return state, {name: mean.value for name, mean in means.items()}


def test_running_means_and_balanced_weights_are_the_same_on_all_processes(tmp_path):
    def work(world):
        found = {kind: run_state(tmp_path, world, {"parallel": kind}) for kind in ("ddp", "zero1", "fsdp")}
        first, second = world.gather(found)
        for kind, (state, figures) in first.items():
            assert all(torch.equal(value, second[kind][1][name]) for name, value in figures.items()), kind
            for name, tensors in state.items():
                assert all(torch.equal(t, second[kind][0][name][key]) for key, t in tensors.items()), name
        if world.is_main:
            torch.save(first, tmp_path / "two.pt")

    on_two_processes(work)
    alone, _ = run_state(tmp_path, ALONE, {})
    for state, _ in torch.load(tmp_path / "two.pt", weights_only=True).values():
        torch.testing.assert_close(state["running"], alone["running"], rtol=1e-5, atol=1e-5)


def averages(folder: Path, world: World, values: dict) -> dict[str, torch.Tensor]:
    """The parameters of `latent`'s average after three steps."""
    torch.manual_seed(0)
    teacher = VideoSwinTeacher(VideoSwin(SWIN))
    model = PretrainModel(tiny_bert(), tiny_bert(), SWIN, targets=["latent"], teachers={"latent": teacher})
    for module in model.modules():
        if isinstance(module, nn.Dropout):  # the head's; each process draws its own
            module.p = 0.0
    agent = agent_of(folder, model.double(), world, **values)
    model.follow(0.0)
    for agent.step in range(1, 4):
        agent.train_step(shares(pretrain_batch(), world.rank, world.size, 1))
        model.follow(agent.step / 10)
    return {name: tensor.clone() for name, tensor in teacher.network.state_dict().items()}


def test_a_moving_average_is_the_same_whatever_processes_share(tmp_path):
    def work(world):
        found = {kind: averages(tmp_path, world, {"parallel": kind}) for kind in ("ddp", "zero1", "fsdp")}
        every = world.gather(found)
        for kind, tensors in every[0].items():
            assert all(torch.equal(tensor, every[1][kind][name]) for name, tensor in tensors.items()), kind
        if world.is_main:
            torch.save(found, tmp_path / "two.pt")

    on_two_processes(work)
    alone = averages(tmp_path, ALONE, {})
    for kind, tensors in torch.load(tmp_path / "two.pt", weights_only=True).items():
        for name, tensor in tensors.items():
            torch.testing.assert_close(tensor, alone[name], rtol=1e-5, atol=1e-6, msg=f"{kind} {name}")
