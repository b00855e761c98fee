"""A language model with eyes: its identities, at tiny size in fp32."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, LogitsProcessor
from transformers.generation import BaseStreamer

from tessera.data.packing import collate_rows
from tessera.data.sequence import IGNORED, Sequence
from tessera.errors import CheckpointError, DataError, TrainingStopped, UserError
from tessera.models.folder import check_folder, read_folder
from tessera.models.lvlm import LVLMConfig, LVLMForConditionalGeneration
from tessera.vision.registry import create
from tessera.weights import write_model
from tests.models.lvlm_tiny import (
    BEGIN,
    CONTEXT,
    END,
    PICTURE,
    SLOT,
    VISION,
    VOCABULARY,
    D,
    N,
    causal_model,
    left_padded,
    pixels,
    tiny_config,
    tiny_model,
    words,
)

GREEDY = {"do_sample": False, "max_new_tokens": 6, "eos_token_id": None, "pad_token_id": 0}
LANGUAGE_MODELS = {
    "llama": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": D, "dropout": 0.0},
    "gpt2": {},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "window_size": 16},
    "falcon": {"alibi": False},
    "gemma2": {"head_dim": 8, "sliding_window": 16},
    "granite": {"logits_scaling": 3.0},
    "cohere": {"logit_scale": 0.3},
    "phi": {},
    "bloom": {},
}


def with_language(kind, **fields):
    fields = {"image_token_id": VOCABULARY, "connector": "linear", "vision_feature_layer": -1, **fields}
    torch.manual_seed(0)
    return LVLMForConditionalGeneration.from_parts(
        create("vit-mini"), causal_model(kind, **LANGUAGE_MODELS[kind]), **fields
    )


def sequence(ids, learned_from):
    ids = torch.tensor(ids)
    labels = ids.masked_fill(ids == SLOT, IGNORED)
    labels[:learned_from] = IGNORED
    return Sequence(ids.int().numpy(), labels.numpy(), (ids < 0).numpy(), ())


def samples():
    return [
        sequence([BEGIN, *PICTURE, *words(5, 1), END], 6),
        sequence([BEGIN, *words(2, 2), *PICTURE, *words(1, 3), *PICTURE, *words(3, 4), END], 12),
        sequence([BEGIN, *words(4, 5), END], 3),
    ]


@pytest.mark.parametrize("kind", LANGUAGE_MODELS)
def test_without_pictures_any_language_model_is_what_it_was_in_scores_loss_and_gradients(kind):
    model = with_language(kind)
    bare = causal_model(kind, **LANGUAGE_MODELS[kind])
    ids = torch.tensor([[BEGIN, *words(8), END], [BEGIN, *words(8, 1), END]])
    labels = ids.clone()
    labels[:, :4] = IGNORED
    torch.testing.assert_close(model(ids).logits, bare(ids).logits, atol=5e-6, rtol=0)  # kernels round
    ours, theirs = model(ids, labels=labels), bare(ids, labels=labels)
    torch.testing.assert_close(ours.loss, theirs.loss, atol=1e-6, rtol=1e-6)
    assert ours.logits.shape == (2 * 6, VOCABULARY) and ours.num_text_targets == 12
    torch.testing.assert_close(ours.logits, theirs.logits[:, 3:-1].flatten(0, 1), atol=1e-6, rtol=1e-6)
    assert ours.words.tolist() == ids[:, 4:].flatten().tolist()
    ours.loss.backward()
    theirs.loss.backward()
    for (name, one), other in zip(model.language_model.named_parameters(), bare.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize("kind", [kind for kind in LANGUAGE_MODELS if kind != "bloom"])
def test_in_a_packed_row_each_sequence_is_scored_as_it_is_alone(kind):
    model = with_language(kind)
    first, second = torch.tensor([[BEGIN, *words(7)]]), torch.tensor([[BEGIN, *words(4, 1)]])
    row = torch.cat([first, second, torch.zeros(1, 3, dtype=torch.long)], dim=1)
    packed = model(row, segment_ids=torch.tensor([[1] * 8 + [2] * 5 + [0] * 3])).logits
    torch.testing.assert_close(packed[:, :8], model(first).logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(packed[:, 8:13], model(second).logits, atol=1e-5, rtol=1e-5)


def test_the_loss_of_packed_rows_is_the_mean_over_the_words_of_single_samples():
    model, parts = tiny_model(), samples()
    batch = collate_rows([[parts[0], parts[2]], [parts[1]]], row_length=24, pad_id=0)
    shown = pixels(3)
    packed = model(batch.input_ids, labels=batch.labels, segment_ids=batch.segment_ids, pixel_values=shown)
    alone = []
    for part, pictures in ((parts[0], shown[:1]), (parts[2], None), (parts[1], shown[1:])):
        ids, labels = torch.from_numpy(part.input_ids).long()[None], torch.from_numpy(part.labels)[None]
        alone.append(model(ids, labels=labels, pixel_values=pictures).text)
    total, number = sum(one.total for one in alone), sum(one.number for one in alone)
    assert packed.num_text_targets == number == 5 + 4 + 3
    torch.testing.assert_close(packed.loss, total / number, atol=1e-6, rtol=1e-6)
    split = model(batch.input_ids, labels=batch.labels, segment_ids=batch.segment_ids, pixel_values=shown, num_text=50)
    torch.testing.assert_close(split.loss, total / 50, atol=1e-6, rtol=1e-6)


def test_a_word_that_is_not_learned_gives_no_loss_and_its_place_no_score():
    model, ids = tiny_model(), torch.tensor([[BEGIN, *PICTURE, *words(6)]])
    labels = torch.full_like(ids, IGNORED)
    labels[0, 8] = ids[0, 8]
    output = model(ids, labels=labels, pixel_values=pixels(1))
    wanted = -model(ids, pixel_values=pixels(1)).logits[0, 7].log_softmax(-1)[ids[0, 8]]
    torch.testing.assert_close(output.loss, wanted)
    assert output.logits.shape == (1, VOCABULARY)


def test_gradients_reach_encoder_connector_and_words_and_a_frozen_encoder_gets_none():
    model, ids = tiny_model(), torch.tensor([[BEGIN, *PICTURE, *words(4)]])
    model(ids, labels=ids.masked_fill(ids == SLOT, IGNORED), pixel_values=pixels(1)).loss.backward()
    read = model.vision.vision.encoder.layers[1].mlp.fc2.weight
    assert all(weight.grad.any() for weight in (read, model.connector.mlp.fc1.weight))
    model.zero_grad()
    model.vision.requires_grad_(False)
    model(ids, labels=ids.masked_fill(ids == SLOT, IGNORED), pixel_values=pixels(1)).loss.backward()
    assert read.grad is None and model.connector.mlp.fc1.weight.grad.any()


def test_a_frozen_encoder_stays_in_evaluation_mode_while_the_rest_trains():
    model = tiny_model()
    assert model.train().vision.training
    model.vision.requires_grad_(False)
    assert not model.train().vision.training and model.language_model.training


def test_an_answer_depends_on_the_pictures_before_it_and_on_which_comes_first():
    model, ids = tiny_model(), torch.tensor([[BEGIN, *PICTURE, *words(2), *PICTURE, *words(2)]])
    shown = pixels(2)
    one, other = model(ids, pixel_values=shown).logits, model(ids, pixel_values=shown.flip(0)).logits
    assert (one[:, -1] - other[:, -1]).abs().max() > 1e-3
    changed = torch.cat([shown[:1], pixels(1, seed=9)])
    third = model(ids, pixel_values=changed).logits
    torch.testing.assert_close(one[:, : N + 3], third[:, : N + 3])


@pytest.mark.parametrize("strategy", ["default", "full", "class"])
@pytest.mark.parametrize("connector", ["linear", "mlp2x_gelu", "pooled", "pixel-shuffle", "pixel-shuffle-mlp"])
@pytest.mark.parametrize("layer", [-1, -2, 1, [1, -1], None])
def test_a_picture_takes_as_many_tokens_as_the_model_says(strategy, connector, layer):
    if connector.startswith("pixel-shuffle") and strategy != "default":
        with pytest.raises(UserError):
            tiny_model(connector=connector, vision_feature_select_strategy=strategy)
        return
    model = tiny_model(
        connector=connector, vision_feature_select_strategy=strategy, vision_feature_layer=layer,
    )  # fmt: skip
    assert model.encode_images(pixels(2)).shape == (2, model.num_image_tokens(), D)
    if strategy != "class":
        assert model.encode_images(pixels(1, size=32)).shape[1] == model.num_image_tokens(32, 32)


@pytest.mark.parametrize("name", ["vit-mini", "t2t-vit-7", "cvt-13"])
def test_any_backbone_by_name_is_an_encoder_and_a_saved_model_answers_as_before(name, tmp_path):
    torch.manual_seed(0)
    eyes = create(name, image_size=32)
    model = LVLMForConditionalGeneration.from_parts(
        eyes, causal_model(tie_word_embeddings=True), image_token_id=SLOT, vision_feature_layer=None, connector="pooled"
    ).eval()
    ids, shown = torch.tensor([[BEGIN, SLOT, *words(4)]]), pixels(1, size=32)
    model.save_pretrained(tmp_path)
    check_folder(tmp_path, LVLMForConditionalGeneration)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    torch.testing.assert_close(again(ids, pixel_values=shown).logits, model(ids, pixel_values=shown).logits)
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight


@pytest.mark.parametrize("kind", ["vit", "dinov2"])
def test_an_encoder_that_transformers_once_named_otherwise_loads_with_the_rest(kind, tmp_path):
    shape = {name: value for name, value in VISION.items() if name not in ("model_type", "intermediate_size")}
    AutoModel.from_config(AutoConfig.for_model(kind, **shape)).save_pretrained(tmp_path / "eyes")
    model = LVLMForConditionalGeneration.from_parts(create(str(tmp_path / "eyes")), causal_model(), image_token_id=SLOT)
    write_model(model, tmp_path / "whole")
    again = read_folder(tmp_path / "whole", LVLMForConditionalGeneration, torch.float32)
    kept = again.state_dict()
    assert all(torch.equal(kept[name], value) for name, value in model.state_dict().items())


def test_parts_are_taken_from_folders(tmp_path):
    language, eyes = causal_model(), create("vit-mini")
    language.save_pretrained(tmp_path / "words")
    eyes.save_pretrained(tmp_path / "eyes")
    model = LVLMForConditionalGeneration.from_parts(
        str(tmp_path / "eyes"), str(tmp_path / "words"), image_token_id=SLOT, vision_feature_layer=-1
    )
    ids = torch.tensor([[BEGIN, *words(4)]])
    torch.testing.assert_close(model(ids).logits, language(ids).logits)
    torch.testing.assert_close(model.vision.class_token, eyes.class_token)
    with pytest.raises(CheckpointError):
        LVLMForConditionalGeneration.from_parts("vit-mini", str(tmp_path / "eyes"))


def test_the_published_size_is_counted_exactly():
    with torch.device("meta"):
        model = LVLMForConditionalGeneration(LVLMConfig())
    assert sum(parameter.numel() for parameter in model.parameters()) == 7_063_427_072
    assert model.num_image_tokens() == 576


def prompts():
    return [BEGIN, *PICTURE, *words(3)], [BEGIN, *words(2, 1), *PICTURE, *words(1, 2), *PICTURE], [BEGIN, *words(9, 3)]


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"cache_implementation": "static"}, {"use_cache": False}])
def test_batched_generation_is_single_generation_and_cached_is_uncached(options):
    model, shown, rows = tiny_model(), pixels(3), prompts()
    batched = model.generate(**left_padded(*rows), pixel_values=shown, **GREEDY, **options)
    beams = {key: value for key, value in options.items() if key == "num_beams"}
    for row, ids, pictures in zip(batched, rows, (shown[:1], shown[1:], None), strict=True):
        alone = model.generate(torch.tensor([ids]), pixel_values=pictures, **GREEDY, **beams)
        assert row[-6:].tolist() == alone[0, len(ids) :].tolist()


def test_greedy_generation_takes_the_best_word_at_each_step_and_never_the_placeholder():
    model, ids = tiny_model(), torch.tensor([prompts()[1]])
    with torch.no_grad():
        model.get_output_embeddings().weight[SLOT] = 30 * model.get_output_embeddings().weight[7]
        made, embeds = model.generate(ids, pixel_values=pixels(2), **GREEDY), model.encode_images(pixels(2))
        for step in range(6):
            whole = made[:, : ids.shape[1] + step]
            scores = model(whole, image_embeds=embeds).logits[:, -1]
            scores[:, SLOT] = -torch.inf
            assert scores.argmax(-1) == made[:, ids.shape[1] + step]


def test_logits_processors_and_embeddings_made_before_are_taken():
    class Only(LogitsProcessor):
        def __call__(self, input_ids, scores):
            return torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor([9]), 0.0)

    model, ids = tiny_model(), torch.tensor([prompts()[0]])
    embeds = model.encode_images(pixels(1))
    said = model.generate(ids, image_embeds=embeds, logits_processor=[Only()], **GREEDY)
    assert said[0, ids.shape[1] :].tolist() == [9] * 6
    one, other = (
        model.generate(ids, **given, **GREEDY) for given in ({"image_embeds": embeds}, {"pixel_values": pixels(1)})
    )
    assert one.tolist() == other.tolist()


def test_guidance_of_transformers_contrasts_the_prompt_with_one_that_has_no_picture():
    model, shown, blind = tiny_model(), torch.tensor([prompts()[0]]), torch.tensor([[BEGIN, *words(3)]])
    said = model.generate(
        shown, pixel_values=pixels(1), negative_prompt_ids=blind, guidance_scale=1.5, **GREEDY
    )[0, shown.shape[1] :]  # fmt: skip
    embeds = model.encode_images(pixels(1))
    for step in range(6):
        before = said[None, :step]
        seen = model(torch.cat([shown, before], 1), image_embeds=embeds).logits[0, -1].log_softmax(-1)
        unseen = model(torch.cat([blind, before], 1)).logits[0, -1].log_softmax(-1)
        scores = unseen + 1.5 * (seen - unseen)
        scores[SLOT] = -torch.inf
        assert scores.argmax() == said[step]


def test_words_are_streamed_as_they_come():
    class Heard(BaseStreamer):
        def __init__(self):
            self.words = []

        def put(self, value):
            self.words += value.flatten().tolist()

        def end(self):
            self.words.append(None)

    model, ids, heard = tiny_model(), torch.tensor([prompts()[0]]), Heard()
    said = model.generate(ids, pixel_values=pixels(1), streamer=heard, **GREEDY)
    assert heard.words == [*said[0].tolist(), None]


def test_generation_ends_with_the_language_models_positions_row_by_row():
    model = tiny_model()
    long, short = [BEGIN, *words(CONTEXT - 3)], [BEGIN, *words(CONTEXT - 5)]
    said = model.generate(**left_padded(long, short), **GREEDY)
    alone = model.generate(torch.tensor([short]), **GREEDY)
    assert alone.shape[1] == CONTEXT
    assert said[1, 2:].tolist() == alone[0].tolist()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"connector": "mlp"},
            "no connector is named 'mlp'; known are linear, mlp2x_gelu, pixel-shuffle, pixel-shuffle-mlp, pooled",
        ),
        ({"connector_options": {"bais": True}}, "the connector mlp2x_gelu has no option 'bais'; did you mean 'bias'?"),
        ({"text_config": {"model_type": "clip_vision_model"}}, "a 'clip_vision_model' is no causal language model"),
        ({"vision_feature_layer": 0}, "vision_feature_layer is 0; blocks count from 1"),
        ({"image_token_id": -200}, "image_token_id is -200; an id is 0 or more"),
    ],
)
def test_a_configuration_that_makes_no_model_is_one_sentence(fields, said):
    with pytest.raises(UserError) as error:
        tiny_model(**fields)
    assert str(error.value).startswith(said)


def test_placeholders_and_pictures_that_differ_are_counted():
    model = tiny_model()
    with pytest.raises(DataError, match="the batch has 8 image placeholders but 4 visual embeddings were given"):
        model(torch.tensor([[BEGIN, *PICTURE, *PICTURE]]), pixel_values=pixels(1))
    with pytest.raises(DataError, match="the batch has 4 image placeholders but 0 visual embeddings were given"):
        model.generate(torch.tensor([[BEGIN, *PICTURE]]), **GREEDY)


def test_a_batch_of_no_pictures_touches_the_connector_and_changes_nothing():
    model, ids = tiny_model(), torch.tensor([[BEGIN, *words(5)]])
    output = model(ids, labels=ids, pixel_values=pixels(0))
    torch.testing.assert_close(output.loss, model(ids, labels=ids).loss)
    output.loss.backward()
    assert not model.connector.mlp.fc1.weight.grad.any()


def test_what_cannot_be_read_or_learned_is_one_sentence():
    model = tiny_model()
    with pytest.raises(UserError, match=f"the prompt has 70 tokens and .* reads {CONTEXT}, .*: 7 too many"):
        model.generate(torch.tensor([[BEGIN, *words(69)]]), **GREEDY)
    with pytest.raises(TrainingStopped, match="no learned position"):
        model(torch.tensor([words(4)]), labels=torch.full((1, 4), IGNORED))
    with pytest.raises(UserError, match="vision_feature_layer is 9, but the encoder has 3 blocks"):
        tiny_model(vision_feature_layer=9).encode_images(pixels(1))
    with pytest.raises(UserError, match="a bloom takes no positions"):
        with_language("bloom")(torch.tensor([words(4)]), segment_ids=torch.tensor([[1, 1, 2, 2]]))
    long = torch.tensor([words(20)])
    with pytest.raises(UserError, match="a packed sequence of 20 positions is longer than the 16"):
        with_language("gemma2")(long, segment_ids=torch.ones_like(long))
    both = {"segment_ids": torch.ones(1, 4), "attention_mask": torch.ones(1, 4)}
    with pytest.raises(UserError, match="not both"):
        model(torch.tensor([words(4)]), **both)


def test_an_encoder_without_a_class_token_in_its_states_says_what_to_read():
    torch.manual_seed(0)
    eyes = create("cvt-13", image_size=32)
    model = LVLMForConditionalGeneration.from_parts(
        eyes, causal_model(), image_token_id=SLOT, vision_feature_layer=1, connector="linear"
    ).eval()
    with pytest.raises(UserError, match="layer 1 of the .* is not its grid of 2 x 2 with a class token"):
        model.encode_images(pixels(1, size=32))


def test_the_configuration_is_written_and_read_whole(tmp_path):
    config = tiny_config(connector="pixel-shuffle", connector_options={"factor": 2}, vision_feature_layer=[1, -1])
    config.save_pretrained(tmp_path)
    assert LVLMConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


@pytest.mark.parametrize("layer", [-2, [-2, -1]])
def test_states_of_another_width_than_the_connector_reads_are_one_sentence(layer):
    eyes = create(
        "t2t-vit-dense", image_size=32, hidden_size=32, num_attention_heads=4, num_hidden_layers=3, token_width=16,
        dense_stages=(1, 2), dense_growth=8,
    )  # fmt: skip
    model = LVLMForConditionalGeneration.from_parts(
        eyes, causal_model(), image_token_id=SLOT, vision_feature_layer=layer
    )
    with pytest.raises(UserError, match="states of layer -2 of the T2TViT are 28 wide, and its last ones 36, as"):
        model.encode_images(torch.zeros(1, 3, 32, 32))
