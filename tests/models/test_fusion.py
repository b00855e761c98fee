"""The fusion model against transformers' LXMERT with the same weights, its counted sizes, and its limit cases."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertModel,
    LxmertConfig,
    LxmertForPreTraining,
    LxmertForQuestionAnswering,
    LxmertModel,
)

from tessera.errors import UserError
from tessera.models.fusion import (
    FusionConfig,
    FusionForPairs,
    FusionForPreTraining,
    FusionForQuestionAnswering,
    FusionModel,
    Targets,
    encoders_from,
)
from tessera.models.fusion.sizes import component_sizes
from tests.models.fusion_tiny import inputs, targets, tiny, tiny_theirs

PARTS = {
    "text embeddings": 23_837_184, "language layers": 63_790_848, "object-relationship layers": 35_439_360,
    "cross-modality layers": 82_698_240, "region embedding": 1_580_544, "pooler": 590_592,
    "backbone": 207_936_768, "total": 228_051_752,
}  # fmt: skip


def twins(**changes: Any) -> tuple[LxmertForPreTraining, FusionForPreTraining]:
    """transformers' model with random weights, norms and biases too, and ours with the same."""
    torch.manual_seed(0)
    theirs = LxmertForPreTraining(tiny_theirs(**changes)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    ours = FusionForPreTraining(FusionConfig(**theirs.config.to_dict())).eval()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def for_theirs(asked: Targets) -> dict[str, Any]:
    """Our targets as transformers' arguments."""
    assert asked.masked is not None
    regions = {
        "obj": (asked.objects, asked.object_confidence),
        "attr": (asked.attributes, asked.attribute_confidence),
        "feat": (asked.features, asked.masked.float()),
    }
    return {"labels": asked.words, "obj_labels": regions, "matched_label": asked.matched, "ans": asked.answers}


def difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


@pytest.mark.light("lxmert", "size")
def test_every_counted_figure_of_the_published_size() -> None:
    assert component_sizes(FusionConfig()) == PARTS


@pytest.mark.light("lxmert", "size")
def test_sharing_the_cross_attention_saves_five_blocks() -> None:
    block = 4 * (768 * 768 + 768) + 2 * 768
    assert block == 2_363_904
    unshared = component_sizes(FusionConfig(shared_cross_attention=False))
    assert unshared["total"] - PARTS["total"] == 5 * block == 11_819_520
    assert component_sizes(FusionConfig(x_layers=1))["cross-modality layers"] == 16_539_648 == 3 * block + 2 * 4_723_968


@pytest.mark.light("lxmert", "exact")
def test_streams_heads_and_loss_equal_those_of_transformers() -> None:
    theirs, ours = twins()
    given, asked = inputs(), targets()
    with torch.no_grad():
        states, expected = ours.lxmert(**given), theirs.lxmert(**given)
        found = ours(**given, targets=asked)
        wanted = theirs(**given, **for_theirs(asked))
        regions = theirs.obj_predict_head(expected.vision_output)
    pairs = {
        "language": (states.language, expected.language_output),
        "vision": (states.vision, expected.vision_output),
        "pooled": (states.pooled, expected.pooled_output),
        "words": (found.word_logits, wanted.prediction_logits),
        "matched": (found.matched_logits, wanted.cross_relationship_score),
        "answers": (found.answer_logits, wanted.question_answering_score),
        "loss": (found.loss, wanted.loss),
        **{name: (found.regions[name], regions[name]) for name in ("obj", "attr", "feat")},
    }
    largest = {name: difference(*pair) for name, pair in pairs.items()}
    assert max(largest.values()) < 1e-5, largest


@pytest.mark.light("lxmert", "exact")
def test_gradients_equal_those_of_transformers() -> None:
    theirs, ours = twins()
    given, asked = inputs(), targets()
    ours(**given, targets=asked).loss.backward()
    theirs(**given, **for_theirs(asked)).loss.backward()
    expected = dict(theirs.named_parameters())
    assert set(expected) == {name for name, _ in ours.named_parameters()}
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.light("lxmert", "weights")
@pytest.mark.parametrize(
    ("kind", "mine"),
    [
        (LxmertModel, FusionModel),
        (LxmertForPreTraining, FusionForPreTraining),
        (LxmertForQuestionAnswering, FusionForQuestionAnswering),
    ],
)
def test_folders_of_transformers_load_as_they_are_and_ours_load_there(kind: Any, mine: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs, given = kind(tiny_theirs()).eval(), inputs()
    theirs.save_pretrained(tmp_path / "theirs")
    ours, report = mine.from_pretrained(tmp_path / "theirs", output_loading_info=True)
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ours.save_pretrained(tmp_path / "ours")
    again = kind.from_pretrained(tmp_path / "ours").eval()
    with torch.no_grad():
        expected, round_trip, found = theirs(**given), again(**given), ours(**given)
    first = (
        found.language if mine is FusionModel else found.word_logits if mine is FusionForPreTraining else found.logits
    )
    assert difference(first, expected[0]) < 1e-5
    assert torch.equal(round_trip[0], expected[0])
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["model_type"] == LxmertConfig.model_type


@pytest.mark.light("lxmert", "weights")
def test_answers_equal_those_of_transformers_for_one_true_answer() -> None:
    torch.manual_seed(0)
    theirs = LxmertForQuestionAnswering(tiny_theirs()).eval()
    ours = FusionForQuestionAnswering(tiny()).eval()
    ours.load_state_dict(theirs.state_dict())
    given, labels = inputs(), torch.tensor([3, 0, 10])
    with torch.no_grad():
        found, expected = ours(**given, labels=labels), theirs(**given, labels=labels)
    assert difference(found.logits, expected.question_answering_score) < 1e-5
    assert difference(found.loss, expected.loss) < 1e-5


@pytest.mark.light("lxmert", "exact")
def test_without_cross_layers_the_text_stream_is_a_plain_bert_and_never_sees_the_picture() -> None:
    torch.manual_seed(0)
    ours = FusionModel(tiny(x_layers=0, l_layers=9)).eval()
    sizes = {"vocab_size": 99, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
    bert = BertModel(BertConfig(**sizes, num_hidden_layers=9, max_position_embeddings=20), add_pooling_layer=False)
    weights = {f"embeddings.{name}": value for name, value in ours.embeddings.state_dict().items()}
    weights |= {f"encoder.layer.{name}": value for name, value in ours.encoder.layer.state_dict().items()}
    bert.eval().load_state_dict(weights)
    given, other = inputs(), inputs(seed=5)
    elsewhere = {**given, "visual_feats": other["visual_feats"], "visual_pos": other["visual_pos"]}
    with torch.no_grad():
        found, moved = ours(**given).language, ours(**elsewhere).language
        expected = bert(given["input_ids"], given["attention_mask"]).last_hidden_state
    assert difference(found, expected) < 1e-5
    assert torch.equal(found, moved)


def test_with_a_cross_layer_the_text_stream_sees_the_picture() -> None:
    torch.manual_seed(0)
    ours, given, other = FusionModel(tiny(x_layers=1)).eval(), inputs(), inputs(seed=5)
    with torch.no_grad():
        found = ours(**given).language
        moved = ours(**{**given, "visual_feats": other["visual_feats"]}).language
    assert difference(found, moved) > 1e-3


def test_both_directions_of_a_cross_layer_read_its_inputs() -> None:
    """Words that attend to updated regions, or the other way round, are another model."""
    torch.manual_seed(0)
    layer = FusionModel(tiny(x_layers=1)).eval().encoder.x_layers[0]
    words, regions = torch.randn(2, 5, 32), torch.randn(2, 4, 32)
    with torch.no_grad():
        found = layer(words, regions, None, None)
        crossed = layer.visual_attention(words, regions), layer.visual_attention(regions, words)
        one, other = layer.lang_self_att(crossed[0]), layer.visn_self_att(crossed[1])
        expected = layer.lang_output(layer.lang_inter(one), one), layer.visn_output(layer.visn_inter(other), other)
        updated = layer.visual_attention(regions, crossed[0])
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    assert difference(crossed[1], updated) > 1e-3


def test_padding_changes_nothing() -> None:
    torch.manual_seed(0)
    ours, given = FusionForPreTraining(tiny()).eval(), inputs(pairs=2)
    short = {
        "input_ids": given["input_ids"][:, :6], "visual_feats": given["visual_feats"][:, :4],
        "visual_pos": given["visual_pos"][:, :4],
    }  # fmt: skip
    masks = {"attention_mask": torch.arange(9)[None] < 6, "visual_attention_mask": torch.arange(6)[None] < 4}
    padded = {**given, **{name: mask.expand(2, -1) for name, mask in masks.items()}}
    asked = targets(pairs=2)
    words = torch.where(masks["attention_mask"], asked.words, -100)
    narrow = {name: getattr(asked, name)[:, :4] for name in vars(asked) if name not in ("words", "matched", "answers")}
    with torch.no_grad():
        long = ours(**padded, targets=replace(asked, words=words))
        cut = ours(**short, targets=replace(asked, words=words[:, :6], **narrow))
    assert difference(long.states.pooled, cut.states.pooled) < 1e-5
    for name, loss in cut.losses.items():
        assert difference(long.losses[name], loss) < 1e-5, name


@pytest.mark.light("lxmert", "exact")
def test_label_losses_are_means_over_all_regions_times_the_normaliser_and_may_be_of_masked_ones_alone() -> None:
    torch.manual_seed(0)
    ours, given, asked = FusionForPreTraining(tiny()).eval(), inputs(), targets()
    assert asked.masked is not None
    sure = replace(asked, object_confidence=torch.ones(3, 6))
    weight = ours.weights["objects"]
    assert weight == pytest.approx(6.6667, abs=1e-4)
    with torch.no_grad():
        found = ours(**given, targets=sure)
        plain = F.cross_entropy(found.regions["obj"].flatten(0, 1), asked.objects.flatten())
        assert weight * found.losses["objects"] == pytest.approx(float(plain) * weight, rel=1e-5)
        by_confidence = ours(**given, targets=replace(sure, object_confidence=asked.masked.float()))
        ours.config.label_losses = "masked"
        masked = ours(**given, targets=sure)
    assert torch.equal(by_confidence.losses["objects"], masked.losses["objects"])
    assert masked.losses["objects"] < found.losses["objects"]


def test_the_loss_of_features_counts_masked_regions_only() -> None:
    torch.manual_seed(0)
    ours, given, asked = FusionForPreTraining(tiny()).eval(), inputs(), targets()
    assert asked.masked is not None and asked.features is not None
    with torch.no_grad():
        found = ours(**given, targets=asked)
        each = F.smooth_l1_loss(found.regions["feat"], asked.features, reduction="none").mean(-1)
    assert found.losses["features"] == pytest.approx(float((each * asked.masked).sum() / 18), rel=1e-5)


def test_tasks_without_targets_are_left_out() -> None:
    ours, given = FusionForPreTraining(tiny()).eval(), inputs()
    assert set(ours(**given, targets=Targets(matched=torch.tensor([0, 1, 1]))).losses) == {"matched"}
    none = FusionForPreTraining(tiny(task_qa=False, task_obj_predict=False))
    assert set(none(**given, targets=targets()).losses) == {"words", "matched"}


def test_a_pair_of_pictures_is_read_picture_by_picture() -> None:
    torch.manual_seed(0)
    ours = FusionForPairs(tiny()).eval()
    left, right = inputs(), inputs(seed=7)
    both = {name: torch.stack([left[name], right[name]], dim=1) for name in ("visual_feats", "visual_pos")}
    words = {name: left[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        found = ours(**words, **both, labels=torch.tensor([0, 1, 1]))
        one, other = ours.lxmert(**left).pooled, ours.lxmert(**{**right, **words}).pooled
        expected = ours.logit_fc(torch.cat([one, other], dim=1))
    assert difference(found.logits, expected) < 1e-5
    assert found.loss == pytest.approx(float(F.cross_entropy(expected, torch.tensor([0, 1, 1]))), rel=1e-4)


def test_soft_answers_are_a_mean_times_the_number_of_answers() -> None:
    torch.manual_seed(0)
    ours, given = FusionForQuestionAnswering(tiny()).eval(), inputs()
    scores = torch.rand(3, 11, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = ours(**given, labels=scores)
        expected = F.binary_cross_entropy_with_logits(found.logits, scores) * 11
    assert found.loss == pytest.approx(float(expected), rel=1e-5)


def test_a_head_takes_rows_of_answers_that_it_knows_and_zeroes_the_rest() -> None:
    torch.manual_seed(0)
    before, after = FusionForPreTraining(tiny()), FusionForQuestionAnswering(tiny(num_qa_labels=3))
    encoders_from(after, before)
    assert after.answer_head.take_over(before.answer_head, [4, None, 0]) == 2
    old, new = before.answer_head.logit_fc, after.answer_head.logit_fc
    assert torch.equal(new[3].weight[0], old[3].weight[4]) and torch.equal(new[3].weight[2], old[3].weight[0])
    assert not new[3].weight[1].any() and not new[3].bias[1]
    given = inputs()
    with torch.no_grad():
        whole = before.eval()(**given).answer_logits
        assert difference(after.eval()(**given).logits[:, 0], whole[:, 4]) < 1e-6


def test_rows_of_padding_take_no_gradient() -> None:
    ours, given = FusionForPreTraining(tiny()), inputs()
    ours.lxmert(**given).pooled.sum().backward()
    tables = ours.lxmert.embeddings
    assert not tables.position_embeddings.weight.grad[0].any() and tables.position_embeddings.weight[0].any()
    assert tables.position_embeddings.weight.grad[1].any()


def test_what_does_not_fit_is_said_in_a_sentence() -> None:
    with pytest.raises(UserError, match="hidden_size 30 does not divide among 4 attention heads"):
        tiny(hidden_size=30)
    with pytest.raises(UserError, match="features of width 20 and boxes of 4 numbers; this model was built for 24"):
        FusionModel(tiny())(**inputs(width=20))
