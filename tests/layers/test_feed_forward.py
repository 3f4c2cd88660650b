"""The feed-forward network that makes its hidden values again: the plain one's output and gradients."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from layers.feed_forward import gelu_linear


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("amp", [False, True])
def test_output_and_gradients_are_the_plain_ones(amp, bias):
    first, second = nn.Linear(6, 24), nn.Linear(24, 6, bias=bias)
    learnt = [*first.parameters(), *second.parameters()]
    x, weight = torch.randn(3, 5, 6, requires_grad=True), torch.randn(3, 5, 6)
    found = []
    for network in (lambda x: gelu_linear(first(x), second), lambda x: second(F.gelu(first(x)))):
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            out = network(x)
        found.append([out, *torch.autograd.grad(out.float(), [x, *learnt], weight)])
    assert [a.dtype for a in found[0]] == [b.dtype for b in found[1]]
    torch.testing.assert_close(*found)


def test_frozen_weights_get_no_gradient_and_pass_it_on():
    layer = nn.Linear(24, 6).requires_grad_(False)
    x = torch.randn(2, 24, requires_grad=True)
    gelu_linear(x, layer).sum().backward()
    want = torch.autograd.grad(layer(F.gelu(x)).sum(), x)[0]
    torch.testing.assert_close(x.grad, want)
    assert layer.weight.grad is None and layer.bias.grad is None


def test_one_of_weight_and_bias_may_be_frozen():
    for learns in ("weight", "bias"):
        layer = nn.Linear(24, 6).requires_grad_(False)
        parameter = getattr(layer, learns).requires_grad_(True)
        gelu_linear(torch.ones(24), layer).sum().backward()
        want = F.gelu(torch.ones(24)).expand(6, 24) if learns == "weight" else torch.ones(6)
        torch.testing.assert_close(parameter.grad, want)


def test_autocast_keeps_no_cast_of_the_weights_without_a_gradient():
    layer, x = nn.Linear(24, 6), torch.randn(2, 24, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        (gelu_linear(x, layer).sum() + layer(x).sum()).backward()
    want = F.gelu(x).float().sum(dim=0) + x.float().sum(dim=0)
    torch.testing.assert_close(layer.weight.grad, want.expand(6, 24), rtol=0.05, atol=0.05)


def test_only_its_input_is_kept():
    layer, kept = nn.Linear(24, 6), []
    x = torch.randn(2, 24, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        gelu_linear(x, layer)
    assert {t.data_ptr() for t in kept} == {x.data_ptr(), layer.weight.data_ptr()}
