"""Masks and positions of packed rows."""

from __future__ import annotations

import pytest
import torch

from tessera.layers.masks import additive, block_causal, positions_within
from tessera.layers.standardise import Reweigh, Standardise

SEGMENTS = torch.tensor([[1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 2, 3]])


def test_a_position_reads_earlier_positions_of_its_own_sequence_only():
    mask = block_causal(SEGMENTS)
    for row in range(2):
        for i in range(6):
            expected = [j <= i and SEGMENTS[row, i] == SEGMENTS[row, j] for j in range(6)]
            assert mask[row, 0, i].tolist() == expected
    assert mask.any(-1).all()


def test_a_packed_sequence_is_attended_to_as_it_is_alone_and_padding_stays_finite():
    x = torch.randn(1, 1, 9, 8, generator=torch.Generator().manual_seed(0))
    attend = torch.nn.functional.scaled_dot_product_attention
    packed = attend(x, x, x, attn_mask=block_causal(torch.tensor([[1, 1, 1, 2, 2, 2, 2, 0, 0]])))
    alone = attend(x[:, :, 3:7], x[:, :, 3:7], x[:, :, 3:7], is_causal=True)
    torch.testing.assert_close(packed[:, :, 3:7], alone, atol=1e-6, rtol=0)
    assert packed.isfinite().all()


def test_positions_restart_with_each_sequence():
    assert positions_within(SEGMENTS).tolist() == [[0, 1, 0, 1, 2, 0], [0, 1, 2, 3, 0, 0]]


def test_standardisation_is_undone_by_its_inverse_and_is_the_identity_before_it_is_fitted():
    x = torch.randn(50, 4, 6, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 7) + 3
    scale = Standardise(6)
    assert torch.equal(scale(x), x)
    scale.fit(x, "channel")
    torch.testing.assert_close(scale(x).flatten(0, 1).std(0), torch.ones(6))
    torch.testing.assert_close(scale.inverse(scale(x)), x)
    scale.fit(x, "global")
    torch.testing.assert_close(scale(x).square().mean(), torch.tensor(1.0))
    assert len(scale.std.unique()) == 1 and not scale.mean.any()


def test_reweighing_lets_distances_count_by_what_is_read_and_is_undone():
    generator = torch.Generator().manual_seed(0)
    loud, quiet = torch.randn(400, 4, 5, generator=generator) * 10, torch.randn(400, 4, 3, generator=generator)
    x = torch.cat([loud, quiet], -1) + 2
    scale = Reweigh(8)
    assert torch.equal(scale(x), x)
    scale.fit(x, quiet @ torch.randn(3, 6, generator=generator))
    torch.testing.assert_close(scale.inverse(scale(x)), x, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(scale.matrix, scale.matrix.mT)
    spread = (scale(x) - scale(x).mean(0)).square().mean((0, 1))
    assert spread.mean().item() == pytest.approx(1, rel=0.02)
    # What is read was 1 part in 168 of the spread; now it is half, and the little that the even share leaves it.
    assert spread[5:].sum().item() / spread.sum().item() == pytest.approx(0.5, abs=0.02)


def test_an_additive_mask_reads_nothing_new_and_leaves_an_empty_row_finite():
    mask = torch.tensor([[True, False], [False, False]])
    added = additive(mask, torch.float32)
    assert added[0].tolist() == [0.0, torch.finfo(torch.float32).min]
    assert torch.allclose((torch.zeros(2) + added[1]).softmax(-1), torch.full((2,), 0.5))
