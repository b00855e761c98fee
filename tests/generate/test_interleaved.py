"""Free-running generation against the plain forward pass, whatever the batch and the padding."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model

from tessera.errors import DataError, UserError
from tessera.generate.cached import CachedDecoder
from tessera.generate.interleaved import generate
from tessera.generate.reply import Prompt
from tessera.generate.sampling import Sampling
from tessera.layers.placeholders import fill
from tessera.models.vlgpt import lora_config
from tests.models.vlgpt_tiny import (
    BEGIN,
    END,
    PICTURE,
    SLOT,
    START,
    STOP,
    D,
    N,
    pixels,
    text_config,
    tiny_model,
    words,
)

HIDING = {"visual_input_dropout": 0.5}  # masks stand for what is being drawn
PROJECTED = {"visual_projector": "mlp"}  # what is read of an embedding is not the embedding
KINDS = [{}, HIDING, PROJECTED, HIDING | PROJECTED]


def model_of(seed=0, **fields):
    """A random model whose embeddings are large enough for words to differ in what follows."""
    model = tiny_model(seed, **fields).eval()
    for parameter in model.language_model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(6)
    return model


def liking(model, word, by=30.0):
    """The model with an output row that makes it say `word` wherever it may."""
    rows = model.image_token_rows
    hidden = model(torch.tensor([[BEGIN, *words(3)]])).hidden[0, -1]
    row = rows.head.data[rows.ids.index(word)] if word in rows.ids else model.language_model.lm_head.weight.data[word]
    row.copy_(hidden / hidden.norm() * by)
    return model


def prompts(model):
    """Eight prompts of different lengths, some with pictures, some ending in [IMG]."""
    embeds = model.encode_images(pixels(8))
    made = [Prompt([BEGIN, *words(3 + 2 * i, i)]) for i in range(4)]
    made += [Prompt([BEGIN, *PICTURE, *words(i, i)], embeds[i : i + 1]) for i in range(2)]
    made += [Prompt([BEGIN, *words(2), *PICTURE, *words(1, 3), *PICTURE, *words(4, 4)], embeds[4:6])]
    return [*made, Prompt([BEGIN, *words(4, 9), START])]


def plain(model, prompt, max_new_tokens, max_images=1):
    """The same by the whole forward pass at every step: words and pictures as they come."""
    ids, embeds = list(prompt.input_ids), prompt.image_embeds
    fresh = torch.zeros(0, D) if embeds is None else model.read_embeds(embeds).flatten(0, 1)
    pieces, left, images = [], max_new_tokens, max_images
    drawing = ids[-1] == START
    while left:
        if drawing:
            picture, before = [], fresh
            for i in range(N):
                hidden = run(model, torch.tensor([ids]), fresh)
                picture.append(model.regression_head(hidden[-1]))
                hides = model.visual_mask is not None
                read = model.visual_mask.weight[i : i + 1] if hides else model.read_embeds(picture[-1][None], i)
                ids, fresh = [*ids, SLOT], torch.cat([fresh, read])
            pieces.append(torch.stack(picture))
            fresh = torch.cat([before, model.read_embeds(pieces[-1])])
            ids, drawing, images = [*ids, STOP], False, images - 1
        scores = model.logits(run(model, torch.tensor([ids]), fresh)[-1]).clone()
        scores[[SLOT, STOP, *([] if images > 0 else [START])]] = -torch.inf
        word = int(scores.argmax())
        ids.append(word)
        drawing = word == START
        if word == END:
            break
        if not drawing:
            pieces.append(word)
            left -= 1
    return pieces


@torch.no_grad()
def run(model, ids, flat):
    """Hidden states [L, d]; `flat` [K, d] is read at the K placeholders, one row each."""
    embeds = fill(model.embed_tokens(ids), ids == SLOT, flat[:, None]) if len(flat) else model.embed_tokens(ids)
    return model.language_model.model(inputs_embeds=embeds).last_hidden_state[0]


def pieces_of(reply):
    return [p for s in reply.segments for p in (s.ids if hasattr(s, "ids") else [s.embeds])]


def assert_same(ours, theirs):
    assert [isinstance(p, int) for p in ours] == [isinstance(p, int) for p in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        if isinstance(mine, int):
            assert mine == other
        else:
            torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-4)


@pytest.mark.light("vl-gpt", "exact")
def test_teacher_forced_regressions_and_scores_equal_step_by_step_ones_with_the_cache():
    model, embeds = model_of(), None
    ids = torch.tensor([[BEGIN, *words(3), *PICTURE, *words(5), END]])
    embeds = model.encode_images(pixels(1))
    with torch.no_grad():
        whole = model(ids, image_embeds=embeds).hidden
        inputs = model.embed(ids, embeds)
        decoder = CachedDecoder(model.language_model.model, 1, ids.shape[1])
        places = torch.arange(ids.shape[1])[None]
        steps = [decoder.run(inputs[:, i : i + 1], places[:, i : i + 1]) for i in range(ids.shape[1])]
        stepped = torch.cat(steps, dim=1)
        for head in (model.regression_head, model.logits):
            assert (head(whole) - head(stepped)).abs().max() < 1e-4


@pytest.mark.parametrize("groups", [4, 2])
@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_the_cache_gives_the_same_states_in_any_chunks_and_with_shared_heads(chunk, groups):
    llama = tiny_model(text=text_config(num_key_value_heads=groups)).eval().language_model.model
    x, places = torch.randn(2, 7, D), torch.arange(7).expand(2, -1)
    with torch.no_grad():
        whole = llama(inputs_embeds=x).last_hidden_state
        decoder = CachedDecoder(llama, 2, 7)
        parts = [decoder.run(x[:, i : i + chunk], places[:, i : i + chunk]) for i in range(0, 7, chunk)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="holds 7 positions, 8 are needed"):
        decoder.run(x[:, :1], places[:, :1])


@pytest.mark.parametrize("fields", KINDS)
@pytest.mark.parametrize("seed", [0, 1])
def test_with_the_cache_greedy_replies_equal_those_without(seed, fields):
    model = model_of(seed, **fields)
    for prompt in prompts(model):
        assert_same(pieces_of(generate(model, [prompt], max_new_tokens=6)[0]), plain(model, prompt, 6))


@pytest.mark.parametrize("fields", KINDS)
def test_pictures_that_the_model_begins_itself_equal_those_without_the_cache(fields):
    model = liking(model_of(**fields), START)
    for prompt in prompts(model)[:3]:
        reply = generate(model, [prompt], max_new_tokens=4, max_images=2)[0]
        assert len(reply.pictures) >= 1
        assert_same(pieces_of(reply), plain(model, prompt, 4, 2))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("like", [None, START, END])
@pytest.mark.parametrize("fields", KINDS)
def test_batch_of_eight_with_either_padding_replies_as_one_by_one(side, like, fields):
    model = model_of(**fields) if like is None else liking(model_of(**fields), like, by=8.0)
    given = prompts(model)
    alone = [generate(model, [prompt], max_new_tokens=8)[0] for prompt in given]
    together = generate(model, given, max_new_tokens=8, padding_side=side)
    for one, other in zip(alone, together, strict=True):
        assert one.ended == other.ended
        assert_same(pieces_of(one), pieces_of(other))


def test_forced_picture_comes_first_and_has_exactly_n_embeddings():
    model = model_of()
    for prompt in (Prompt([BEGIN, *words(4)]), Prompt([BEGIN, *words(4), START])):
        alone = generate(model, [prompt], images="forced", max_new_tokens=0)[0]
        assert [p.shape for p in alone.pictures] == [(N, D)] and alone.ids == [] and not alone.ended
        more = generate(model, [prompt], images="forced", max_new_tokens=3)[0]
        assert torch.equal(more.pictures[0], alone.pictures[0]) and len(more.segments) == 2


def test_images_never_and_the_most_images_are_kept():
    model = liking(model_of(), START)
    prompt = Prompt([BEGIN, *words(3)])
    assert generate(model, [prompt], images="never", max_new_tokens=5)[0].pictures == []
    assert len(generate(model, [prompt], max_images=3, max_new_tokens=5)[0].pictures) <= 3
    assert generate(model, [prompt], max_images=0, max_new_tokens=5)[0].pictures == []


def test_delimiters_and_placeholders_are_never_said():
    for word in (STOP, SLOT):
        model = liking(model_of(), word)
        reply = generate(model, [Prompt([BEGIN, *words(3)])], max_new_tokens=8)[0]
        assert not {STOP, SLOT, START} & set(reply.ids) and len(reply.ids) <= 8


def test_the_end_token_ends_a_reply_and_is_not_part_of_it():
    reply = generate(liking(model_of(), END), [Prompt([BEGIN, *words(3)])], max_new_tokens=8)[0]
    assert reply.ended and END not in reply.ids and len(reply.ids) < 8


def test_the_head_may_be_asked_for_the_end_of_image():
    free, forced = model_of(force_image_end=False), model_of()
    prompt = Prompt([BEGIN, *words(3), START])
    assert torch.equal(*(generate(m, [prompt], max_new_tokens=4)[0].pictures[0] for m in (free, forced)))
    willing = liking(free, STOP)
    liking(forced, STOP)
    assert generate(willing, [prompt], max_new_tokens=4)[0].ids == generate(forced, [prompt], max_new_tokens=4)[0].ids


def test_draws_repeat_with_the_seed():
    model, given = model_of(), [Prompt([BEGIN, *words(3)])] * 2
    hot = Sampling(temperature=3.0)
    replies = [
        [r.ids for r in generate(model, given, sampling=hot, generator=torch.Generator().manual_seed(seed))]
        for seed in (5, 5, 6)
    ]
    assert replies[0] == replies[1] != replies[2] and replies[0][0] != replies[0][1]


def test_pieces_are_streamed_in_the_order_of_the_reply_and_an_exception_stops():
    model, heard = liking(model_of(), START), {}
    given = prompts(model)[:3]
    replies = generate(model, given, max_new_tokens=4, on_piece=lambda i, p: heard.setdefault(i, []).append(p))
    for index, reply in enumerate(replies):
        assert_same(heard[index], pieces_of(reply))

    def leave(index, piece):
        raise ConnectionError

    with pytest.raises(ConnectionError):
        generate(model, given, on_piece=leave)


def test_a_tokenizer_fills_in_the_text():
    class Speller:
        def decode(self, ids, skip_special_tokens):
            return "".join(f" w{i}" for i in ids)

    reply = generate(model_of(), [Prompt([BEGIN, *words(3)])], max_new_tokens=3, tokenizer=Speller())[0]
    assert reply.text == " ".join(f"w{i}" for i in reply.ids)


def test_adapters_take_part():
    torch.manual_seed(2)
    model = model_of()
    wrapped = get_peft_model(model, lora_config(model.config))
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    given = [Prompt([BEGIN, *words(3)]), Prompt([BEGIN, *words(5), START])]
    adapted = [pieces_of(r) for r in generate(wrapped, given, max_new_tokens=6)]
    with wrapped.disable_adapter():
        bare = [pieces_of(r) for r in generate(wrapped, given, max_new_tokens=6)]
    merged = wrapped.merge_and_unload()
    for ours, theirs in zip(adapted, generate(merged, given, max_new_tokens=6), strict=True):
        assert_same(ours, pieces_of(theirs))
    assert adapted[0] != bare[0]


def test_training_mode_returns_and_pictures_may_be_trained_on():
    model = model_of().train()
    reply = generate(model, [Prompt([BEGIN, START])], max_new_tokens=0)[0]
    assert model.training and not reply.pictures[0].is_inference()
    model.regression_head(reply.pictures[0]).sum().backward()


def test_replies_stop_at_the_last_position_of_the_model():
    model = model_of(text=text_config(max_position_embeddings=12))
    reply = generate(model, [Prompt([BEGIN, *words(7)])], max_new_tokens=50)[0]
    assert len(reply.ids) == 5 and not reply.ended  # four more are read, and one more is said
    liking(model, START)
    assert generate(model, [Prompt([BEGIN, *words(7)])], max_new_tokens=50)[0].pictures == []
    assert len(generate(model, [Prompt([BEGIN, *words(4)])], max_new_tokens=50)[0].pictures) == 1


def test_prompts_that_cannot_be_answered_are_told_in_one_sentence():
    model = model_of(text=text_config(max_position_embeddings=12))
    with pytest.raises(UserError, match="at least one prompt"):
        generate(model, [])
    with pytest.raises(UserError, match="prompt 0 is empty"):
        generate(model, [Prompt([])])
    with pytest.raises(UserError, match="prompt 1 has 12 positions and its reply needs 1 more, but the model reads 12"):
        generate(model, [Prompt([BEGIN]), Prompt([BEGIN, *words(11)])])
    with pytest.raises(UserError, match="needs 5 more"):
        generate(model, [Prompt([BEGIN, *words(7)])], images="forced")
    with pytest.raises(DataError, match="4 image placeholders but 0"):
        generate(model, [Prompt([BEGIN, *PICTURE])])
