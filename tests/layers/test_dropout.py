"""Our own dropout: as often as it says, each value by itself, sums and gradients of the plain form."""

import pytest
import torch

from layers.dropout import AddDropped, add_dropped, keep_mask
from layers.fusion import FusionLayer
from tests.conftest import tiny_bert

CPU = torch.device("cpu")


@pytest.mark.parametrize("p", [0.1, 0.5, 0.999])
def test_a_mask_drops_as_often_as_it_says_and_each_value_by_itself(p):
    torch.manual_seed(0)
    kept = keep_mask((1000, 1003), p, CPU)
    assert kept.dtype == torch.uint8 and kept.shape == (1000, 1003) and set(kept.unique().tolist()) == {0, 1}
    dropped = 1 - kept.double()
    deviation = (p * (1 - p) / dropped.numel()) ** 0.5
    assert abs(dropped.mean() - p) < 5 * deviation + 1 / 131072
    for step in (1, 2, 3, 4, 1003):  # four neighbours come from one random number
        both = (dropped.flatten()[step:] * dropped.flatten()[:-step]).mean()
        assert abs(both - p * p) < 6 * deviation
    assert not torch.equal(kept, keep_mask((1000, 1003), p, CPU))


def test_nothing_is_dropped_without_and_masks_come_from_the_seed():
    torch.manual_seed(3)
    first = keep_mask((5, 7), 0.3, CPU)
    torch.manual_seed(3)
    assert torch.equal(first, keep_mask((5, 7), 0.3, CPU))
    assert keep_mask((64, 64), 0.0, CPU).all()
    x, y = torch.randn(2, 3), torch.randn(2, 3)
    assert torch.equal(add_dropped(x, y, 0.0), x + y)


def test_the_sum_and_its_gradients_are_those_of_the_plain_form():
    given = [torch.randn(6, 5, dtype=torch.double, requires_grad=True) for _ in range(2)]
    torch.manual_seed(3)
    want = given[0] + given[1] * keep_mask((6, 5), 0.4, CPU) / 0.6
    torch.manual_seed(3)
    got = add_dropped(*given, 0.4)
    torch.testing.assert_close(got, want)
    weight = torch.randn_like(want)
    gradients = [torch.autograd.grad(out, given, weight) for out in (got, want)]
    torch.testing.assert_close(*gradients)


def test_a_half_precision_branch_is_added_to_a_float_residual():
    residual = torch.zeros(4000, requires_grad=True)
    branch = torch.ones(4000, dtype=torch.bfloat16, requires_grad=True)
    out = add_dropped(residual, branch, 0.1)
    out.sum().backward()
    assert out.dtype == torch.float and branch.grad.dtype == torch.bfloat16 and residual.grad.eq(1).all()
    assert torch.equal(out, out.detach().ne(0) / torch.tensor(0.9))  # 1 / 0.9 is not rounded to bf16
    assert torch.equal(branch.grad, (out.detach() > 0) * torch.tensor(1 / 0.9).bfloat16())


def test_it_keeps_a_byte_a_value():
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        add_dropped(torch.randn(8, requires_grad=True), torch.randn(8, requires_grad=True), 0.1)
    assert [x.dtype for x in kept] == [torch.uint8]


def test_a_layer_drops_hidden_values_in_training_alone():
    bert = tiny_bert(dropout=0.3)
    bert.attention_probs_dropout_prob = 0.0
    layer = FusionLayer(bert)
    x, mask = torch.randn(2, 5, 32), torch.ones(2, 1, 1, 5, dtype=torch.bool)
    assert not torch.equal(layer(x, mask), layer(x, mask))
    layer.eval()
    assert torch.equal(layer(x, mask), layer(x, mask))


def test_a_compiler_gets_the_plain_form(monkeypatch):
    def refuse(*arguments):
        raise AssertionError

    monkeypatch.setattr(AddDropped, "apply", refuse)
    compiled = torch.compile(lambda x: add_dropped(x, x, 0.5), backend="eager", fullgraph=True)
    assert set(compiled(torch.ones(64, 4, requires_grad=True)).unique().tolist()) == {1.0, 3.0}


def test_a_mask_is_made_on_the_device_asked_for():
    assert keep_mask((2, 3), 0.1, torch.device("meta")).shape == (2, 3)
    with torch.device("meta"):
        assert keep_mask((2, 3), 0.1, CPU).device == CPU
