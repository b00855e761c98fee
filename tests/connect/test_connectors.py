"""Connectors: what they compute, and how many tokens they say they give."""

from __future__ import annotations

import pytest
import torch
from transformers import Idefics3Config, InternVLConfig, InternVLModel, LlavaConfig
from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from tessera.connect.registry import create, names
from tessera.errors import UserError

C, D, GRID = 6, 10, (4, 2)


def tokens(count=8, seed=0):
    return torch.randn(3, count, C, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", names())
def test_a_connector_gives_as_many_tokens_as_it_says(name):
    connector = create(name, C, D)
    assert connector(tokens(), GRID).shape == (3, connector.count(GRID), D)


@pytest.mark.parametrize("name", ["linear", "mlp2x_gelu", "pooled"])
def test_a_class_token_before_the_grid_is_counted(name):
    connector = create(name, C, D)
    assert connector(tokens(9), GRID).shape == (3, connector.count(GRID, extra=1), D)


@pytest.mark.parametrize("bias", [True, False])
def test_the_two_layer_connector_equals_llavas_projector(bias):
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 1}
    config = LlavaConfig(
        vision_config={"model_type": "clip_vision_model", "hidden_size": C, **sizes},
        text_config={"model_type": "llama", "hidden_size": D, **sizes},
        multimodal_projector_bias=bias,
        projector_hidden_act="silu",
    )
    theirs = LlavaMultiModalProjector(config)
    ours = create("mlp2x_gelu", C, D, bias=bias, activation="silu")
    ours.mlp.fc1.load_state_dict(theirs.linear_1.state_dict())
    ours.mlp.fc2.load_state_dict(theirs.linear_2.state_dict())
    torch.testing.assert_close(ours(tokens(), GRID), theirs(tokens()), atol=0, rtol=0)


def test_pixel_shuffle_equals_that_of_idefics3():
    config = Idefics3Config(
        vision_config={"hidden_size": C},
        text_config={"model_type": "llama", "hidden_size": D, "num_attention_heads": 1},
        scale_factor=2,
    )
    theirs, ours = Idefics3Connector(config), create("pixel-shuffle", C, D, factor=2)
    ours.project.load_state_dict(theirs.modality_projection.proj.state_dict())
    square = tokens(16)
    torch.testing.assert_close(ours(square, (4, 4)), theirs(square), atol=0, rtol=0)


def test_pixel_shuffle_with_two_layers_equals_that_of_internvl():
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 1}
    config = InternVLConfig(
        vision_config={"hidden_size": C, "image_size": [8, 8], "patch_size": [2, 2], "intermediate_size": C, **sizes},
        text_config={"model_type": "qwen2", "hidden_size": D, "num_key_value_heads": 1, **sizes},
    )
    theirs, ours = InternVLModel(config), create("pixel-shuffle-mlp", C, D)
    projector = theirs.multi_modal_projector
    for mine, other in (
        (ours.norm, projector.layer_norm), (ours.mlp.fc1, projector.linear_1), (ours.mlp.fc2, projector.linear_2)
    ):  # fmt: skip
        mine.load_state_dict(other.state_dict())
    square = tokens(16)
    shuffled = theirs.pixel_shuffle(square.unflatten(1, (4, 4)))
    torch.testing.assert_close(ours(square, (4, 4)), projector(shuffled.flatten(1, 2)))


def test_pooling_one_token_is_projecting_it():
    pooled, linear = create("pooled", C, D), create("linear", C, D)
    pooled.load_state_dict(linear.state_dict())
    one = tokens(1)
    torch.testing.assert_close(pooled(one, (1, 1)), linear(one, (1, 1)))


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("mlp2x_gelo", {}, "no connector is named 'mlp2x_gelo'; did you mean 'mlp2x_gelu'?"),
        ("linear", {"bais": False}, "the connector linear has no option 'bais'; did you mean 'bias'?"),
        ("pixel-shuffle", {"factor": 0}, "factor is 0; it is at least 1"),
        ("mlp2x_gelu", {"activation": "gleu"}, "no activation is named 'gleu'; did you mean 'gelu'?"),
    ],
)
def test_what_does_not_exist_is_named_with_what_does(name, options, said):
    with pytest.raises(UserError) as error:
        create(name, C, D, **options)
    assert str(error.value) == said


def test_a_grid_that_pixel_shuffle_cannot_divide_is_refused():
    connector = create("pixel-shuffle", C, D, factor=3)
    with pytest.raises(UserError, match="a grid of 4 x 2 tokens does not divide into squares of 3 x 3"):
        connector(tokens(), GRID)
    with pytest.raises(UserError, match="leave the class token out"):
        create("pixel-shuffle", C, D)(tokens(9), GRID)
