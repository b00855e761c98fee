"""A token reducer inside the language model: those behind it read fewer visual tokens, nothing else changes."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForImageTextToText, DynamicCache

from tessera.data.packing import collate_rows
from tessera.data.sequence import IGNORED
from tessera.errors import UserError
from tessera.layers.masks import additive
from tessera.models.lvlm import LVLMConfig, LVLMForConditionalGeneration
from tessera.models.lvlm.language import ready_mask
from tessera.models.lvlm.layers import at_door, decoder_of
from tessera.reduce import create
from tessera.reduce.base import mean_importance
from tessera.vision.registry import create as create_backbone
from tests.models.lvlm_tiny import (
    BEGIN,
    END,
    SLOT,
    TEXT,
    VOCABULARY,
    causal_model,
    left_padded,
    pixels,
    spread,
    tiny_config,
    words,
)
from tests.models.test_lvlm import LANGUAGE_MODELS, with_language
from tests.models.test_lvlm_slot import EYES, GREEDY, sequence, shown

N, LAYERS, AFTER = 16, 3, 1
PICTURE = [SLOT] * N
TEXT_CONFIG = {"model_type": "llama", **TEXT, "num_hidden_layers": LAYERS}
REDUCERS = {
    "random": {"keep_tokens": 5},
    "prune": {"keep_ratio": 0.5},
    "evit": {"keep_tokens": 5},
    "tome": {"keep_tokens": 9},
    "nearest": {"keep_tokens": 6},
    "pool": {"keep_side": 2},
    "dct": {"keep_side": 3, "reducer_options": {"norm": "mean"}},
    "row": {"keep_tokens": 4},
    "column": {"keep_tokens": 5},
    "projection": {"keep_tokens": 4},
}
LEFT = {"random": 5, "prune": 4, "evit": 5, "tome": 9, "nearest": 6, "pool": 4, "dct": 9, "row": 4, "column": 5}


def model_with(kind=None, **fields) -> LVLMForConditionalGeneration:
    """A tiny one with the weights of a seed, whatever its reducer and its place."""
    given = {} if kind is None else {"reducer": kind, "reduce_after": AFTER, **REDUCERS[kind]}
    config = tiny_config(**{"vision_config": EYES, "text_config": TEXT_CONFIG, **given, **fields})
    return spread(LVLMForConditionalGeneration(config))


def run_layer(decoder, layer, states, places):
    """One layer of a LLaMA over states [1, S, d] at `places` [S], each of which reads those before it."""
    mask = additive(torch.ones(1, 1, len(places), len(places), dtype=torch.bool).tril(), states.dtype)
    turned = decoder.rotary_emb(states, places[None])
    return layer(states, attention_mask=mask, position_embeddings=turned)


def importance_by_hand(model, layer, states, where):
    """How much the tokens at `where` attend to each other in a layer of a LLaMA."""
    own, decoder = layer.self_attn, model.language_model.model
    x = layer.input_layernorm(states)
    cos, sin = (one[:, None] for one in decoder.rotary_emb(states, torch.arange(states.shape[1])[None]))
    q, k = (project(x).unflatten(-1, (-1, own.head_dim)).transpose(1, 2) for project in (own.q_proj, own.k_proj))
    q, k = (one * cos + torch.cat([-one[..., 4:], one[..., :4]], -1) * sin for one in (q, k))
    return mean_importance(q[:, :, where], k[:, :, where])


def by_hand(model, kind, ids, pictures):
    """Scores [1, S, V] of a prompt with one picture, layer by layer in plain steps, and the S positions that the later
    layers read."""
    decoder = model.language_model.model
    states = model.embed(ids, model.encode_images(pictures))
    where = (ids[0] == SLOT).nonzero()[:, 0]
    places = torch.arange(ids.shape[1])
    for layer in decoder.layers[:AFTER]:
        before, states = states, run_layer(decoder, layer, states, places)
    fields = REDUCERS[kind]
    number = (
        (fields["keep_side"],) * 2 if "keep_side" in fields else (2, 2) if kind == "prune" else fields["keep_tokens"]
    )
    reducer = create(kind, **fields.get("reducer_options", {}))
    weights = importance_by_hand(model, decoder.layers[AFTER - 1], before, where)
    found = reducer(states[:, where], number, importance=weights, grid=(4, 4))
    if found.centres is not None:
        at = found.centres[0]
    else:
        at = {"pool": [5, 7, 13, 15], "dct": [0, 2, 3, 8, 10, 11, 12, 14, 15], "projection": [2, 6, 10, 14]}[kind]
        at = torch.tensor(at)
    rows = torch.cat([found.matrix[0] @ states[0, where], states[0, ids[0] != SLOT]])
    places = torch.cat([where[at], (ids[0] != SLOT).nonzero()[:, 0]])
    order = places.argsort()
    states, places = rows[order][None], places[order]
    for layer in decoder.layers[AFTER:]:
        states = run_layer(decoder, layer, states, places)
    return model.language_model.lm_head(decoder.norm(states)), places


@pytest.mark.light("token-transforming", "exact")
@pytest.mark.parametrize("kind", REDUCERS)
def test_words_are_scored_as_by_plain_steps_through_the_layers(kind):
    model, ids = model_with(kind), torch.tensor([[BEGIN, *words(2), *PICTURE, *words(4, 1)]])
    wanted, places = by_hand(model, kind, ids, shown(1))
    assert len(places) == ids.shape[1] - N + LEFT.get(kind, 4)
    found = model(ids, pixel_values=shown(1)).logits
    torch.testing.assert_close(found[:, places], wanted, atol=1e-5, rtol=1e-5)
    assert (found - model_with()(ids, pixel_values=shown(1)).logits)[:, -1].abs().max() > 1e-3


@pytest.mark.light("token-transforming", "exact")
@pytest.mark.parametrize("kind", [kind for kind in LANGUAGE_MODELS if kind != "bloom"])
def test_dropped_tokens_are_those_that_later_layers_of_any_language_model_cannot_see(kind):
    fields = {"image_token_id": VOCABULARY, "connector": "linear", "vision_feature_layer": -1}
    parts = create_backbone("vit-mini", image_size=12), causal_model(kind, **LANGUAGE_MODELS[kind])
    bare = LVLMForConditionalGeneration.from_parts(*parts, **fields).eval()
    few = {"reducer": "random", "reduce_after": 1, "keep_tokens": 4}
    model = LVLMForConditionalGeneration.from_parts(*parts, **fields, **few).eval()
    model.connector = bare.connector
    number, picture = model.num_image_tokens(), pixels(1, size=12)
    ids = torch.tensor([[BEGIN, *[VOCABULARY] * number, *words(5)]])
    seen = torch.ones(ids.shape[1], dtype=torch.bool)
    seen[1 : number + 1] = False
    seen[1 + create("random")(torch.zeros(1, number, 1), 4).centres[0]] = True
    mask = (seen & torch.ones(len(seen), len(seen), dtype=torch.bool).tril()) | torch.eye(len(seen), dtype=torch.bool)
    ready = ready_mask(bare.language_model, mask[None, None], torch.float32)
    layer = decoder_of(bare.language_model)[1][1]
    with at_door(layer, lambda states, named: (states, {**named, "attention_mask": ready})):
        wanted = bare(ids, pixel_values=picture).logits
    assert number == 9
    torch.testing.assert_close(model(ids, pixel_values=picture).logits[:, seen], wanted[:, seen], atol=1e-5, rtol=1e-5)


@pytest.mark.light("token-transforming", "exact")
def test_with_nothing_taken_away_the_model_is_the_plain_one_bit_for_bit():
    ids, plain = torch.tensor([[BEGIN, *PICTURE, *words(4)]]), model_with()
    wanted = plain(ids, pixel_values=shown(1)).logits
    for fields in ({"keep_ratio": 1.0}, {"keep_tokens": N}, {"keep_side": 4}, {"keep_side": 9}):
        model = model_with(reducer="column", reduce_after=2, **fields)
        assert torch.equal(model(ids, pixel_values=shown(1)).logits, wanted)
        assert model.state_dict().keys() == plain.state_dict().keys()
    text = torch.tensor([[BEGIN, *words(8)]])
    model = model_with("column")
    assert torch.equal(model(text).logits, plain(text).logits)
    assert model.num_image_tokens() == plain.num_image_tokens() == N
    assert torch.equal(model.encode_images(shown(2)), plain.encode_images(shown(2)))


@pytest.mark.light("token-transforming", "exact")
def test_words_before_a_picture_are_those_of_the_plain_model_and_later_pictures_change_none_before_them():
    model, plain = model_with("column"), model_with()
    ids = torch.tensor([[BEGIN, *words(3), *PICTURE, *words(2), *PICTURE, *words(2)]])
    one, other = shown(2), torch.cat([shown(1), shown(1, seed=9)])
    first, second = (model(ids, pixel_values=pictures).logits for pictures in (one, other))
    torch.testing.assert_close(first[:, :4], plain(ids, pixel_values=one).logits[:, :4], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(first[:, : N + 6], second[:, : N + 6], atol=1e-5, rtol=1e-5)
    assert (first - second)[:, -1].abs().max() > 1e-3


@pytest.mark.light("token-transforming", "exact")
@pytest.mark.parametrize("strategy", ["default", "full"])
@pytest.mark.parametrize("kind", ["prune", "column"])
def test_decoding_from_the_cache_is_recomputing_without_it_in_rows_of_different_lengths(kind, strategy):
    model, pictures = model_with(kind, vision_feature_select_strategy=strategy), shown(3)
    picture = [SLOT] * model.num_image_tokens()
    rows = [BEGIN, *picture, *words(3)], [BEGIN, *words(2, 1), *picture, *picture, *words(1, 2)], [BEGIN, *words(9, 3)]
    batch = left_padded(*rows)
    embeds, cache = model.encode_images(pictures), DynamicCache(config=model.config.text_config)
    length = batch["input_ids"].shape[1]
    mask = torch.cat([batch["attention_mask"], torch.ones(3, 4, dtype=torch.long)], 1)
    places = (mask.cumsum(-1) - 1).clamp_min(0)
    said = torch.tensor([words(4, seed) for seed in (5, 6, 7)])
    given = {"past_key_values": cache, "use_cache": True}
    steps = [model(**batch, position_ids=places[:, :length], image_embeds=embeds, **given).logits[:, -1:]]
    for step in range(4):
        end = length + step + 1
        words_now = {"position_ids": places[:, end - 1 : end], "attention_mask": mask[:, :end]}
        steps.append(model(said[:, step : step + 1], **words_now, **given).logits)
    assert cache.get_seq_length(0) == length + 4 > cache.get_seq_length(AFTER)
    for number, (row, own) in enumerate(zip(rows, (embeds[:1], embeds[1:], None), strict=True)):
        alone = model(torch.tensor([[*row, *said[number].tolist()]]), image_embeds=own).logits[0, len(row) - 1 :]
        torch.testing.assert_close(torch.cat(steps, 1)[number], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.light("token-transforming", "exact")
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"cache_implementation": "static"}, {"use_cache": False}])
def test_batched_generation_is_single_generation_and_cached_is_uncached(options):
    model, pictures = model_with("evit"), shown(3)
    rows = [BEGIN, *PICTURE, *words(3)], [BEGIN, *words(2, 1), *PICTURE, *words(1, 2), *PICTURE], [BEGIN, *words(9, 3)]
    batched = model.generate(**left_padded(*rows), pixel_values=pictures, **GREEDY, **options)
    beams = {key: value for key, value in options.items() if key == "num_beams"}
    for row, ids, own in zip(batched, rows, (pictures[:1], pictures[1:], None), strict=True):
        alone = model.generate(torch.tensor([ids]), pixel_values=own, **GREEDY, **beams)
        assert row[-6:].tolist() == alone[0, len(ids) :].tolist()


@pytest.mark.light("token-transforming", "exact")
def test_a_second_turn_with_a_picture_goes_on_from_the_cache_as_if_all_were_read_anew():
    model, pictures = model_with("column"), shown(2)
    first, second = [BEGIN, *PICTURE, *words(3)], [*words(2, 1), *PICTURE, *words(2, 2)]
    whole = model(torch.tensor([[*first, *second]]), pixel_values=pictures).logits
    cache = model(torch.tensor([first]), pixel_values=pictures[:1], use_cache=True).past_key_values
    found = model(torch.tensor([second]), pixel_values=pictures[1:], past_key_values=cache).logits
    torch.testing.assert_close(found[:, -2:], whole[:, -2:], atol=1e-5, rtol=1e-5)


@pytest.mark.light("token-transforming", "exact")
@pytest.mark.parametrize("kind", REDUCERS)
def test_packed_loss_is_that_of_single_samples(kind):
    model, pictures = model_with(kind), shown(3)
    parts = [
        sequence([BEGIN, *PICTURE, *words(5, 1), END], N + 2),
        sequence([BEGIN, *words(2, 2), *PICTURE, *words(1, 3), *PICTURE, *words(3, 4), END], 2 * N + 4),
        sequence([BEGIN, *words(4, 5), END], 3),
    ]
    batch = collate_rows([[parts[0], parts[2]], [parts[1]]], row_length=48, pad_id=0)
    packed = model(batch.input_ids, labels=batch.labels, segment_ids=batch.segment_ids, pixel_values=pictures)
    alone = []
    for part, own in ((parts[0], pictures[:1]), (parts[2], None), (parts[1], pictures[1:])):
        ids, labels = torch.from_numpy(part.input_ids).long()[None], torch.from_numpy(part.labels)[None]
        alone.append(model(ids, labels=labels, pixel_values=own).text)
    wanted = sum(one.total for one in alone) / sum(one.number for one in alone)
    torch.testing.assert_close(packed.loss, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.light("token-transforming", "exact")
def test_gradients_pass_through_the_reducer_the_same_with_layers_computed_twice():
    ids, found = torch.tensor([[BEGIN, *PICTURE, *words(4)]]), []
    for again in (False, True):
        model = model_with("column").train()
        if again:
            model.gradient_checkpointing_enable()
        model(ids, labels=ids.masked_fill(ids == SLOT, IGNORED), pixel_values=shown(1)).loss.backward()
        read = model.vision.vision.encoder.layers[1].mlp.fc2.weight, model.connector.mlp.fc1.weight
        found.append([*(weight.grad for weight in read), model.language_model.model.layers[0].mlp.up_proj.weight.grad])
    assert all(gradient.any() for gradient in found[0])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("kind", ["evit", "column"])
def test_under_autocast_the_scores_are_those_of_full_precision_but_for_rounding(kind):
    model, ids = model_with(kind), torch.tensor([[BEGIN, *PICTURE, *words(4)]])
    embeds = model.encode_images(shown(1))
    wanted = model(ids, image_embeds=embeds).logits[:, -1].softmax(-1)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(ids, image_embeds=embeds).logits[:, -1].float().softmax(-1)
    assert (found - wanted).abs().sum() < 0.1


@pytest.mark.light("token-transforming", "exact")
def test_a_saved_model_answers_as_before_and_its_configuration_is_whole(tmp_path):
    model, ids = model_with("dct"), torch.tensor([[BEGIN, *PICTURE, *words(4)]])
    model.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert torch.equal(again(ids, pixel_values=shown(1)).logits, model(ids, pixel_values=shown(1)).logits)
    assert LVLMConfig.from_pretrained(tmp_path).to_dict() == model.config.to_dict()
    assert again.config.reduce_after == AFTER


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"reduce_after": 1}, "reduce_after is 1, and reducer names none; name it too"),
        ({"reducer": "pool", "keep_side": 2, "reduce_after": 0}, "reduce_after is 0, and the language model has 3"),
        ({"reducer": "pool", "keep_side": 2, "reduce_after": 3}, "has 3 layers; give 1 to 2"),
        ({"reducer": "tome", "keep_tokens": 5, "reduce_after": 1}, "'tome' cannot stand inside .* merges at most half"),
        ({"reducer": "pool", "keep_tokens": 17, "reduce_after": 1}, "17 tokens cannot be made of 16"),
    ],
)
def test_a_place_that_cannot_be_is_one_sentence(fields, said):
    with pytest.raises(UserError, match=said):
        model_with(**fields)


def test_what_cannot_be_reduced_inside_a_language_model_is_one_sentence():
    few = {"reduce_after": 1, "keep_tokens": 7, "vision_feature_layer": None}
    with pytest.raises(UserError, match="nothing can be changed between the layers of a bloom"):
        with_language("bloom", reducer="pool", **few)
    with pytest.raises(UserError, match="'prune' asks how important .* 'eager' attention of a gemma2 does not say"):
        with_language("gemma2", reducer="prune", **few)
    model = model_with("pool")
    with pytest.raises(UserError, match="a row has 8 placeholders, and a picture takes 16; whole pictures alone"):
        model(torch.tensor([[BEGIN, *[SLOT] * 8]]), image_embeds=torch.zeros(1, 8, 32))
    with pytest.raises(UserError, match="a picture takes 4 tokens, and those inside the language model"):
        model.encode_images(torch.zeros(1, 3, 16, 16))
    with pytest.raises(UserError, match="give input_ids, which say where they stand, not inputs_embeds"):
        model(inputs_embeds=torch.zeros(1, 4, 32))
