"""The fusion model with its five pre-training tasks (LXMERT, Tan and Bansal 2019).

Legend: B pairs, L words, K regions of which N are there, W width, A answers.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tessera.data.sequence import IGNORED
from tessera.models.fusion.configuration import FusionConfig
from tessera.models.fusion.heads import AnswerHead, LanguageHeads, RegionHead
from tessera.models.fusion.modeling import FusionModel, FusionPreTrainedModel
from tessera.models.fusion.outputs import FusionOutput, PretrainingOutput, Targets
from tessera.objectives.detections import detected_labels, hidden_features
from tessera.objectives.next_token import next_token
from tessera.objectives.tally import Tally

REGION_TASKS = ("features", "objects", "attributes")  # the first is a regression, the others classify


class FusionForPreTraining(FusionPreTrainedModel):
    """Masked language modelling, matching, masked regions (features and detected labels) and question answering.

    The last three have heads where the configuration's `task_obj_predict` and `task_qa` say so, as in transformers.
    """

    _tied_weights_keys = {"cls.predictions.decoder.weight": "lxmert.embeddings.word_embeddings.weight"}

    def __init__(self, config: FusionConfig) -> None:
        super().__init__(config)
        self.lxmert = FusionModel(config)
        self.cls = LanguageHeads(config)
        self.obj_predict_head = RegionHead(config) if config.task_obj_predict else None
        self.answer_head = AnswerHead(config) if config.task_qa else None
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """The matrix that is tied to the word embedding."""
        return self.cls.predictions.decoder

    @property
    def weights(self) -> Mapping[str, float]:
        """Factor of each loss in the plain sum."""
        regions = self.config.visual_loss_normalizer
        return {"words": 1.0, "matched": 1.0, "answers": 1.0} | dict.fromkeys(REGION_TASKS, regions)

    def forward(
        self,
        input_ids: Tensor,
        visual_feats: Tensor,
        visual_pos: Tensor,
        attention_mask: Tensor | None = None,
        visual_attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        targets: Targets | None = None,
    ) -> PretrainingOutput:
        """Every prediction and, with targets, the losses. The inputs are those of `FusionModel`, already masked."""
        states = self.lxmert(
            input_ids, visual_feats, visual_pos, attention_mask=attention_mask,
            visual_attention_mask=visual_attention_mask, token_type_ids=token_type_ids,
        )  # fmt: skip
        output = PretrainingOutput(
            word_logits=self.cls.predictions(states.language),
            matched_logits=self.cls.seq_relationship(states.pooled),
            answer_logits=None if self.answer_head is None else self.answer_head(states.pooled),
            regions=None if self.obj_predict_head is None else self.obj_predict_head(states.vision),
            states=states,
        )
        if targets is not None:
            tallies = self.tallies(states, targets, visual_attention_mask)
            output.losses = {name: tally.mean() for name, tally in tallies.items()}
            output.loss = torch.stack([self.weights[name] * loss for name, loss in output.losses.items()]).sum()
        return output

    def tallies(self, states: FusionOutput, targets: Targets, region_mask: Tensor | None = None) -> dict[str, Tally]:
        """The losses that `targets` ask for, before they are averaged; heads run only where something is asked.

        "words" and "answers" are divided by the words and answers asked for, "matched" by B, those of regions by N.

        Args:
            states: of the encoders.
            region_mask: [B, K], 1 where there is a region; None where there is one everywhere.
        """
        found: dict[str, Tally] = {}
        if targets.words is not None:
            asked = targets.words != IGNORED
            found["words"] = next_token(self.cls.predictions(states.language[asked]), targets.words[asked])
        if targets.matched is not None:
            found["matched"] = next_token(self.cls.seq_relationship(states.pooled), targets.matched)
        if self.obj_predict_head is not None:
            found |= self._regions(states.vision, targets, region_mask)
        if targets.answers is not None and self.answer_head is not None:
            asked = targets.answers != IGNORED
            found["answers"] = next_token(self.answer_head(states.pooled[asked]), targets.answers[asked])
        return found

    def _regions(self, states: Tensor, targets: Targets, region_mask: Tensor | None) -> dict[str, Tally]:
        assert self.obj_predict_head is not None
        there = torch.ones_like(states[..., 0], dtype=torch.bool) if region_mask is None else region_mask.bool()
        predicted = self.obj_predict_head(states[there])
        found: dict[str, Tally] = {}
        masked = None if targets.masked is None else targets.masked[there]
        if "feat" in predicted and targets.features is not None and masked is not None:
            found["features"] = hidden_features(predicted["feat"], targets.features[there], masked)
        labelled = {
            "objects": ("obj", targets.objects, targets.object_confidence),
            "attributes": ("attr", targets.attributes, targets.attribute_confidence),
        }
        for name, (head, labels, confidence) in labelled.items():
            if head in predicted and labels is not None and confidence is not None:
                weight = confidence[there]
                if self.config.label_losses == "masked" and masked is not None:
                    weight = weight * masked
                found[name] = detected_labels(predicted[head], labels[there], weight)
        return found
