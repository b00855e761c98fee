"""What is trained, in what mode and precision."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from tessera.errors import UserError
from tessera.train import select
from tests.train.tiny import tiny_model


def trained(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (("*",), {"0.weight", "0.bias", "3.weight", "3.bias", "4.weight", "4.bias"}),
        (("3.*", "*.bias"), {"0.bias", "3.weight", "3.bias", "4.bias"}),
        (("*", "!0.*", "0.bias"), {"0.bias", "3.weight", "3.bias", "4.weight", "4.bias"}),
        (("re:^[04].*weight$",), {"0.weight", "4.weight"}),
    ],
)
def test_patterns_choose_parameters(patterns: tuple[str, ...], expected: set[str]):
    model = tiny_model()
    counts = select.set_trainable(model, patterns)
    assert trained(model) == expected
    assert sum(counts) == sum(p.numel() for p in model.parameters())
    assert counts[0] == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_a_pattern_that_fits_nothing_is_refused_with_what_there_is():
    with pytest.raises(UserError, match="'0.wieght' fits no parameter; did you mean '0.weight'"):
        select.set_trainable(tiny_model(), ("0.wieght",))
    with pytest.raises(UserError, match="leave nothing to train"):
        select.set_trainable(tiny_model(), ("*", "!*"))
    with pytest.raises(UserError, match="no regular expression"):
        select.set_trainable(tiny_model(), ("re:(",))


def test_frozen_modules_do_not_drop_out():
    model = nn.ModuleDict({"tower": tiny_model(), "head": tiny_model()})
    select.set_trainable(model, ("head.*",))
    assert model.training
    assert model["head"].training
    assert not any(module.training for module in model["tower"].modules())


def test_recomputed_activations_give_the_same_gradients():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = nn.ModuleDict({"lm": LlamaForCausalLM(LlamaConfig(vocab_size=32, **sizes))})
    ids = torch.arange(24).view(2, 12)
    found = []
    for on in (False, True):
        select.checkpoint_activations(model, on)
        assert model["lm"].is_activation_checkpointing is on
        model.train()
        model.zero_grad()
        model["lm"](input_ids=ids, labels=ids).loss.backward()
        found.append([p.grad.clone() for p in model.parameters()])
    select.checkpoint_activations(model, False)
    assert not model["lm"].is_activation_checkpointing
    assert all(torch.allclose(a, b) for a, b in zip(*found, strict=True))


def test_recomputing_is_refused_where_no_part_can():
    with pytest.raises(UserError, match="leave activation_checkpointing off"):
        select.checkpoint_activations(tiny_model(), True)


def test_bf16_is_chosen_only_where_the_processor_has_it(monkeypatch: pytest.MonkeyPatch):
    cpu = torch.device("cpu")
    for flags, expected in (({}, "fp32"), ({"amx_bf16": True}, "bf16"), ({"avx512_bf16": True}, "bf16")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda flags=flags: flags)
        assert select.choose_precision("auto", cpu) == expected
    assert select.choose_precision("bf16", cpu) == "bf16"
