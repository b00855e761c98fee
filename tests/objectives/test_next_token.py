"""Cross-entropy whose gradient is taken block by block equals the plain one."""

from __future__ import annotations

import pytest
import torch

from tessera.objectives import next_token as module
from tessera.objectives.next_token import next_token, next_token_of


def given(number: int = 23) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    hidden, head = (torch.randn(rows, 8, generator=draw).requires_grad_() for rows in (number, 40))
    return hidden, head, torch.randint(0, 40, (number,), generator=draw)


@pytest.mark.parametrize(("block", "part"), [(2**26, 2**20), (400, 120), (1, 1)])
def test_loss_and_gradients_equal_those_of_whole_scores(block: int, part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", block)
    monkeypatch.setattr(module, "SLICE", part)
    hidden, head, words = given()
    ours, plain = next_token_of(hidden, head, words), next_token(hidden @ head.T, words)
    assert ours.number == plain.number == 23
    torch.testing.assert_close(ours.total, plain.total)
    for mine, theirs in zip(
        *(torch.autograd.grad(0.3 * one.total, (hidden, head)) for one in (ours, plain)), strict=True
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5)


def test_under_autocast_the_products_are_those_of_autocast() -> None:
    hidden, head, words = given()
    with torch.autocast("cpu", torch.bfloat16):
        ours, plain = next_token_of(hidden, head, words), next_token(torch.nn.functional.linear(hidden, head), words)
    torch.testing.assert_close(ours.total, plain.total)
    for mine, theirs in zip(*(torch.autograd.grad(one.total, (hidden, head)) for one in (ours, plain)), strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, theirs, atol=0.05, rtol=0.05)


def test_no_position_gives_no_loss_and_a_gradient_of_nothing_and_a_frozen_head_gets_none() -> None:
    hidden, head, words = given(0)
    total, number = next_token_of(hidden, head, words)
    total.backward()
    assert (float(total), number) == (0.0, 0)
    assert not head.grad.any()
    hidden, head, words = given()
    next_token_of(hidden, head.detach(), words).total.backward()
    assert hidden.grad.any()
    assert head.grad is None
    with torch.no_grad():
        assert float(next_token_of(hidden, head, words).total) > 0
