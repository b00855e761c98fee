"""A matrix that is held for its products gives them, in 16 bits where nothing is lost by it."""

from __future__ import annotations

import pytest
import torch

from tessera.generate import products
from tessera.generate.laid_out import laid_head
from tessera.generate.products import FixedMatrix

HALVES = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") and products._has_half_products()


def drawn(outputs, inputs, dtype):
    weight = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(0)) / 50
    return weight.to(dtype).float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize(("outputs", "inputs"), [(48, 32), (700, 500)])
@torch.no_grad()
def test_products_are_those_of_the_matrix_in_single_precision(dtype, rows, outputs, inputs):
    weight, x = drawn(outputs, inputs, dtype), torch.randn(rows, inputs)
    held = FixedMatrix(weight)
    assert held.in_half == (HALVES and dtype != torch.float32 and weight.numel() > products.SMALL_FOR_HALF)
    # x has values that 16 bits do not hold: were it rounded too, errors would be a thousand times as large.
    expected = (x.double() @ weight.double().T).float()
    torch.testing.assert_close(held(x) * held.unit, expected, atol=3e-6, rtol=1e-5)
    total, before = torch.ones(rows, outputs), torch.rand(inputs)
    held.add_to(total, x)
    torch.testing.assert_close(total, 1 + expected, atol=3e-6, rtol=1e-5)
    after = FixedMatrix(weight, before)
    assert (after.before is not None) == after.in_half
    scaled = x if after.before is None else x * after.before
    torch.testing.assert_close(after(scaled), ((x * before).double() @ weight.double().T).float(), atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize("scale", [2.0**-30, 1.0, 2.0**20])
def test_any_range_of_values_of_bfloat16_fits_by_a_power_of_two(scale):
    weight = torch.tensor([[1.0, -1.0078125, 2.0**-20 * 1.9921875, 0.0]]) * scale
    power = products._power_for_half(weight)
    assert torch.equal((weight * 2.0**power).half().double() * 2.0**-power, weight.double())


@pytest.mark.parametrize("value", [1 + 2.0**-12, float("inf"), float("nan"), 0.0])
def test_values_that_16_bits_do_not_hold_are_not_held_in_them(value):
    assert products._power_for_half(torch.tensor([[value, 0.0]])) is None


@torch.no_grad()
def test_a_head_is_laid_out_where_nothing_is_around_it_and_anew_where_it_has_changed():
    head, hidden = torch.nn.Linear(500, 700, bias=False), torch.randn(2, 500)
    head.weight.copy_(drawn(700, 500, torch.bfloat16))
    first = laid_head(head)
    assert first is not head and laid_head(head) is first
    torch.testing.assert_close(first(hidden), head(hidden), atol=1e-5, rtol=1e-5)
    head.weight.mul_(2)
    torch.testing.assert_close(laid_head(head)(hidden), head(hidden), atol=1e-5, rtol=1e-5)
    for other in (torch.nn.Linear(4, 4), torch.nn.Identity(), torch.nn.Linear(4, 4, bias=False).bfloat16()):
        assert laid_head(other) is other
