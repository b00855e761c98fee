"""The encoder block and its parts."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tessera.layers.drop_path import drop_path_rates
from tessera.layers.encoder import EncoderBlock
from tessera.layers.mlp import Mlp
from tessera.layers.multihead import SelfAttention
from tessera.layers.positions import PositionTable, resize_table, sine_table


def test_a_block_equals_torch_encoder_layer_with_the_same_weights():
    torch.manual_seed(0)
    theirs = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
    ours = EncoderBlock(32, 4, 64, eps=1e-5)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.2)
    ours.norm1.load_state_dict(theirs.norm1.state_dict())
    ours.norm2.load_state_dict(theirs.norm2.state_dict())
    attention = theirs.self_attn
    ours.attn.qkv.load_state_dict({"weight": attention.in_proj_weight, "bias": attention.in_proj_bias})
    ours.attn.out.load_state_dict(attention.out_proj.state_dict())
    ours.mlp.fc1.load_state_dict(theirs.linear1.state_dict())
    ours.mlp.fc2.load_state_dict(theirs.linear2.state_dict())
    x = torch.randn(2, 7, 32)
    torch.testing.assert_close(ours(x), theirs(x), atol=2e-5, rtol=1e-4)


def test_attention_scores_are_scaled_as_asked():
    torch.manual_seed(0)
    usual, doubled = SelfAttention(32, 4), SelfAttention(32, 4, scale=2 * 8**-0.5)
    doubled.load_state_dict(usual.state_dict())
    x = torch.randn(1, 5, 32)
    assert not torch.allclose(usual(x), doubled(x))
    with torch.no_grad():  # queries of half the length make up for a scale that is twice as large
        doubled.qkv.weight[:32] /= 2
        doubled.qkv.bias[:32] /= 2
    torch.testing.assert_close(usual(x), doubled(x))


def test_attention_without_bias_has_none_in_its_first_projection():
    attention = SelfAttention(8, 2, qkv_bias=False)
    assert {name for name, _ in attention.named_parameters()} == {"qkv.weight", "out.weight", "out.bias"}


def test_drop_path_rates_rise_evenly_to_the_last_block():
    assert drop_path_rates(0.1, 5) == pytest.approx([0.0, 0.025, 0.05, 0.075, 0.1])
    assert drop_path_rates(0.3, 1) == [0.0]


def test_mlp_takes_its_activation_by_name():
    x, mlp = torch.randn(4, 6), Mlp(6, 12, "quick_gelu")
    hidden = mlp.fc1(x)
    torch.testing.assert_close(mlp(x), mlp.fc2(hidden * torch.sigmoid(1.702 * hidden)))


def test_sine_table_by_hand():
    table = sine_table(5, 6)
    for row in range(5):
        for column in range(6):
            angle = row / 10000 ** (2 * (column // 2) / 6)
            wanted = math.cos(angle) if column % 2 else math.sin(angle)
            assert table[row, column].item() == pytest.approx(wanted, abs=1e-7)


def test_a_resized_table_keeps_its_own_grid_its_extra_rows_what_is_constant_and_the_order_of_rows():
    table = torch.randn(7, 4)
    assert resize_table(table, (2, 3), (2, 3)) is table
    assert torch.equal(resize_table(table, (2, 3), (5, 4))[0], table[0])
    torch.testing.assert_close(resize_table(torch.ones(7, 2), (2, 3), (5, 4)), torch.ones(21, 2))
    rows = torch.tensor([[0.0], [0.0], [0.0], [1.0], [1.0], [1.0]])  # 2 x 3, the lower row is 1
    larger = resize_table(rows, (2, 3), (4, 3)).view(4, 3)
    assert (larger.diff(dim=0) > 0).all()
    torch.testing.assert_close(larger, larger[:, :1].expand(4, 3))


@pytest.mark.parametrize(("kind", "parameters"), [("learned", 1), ("sine", 0)])
def test_a_position_table_fits_every_grid_and_only_a_learned_one_trains(kind, parameters):
    positions = PositionTable((2, 3), 8, extra=1, kind=kind)
    assert len(list(positions.parameters())) == parameters
    assert set(positions.state_dict()) == {"table"}
    positions.table.data.normal_()
    assert torch.equal(positions(torch.zeros(2, 7, 8), (2, 3))[1], positions.table)
    larger = positions(torch.zeros(2, 21, 8), (4, 5))
    assert larger.shape == (2, 21, 8)
    assert torch.equal(larger[0, 0], positions.table[0])  # the row of the class token stays
