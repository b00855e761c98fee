"""The fusion model fine-tuned: questions about a picture (VQA, GQA), and statements about two pictures (NLVR2).

Legend: B samples, L words, K regions, F width of their features, W width, A answers.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tessera.models.fusion.configuration import FusionConfig
from tessera.models.fusion.heads import AnswerHead, answer_layers
from tessera.models.fusion.modeling import FusionModel, FusionPreTrainedModel
from tessera.models.fusion.outputs import AnswerOutput
from tessera.objectives.answers import soft_answers


class FusionForQuestionAnswering(FusionPreTrainedModel):
    """An answer out of a table of `num_qa_labels`: VQA has 3,129, GQA 1,842. transformers' layout."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__(config)
        self.lxmert = FusionModel(config)
        self.answer_head = AnswerHead(config)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        visual_feats: Tensor,
        visual_pos: Tensor,
        attention_mask: Tensor | None = None,
        visual_attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> AnswerOutput:
        """Scores of all answers. The inputs are those of `FusionModel`.

        Args:
            labels: float [B, A], the score of each answer (binary cross-entropy, mean times A), or int64 [B], one
                answer (cross-entropy); the official GQA has either.
        """
        pooled = self.lxmert(
            input_ids, visual_feats, visual_pos, attention_mask=attention_mask,
            visual_attention_mask=visual_attention_mask, token_type_ids=token_type_ids,
        ).pooled  # fmt: skip
        logits = self.answer_head(pooled)
        if labels is None:
            return AnswerOutput(logits=logits)
        soft = labels.is_floating_point()
        return AnswerOutput(
            loss=soft_answers(logits, labels).mean() if soft else _entropy(logits, labels), logits=logits
        )


class FusionForPairs(FusionPreTrainedModel):
    """Whether a statement is true of two pictures: each is read with the statement, both vectors are classified."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__(config)
        self.lxmert = FusionModel(config)
        self.logit_fc = answer_layers(2 * config.hidden_size, 2 * config.hidden_size, 2)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        visual_feats: Tensor,
        visual_pos: Tensor,
        attention_mask: Tensor | None = None,
        visual_attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> AnswerOutput:
        """Scores of false and true, [B, 2].

        Args:
            input_ids: [B, L], read once with each picture; masks and segments of words likewise.
            visual_feats, visual_pos: [B, 2, K, F] and [B, 2, K, 4].
            visual_attention_mask: [B, 2, K], or None.
            labels: int64 [B], 1 where the statement is true.
        """

        def twice(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.repeat_interleave(2, dim=0)

        pooled = self.lxmert(
            input_ids.repeat_interleave(2, dim=0), visual_feats.flatten(0, 1), visual_pos.flatten(0, 1),
            attention_mask=twice(attention_mask), token_type_ids=twice(token_type_ids),
            visual_attention_mask=None if visual_attention_mask is None else visual_attention_mask.flatten(0, 1),
        ).pooled  # fmt: skip
        logits = self.logit_fc(pooled.unflatten(0, (-1, 2)).flatten(1))
        return AnswerOutput(loss=None if labels is None else _entropy(logits, labels), logits=logits)


def _entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), labels)


@torch.no_grad()
def encoders_from(model: FusionPreTrainedModel, other: FusionPreTrainedModel) -> None:
    """Give `model` the encoders of `other`, as fine-tuning starts.

    Raises:
        RuntimeError: they differ in size.
    """
    model.lxmert.load_state_dict(other.lxmert.state_dict())  # type: ignore[union-attr]
