"""CvT: counted figures, parity with transformers, the identities of its dossier, sizes of pictures."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from transformers import AutoModel, CvtForImageClassification, CvtModel
from transformers import CvtConfig as PublishedConfig

from tessera.errors import UserError
from tessera.layers.encoder import EncoderBlock
from tessera.study.counting import count
from tessera.vision import registry
from tessera.vision.cvt import VARIANTS, Block, CvT, CvTConfig
from tessera.vision.cvt_attention import ConvolutionalProjection
from tessera.vision.cvt_published import from_config, from_published

SMALL = {
    "widths": (32, 64, 96), "heads": (1, 2, 3), "depths": (1, 1, 3), "drop_path": (0.0, 0.0, 0.0), "activation": "gelu"
}  # fmt: skip
PUBLISHED = {
    "cvt-13": {},
    "cvt-21": {"depth": (1, 4, 16)},
    "cvt-w24": {"embed_dim": (192, 768, 1024), "num_heads": (3, 12, 16), "depth": (2, 2, 20)},
}


def on_meta(name: str) -> CvT:
    with torch.device("meta"):
        return registry.create(name)


def shaken(model: nn.Module) -> nn.Module:
    """Norms and biases away from 1 and 0, statistics as after training."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if value.dim() == 1:
                value.add_(torch.rand(value.shape, generator=generator), alpha=0.5)
            elif "class_token" in name or "cls_token" in name:
                value.normal_(generator=generator)
    return model.eval()


def pair(name: str) -> tuple[CvtForImageClassification, CvT]:
    """transformers' model of a published size with random weights, and ours with the same."""
    torch.manual_seed(0)
    theirs = shaken(CvtForImageClassification(PublishedConfig(num_labels=3, **PUBLISHED[name])))
    ours = CvT(from_config(theirs.config))
    state = from_published(theirs.state_dict())
    ours.load_state_dict({key: value for key, value in state.items() if not key.startswith("head.")})
    return theirs, ours.eval()


@pytest.mark.light("cvt", "size")
@pytest.mark.parametrize(
    ("name", "parameters", "buffers", "at_224", "at_384"),
    [
        ("cvt-13", 19_997_480, 25_767, 4.566, 16.269),
        ("cvt-21", 31_622_696, 41_919, 7.178, 24.849),
        ("cvt-w24", 277_196_392, 134_472, 60.917, 194.222),
    ],
)
def test_published_sizes_count_exactly(name: str, parameters: int, buffers: int, at_224: float, at_384: float) -> None:
    model = on_meta(name)
    head = (model.width + 1) * 1000
    for side, gmacs in ((224, at_224), (384, at_384)):
        counted = count(model, {"pixel_values": torch.empty(1, 3, side, side, device="meta")})
        assert counted["parameters"] + head == parameters
        assert counted["gmacs"] + head / 1e9 == pytest.approx(gmacs, rel=5e-4)
    assert sum(buffer.numel() for buffer in model.buffers()) == buffers


@pytest.mark.light("cvt", "size")
def test_stages_of_cvt_13_hold_the_counted_shares() -> None:
    model = on_meta("cvt-13")
    shares = [sum(value.numel() for value in stage.parameters()) for stage in model.stages]
    assert shares == [61_696, 1_013_568, 18_536_448]
    assert sum(value.numel() for value in model.norm.parameters()) == 768


@pytest.mark.light("cvt", "size")
def test_keys_are_a_quarter_of_the_queries_and_the_class_token_stands_in_the_last_stage_alone() -> None:
    model = on_meta("cvt-13")
    found: list[tuple[int, int]] = []

    def note(linear: str) -> list[int]:
        lengths: list[int] = []
        for stage in model.stages:
            part = getattr(stage.blocks[0].attn, linear)
            part.register_forward_hook(lambda _, given, __: lengths.append(given[0].shape[1]))
        return lengths

    queries, keys, values = note("query"), note("key"), note("value")
    model.eval()(torch.empty(1, 3, 224, 224, device="meta"))
    found = list(zip(queries, keys, strict=True))
    assert found == [(3136, 784), (784, 196), (197, 50)]
    assert values == keys


@pytest.mark.light("cvt", "exact")
@pytest.mark.parametrize(
    "name", ["cvt-13", *(pytest.param(one, marks=pytest.mark.slow) for one in ("cvt-21", "cvt-w24"))]
)
@pytest.mark.parametrize("shape", [(1, 3, 224, 224), (2, 3, 192, 256)])
@torch.no_grad()
def test_outputs_equal_those_of_transformers_bit_for_bit(name: str, shape: tuple[int, ...]) -> None:
    theirs, ours = pair(name)
    ours.set_attn_implementation("eager")
    pictures = torch.randn(shape)
    wanted = theirs.cvt(pictures)
    found = ours(pictures, output_hidden_states=True)
    last = found.hidden_states[-1]
    assert torch.equal(last[:, 1:], wanted.last_hidden_state.flatten(2).transpose(1, 2))
    assert torch.equal(last[:, :1], wanted.cls_token_value)
    assert torch.equal(found.pooled, theirs.layernorm(wanted.cls_token_value)[:, 0])
    assert found.grid == tuple(wanted.last_hidden_state.shape[-2:])


@pytest.mark.light("cvt", "exact")
@torch.no_grad()
def test_the_fast_kernels_stay_within_rounding_of_transformers() -> None:
    theirs, ours = pair("cvt-13")
    pictures = torch.randn(1, 3, 97, 130)  # odd maps on the way
    wanted = theirs.layernorm(theirs.cvt(pictures).cls_token_value)[:, 0]
    torch.testing.assert_close(ours(pictures).pooled, wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.folded()(pictures).pooled, wanted, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_official_activation_is_another_function_than_transformers() -> None:
    theirs, ours = pair("cvt-13")
    official = CvT(CvTConfig()).eval()
    official.load_state_dict(ours.state_dict())
    pictures = torch.randn(1, 3, 64, 64)
    assert official.config.activation == "quick_gelu"
    assert (official(pictures).pooled - ours(pictures).pooled).abs().max() > 1e-3


@pytest.mark.light("cvt", "exact")
@pytest.mark.parametrize("projection", ["convolution", "linear"])
def test_a_kernel_of_one_makes_the_block_that_of_a_plain_vit_with_its_gradients(projection: str) -> None:
    torch.manual_seed(0)
    config = CvTConfig(**{**SMALL, "key_stride": 1, "projection": projection})
    ours = Block(config, 1, drop_path=0.0).double().eval()
    plain = EncoderBlock(64, 2, 256, scale=64**-0.5, eps=1e-5).double()
    for module in ours.modules():
        if isinstance(module, ConvolutionalProjection):
            nn.init.zeros_(module.conv.weight)
            nn.init.ones_(module.conv.weight[:, :, 1, 1])
            module.norm.eps = 0.0
    with torch.no_grad():
        for mine, own in ((ours.norm1, plain.norm1), (ours.norm2, plain.norm2)):
            own.load_state_dict({name: value.normal_() for name, value in mine.state_dict().items()})
        plain.mlp.load_state_dict(ours.mlp.state_dict())
        plain.attn.out.load_state_dict(ours.attn.out.state_dict())
        projections = (ours.attn.query, ours.attn.key, ours.attn.value)
        plain.attn.qkv.weight.copy_(torch.cat([one.weight for one in projections]))
        plain.attn.qkv.bias.copy_(torch.cat([one.bias.normal_() for one in projections]))
    given = torch.randn(2, 1 + 5 * 7, 64, dtype=torch.float64)
    gradients = []
    for block in (lambda x: ours(x, (5, 7)), plain):
        x = given.clone().requires_grad_()
        out = block(x)
        out.square().sum().backward()
        gradients.append((out.detach(), x.grad))
    (found, slope), (wanted, wanted_slope) = gradients
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(slope, wanted_slope, atol=1e-10, rtol=1e-12)
    weight = torch.cat([one.weight.grad for one in projections])
    torch.testing.assert_close(weight, plain.attn.qkv.weight.grad, atol=1e-10, rtol=1e-12)


@pytest.mark.light("cvt", "exact")
@torch.no_grad()
def test_folding_the_batch_norms_changes_no_output_and_not_the_model() -> None:
    model = shaken(CvT(CvTConfig(**SMALL)))
    pictures = torch.randn(2, 3, 50, 38)
    before, folded = model(pictures), model.folded()
    torch.testing.assert_close(folded(pictures).tokens, before.tokens, atol=1e-5, rtol=1e-5)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert torch.equal(model(pictures).tokens, before.tokens)


@pytest.mark.light("cvt", "exact")
@pytest.mark.parametrize(("projection", "blind"), [("linear", True), ("average", False), ("convolution", False)])
@torch.no_grad()
def test_only_convolutions_know_where_a_token_stands(projection: str, blind: bool) -> None:
    torch.manual_seed(0)
    block = Block(CvTConfig(**{**SMALL, "projection": projection}), 0, drop_path=0.0).double().eval()
    tokens, shuffled = torch.randn(1, 6 * 4, 32, dtype=torch.float64), torch.randperm(24)
    difference = (block(tokens[:, shuffled], (6, 4)) - block(tokens, (6, 4))[:, shuffled]).abs().max()
    assert (difference < 1e-12) == blind


def test_drop_path_rises_linearly_over_the_last_stage_alone() -> None:
    for name, depth, highest in (("cvt-13", 10, 0.1), ("cvt-21", 16, 0.1), ("cvt-w24", 20, 0.3)):
        rates = [[block.drop_path.rate for block in stage.blocks] for stage in on_meta(name).stages]
        assert set(rates[0] + rates[1]) == {0.0}
        assert rates[2] == pytest.approx(torch.linspace(0, highest, depth).tolist(), abs=1e-7)


def test_both_scales_of_attention() -> None:
    for scale, wanted in (("width", 384**-0.5), ("head", 64**-0.5)):
        with torch.device("meta"):
            model = registry.create("cvt-13", attention_scale=scale)
        assert model.stages[2].blocks[0].attn.scale == pytest.approx(wanted)
        assert all(block.attn.scale == 64**-0.5 for block in model.stages[0].blocks)  # one head there


@pytest.mark.light("cvt", "use")
@pytest.mark.parametrize("size", [(3, 3), (33, 17), (64, 100)])
@torch.no_grad()
def test_pictures_of_any_size_get_the_grid_that_was_said(size: tuple[int, int]) -> None:
    model = CvT(CvTConfig(**SMALL)).eval()
    out = model(torch.randn(2, 3, *size), output_hidden_states=True)
    h, w = out.grid
    assert out.grid == model.grid_of(*size)
    assert out.tokens.shape == (2, h * w, model.width)
    assert out.pooled.shape == (2, model.width)
    grids = model.config.grids(*size)
    wanted = [(0, 32), (1, 64), (2, 96), (2, 96), (2, 96)]
    shapes = [tuple(state.shape) for state in out.hidden_states]
    assert shapes == [(2, math.prod(grids[stage]) + (stage == 2), width) for stage, width in wanted]


def test_a_picture_too_small_to_tile_names_the_least_side() -> None:
    model = on_meta("cvt-13")
    with pytest.raises(UserError, match="2 x 40 pixels is too small.*any height and width of 3 or more work"):
        model.grid_of(2, 40)
    with pytest.raises(UserError, match="2 x 2 pixels is too small"):
        model(torch.empty(1, 3, 2, 2, device="meta"))


@torch.no_grad()
def test_one_picture_alone_gives_what_it_gives_among_others() -> None:
    model = shaken(CvT(CvTConfig(**SMALL)))
    pictures = torch.randn(3, 3, 40, 40)
    torch.testing.assert_close(model(pictures[1:2]).pooled, model(pictures).pooled[1:2])


@torch.no_grad()
def test_without_a_class_token_the_mean_of_the_tokens_is_read() -> None:
    out = CvT(CvTConfig(**SMALL, class_token=False)).eval()(torch.randn(1, 3, 32, 32))
    assert torch.equal(out.pooled, out.tokens.mean(1))


@torch.no_grad()
def test_position_tables_are_learned_for_one_grid_and_carried_over_to_others() -> None:
    model = CvT(CvTConfig(**SMALL, image_size=32, position_stages=(0, 2))).eval()
    assert [None if stage.positions is None else stage.positions.grid for stage in model.stages] == [
        (8, 8), None, (2, 2)
    ]  # fmt: skip
    pictures = torch.randn(1, 3, 48, 32)
    before = model(pictures).tokens
    nn.init.ones_(model.stages[0].positions.table)
    assert not torch.equal(model(pictures).tokens, before)


def test_training_reaches_every_weight_and_checkpointing_changes_no_gradient() -> None:
    torch.manual_seed(0)
    model = CvT(CvTConfig(**SMALL)).train()
    pictures, found = torch.randn(2, 3, 32, 32), []
    for _ in range(2):
        model.zero_grad()
        torch.manual_seed(0)
        out = model(pictures)
        (out.pooled.square().sum() + out.tokens.square().sum()).backward()
        found.append({name: value.grad.clone() for name, value in model.named_parameters()})
        model.activation_checkpointing_enable()
    for name, value in found[0].items():
        assert torch.isfinite(value).all()
        torch.testing.assert_close(found[1][name], value, atol=1e-4, rtol=1e-4)


def test_a_cvt_saves_and_loads(tmp_path) -> None:
    model = shaken(CvT(CvTConfig(**SMALL)))
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    pictures = torch.randn(1, 3, 32, 32)
    assert isinstance(again, CvT)
    assert torch.equal(again.eval()(pictures).tokens, model(pictures).tokens)


def test_every_variant_is_known_by_name_and_a_wrong_one_is_answered_with_the_nearest() -> None:
    assert set(VARIANTS) <= set(registry.names())
    with pytest.raises(UserError, match="'cvt13'; did you mean 'cvt-13'"):
        registry.config("cvt13")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"heads": (1, 3)}, r"heads is \(1, 3\); it needs one for each of the 3 widths"),
        ({"heads": (1, 3, 5)}, "a width of 384 does not divide into 5 heads"),
        ({"position_stages": (3,)}, "the stages are 0 to 2"),
        ({"key_stride": 0}, "key_stride is 0"),
        ({"projection": "pool"}, "cannot be built so"),
    ],
)
def test_a_configuration_that_makes_no_cvt_is_refused(changes: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        registry.config("cvt-13", **changes)


def test_transformers_model_of_the_same_size_has_as_many_weights() -> None:
    with torch.device("meta"):
        theirs = CvtModel(PublishedConfig())
    wanted = sum(value.numel() for value in theirs.parameters())
    assert sum(value.numel() for value in on_meta("cvt-13").parameters()) == wanted + 768  # and the last norm
