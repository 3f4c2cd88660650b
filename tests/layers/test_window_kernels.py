"""The kernels of attention within windows without a GPU: interpreted, and as the compiler sees them.

Both have to be chosen before Triton is imported, so each runs in a process of its own.
"""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).parents[2]


def run(part: str, **environment: str) -> None:
    """Run a function of this file in a process of its own."""
    code = f"from tests.layers.test_window_kernels import {part}; {part}()"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, **environment}, check=True)


def test_they_compute_what_pytorch_computes():
    run("compute", TRITON_INTERPRET="1")


def test_they_are_part_of_a_compiled_graph():
    run("trace")


def case(clips: int, windows: int, heads: int, patches: int, width: int, shifted: bool) -> tuple:
    """Arguments of `attend`."""
    import torch

    from layers.window_kernels import whole_tiles

    shape = (clips, patches, windows) if shifted else (clips, windows, patches)
    qkv = torch.randn(*shape, 3 * heads * width, requires_grad=True)
    bias = torch.randn(heads, *[whole_tiles(patches)] * 2, requires_grad=True)
    return qkv, bias, torch.randint(0, 3, (windows, patches)) if shifted else None, heads


def compute() -> None:
    """Windows that fill tiles and that do not, one tile and several, more windows than shares of the sum."""
    import torch

    from layers import window_kernels
    from video_swin import attend

    torch.manual_seed(0)
    shapes = [(2, 2, 2, 49, 16), (1, 2, 1, 32, 32), (3, 2, 1, 20, 16)]
    window_kernels.SHARES = 3
    for shape, shifted in itertools.product(shapes, (False, True)):
        given = case(*shape, shifted)
        want = attend(given[0], given[1][:, : shape[3]], *given[2:])
        found = window_kernels.attend(*given)
        gradient = torch.randn_like(want)
        pairs = [(found, want)]
        pairs += zip(*(torch.autograd.grad(x, given[:2], gradient) for x in (found, want)), strict=True)
        for mine, true in pairs:
            torch.testing.assert_close(mine, true, rtol=1e-4, atol=1e-5)


def trace() -> None:
    """Forward and backward pass are whole graphs, of any number of clips; so is an evaluation.

    The kernels are taken to write to their results alone: other tensors would be copied, or refused.
    """
    import types

    import torch
    import triton
    from torch._dynamo.backends.common import aot_autograd
    from triton.backends.compiler import GPUTarget

    from layers.window_kernels import attend
    from video_swin import Size, VideoSwin, use_kernels

    graphs: list[list[set[str]]] = []  # by kernel: the tensors that it is taken to write to

    def compiler(graph, _):
        kernels = [node for node in graph.graph.nodes if "triton" in str(node.target)]
        graphs.append([set(kernel.kwargs["tensors_to_clone"]) for kernel in kernels])
        return lambda *_: (_ for _ in ()).throw(InterruptedError)  # there is no GPU to run it

    pretended = types.SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", 90, 32), get_current_device=lambda: 0
    )
    triton.runtime.driver.set_active(pretended)
    for module in list(sys.modules.values()):
        if module.__name__.startswith("torch") and hasattr(module, "has_triton"):
            module.has_triton = lambda *_: True
    backend = aot_autograd(fw_compiler=compiler)
    forward = [{"out", "sums"}]
    backward = [{"qkv_gradients", "deltas"}, {"qkv_gradients"}, {"bias_gradients"}]
    modes = (torch.enable_grad, torch.inference_mode)
    for shifted, mode in itertools.product((False, True), modes):
        given = case(2, 4, 1, 49, 32, shifted)
        torch._dynamo.mark_dynamic(given[0], 0)
        with pytest.raises(InterruptedError), mode():
            torch.compile(attend, fullgraph=True, backend=backend)(*given)
    assert graphs == 2 * [forward, backward, forward]

    graphs.clear()  # the same within the network
    swin = VideoSwin(Size(16, (2,), (1,), window=(2, 2, 2), drop_path=0.1))  # one of two blocks is shifted
    use_kernels(swin)
    swin.compile(fullgraph=True, backend=backend)
    for mode in modes:
        frames = torch.randn(2, 3, 4, 32, 32)
        torch._dynamo.mark_dynamic(frames, 0)
        swin.train(mode is torch.enable_grad)
        with pytest.raises(InterruptedError), mode(), torch.autocast("cpu", torch.bfloat16):
            swin(frames)
    assert graphs == [2 * forward, 2 * backward, 2 * forward]
