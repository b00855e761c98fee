"""VL-GPT: the identities of its paper, at tiny size in fp32."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModel, LlamaForCausalLM

from tessera.errors import DataError, TrainingStopped, UserError
from tessera.layers.placeholders import fill
from tessera.models.vlgpt import VLGPTForConditionalGeneration, lora_config
from tests.models.vlgpt_tiny import (
    BEGIN,
    END,
    PICTURE,
    START,
    STOP,
    VOCABULARY,
    D,
    N,
    batch,
    pixels,
    text_config,
    tiny_config,
    tiny_model,
    tiny_tokenizer,
    tokenizer_config,
    words,
)


def page(seed=0):
    """Two rows with one picture each, 14 positions."""
    first = [BEGIN, *words(3, seed), *PICTURE, *words(3, seed + 1), END]
    second = [BEGIN, *PICTURE, *words(6, seed + 2), END]
    return batch(first, second)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def reference(model, rows="shared"):
    """A plain LlamaForCausalLM with the same weights, its rows of [IMG] and [/IMG] as the model has them."""
    llama = LlamaForCausalLM(text_config()).train()
    llama.load_state_dict(model.language_model.state_dict())
    if rows == "separate":
        llama.model.embed_tokens.weight.data[[START, STOP]] = model.image_token_rows.embedding.data
        llama.lm_head.weight.data[[START, STOP]] = model.image_token_rows.head.data
    return llama


@pytest.mark.light("vl-gpt", "exact")
@pytest.mark.parametrize("rows", ["shared", "separate"])
def test_a_batch_without_pictures_equals_the_bare_language_model_in_loss_and_every_gradient(rows):
    model = tiny_model(image_token_rows=rows).train()
    llama = reference(model, rows)
    # [IMG] and [/IMG] as mere words, so that their rows are compared too
    ids = torch.tensor([[BEGIN, *words(6), START, *words(3, 1), STOP, END]])
    ours = gradients(model, model(ids, labels=ids).loss)
    theirs = gradients(llama, llama(ids, labels=ids).loss)
    torch.testing.assert_close(model(ids, labels=ids).loss, llama(ids, labels=ids).loss, atol=1e-5, rtol=0)
    special = [START, STOP]
    for name, gradient in theirs.items():
        mine = ours.pop(f"language_model.{name}")
        if rows == "separate" and name in ("model.embed_tokens.weight", "lm_head.weight"):
            kind = "head" if name.startswith("lm_head") else "embedding"
            assert not mine[special].any()
            mine[special] = ours.pop(f"image_token_rows.{kind}")
        torch.testing.assert_close(mine, gradient, atol=1e-6, rtol=1e-4)
    assert list(ours) == ["regression_head.weight"] and not ours["regression_head.weight"].any()


def test_rows_appended_after_the_vocabulary_equal_a_language_model_with_two_more_entries():
    model = tiny_model(image_start_id=VOCABULARY, image_end_id=VOCABULARY + 1, image_placeholder_id=VOCABULARY + 2)
    grown = LlamaForCausalLM(text_config(vocab_size=VOCABULARY + 2))
    weights = model.language_model.state_dict()
    rows = {"model.embed_tokens.weight": "embedding", "lm_head.weight": "head"}
    for name, attribute in rows.items():
        weights[name] = torch.cat([weights[name], getattr(model.image_token_rows, attribute).detach()])
    grown.load_state_dict(weights)
    ids = torch.tensor([[BEGIN, *words(5), VOCABULARY, *words(2, 1), VOCABULARY + 1, END]])
    torch.testing.assert_close(model(ids).logits, grown(ids).logits, atol=1e-6, rtol=1e-5)
    ours, theirs = model(ids, labels=ids).loss, grown(ids, labels=ids).loss
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


@pytest.mark.light("vl-gpt", "exact")
def test_each_head_gets_gradient_from_its_own_targets_only():
    model, inputs = tiny_model(), page()
    out = model(**inputs, pixel_values=pixels(2))
    visual = gradients(model, model(**inputs, pixel_values=pixels(2)).visual_loss)
    text = gradients(model, model(**inputs, pixel_values=pixels(2)).text_loss)
    assert not visual.get("language_model.lm_head.weight", torch.zeros(1)).any()
    assert not visual.get("image_token_rows.head", torch.zeros(1)).any()
    assert not text.get("regression_head.weight", torch.zeros(1)).any()
    assert visual["regression_head.weight"].any() and text["language_model.lm_head.weight"].any()
    assert out.num_visual_targets == 2 * N
    assert out.num_text_targets + out.num_visual_targets == 2 * (inputs["input_ids"].shape[1] - 1)


@pytest.mark.light("vl-gpt", "exact")
def test_padding_takes_its_positions_out_of_the_count_of_targets():
    inputs = batch([BEGIN, *PICTURE, *words(3), END, 0, 0, 0])
    segments = (inputs["input_ids"] != 0).int()
    out = tiny_model()(**inputs, segment_ids=segments, pixel_values=pixels(1))
    assert out.num_text_targets + out.num_visual_targets == int(segments.sum()) - 1


@pytest.mark.light("vl-gpt", "exact")
def test_img_regresses_the_first_embedding_and_the_last_embedding_predicts_end_of_image():
    model = tiny_model().eval()
    inputs = batch([BEGIN, *PICTURE, END])
    embeds = model.encode_images(pixels(1))
    hidden = model(inputs["input_ids"], image_embeds=embeds).hidden[0]
    out = model(**inputs, image_embeds=embeds)
    regressed = model.regression_head(hidden[1 : 1 + N])  # the states of [IMG], v1 .. v(N-1)
    torch.testing.assert_close(out.visual_loss, (regressed - embeds[0]).square().mean())
    steps, targets = [0, 1 + N, 2 + N], torch.tensor([START, STOP, END])  # <s>, vN, [/IMG]
    expected = torch.nn.functional.cross_entropy(model.logits(hidden[steps]), targets)
    torch.testing.assert_close(out.text_loss, expected)


def test_loss_is_both_means_with_the_weight_and_denominators_can_be_given():
    model, inputs = tiny_model(visual_loss_weight=0.3), page()
    out = model(**inputs, pixel_values=pixels(2))
    torch.testing.assert_close(out.loss, out.text_loss + 0.3 * out.visual_loss)
    other = model(**inputs, pixel_values=pixels(2), num_text=torch.tensor(100), num_visual=50)
    expected = out.text.total / 100 + 0.3 * out.visual.total / 50
    torch.testing.assert_close(other.loss, expected)


def test_packed_sequences_equal_separate_ones_in_loss_and_gradient():
    model = tiny_model().train()
    a, b, c = [BEGIN, *words(2), *PICTURE, END], [BEGIN, *words(6), END], [BEGIN, *PICTURE, *words(3), END]
    pictures = pixels(2)
    row = batch(a + b + c + [0, 0])
    lengths = [len(a), len(b), len(c)]
    segments = torch.tensor([[i + 1 for i, n in enumerate(lengths) for _ in range(n)] + [0, 0]])
    starts = torch.tensor([0, lengths[0], lengths[0] + lengths[1]])
    row["labels"][0, starts] = -100
    row["labels"][segments == 0] = -100
    packed = model(**row, segment_ids=segments, pixel_values=pictures)
    packed_gradients = gradients(model, packed.loss)
    counts = {"num_text": packed.num_text_targets, "num_visual": packed.num_visual_targets}
    parts = [(a, pictures[:1]), (b, None), (c, pictures[1:])]
    loss = sum(model(**batch(ids), pixel_values=images, **counts).loss for ids, images in parts)
    torch.testing.assert_close(packed.loss, loss, atol=1e-6, rtol=1e-5)
    for name, gradient in gradients(model, loss).items():
        torch.testing.assert_close(packed_gradients[name], gradient, atol=1e-6, rtol=1e-3)


def test_int32_ids_and_given_positions_change_nothing():
    model, inputs = tiny_model().eval(), page()
    length = inputs["input_ids"].shape[1]
    plain = model(**inputs, pixel_values=pixels(2)).loss
    inputs["input_ids"] = inputs["input_ids"].int()
    places = torch.arange(length).expand(2, -1)
    other = model(**inputs, pixel_values=pixels(2), position_ids=places, segment_ids=torch.ones(2, length).int())
    torch.testing.assert_close(other.loss, plain, atol=1e-6, rtol=1e-5)


def test_the_callers_tensors_are_left_alone():
    model, inputs = tiny_model(), page()
    before = {name: x.clone() for name, x in inputs.items()}
    model(**inputs, pixel_values=pixels(2))
    assert all(torch.equal(inputs[name], x) for name, x in before.items())


def test_the_image_tokenizer_is_frozen_and_in_evaluation_mode():
    model = tiny_model().train()
    found = gradients(model, model(**page(), pixel_values=pixels(2)).loss)
    assert not any(name.startswith("image_tokenizer") for name in found)
    assert not any(module.training for module in model.image_tokenizer.modules())
    assert not model.encode_images(pixels(1)).requires_grad
    assert model.encode_images(pixels(3)).shape == (3, N, D)


def test_visual_rms_reports_the_scale_of_what_enters():
    model = tiny_model()
    embeds = model.encode_images(pixels(2))
    assert model(**page(), image_embeds=embeds).visual_rms.item() == pytest.approx(embeds.square().mean().sqrt())


@pytest.mark.parametrize("kind", ["global", "channel", "conditions"])
def test_standardisation_scales_what_enters_and_is_undone_before_the_detokenizer(kind):
    same = tokenizer_config(image_condition_tokens=N)  # as many as embeddings
    plain, scaled = tiny_model(tokenizer=same), tiny_model(tokenizer=same, standardise=kind)
    scaled.load_state_dict(plain.state_dict(), strict=False)
    raw = plain.encode_images(pixels(8))
    scaled.fit_standardisation(raw)
    embeds = scaled.encode_images(pixels(8))
    spread = embeds - embeds.mean(0) if kind == "conditions" else embeds
    assert spread.square().mean().sqrt().item() == pytest.approx(1, rel=0.02)
    for ours, theirs in zip(scaled.decode_images(embeds), plain.decode_images(raw), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    with pytest.raises(UserError, match="standardise is 'none'"):
        plain.fit_standardisation(raw)
    with pytest.raises(UserError, match="has 4 embeddings and 3 tokens of the painter"):
        tiny_model(standardise="conditions").fit_standardisation(raw)


def adapted(model):
    torch.manual_seed(1)
    return get_peft_model(model, lora_config(model.config))


@pytest.mark.light("vl-gpt", "exact")
def test_lora_starts_as_the_base_model_and_adapts_the_language_model_only():
    model = tiny_model(lora_dropout=0.0)
    ids = torch.tensor([[BEGIN, *words(8)]])
    before = model(ids).logits
    wrapped = adapted(model)
    assert torch.equal(wrapped(input_ids=ids).logits, before)
    trained = [name for name, p in wrapped.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 7 * 2 and all("language_model.model.layers" in name for name in trained)


def test_lora_regression_head_and_the_two_new_rows_train_while_all_else_stays():
    model = tiny_model()
    wrapped = adapted(model)
    model.regression_head.requires_grad_(True)
    model.image_token_rows.requires_grad_(True)
    before = {name: p.detach().clone() for name, p in wrapped.named_parameters()}
    optimiser = torch.optim.AdamW([p for p in wrapped.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
    for _ in range(2):  # the first step moves LoRA's B alone
        optimiser.zero_grad()
        wrapped(**page(), pixel_values=pixels(2)).loss.backward()
        optimiser.step()
    changed = {name for name, p in wrapped.named_parameters() if not torch.equal(p, before[name])}
    expected = {n for n in before if "lora_" in n or "regression_head" in n or "image_token_rows" in n}
    assert changed == expected


def test_all_linear_inside_the_language_model_is_the_same_choice_of_layers():
    ours, theirs = adapted(tiny_model()), tiny_model()
    theirs.language_model.add_adapter(LoraConfig(r=32, target_modules="all-linear"))
    counts = [sum(p.numel() for n, p in m.named_parameters() if "lora_" in n) for m in (ours, theirs)]
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize(
    "fields", [{}, {"standardise": "channel"}, {"standardise": "conditions"}, {"image_token_rows": "shared"}]
)
def test_saved_weights_load_to_the_same_loss_still_frozen(tmp_path, fields):
    model = tiny_model(tokenizer=tokenizer_config(image_condition_tokens=N), **fields).eval()
    if "standardise" in fields:
        model.fit_standardisation(model.encode_images(pixels(8)))
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    for cls in (VLGPTForConditionalGeneration, AutoModel):
        again = cls.from_pretrained(tmp_path)
        assert type(again) is VLGPTForConditionalGeneration
        assert set(again.state_dict()) == set(model.state_dict())
        ours, theirs = (m(**page(), pixel_values=pixels(2)).loss for m in (again, model))
        assert torch.equal(ours, theirs)
        assert not any(p.requires_grad for p in again.image_tokenizer.parameters())


def test_tied_embeddings_survive_saving(tmp_path):
    model = tiny_model(text=text_config(tie_word_embeddings=True)).eval()
    model.save_pretrained(tmp_path)
    again = VLGPTForConditionalGeneration.from_pretrained(tmp_path)
    assert again.language_model.lm_head.weight is again.language_model.model.embed_tokens.weight
    assert torch.equal(again(**page(), pixel_values=pixels(2)).loss, model(**page(), pixel_values=pixels(2)).loss)


def test_ready_parts_are_joined_as_they_are():
    torch.manual_seed(3)
    llama, tokenizer = LlamaForCausalLM(text_config()), tiny_tokenizer(seed=4)
    before = {n: p.clone() for n, p in [*llama.named_parameters(), *tokenizer.named_parameters()]}
    fields = {"image_start_id": START, "image_end_id": STOP, "image_placeholder_id": 5}
    model = VLGPTForConditionalGeneration.from_parts(llama, tokenizer, **fields)
    assert model.language_model is llama and model.image_tokenizer is tokenizer
    for name, parameter in [*llama.named_parameters(), *tokenizer.named_parameters()]:
        assert torch.equal(parameter, before[name])
    ids = torch.tensor([[BEGIN, *words(4), START, STOP]])
    torch.testing.assert_close(model(ids).logits, llama(ids).logits)
    fields = {
        "image_start_id": VOCABULARY,
        "image_end_id": VOCABULARY + 1,
        "image_placeholder_id": VOCABULARY + 2,
    }
    grown = VLGPTForConditionalGeneration.from_parts(llama, tokenizer, **fields)
    torch.testing.assert_close(grown.image_token_rows.head[1], llama.lm_head.weight.mean(0))


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_no_gradient(reentrant):
    model = tiny_model().train()
    plain = gradients(model, model(**page(), pixel_values=pixels(2)).loss)
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    assert model.language_model.model.layers[0].gradient_checkpointing
    for name, gradient in gradients(model, model(**page(), pixel_values=pixels(2)).loss).items():
        torch.testing.assert_close(gradient, plain[name], atol=1e-7, rtol=1e-5)


def test_bf16_training_step_is_finite_and_close_to_fp32():
    model, inputs = tiny_model().train(), page()
    full = model(**inputs, pixel_values=pixels(2)).loss
    half = model.to(torch.bfloat16)
    loss = half(**inputs, pixel_values=pixels(2)).loss
    loss.backward()
    assert loss.item() == pytest.approx(full.item(), rel=0.03)
    assert all(p.grad.isfinite().all() for p in half.parameters() if p.grad is not None)


def test_a_tiny_model_overfits_two_samples():
    model, inputs = tiny_model().train(), page()
    embeds = model.encode_images(pixels(2))
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        out = model(**inputs, image_embeds=embeds)
        out.loss.backward()
        optimiser.step()
    assert out.text_loss.item() < 0.1 and out.visual_loss.item() < 0.1 * embeds.var().item()


def test_bad_batches_and_parts_that_do_not_fit_are_told_in_one_sentence():
    model, inputs = tiny_model(), page()
    with pytest.raises(DataError, match="8 image placeholders but 4 visual embeddings"):
        model(**inputs, pixel_values=pixels(1))
    with pytest.raises(DataError, match="8 image placeholders but 0"):
        model(**inputs)
    with pytest.raises(TrainingStopped, match="no learned position"):
        model(inputs["input_ids"], labels=torch.full((2, 14), -100), pixel_values=pixels(2))
    with pytest.raises(UserError, match="gives width 16, the language model reads 32"):
        VLGPTForConditionalGeneration(tiny_config(tokenizer=tokenizer_config(embed_width=16)))
    with pytest.raises(UserError, match="beside a vocabulary of 40"):
        tiny_model(image_start_id=3, image_end_id=40)
    with pytest.raises(UserError, match="id 41 but the language model has 40 entries"):
        tiny_model(image_start_id=40, image_end_id=41, image_token_rows="shared")


def test_hidden_pictures_are_the_learned_ones_that_end_their_sequence():
    model = tiny_model(visual_input_dropout=1.0).train()
    last = [BEGIN, *words(3), *PICTURE, END]
    first = [BEGIN, *PICTURE, *words(3), END]
    ids = torch.tensor([last + first])
    visual = ids == model.config.image_placeholder_id
    embeds = torch.ones(2, N, D)
    seen = model._hide_some(ids, embeds, visual)
    assert torch.equal(seen[0], model.visual_mask.weight) and torch.equal(seen[1], embeds[1])
    only_read = visual.clone()
    only_read[:, : len(last)] = False
    assert torch.equal(model._hide_some(ids, embeds, only_read), embeds)
    assert torch.equal(model.eval()._hide_some(ids, embeds, visual), embeds)
    assert torch.equal(tiny_model().train()._hide_some(ids, embeds, visual), embeds)


@pytest.mark.parametrize("projector", ["none", "mlp"])
def test_of_a_hidden_picture_the_target_stays(projector):
    model = tiny_model(visual_input_dropout=1.0, visual_projector=projector).train()
    ids = torch.tensor([[BEGIN, *words(3), *PICTURE, END]])
    fields = {"labels": torch.full_like(ids, -100), "visual_target": ids == model.config.image_placeholder_id}
    shown = model.encode_images(pixels(1))
    hidden = model(ids, image_embeds=shown, **fields)
    masked = fill(model.embed_tokens(ids), fields["visual_target"], model.visual_mask.weight[None])
    read = model.eval().language_model.model(inputs_embeds=masked).last_hidden_state
    start = ids[0].tolist().index(START)
    expected = (model.regression_head(read[0, start : start + N]) - shown[0]).square().mean()
    torch.testing.assert_close(hidden.visual_loss, expected)


def test_what_stands_for_hidden_pictures_starts_as_their_mean():
    model = tiny_model(visual_input_dropout=0.5, standardise="channel")
    raw = model.image_tokenizer.encode(model.image_tokenizer.patch_features(pixels(8)))
    model.fit_standardisation(raw)
    model.start_mask(raw)
    torch.testing.assert_close(model.visual_mask.weight, model.encode_images(pixels(8)).mean(0))
    with pytest.raises(UserError, match="visual_input_dropout is 1.5; it is a share from 0 to 1"):
        tiny_model(visual_input_dropout=1.5)
    with pytest.raises(UserError, match="visual_input_dropout is 0"):
        tiny_model().start_mask(raw)


def test_a_projector_changes_what_is_read_and_not_what_is_predicted():
    model = tiny_model(visual_projector="mlp")
    ids, embeds = torch.tensor([[BEGIN, *PICTURE, *words(3), END]]), torch.randn(1, N, D)
    read = model.embed(ids, embeds)[0, 2 : 2 + N]
    torch.testing.assert_close(read, model.visual_projector.mlp(embeds[0]) + model.visual_projector.places.weight)
    for place in range(N):  # one after the other, as generation reads its own
        torch.testing.assert_close(model.read_embeds(embeds[0, place : place + 1], place), read[place : place + 1])
    steps = (ids == model.config.image_placeholder_id)[:, 1:]
    assert torch.equal(model.visual_targets(ids, embeds, steps), embeds[0])


def test_a_residual_head_predicts_at_once_as_one_after_the_other_and_is_saved(tmp_path):
    model = tiny_model(regression_head="residual").eval()
    hidden = torch.randn(2, N, D)
    together = model.regression_head(hidden)
    torch.testing.assert_close(model.regression_head(hidden[0, 1]), together[0, 1])
    ids, embeds = torch.tensor([[BEGIN, *words(3), *PICTURE, END]]), torch.randn(1, N, D)
    fields = {"labels": torch.full_like(ids, -100), "visual_target": ids == model.config.image_placeholder_id}
    loss = model(ids, image_embeds=embeds, **fields).visual_loss
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    assert torch.equal(again(ids, image_embeds=embeds, **fields).visual_loss, loss)
    for block in model.regression_head.blocks:
        torch.nn.init.zeros_(block[1].fc2.weight)
        torch.nn.init.zeros_(block[1].fc2.bias)
    head = model.regression_head
    torch.testing.assert_close(head(hidden), head.out(torch.nn.functional.layer_norm(hidden, (D,))))


@pytest.mark.parametrize(
    "fields", [{"visual_projector": "mlp"}, {"visual_input_dropout": 1.0}, {"regression_head": "residual"}]
)
def test_without_pictures_every_trained_part_still_gets_a_gradient(fields):
    model = tiny_model(**fields).train()
    ids = torch.tensor([[BEGIN, *words(5), END]])
    model(ids, labels=ids).loss.backward()
    part = model.visual_projector or model.visual_mask or model.regression_head
    assert all(p.grad is not None and not p.grad.any() for p in part.parameters())
