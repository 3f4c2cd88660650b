"""Attention's own backward pass: the gradients of the plain form, whatever the parts it is computed in."""

import pytest
import torch

from layers import attention as module
from layers.attention import attention
from layers.dropout import keep_mask

ROWS, HEADS, QUERIES, KEYS, WIDTH = 4, 3, 5, 7, 2
CPU = torch.device("cpu")


def plain(q, k, v, mask, kept):
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return (scores.softmax(dim=-1) * kept) @ v


def inputs():
    shapes = [(ROWS, HEADS, QUERIES, WIDTH), (ROWS, HEADS, KEYS, WIDTH), (ROWS, HEADS, KEYS, WIDTH)]
    return [torch.randn(shape, dtype=torch.double, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("matrices", [1, 2, 7, 100])  # parts of heads, of rows, all
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("shape", [(1, HEADS), (ROWS, 1), (1, 1), (ROWS, HEADS)])
def test_a_learned_bias_has_the_plain_gradients_in_parts_of_any_size(monkeypatch, matrices, dropout, shape):
    monkeypatch.setattr(module, "CACHE", matrices * 4 * QUERIES * KEYS)
    given = [*inputs(), torch.randn(*shape, QUERIES, KEYS, dtype=torch.double, requires_grad=True)]
    torch.manual_seed(3)
    kept = keep_mask((ROWS, HEADS, QUERIES, KEYS), dropout, CPU) / (1 - dropout)
    want = plain(*given, kept)
    torch.manual_seed(3)
    got = attention(*given, dropout)
    torch.testing.assert_close(got, want)
    weight = torch.randn_like(want)
    torch.testing.assert_close(
        torch.autograd.grad(got, given, weight), torch.autograd.grad(want, given, weight)
    )


@pytest.mark.parametrize("shape", [(ROWS, 1, 1), (1, 1, QUERIES)])
def test_what_is_hidden_by_a_mask_stays_hidden_with_dropout(shape):
    given, mask = inputs(), torch.rand(*shape, KEYS) > 0.5
    mask[..., 0] = True
    torch.manual_seed(3)
    kept = keep_mask((ROWS, HEADS, QUERIES, KEYS), 0.2, CPU) / 0.8
    want = plain(*given, mask, kept)
    torch.manual_seed(3)
    got = attention(*given, mask, dropout=0.2)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(
        torch.autograd.grad(got.square().sum(), given), torch.autograd.grad(want.square().sum(), given)
    )


def test_the_forward_pass_with_a_learned_bias_runs_the_fused_kernel():
    given = [x.float() for x in inputs()]
    bias = torch.randn(1, HEADS, QUERIES, KEYS, requires_grad=True)
    with torch.profiler.profile() as profiler:
        attention(*given, bias)
    names = {event.key for event in profiler.key_averages()}
    assert any("scaled_dot_product_flash_attention" in name for name in names)
    assert "aten::_scaled_dot_product_attention_math" not in names
