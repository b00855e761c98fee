"""What the models of VL-GPT return."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers.utils import ModelOutput

from tessera.objectives.tally import Tally


@dataclass
class TokenizerOutput(ModelOutput):
    """Output of stage A. B pictures.

    loss: lambda 1 * image mean + lambda 2 * text mean; None without targets.
    image, text: (sum over pictures of the mean squared error, number of pictures); None where switched off.
    embeds: x_v [B, N, d]. image_condition: z_v [B, Q, Dv]. text_condition: z_t [B, T, Dt].
    """

    loss: Tensor | None = None
    image: Tally | None = None
    text: Tally | None = None
    embeds: Tensor | None = None
    image_condition: Tensor | None = None
    text_condition: Tensor | None = None


@dataclass
class VLGPTOutput(ModelOutput):
    """Output of stages B and C. B rows, L positions, V words.

    loss: sum CE / n_text + w * sum MSE / n_visual; None without labels.
    text_loss, visual_loss: each sum over its denominator, without the weight.
    text, visual: (sum, number of targets) of this batch.
    visual_rms: root mean square of the visual embeddings that entered, None without pictures.
    logits: [B, L, V], only without labels: with labels they are computed on learned positions alone.
    hidden: last hidden states [B, L, d].
    """

    loss: Tensor | None = None
    text_loss: Tensor | None = None
    visual_loss: Tensor | None = None
    text: Tally | None = None
    visual: Tally | None = None
    visual_rms: Tensor | None = None
    logits: Tensor | None = None
    hidden: Tensor | None = None

    @property
    def num_text_targets(self) -> int:
        """Words predicted in this batch."""
        return 0 if self.text is None else self.text.number

    @property
    def num_visual_targets(self) -> int:
        """Visual embeddings predicted in this batch."""
        return 0 if self.visual is None else self.visual.number
