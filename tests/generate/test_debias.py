"""Visual debias decoding: its limits, its parity with guidance of transformers, caches, batches and searches."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import (
    LogitsProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    RepetitionPenaltyLogitsProcessor,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)

from tessera.errors import UserError
from tessera.generate.debias import VisualDebias
from tessera.generate.meaningless import meaningless
from tessera.models.lvlm import load_llava
from tests.models.lvlm_tiny import BEGIN, PICTURE, SLOT, left_padded, llava, pixels, spread, tiny_model, words

UNK = 3
NEW = 4
GREEDY = {"do_sample": False, "max_new_tokens": NEW, "eos_token_id": None, "pad_token_id": 0}
SAMPLE = {**GREEDY, "do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0}
MODELS = {"ours": tiny_model, "llava": llava}
ROWS = ([BEGIN, *PICTURE, *words(3)], [BEGIN, *words(2, 1), *PICTURE, *words(1, 2), *PICTURE, *words(2, 3)])


def one():
    return {"input_ids": torch.tensor([ROWS[0]]), "pixel_values": pixels(1)}


def several():
    return {**left_padded(*ROWS), "pixel_values": pixels(3)}


def blind(inputs, kind="none", **options):
    return meaningless(inputs, kind, image_token_id=SLOT, unk_token_id=UNK, noise_step=999, seed=5, **options)


def said(model, inputs, *processors, options=GREEDY, seed=0, **more):
    torch.manual_seed(seed)
    made = model.generate(**inputs, logits_processor=list(processors), **{**options, **more})
    return made[:, inputs["input_ids"].shape[1] :]


def traced(model, inputs, *processors, **more):
    options = {**GREEDY, "return_dict_in_generate": True, "output_scores": True, "output_logits": True, **more}
    found = model.generate(**inputs, logits_processor=list(processors), **options)
    return found.sequences, torch.stack(found.scores), torch.stack(found.logits)


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return MODELS[request.param]()


@pytest.mark.light("vdd", "exact")
@pytest.mark.parametrize("options", [GREEDY, SAMPLE])
def test_without_contrast_and_cut_every_word_is_that_of_plain_generation_with_the_same_seed(model, options):
    for seed in range(1 if options is GREEDY else 3):
        debias = VisualDebias(model, blind(several()), alpha=0, beta=0)
        plain = said(model, several(), options=options, seed=seed)
        assert said(model, several(), debias, options=options, seed=seed).tolist() == plain.tolist()


@pytest.mark.light("vdd", "exact")
@pytest.mark.parametrize("alpha", [0.5, 1.0, 7.0])
def test_a_picture_contrasted_with_itself_changes_no_score(model, alpha):
    _, scores, logits = traced(model, several(), VisualDebias(model, [several()], alpha=alpha, beta=0))
    kept = scores > -math.inf  # ours rules the placeholder out
    torch.testing.assert_close(scores[kept], logits[kept], atol=1e-5, rtol=1e-5)


@pytest.mark.light("vdd", "exact")
def test_with_only_the_best_kept_sampling_is_greedy_on_the_original_scores(model):
    debias = VisualDebias(model, blind(several(), "both"), alpha=1, beta=1)
    assert said(model, several(), debias, options=SAMPLE).tolist() == said(model, several()).tolist()


class WithPixels:
    """A model as guidance of transformers calls it, with the picture that its second context sees."""

    def __init__(self, model, shown):
        self.model, self.shown = model, shown

    def __call__(self, ids, past_key_values=None, use_cache=True, **given):
        first = past_key_values is None
        pictures = {"pixel_values": self.shown} if first and self.shown is not None else {}
        return self.model(ids, past_key_values=past_key_values, use_cache=use_cache, **pictures, **given)


@pytest.mark.light("vdd", "exact")
@pytest.mark.parametrize(
    ("kind", "use_cache", "alpha"),
    [("none", True, 0.5), ("none", True, 1.0), ("none", False, 1.0), ("unk", True, 1.0), ("noise", True, 0.5),
     ("noise", False, 1.0)],
)  # fmt: skip
def test_over_a_whole_generation_it_is_classifier_free_guidance_of_scale_one_plus_alpha(model, kind, use_cache, alpha):
    (other,) = blind(one(), kind)
    guidance = UnbatchedClassifierFreeGuidanceLogitsProcessor(
        1 + alpha, WithPixels(model, other.get("pixel_values")), other["input_ids"], use_cache=use_cache
    )
    theirs, their_scores, _ = traced(model, one(), guidance, use_cache=use_cache)
    debias = VisualDebias(model, [other], alpha=alpha, beta=1e-30, use_cache=use_cache)
    ours, our_scores, logits = traced(model, one(), debias, use_cache=use_cache)
    assert ours.tolist() == theirs.tolist()
    torch.testing.assert_close(our_scores.softmax(-1), their_scores.softmax(-1), atol=1e-5, rtol=0)
    assert (our_scores.softmax(-1) - logits.softmax(-1)).abs().max() > 1e-3


@pytest.mark.light("vdd", "exact")
@pytest.mark.parametrize("beta", [0.1, 0.2, 0.9])
def test_just_the_words_with_at_least_beta_of_the_best_original_probability_are_kept(model, beta):
    _, scores, logits = traced(model, several(), VisualDebias(model, blind(several()), alpha=1, beta=beta))
    logits[..., SLOT] = scores[..., SLOT]  # ours rules it out, and the best word is another
    shares = logits.softmax(-1)
    assert ((scores > -math.inf) == (shares >= beta * shares.amax(-1, keepdim=True))).all()
    assert (scores.gather(-1, logits.argmax(-1, keepdim=True)) > -math.inf).all()


@pytest.mark.parametrize(
    ("kind", "use_cache"),
    [("none", True), ("none", False), ("unk", True), ("noise", True), ("noise", False), ("both", True),
     ("both", False)],
)  # fmt: skip
def test_a_padded_batch_says_what_each_row_says_alone(model, kind, use_cache):
    inputs = several()
    others = blind(inputs, kind)
    batched = said(model, inputs, VisualDebias(model, others, alpha=1, use_cache=use_cache))
    shown, noisy = inputs["pixel_values"], others[0].get("pixel_values")
    for row, ids, pictures in zip(batched, ROWS, (slice(0, 1), slice(1, 3)), strict=True):
        alone = {"input_ids": torch.tensor([ids]), "pixel_values": shown[pictures]}
        apart = blind(alone, kind) if noisy is None else [{**alone, "pixel_values": noisy[pictures]}]
        assert said(model, alone, VisualDebias(model, apart, alpha=1)).tolist() == [row.tolist()]


def test_both_averages_the_scores_of_two_contexts(model):
    first = {"max_new_tokens": 1}
    none, unk, both = (
        traced(model, one(), VisualDebias(model, blind(one(), kind), alpha=1, beta=0), **first)[1]
        for kind in ("none", "unk", "both")
    )
    kept = both > -math.inf
    torch.testing.assert_close(both[kept], (none[kept] + unk[kept]) / 2)


@pytest.mark.parametrize(
    ("use_cache", "options"),
    [(True, {"num_beams": 3}), (True, {"num_beams": 3, "num_return_sequences": 2}), (False, {"num_beams": 3})],
)
def test_beams_take_their_contexts_along_when_they_change_places(model, use_cache, options):
    options = {**options, "renormalize_logits": True}
    itself = VisualDebias(model, [several()], alpha=1, beta=0, use_cache=use_cache)
    assert said(model, several(), itself, **options).tolist() == said(model, several(), **options).tolist()


def test_several_samples_of_a_prompt_each_have_their_own_context(model):
    (other,) = blind(several())
    cached, anew = (
        said(
            model,
            several(),
            VisualDebias(model, [other], alpha=1, use_cache=use),
            options=SAMPLE,
            num_return_sequences=3,
        )
        for use in (True, False)
    )
    assert cached.tolist() == anew.tolist()
    assert len({tuple(row) for row in cached.tolist()}) > 2


def test_it_serves_one_generation_after_another(model):
    debias = VisualDebias(model, blind(several(), "both"), alpha=1)
    first = said(model, several(), debias)
    assert said(model, several(), debias).tolist() == first.tolist()
    assert said(model, several(), debias, num_beams=2).shape == first.shape


def test_a_penalty_after_it_in_the_list_acts_once_on_the_contrasted_scores(model):
    ids, penalty, seen = torch.tensor([ROWS[0]]), RepetitionPenaltyLogitsProcessor(1.3), []

    class Last(LogitsProcessor):
        def __call__(self, input_ids, scores):
            seen.append(scores)
            return scores

    debias = VisualDebias(model, blind(one()), alpha=1, beta=0)
    said(model, one(), debias, penalty, Last(), max_new_tokens=1)
    raw = model(**one()).logits[:, -1]
    contrasted = VisualDebias(model, blind(one()), alpha=1, beta=0)(ids, raw)
    torch.testing.assert_close(seen[0], penalty(ids, contrasted))


def test_the_inputs_of_the_caller_are_left_as_they_are(model):
    inputs = several()
    before = {name: value.clone() for name, value in inputs.items()}
    for kind in ("both", "noise"):
        others = blind(inputs, kind)
        copies = [{name: value.clone() for name, value in other.items()} for other in others]
        said(model, inputs, VisualDebias(model, others))
        assert all(
            torch.equal(other[name], copy[name]) for other, copy in zip(others, copies, strict=True) for name in copy
        )
    assert all(torch.equal(inputs[name], before[name]) for name in before)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [({"alpha": -0.5}, "alpha is -0.5"), ({"beta": 1.5}, "beta is 1.5"), ({"blind": []}, "nothing to contrast with")],
)
def test_numbers_that_make_no_contrast_are_refused(options, sentence):
    options = {"blind": blind(one()), **options}
    with pytest.raises(UserError, match=sentence):
        VisualDebias(tiny_model(), **options)


def qwen():
    """Qwen2-VL, whose words have three positions each and whose pictures are rows of patches."""
    text = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 48, "vocab_size": 40, "max_position_embeddings": 128,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0},
    }  # fmt: skip
    eyes = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "patch_size": 4}
    marks = {"image_token_id": SLOT, "video_token_id": 4, "vision_start_token_id": 3, "vision_end_token_id": 2}
    return spread(Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=eyes, **marks)))


def test_a_model_with_several_positions_a_word_is_debiased_with_and_without_a_cache():
    model, ids = qwen(), left_padded([BEGIN, 3, *PICTURE, 2, 9, 8], [BEGIN, 3, *PICTURE, 2, 9, 8, 7, 6])
    patches = torch.randn(32, 96, generator=torch.Generator().manual_seed(0))
    grids = {"image_grid_thw": torch.tensor([[1, 4, 4]] * 2), "mm_token_type_ids": (ids["input_ids"] == SLOT).long()}
    inputs = {**ids, "pixel_values": patches, **grids}
    plain = said(model, inputs, suppress_tokens=[4, SLOT]).tolist()
    for use_cache in (True, False):
        itself = VisualDebias(model, [inputs], alpha=3, beta=0, use_cache=use_cache)
        assert said(model, inputs, itself, suppress_tokens=[4, SLOT]).tolist() == plain
    cached, anew = (
        said(model, inputs, VisualDebias(model, blind(inputs), alpha=3, use_cache=use), suppress_tokens=[4, SLOT])
        for use in (True, False)
    )
    assert cached.tolist() == anew.tolist() != plain


@pytest.mark.light("vdd", "weights")
def test_weights_in_llava_s_layout_are_debiased_as_transformers_own_class_is(tmp_path):
    theirs = llava()
    theirs.save_pretrained(tmp_path)
    ours = load_llava(tmp_path)
    for kind in ("none", "noise"):
        (words, scores, logits), (their_words, their_scores, _) = (
            traced(one, several(), VisualDebias(one, blind(several(), kind), alpha=1), suppress_tokens=[SLOT])
            for one in (ours, theirs)
        )
        assert words.tolist() == their_words.tolist()
        torch.testing.assert_close(scores, their_scores, atol=1e-4, rtol=1e-4)
        assert (scores - logits)[scores.isfinite()].abs().max() > 0.1


def test_prompts_of_another_number_are_refused():
    model = tiny_model()
    three = left_padded(*ROWS, ROWS[0])
    with pytest.raises(UserError, match="debiases 2 prompts, and 3 rows are generated"):
        said(model, {**three, "pixel_values": pixels(4)}, VisualDebias(model, blind(several())))
