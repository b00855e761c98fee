"""A token reducer between encoder and connector: everything goes on as before, with fewer tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image as PIL
from transformers import AutoModelForImageTextToText

from tessera.data.packing import collate_rows
from tessera.data.sequence import IGNORED, Sequence
from tessera.data.tiling import TiledPixels
from tessera.errors import UserError
from tessera.models.lvlm import LVLMConfig, LVLMForConditionalGeneration, load_llava, save_llava
from tessera.reduce import create
from tessera.vision.base import VisionOutput
from tests.models.lvlm_tiny import BEGIN, END, SLOT, VISION, D, left_padded, llava, pixels, spread, tiny_config, words

SIZE = 32  # pixels: a grid of 4 x 4
EYES = {"model_type": "tessera-published-vision", "vision_config": {**VISION, "image_size": SIZE}}
DCT = {"reducer": "dct", "keep_side": 2}
REDUCERS = {
    "dct": DCT,
    "dct by ratio": {"reducer": "dct", "keep_ratio": 2 / 3},
    "dct, coefficients": {**DCT, "reducer_options": {"coefficients": True, "norm": "mean"}},
    "pool": {"reducer": "pool", "keep_tokens": 9},
    "random": {"reducer": "random", "keep_side": 3},
    "tome": {"reducer": "tome", "keep_tokens": 8},
    "column": {"reducer": "column", "keep_tokens": 5},
}
GREEDY = {"do_sample": False, "max_new_tokens": 6, "eos_token_id": None, "pad_token_id": 0}


def model_with(**fields) -> LVLMForConditionalGeneration:
    """A tiny one with the weights of a seed, whatever its reducer."""
    return spread(LVLMForConditionalGeneration(tiny_config(vision_config=EYES, **fields)))


def shown(count: int, seed: int = 0) -> torch.Tensor:
    return pixels(count, seed, SIZE)


def sequence(ids, learned_from):
    ids = torch.tensor(ids)
    labels = ids.masked_fill(ids == SLOT, IGNORED)
    labels[:learned_from] = IGNORED
    return Sequence(ids.int().numpy(), labels.numpy(), (ids < 0).numpy(), ())


@pytest.mark.light("fourier-vlm", "exact")
@pytest.mark.parametrize("strategy", ["default", "full"])
@pytest.mark.parametrize("kind", REDUCERS)
def test_a_picture_takes_as_many_tokens_as_the_model_says_and_nothing_is_added(kind, strategy):
    model, bare = (model_with(vision_feature_select_strategy=strategy, **fields) for fields in (REDUCERS[kind], {}))
    number = {"dct": 4, "dct by ratio": 4, "dct, coefficients": 4, "pool": 9, "random": 9, "tome": 8, "column": 5}[kind]
    assert model.num_image_tokens() == number + (strategy == "full")
    assert model.encode_images(shown(2)).shape == (2, model.num_image_tokens(), D)
    assert model.encode_images(shown(0)).shape == (0, model.num_image_tokens(), D)
    assert model.state_dict().keys() == bare.state_dict().keys()


@pytest.mark.light("fourier-vlm", "exact")
@pytest.mark.parametrize("strategy", ["default", "full"])
def test_the_connector_reads_the_reduced_grid_behind_a_class_token_that_stays(strategy):
    model, bare = (model_with(vision_feature_select_strategy=strategy, **fields) for fields in (DCT, {}))
    tokens, grid = bare.visual_features(shown(2))
    extra = int(strategy == "full")
    wanted = torch.cat([tokens[:, :extra], create("dct")(tokens[:, extra:], (2, 2), grid=grid).tokens], 1)
    found, left = model.visual_features(shown(2))
    assert left == (2, 2)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(model.encode_images(shown(2)), bare.connector(wanted, left))


@pytest.mark.light("fourier-vlm", "exact")
def test_a_kept_side_larger_than_the_grid_leaves_all_tokens_bit_for_bit():
    bare = model_with()
    for side in (5, 12):
        model = model_with(reducer="dct", keep_side=side)
        assert model.num_image_tokens() == 16
        assert torch.equal(model.encode_images(shown(2)), bare.encode_images(shown(2)))
    model = model_with(reducer="dct", keep_side=3)
    assert model.num_image_tokens() == 9
    assert [model.num_image_tokens(*size) for size in ((64, 64), (16, 64), (24, 64))] == [9, 16, 9]
    assert model.encode_images(pixels(1, size=16)).shape[1] == model.num_image_tokens(16, 16) == 4


@pytest.mark.light("fourier-vlm", "exact")
@pytest.mark.parametrize(("height", "width"), [(24, 56), (8, 24), (40, 24), (56, 24)])
def test_placeholders_and_features_agree_for_odd_sides(height, width):
    model = model_with(reducer="dct", keep_ratio=2 / 3)
    model.vision = OddGrid(height // 8, width // 8)
    rows, columns = max(1, 2 * height // 24), max(1, 2 * width // 24)
    assert model.num_image_tokens(height, width) == rows * columns
    assert model.encode_images(torch.zeros(1, 3, height, width)).shape[1] == rows * columns


class OddGrid(torch.nn.Module):
    """An encoder of pictures that are not square."""

    dtype, width = torch.float32, VISION["hidden_size"]

    def __init__(self, rows, columns):
        super().__init__()
        self.grid = rows, columns

    def grid_of(self, height, width):
        return height // 8, width // 8

    def forward(self, pixel_values, output_hidden_states=False):
        tokens = torch.randn(len(pixel_values), self.grid[0] * self.grid[1], VISION["hidden_size"])
        return VisionOutput(tokens, self.grid, tokens[:, 0], (tokens, tokens))


@pytest.mark.light("fourier-vlm", "exact")
@pytest.mark.parametrize("kind", REDUCERS)
def test_packed_loss_is_that_of_single_samples(kind):
    model = model_with(**REDUCERS[kind])
    picture = [SLOT] * model.num_image_tokens()
    parts = [
        sequence([BEGIN, *picture, *words(5, 1), END], len(picture) + 2),
        sequence([BEGIN, *words(2, 2), *picture, *words(1, 3), *picture, *words(3, 4), END], 2 * len(picture) + 4),
        sequence([BEGIN, *words(4, 5), END], 3),
    ]
    batch = collate_rows([[parts[0], parts[2]], [parts[1]]], row_length=40, pad_id=0)
    pictures = shown(3)
    packed = model(batch.input_ids, labels=batch.labels, segment_ids=batch.segment_ids, pixel_values=pictures)
    alone = []
    for part, own in ((parts[0], pictures[:1]), (parts[2], None), (parts[1], pictures[1:])):
        ids, labels = torch.from_numpy(part.input_ids).long()[None], torch.from_numpy(part.labels)[None]
        alone.append(model(ids, labels=labels, pixel_values=own).text)
    wanted = sum(one.total for one in alone) / sum(one.number for one in alone)
    torch.testing.assert_close(packed.loss, wanted, atol=1e-6, rtol=1e-6)


@pytest.mark.light("fourier-vlm", "exact")
@pytest.mark.parametrize("kind", REDUCERS)
def test_batched_generation_is_single_generation(kind):
    model, pictures = model_with(**REDUCERS[kind]), shown(3)
    picture = [SLOT] * model.num_image_tokens()
    rows = [BEGIN, *picture, *words(3)], [BEGIN, *words(2, 1), *picture, *words(1, 2), *picture], [BEGIN, *words(9, 3)]
    batched = model.generate(**left_padded(*rows), pixel_values=pictures, **GREEDY)
    for row, ids, own in zip(batched, rows, (pictures[:1], pictures[1:], None), strict=True):
        alone = model.generate(torch.tensor([ids]), pixel_values=own, **GREEDY)
        assert row[-6:].tolist() == alone[0, len(ids) :].tolist()


@pytest.mark.light("fourier-vlm", "exact")
def test_tiles_are_compressed_each_by_itself():
    model, tiled = model_with(**DCT), TiledPixels(SIZE)
    image = PIL.fromarray(np.random.default_rng(0).integers(0, 255, (40, 90, 3), np.uint8))
    tiles = torch.from_numpy(np.stack(tiled.several(image)))
    assert len(tiles) == tiled.count(image) > 2
    alone = torch.cat([model.encode_images(tile[None]) for tile in tiles])
    torch.testing.assert_close(model.encode_images(tiles), alone)


@pytest.mark.light("fourier-vlm", "exact")
def test_gradients_go_through_the_reducer_to_encoder_and_connector():
    model = model_with(**DCT)
    ids = torch.tensor([[BEGIN, *[SLOT] * 4, *words(4)]])
    model(ids, labels=ids.masked_fill(ids == SLOT, IGNORED), pixel_values=shown(1)).loss.backward()
    read = model.vision.vision.encoder.layers[1].mlp.fc2.weight
    assert all(weight.grad.any() for weight in (read, model.connector.mlp.fc1.weight))


@pytest.mark.light("fourier-vlm", "exact")
def test_a_saved_model_answers_as_before_and_its_configuration_is_whole(tmp_path):
    model = model_with(**REDUCERS["dct, coefficients"])
    ids = torch.tensor([[BEGIN, *[SLOT] * 4, *words(4)]])
    model.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert torch.equal(again(ids, pixel_values=shown(1)).logits, model(ids, pixel_values=shown(1)).logits)
    assert LVLMConfig.from_pretrained(tmp_path).to_dict() == model.config.to_dict()


@pytest.mark.light("fourier-vlm", "weights")
def test_a_folder_of_llava_is_read_with_a_reducer_and_answers_as_transformers_does_from_reduced_features(tmp_path):
    theirs = llava(vision={"image_size": SIZE}, image_seq_length=16)
    theirs.save_pretrained(tmp_path)
    ours = load_llava(tmp_path, **DCT)
    assert ours.num_image_tokens() == 4
    states = theirs.model.vision_tower(shown(1), output_hidden_states=True).hidden_states[-2][:, 1:]
    embeds = theirs.model.multi_modal_projector(create("dct")(states, (2, 2), grid=(4, 4)).tokens)
    ids = torch.tensor([[BEGIN, *[SLOT] * 4, *words(4)]])
    placed = theirs.get_input_embeddings()(ids).masked_scatter((ids == SLOT)[..., None], embeds)
    wanted = theirs(inputs_embeds=placed).logits
    torch.testing.assert_close(ours(ids, pixel_values=shown(1)).logits, wanted, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        load_llava(tmp_path, reducer="dct", keep_side=4).encode_images(shown(1)),
        load_llava(tmp_path).encode_images(shown(1)), atol=1e-5, rtol=0,
    )  # fmt: skip
    with pytest.raises(UserError, match="no place for the token reducer 'dct'; save_pretrained keeps it"):
        save_llava(ours, tmp_path / "out")


@pytest.mark.light("fourier-vlm", "size")
def test_the_published_size_is_that_without_a_reducer():
    for side, number in {12: 144, 8: 64, 25: 576}.items():
        with torch.device("meta"):
            model = LVLMForConditionalGeneration(LVLMConfig(reducer="dct", keep_side=side))
        assert sum(parameter.numel() for parameter in model.parameters()) == 7_063_427_072
        assert model.num_image_tokens() == number


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"reducer": "dcd", "keep_side": 2}, "there is no token reducer 'dcd'; did you mean 'dct'"),
        ({**DCT, "reducer_options": {"nrom": "none"}}, "the reducer 'dct' has no option 'nrom'; did you mean 'norm'"),
        ({"reducer": "dct"}, "nothing says how many tokens the reducer 'dct' leaves; give one of keep_side"),
        ({**DCT, "keep_ratio": 0.5}, "keep_side and keep_ratio say how many tokens"),
        ({"reducer": "dct", "keep_side": 0}, "keep_side is 0; it is above 0"),
        ({"reducer": "dct", "keep_ratio": 1.5}, "keep_ratio is 1.5; it is above 0 and at most 1"),
        ({"keep_side": 2}, "reducer names none, and its options or how many tokens it keeps are given; name it too"),
        ({**DCT, "vision_feature_select_strategy": "class"}, "the class token alone is one token"),
        ({"reducer": "pool", "keep_tokens": 17}, "'pool' cannot stand between .* 17 tokens cannot be made of 16"),
        ({"reducer": "tome", "keep_tokens": 5}, "'tome' cannot stand between .* merges at most half"),
        ({"reducer": "prune", "keep_tokens": 5}, "'prune' cannot stand between .* chooses by importance"),
        ({**DCT, "keep_side": 3, "connector": "pixel-shuffle"}, "a grid of 3 x 3 tokens does not divide"),
    ],
)
def test_a_slot_that_cannot_be_is_one_sentence(fields, said):
    with pytest.raises(UserError, match=said):
        model_with(**fields)


def test_pixel_shuffle_takes_what_a_reducer_left():
    model = model_with(**DCT, connector="pixel-shuffle")
    assert model.encode_images(shown(2)).shape[1] == model.num_image_tokens() == 1
