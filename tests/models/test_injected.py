"""A language model with injected class tokens: its identities, at tiny size in fp32."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from transformers import DynamicCache, StaticCache

from tessera.errors import CheckpointError, TrainingStopped, UserError
from tessera.models.folder import read_folder
from tessera.models.injected import InjectedLMForConditionalGeneration
from tessera.models.injected.modeling import TRAINED
from tessera.models.lvlm.layers import decoder_of
from tessera.vision.registry import create
from tests.models.injected_tiny import END, FIELDS, LAYERS, LEVELS, START, P, sentences, tiny_config, tiny_model
from tests.models.lvlm_tiny import CONTEXT, D, causal_model, left_padded, pixels, words

GREEDY = {"do_sample": False, "max_new_tokens": 5, "eos_token_id": None, "pad_token_id": 0}
IDS, SEEN = sentences(0, 1), pixels(2)


def states_of(model, *arguments, **options):
    """What every decoder layer is handed, by layer, each [B, n, d]."""
    found = {}
    layers = decoder_of(model.language_model)[1]
    hooks = [
        layer.self_attn.register_forward_pre_hook(
            lambda _, given, named, place=place: found.__setitem__(place, named["hidden_states"].clone()),
            with_kwargs=True,
        )
        for place, layer in enumerate(layers)
    ]
    model(*arguments, **options)
    for hook in hooks:
        hook.remove()
    return found


def opt_by_hand(model, ids, tokens, prompt, valid):
    """The official decoder in plain matrix products, for tokens [K, B, d] of layers START .. END - 1 and a prompt
    [P, d]: the row of the injected token is all zeros, so that it reads everything, padding too; which stands at the
    second row of the table of positions, and reads the words before it."""
    decoder = model.language_model.model.decoder
    places = valid.cumsum(1) * valid - 1 + 2
    x = torch.cat(
        [prompt.expand(len(ids), -1, -1), decoder.embed_tokens(ids) + decoder.embed_positions.weight[places]], 1
    )
    mask = torch.full((x.shape[1],) * 2, float("-inf")).triu(1)
    hidden = F.pad(valid == 0, (len(prompt), 0))[:, None, None]
    mask = mask.masked_fill(hidden, float("-inf"))
    for place, layer in enumerate(decoder.layers):
        if START <= place < END:
            token = tokens[place - START][:, None]
            if place == START:
                x, mask = torch.cat([token, x], 1), F.pad(mask, (1, 0, 1, 0))
            x = torch.cat([token, x[:, 1:]], 1)
        y, own = layer.self_attn_layer_norm(x), layer.self_attn
        heads = [
            one(y).unflatten(-1, (own.num_heads, -1)).transpose(1, 2) for one in (own.q_proj, own.k_proj, own.v_proj)
        ]
        scores = heads[0] @ heads[1].mT * own.head_dim**-0.5 + mask
        x = x + own.out_proj((scores.softmax(-1) @ heads[2]).transpose(1, 2).flatten(2))
        x = x + layer.fc2(F.relu(layer.fc1(layer.final_layer_norm(x))))
    return model.language_model.lm_head(decoder.final_layer_norm(x))[:, 1 + len(prompt) :]


@pytest.mark.light("ep-alm", "exact")
def test_without_picture_and_prompt_it_is_the_plain_language_model_bit_for_bit():
    model = tiny_model(prompt_length=0)
    mask = torch.tensor([[1] * 7, [1] * 5 + [0] * 2])
    plain = model.language_model(IDS, attention_mask=mask, use_cache=False).logits
    assert torch.equal(model(IDS, attention_mask=mask).logits, plain)


@pytest.mark.light("ep-alm", "exact")
@pytest.mark.parametrize("padded", [slice(0), slice(-3, None), slice(3)], ids=["none", "right", "left"])
def test_faithful_is_the_official_decoder_and_its_loss(padded):
    model, valid = tiny_model(attention="faithful"), torch.ones_like(IDS)
    valid[1, padded] = 0
    seen = model.encode_images(SEEN)
    tokens = [model.connector[place].project(seen[:, place]) for place in range(LEVELS)]  # 3 layers, one level each
    wanted = opt_by_hand(model, IDS, tokens, model.prompt(), valid)
    ours = model(IDS, pixel_values=SEEN, attention_mask=valid).logits
    torch.testing.assert_close(ours, wanted, atol=1e-6, rtol=1e-5)  # padding too
    if not valid.all():
        return
    sums = F.cross_entropy(wanted[:, :-1].transpose(1, 2), IDS[:, 1:], reduction="none").sum(1)
    torch.testing.assert_close(model(IDS, labels=IDS, pixel_values=SEEN).loss, 0.1 * sums.mean())


def test_faithful_takes_padding_with_a_language_model_whose_positions_begin_at_zero():
    model, valid = tiny_model("gpt2", attention="faithful", end=LAYERS), torch.ones_like(IDS)
    valid[1, -3:] = 0
    padded = model(IDS, pixel_values=SEEN, attention_mask=valid).logits[1, :-3]
    alone = model(IDS[1:, :-3], pixel_values=SEEN[1:]).logits[0]
    torch.testing.assert_close(padded, alone, atol=1e-5, rtol=1e-4)


@pytest.mark.light("ep-alm", "exact")
@pytest.mark.parametrize(
    ("fields", "leaks"), [({}, 0), ({"attention": "faithful"}, 1), ({"attention": "faithful", "end": LAYERS}, 0)]
)
def test_a_word_learns_of_later_ones_only_where_the_token_reads_all_and_a_layer_is_left_alone(fields, leaks):
    model = tiny_model(**fields)
    other = IDS.clone()
    other[:, -1] = 6 + (other[:, -1] - 5) % 30
    first, second = (model(ids, pixel_values=SEEN).logits[:, :-1] for ids in (IDS, other))
    assert model.config.leaks == bool(leaks)
    assert torch.equal(first, second) != bool(leaks)


@pytest.mark.light("ep-alm", "exact")
def test_nothing_changes_before_the_layer_where_the_token_enters():
    model = tiny_model()
    seen = model.encode_images(SEEN)
    changed = seen.clone()
    changed[:, 0] += 1.0  # of the shallowest level, which serves the first touched layer
    ours, other, blind = (states_of(model, IDS, class_states=one) for one in (seen, changed, None))
    for place in range(START):
        assert torch.equal(ours[place], other[place])
        assert torch.equal(ours[place], blind[place])
        assert ours[place].shape[1] == P + IDS.shape[1]
    assert all(ours[place].shape[1] == 1 + P + IDS.shape[1] for place in range(START, LAYERS))
    assert not torch.equal(ours[START], other[START])
    assert torch.equal(ours[START][:, 1:], other[START][:, 1:]), "the words there have not read it yet"


@pytest.mark.light("ep-alm", "exact")
def test_overwriting_equals_putting_before_and_dropping_at_each_layer():
    """The causal decoder as a loop over its own layers, the token dropped after each and put before the next anew."""
    model = tiny_model("llama", end=LAYERS, levels=2)
    seen = model.encode_images(SEEN)
    base = model.language_model.model
    length = P + IDS.shape[1]
    x = torch.cat([model.prompt().expand(2, -1, -1), base.embed_tokens(IDS)], 1)
    places = torch.cat([torch.zeros(P), torch.arange(IDS.shape[1])]).long()[None]  # position 0 rotates nothing
    for place, layer in enumerate(base.layers):
        extra = int(place >= START)
        if extra:
            level = model.config.level(place)
            x = torch.cat([model.connector[level].project(seen[:, level : level + 1]), x], 1)
        mask = torch.ones(extra + length, extra + length, dtype=torch.bool).tril()
        mask[0, : 1 + P] |= bool(extra)  # the token reads the prompt too
        angles = base.rotary_emb(x, F.pad(places, (extra, 0)))
        x = layer(x, attention_mask=mask[None, None], position_embeddings=angles)[:, extra:]
    wanted = model.language_model.lm_head(base.norm(x))[:, P:]
    torch.testing.assert_close(model(IDS, pixel_values=SEEN).logits, wanted, atol=1e-6, rtol=1e-5)
    assert [model.config.level(place) for place in range(START, LAYERS)] == [0, 0, 1, 1]


@pytest.mark.light("ep-alm", "exact")
def test_class_tokens_are_those_of_the_last_blocks_after_the_final_norm_and_others_do_not_count():
    model = tiny_model()
    inner = model.vision.vision
    hidden = inner(SEEN, output_hidden_states=True).hidden_states
    wanted = torch.stack([inner.post_layernorm(state[:, 0]) for state in hidden[-LEVELS:]], 1)
    torch.testing.assert_close(model.encode_images(SEEN), wanted)
    assert len(hidden) == LEVELS + 2  # one more block, and what it read
    before = model(IDS, class_states=wanted).logits
    assert not torch.equal(before, model(IDS, class_states=wanted.roll(1, dims=1)).logits)


@pytest.mark.light("ep-alm", "exact")
def test_gradients_reach_connector_and_prompt_alone():
    model = tiny_model().train()
    assert not model.vision.training and not model.language_model.training
    model(IDS, labels=IDS, pixel_values=SEEN).loss.backward()
    reached = {name for name, weight in model.named_parameters() if weight.grad is not None}
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert reached == trained == {name for name, _ in model.trained().named_parameters()}
    assert all(weight.grad.abs().sum() > 0 for weight in model.trained().parameters())


@pytest.mark.light("ep-alm", "exact")
@pytest.mark.parametrize("kind", ["opt", "llama", "gpt2", "phi", "falcon", "gemma2", "cohere"])
def test_any_language_model_says_with_a_cache_what_it_says_without_in_padded_batches_too(kind):
    model = tiny_model(kind)
    prompts = left_padded(words(6), words(4, 1))
    cached, uncached = (
        model.generate(**prompts, pixel_values=SEEN, use_cache=cache, **GREEDY) for cache in (True, False)
    )
    assert torch.equal(cached, uncached)
    alone = model.generate(torch.tensor([words(4, 1)]), pixel_values=SEEN[1:], **GREEDY)
    assert torch.equal(alone[0, 4:], cached[1, 6:])


def test_steps_with_a_cache_score_what_one_pass_scores_and_the_token_enters_once():
    for fields in ({}, {"start": 0, "end": 1, "levels": 1}, {"levels": 0}):
        model = tiny_model("llama", **fields)
        cache = DynamicCache()
        seen, mask = model.encode_images(SEEN), torch.ones_like(IDS)
        first = model(IDS[:, :4], class_states=seen, past_key_values=cache).logits
        rest = [
            model(IDS[:, n : n + 1], attention_mask=mask[:, : n + 1], past_key_values=cache).logits for n in (4, 5, 6)
        ]
        torch.testing.assert_close(
            torch.cat([first, *rest], 1), model(IDS, class_states=seen).logits, atol=1e-5, rtol=0
        )
        token = int(model.config.levels > 0)
        assert [cache.get_seq_length(place) - 7 - P for place in range(LAYERS)] == [
            token * int(place >= model.config.start) for place in range(LAYERS)
        ]


def test_beams_follow_their_own_pictures():
    model = tiny_model()
    both = model.generate(IDS, pixel_values=SEEN, num_beams=3, **GREEDY)
    one = model.generate(IDS[1:], pixel_values=SEEN[1:], num_beams=3, **GREEDY)
    assert torch.equal(both[1:], one)


def test_the_smallest_opt_has_a_prompt_as_wide_as_its_words_and_a_connector_as_wide_as_its_layers():
    model = tiny_model(text={"word_embed_proj_dim": 16, "do_layer_norm_before": False})
    assert model.prompt().shape == (P, 16)
    assert model.connector[0].project.out_features == D
    assert model(IDS, pixel_values=SEEN).logits.shape == (2, 7, 40)


@pytest.mark.light("ep-alm", "use")
def test_what_is_trained_is_stored_alone_or_with_the_rest_and_comes_back(tmp_path):
    torch.manual_seed(0)
    eyes, language = (
        create("vit-mini", image_size=16, patch_size=8),
        causal_model("opt", ffn_dim=48, word_embed_proj_dim=D, num_hidden_layers=LAYERS),
    )
    model = InjectedLMForConditionalGeneration.from_parts(eyes, language, **FIELDS, shared_connector=True)
    wanted = model.eval()(IDS, pixel_values=SEEN).logits
    model.save_pretrained(tmp_path / "whole")
    model.save_trained(tmp_path / "part")
    with safe_open(tmp_path / "part" / TRAINED, framework="pt") as held:
        assert set(held.keys()) == {name for name, weight in model.named_parameters() if weight.requires_grad}
    back = InjectedLMForConditionalGeneration.from_trained(tmp_path / "part", eyes, language)
    assert torch.equal(back(IDS, pixel_values=SEEN).logits, wanted)
    whole = read_folder(tmp_path / "whole", InjectedLMForConditionalGeneration, torch.float32, "cpu")
    torch.testing.assert_close(whole(IDS, pixel_values=SEEN).logits, wanted, atol=1e-6, rtol=0)
    assert {name for name, weight in whole.named_parameters() if weight.requires_grad} == {
        name for name, _ in model.trained().named_parameters()
    }
    wider = causal_model("opt", ffn_dim=48, hidden_size=64, word_embed_proj_dim=64, num_hidden_layers=LAYERS)
    with pytest.raises(CheckpointError, match="of another shape"):
        InjectedLMForConditionalGeneration.from_trained(tmp_path / "part", eyes, wider)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"start": 4, "end": 4}, "start 4 and end 4 name no layers of a language model with 6"),
        ({"end": 7}, "0 <= start < end <= 6"),
        ({"levels": 4}, "levels is 4, but 3 layers take a class token"),
        ({"prompt_length": -1}, "prompt_length is -1"),
        ({"ask": "what?"}, "it holds {} once"),
    ],
)
def test_values_that_do_not_go_together_are_refused(fields, sentence):
    with pytest.raises(UserError, match=sentence):
        tiny_config(**fields)


def test_what_cannot_be_is_said_with_its_numbers():
    model = tiny_model()
    with pytest.raises(UserError, match="1 pictures and 2 rows of words"):
        model(IDS, pixel_values=SEEN[:1])
    with pytest.raises(TrainingStopped, match="no learned word"):
        model(IDS, labels=torch.full_like(IDS, -100), pixel_values=SEEN)
    with pytest.raises(UserError, match=f"the prompt has {CONTEXT + 2} tokens .* 3 too many"):
        model.generate(sentences(0, length=CONTEXT + 2), pixel_values=SEEN[:1], **GREEDY)
    with pytest.raises(UserError, match="a static cache has no room"):
        cache = StaticCache(model.language_model.config, max_cache_len=20)
        model(IDS, pixel_values=SEEN, past_key_values=cache)
    with pytest.raises(UserError, match="give their attention_mask too"):
        cache = model(IDS, pixel_values=SEEN, use_cache=True).past_key_values
        model(IDS[:, :1], past_key_values=cache)
    with pytest.raises(UserError, match="a cache changes what is said"):
        tiny_model(attention="faithful").generate(IDS, pixel_values=SEEN, use_cache=True, **GREEDY)
    with pytest.raises(UserError, match="levels is 5, but the encoder has 4 blocks"):
        deep = tiny_model(start=0, end=6, levels=5)
        deep.encode_images(SEEN)
    with pytest.raises(UserError, match="take a LLaMA, OPT, GPT-2 or a like model"):
        tiny_model("bloom")
    with pytest.raises(UserError, match="more than the 8 that the layers of this gemma2 look back"):
        tiny_model("gemma2", text={"sliding_window": 8})(IDS, pixel_values=SEEN)
    with pytest.raises(UserError, match="with a class token first"):
        deep.vision = create("cvt-mini")  # its first stages have none
        deep.encode_images(pixels(1, size=32))


def test_faithful_generation_runs_the_whole_sequence_each_time_as_the_official_settings_have_it():
    model = tiny_model(attention="faithful")
    assert model.generate(IDS, pixel_values=SEEN, **GREEDY).shape == (2, 12)
