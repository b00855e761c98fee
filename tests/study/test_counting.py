"""Counts on the meta device."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tessera.layers.encoder import EncoderBlock
from tessera.study.counting import count, macs


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 4, stride=4)
        self.block = EncoderBlock(8, 2, 16)
        self.fixed = nn.Parameter(torch.zeros(5), requires_grad=False)
        self.again = self.block.norm1  # counted once

    def forward(self, pixels):
        return self.block(self.convolution(pixels).flatten(2).transpose(1, 2))


def test_counts_equal_those_by_hand():
    with torch.device("meta"):
        model = Small()
        counted = count(model, {"pixels": torch.empty(1, 3, 32, 16)})
    tokens, width = 8 * 4, 8
    block = 4 * width**2 + 4 * width + 2 * width * 16 + 16 + width + 4 * width
    products = tokens * (4 * width**2 + 2 * width * 16) + 2 * tokens**2 * width + tokens * width * 3 * 16
    assert counted["trainable"] == 3 * 8 * 16 + 8 + block
    assert counted["parameters"] == counted["trainable"] + 5
    assert counted["gmacs"] == pytest.approx(products / 1e9)
    assert set(count(model)) == {"parameters", "trainable"}


def test_counting_leaves_each_module_in_its_mode():
    model = Small().train()
    model.convolution.eval()
    macs(model, {"pixels": torch.zeros(1, 3, 8, 8)})
    assert model.training and model.block.training and not model.convolution.training
