"""VL-GPT: one causal transformer over a sequence in which words and pictures stand side by side.

Legend: B rows, L positions, V words, M pictures in order of appearance row by row, N embeddings a picture, d
width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, LlamaForCausalLM
from transformers import initialization as init

from tessera.errors import TrainingStopped, UserError
from tessera.layers.masks import positions_within
from tessera.layers.packed import packed_rows
from tessera.layers.placeholders import fill
from tessera.layers.standardise import Reweigh, Standardise
from tessera.models.around import AroundLanguageModel
from tessera.models.vlgpt.configuration import VLGPTConfig
from tessera.models.vlgpt.image_tokenizer import CausalTokenizerModel
from tessera.models.vlgpt.outputs import VLGPTOutput
from tessera.models.vlgpt.projector import VisualProjector
from tessera.models.vlgpt.regression_head import ResidualHead
from tessera.models.vlgpt.token_rows import ImageTokenRows
from tessera.objectives.next_token import next_token, next_token_of
from tessera.objectives.regression import regression
from tessera.objectives.routing import route
from tessera.objectives.tally import Tally
from tessera.tokenizers.causal import Conditions


class VLGPTForConditionalGeneration(AroundLanguageModel):
    """The whole of VL-GPT except the diffusion model that paints: image tokenizer, language model, regression
    head.

    The image tokenizer is frozen, in evaluation mode and run without gradient: trained against its own
    outputs it would collapse to a constant. Which other parts train is the stage's choice.

    Args:
        language_model, image_tokenizer: ready parts, taken as they are; by default made from the
            configuration.

    Raises:
        UserError: the image tokenizer's width is not the language model's, or the ids of the image tokens do
            not fit.
    """

    config: VLGPTConfig
    config_class = VLGPTConfig
    _no_split_modules = ["LlamaDecoderLayer", "DecoderBlock", "CLIPEncoderLayer"]

    def __init__(
        self,
        config: VLGPTConfig,
        language_model: LlamaForCausalLM | None = None,
        image_tokenizer: CausalTokenizerModel | None = None,
    ) -> None:
        super().__init__(config)
        _check_fit(config)
        text, width = config.text_config, config.text_config.hidden_size
        self.language_model = LlamaForCausalLM._from_config(text) if language_model is None else language_model
        self.image_tokenizer = (
            CausalTokenizerModel._from_config(config.tokenizer_config) if image_tokenizer is None else image_tokenizer
        )
        residual = config.regression_head == "residual"
        self.regression_head = ResidualHead(width) if residual else nn.Linear(width, width, bias=False)
        ids = (config.image_start_id, config.image_end_id)
        separate = config.image_token_rows == "separate"
        self.image_token_rows = ImageTokenRows(width, text.vocab_size, ids) if separate else None
        self.standardise: Standardise | Reweigh | None = None
        if config.standardise != "none":
            self.standardise = (Reweigh if config.standardise == "conditions" else Standardise)(width)
        self.visual_mask = nn.Embedding(config.num_image_positions, width) if config.visual_input_dropout else None
        projected = config.visual_projector != "none"
        self.visual_projector = VisualProjector(config.num_image_positions, width) if projected else None
        self.image_tokenizer.requires_grad_(False)
        self.post_init()
        if self.image_token_rows is not None and language_model is not None:
            self.image_token_rows.start_from(language_model)

    @classmethod
    def from_parts(
        cls, language_model: LlamaForCausalLM, image_tokenizer: CausalTokenizerModel, **fields: Any
    ) -> VLGPTForConditionalGeneration:
        """Join a trained language model and a trained image tokenizer; `fields` are those of VLGPTConfig.

        The new rows of [IMG] and [/IMG] begin at the language model's own rows, or at their mean.
        """
        config = cls.config_class(text_config=language_model.config, tokenizer_config=image_tokenizer.config, **fields)
        return cls(config, language_model, image_tokenizer)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, ImageTokenRows):
            init.normal_(module.embedding, std=0.02)
            init.normal_(module.head, std=0.02)
        elif isinstance(module, Standardise):
            init.zeros_(module.mean)
            init.ones_(module.std)
        elif isinstance(module, Reweigh):
            init.zeros_(module.mean)
            for matrix in (module.matrix, module.undone):
                init.copy_(matrix, torch.eye(len(matrix)))
        else:
            super()._init_weights(module)

    def train(self, mode: bool = True) -> VLGPTForConditionalGeneration:
        """As everywhere, but the image tokenizer stays frozen and in evaluation mode."""
        super().train(mode)
        # Again here, because from_pretrained makes new parameters and then calls eval().
        self.image_tokenizer.eval().requires_grad_(False)
        return self

    @torch.no_grad()
    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """Pixels [M, 3, H, W] -> visual embeddings [M, N, d] for the language model. No gradient."""
        features = self.image_tokenizer.patch_features(pixel_values)
        return self.scale_embeds(self.image_tokenizer.encode(features))

    @torch.no_grad()
    def decode_images(self, image_embeds: Tensor) -> Conditions:
        """Visual embeddings [M, N, d], predicted or encoded -> what the painter is told. No gradient."""
        raw = image_embeds if self.standardise is None else self.standardise.inverse(image_embeds)
        return self.image_tokenizer.decode(raw)

    def scale_embeds(self, raw: Tensor) -> Tensor:
        """x_v [..., d] as the image tokenizer gives it -> as the language model reads and predicts it."""
        return raw if self.standardise is None else self.standardise(raw)

    def fit_standardisation(self, raw: Tensor) -> None:
        """Measure the fixed scaling on x_v [M, N, d] of training pictures, once, after stage A.

        Raises:
            UserError: the configuration asks for none; "conditions", and the painter reads another number of picture
                tokens than N.
        """
        kind = self.config.standardise
        if self.standardise is None or kind == "none":
            raise UserError("standardise is 'none'; set it to 'global', 'channel' or 'conditions' before fitting it")
        if isinstance(self.standardise, Standardise):
            self.standardise.fit(raw, kind)  # type: ignore[arg-type]
            return
        read = [self.image_tokenizer.decode(part)[0] for part in raw.split(64)]
        tokens = 0 if read[0] is None else read[0].shape[1]
        if tokens != raw.shape[1]:
            raise UserError(
                f"standardise is 'conditions', but a picture has {raw.shape[1]} embeddings and {tokens} tokens of the"
                " painter are estimated from them; give it as many, or take 'global'"
            )
        self.standardise.fit(raw.float(), torch.cat(read).float())

    @torch.no_grad()
    def start_mask(self, raw: Tensor) -> None:
        """Let what stands for hidden embeddings begin as the mean of x_v [M, N, d] of training pictures.

        Raises:
            UserError: the configuration hides none.
        """
        if self.visual_mask is None:
            raise UserError("visual_input_dropout is 0, so that no embedding is ever hidden; set it above 0 first")
        self.visual_mask.weight.copy_(self.read_embeds(self.scale_embeds(raw)).mean(0))

    def read_embeds(self, image_embeds: Tensor, first: int = 0) -> Tensor:
        """Visual embeddings [..., K, d] at places `first` to first + K of a picture -> what stands for them among the
        embeddings of words, [..., K, d]."""
        return image_embeds if self.visual_projector is None else self.visual_projector(image_embeds, first)

    def embed_tokens(self, input_ids: Tensor) -> Tensor:
        """Words [...] -> [..., d]. Placeholders get a row that is to be replaced."""
        outside = input_ids == self.config.image_placeholder_id
        if self.image_token_rows is None:
            return self.get_input_embeddings()(input_ids.masked_fill(outside, 0))
        for index in self.image_token_rows.ids:
            outside = outside | (input_ids == index)
        embeds = self.get_input_embeddings()(input_ids.masked_fill(outside, 0))
        return self.image_token_rows.place(input_ids, embeds)

    def embed(self, input_ids: Tensor, image_embeds: Tensor | None = None) -> Tensor:
        """Words and pictures as one run: input_ids [B, L], image_embeds [M, N, d] -> [B, L, d].

        Raises:
            DataError: the number of placeholders is not M * N.
        """
        return self._fill(input_ids, None if image_embeds is None else self.read_embeds(image_embeds))

    def _fill(self, input_ids: Tensor, read: Tensor | None) -> Tensor:
        return fill(self.embed_tokens(input_ids), input_ids == self.config.image_placeholder_id, read)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., d] -> scores of the next word [..., V], [IMG] and [/IMG] among them."""
        logits = self.get_output_embeddings()(hidden)
        return logits if self.image_token_rows is None else self.image_token_rows.extend(hidden, logits)

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        visual_target: Tensor | None = None,
        position_ids: Tensor | None = None,
        segment_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_embeds: Tensor | None = None,
        num_text: float | Tensor | None = None,
        num_visual: float | Tensor | None = None,
    ) -> VLGPTOutput:
        """Next-element loss over words and visual embeddings (VL-GPT, multimodal sequence).

        Args:
            input_ids: [B, L]; a picture is [IMG], N placeholders, [/IMG].
            labels: [B, L], unshifted; -100 where the position is no learned word. None: logits instead of a
                loss.
            visual_target: bool [B, L], the placeholders whose embeddings are learned.
            position_ids: [B, L]; by default counted within each sequence.
            segment_ids: [B, L], 0 for padding, then the number of the sequence in its row; sequences do not
                see each other. None: each row is one sequence.
            pixel_values: [M, 3, H, W], or `image_embeds` [M, N, d] from `encode_images`.
            num_text, num_visual: denominators of the two means, by default the targets of this batch: those
                of the whole accumulated step over all processes.

        Raises:
            DataError: placeholders and pictures do not match.
            TrainingStopped: nothing in the batch is learned and no denominators were given.
        """
        if image_embeds is None and pixel_values is not None:
            image_embeds = self.encode_images(pixel_values)
        hidden = self.hidden_states(input_ids, visual_target, position_ids, segment_ids, image_embeds)
        if labels is None:
            return VLGPTOutput(logits=self.logits(hidden), hidden=hidden)
        output = VLGPTOutput()
        if image_embeds is not None:
            output.visual_rms = image_embeds.detach().float().square().mean().sqrt()
        routes = route(labels, visual_target, segment_ids)
        # Both heads run even on no position at all, so that every process touches every trained module.
        output.text = self._words(hidden[:, :-1][routes.text], labels[:, 1:][routes.text])
        predicted = self.regression_head(hidden[:, :-1][routes.visual])
        output.visual = regression(predicted, self.visual_targets(input_ids, image_embeds, routes.visual))
        if num_text is None and num_visual is None and not output.text.number + output.visual.number:
            raise TrainingStopped(
                "the batch has no learned position; check `learned` and the label mask of its samples"
            )
        output.text_loss, output.visual_loss = output.text.mean(num_text), output.visual.mean(num_visual)
        output.loss = output.text_loss + self.config.visual_loss_weight * output.visual_loss
        return output

    def hidden_states(
        self,
        input_ids: Tensor,
        visual_target: Tensor | None = None,
        position_ids: Tensor | None = None,
        segment_ids: Tensor | None = None,
        image_embeds: Tensor | None = None,
    ) -> Tensor:
        """The last hidden states [B, L, d] of the language model, which both heads read; see `forward`."""
        if segment_ids is not None and position_ids is None:
            position_ids = positions_within(segment_ids)
        packed = {}
        if segment_ids is not None:
            packed = packed_rows(segment_ids, self.language_model.config._attn_implementation)
        return self.language_model.model(
            inputs_embeds=self.inputs(input_ids, image_embeds, visual_target),
            position_ids=position_ids, use_cache=False, **packed,
        ).last_hidden_state  # fmt: skip

    def _words(self, hidden: Tensor, words: Tensor) -> Tally:
        """Cross-entropy of words [K] after hidden states [K, d]."""
        head = self.get_output_embeddings()
        if self.image_token_rows is None and type(head) is nn.Linear and head.bias is None:
            return next_token_of(hidden, head.weight, words)
        return next_token(self.logits(hidden), words)

    def inputs(self, input_ids: Tensor, image_embeds: Tensor | None, visual_target: Tensor | None) -> Tensor:
        """What the language model reads [B, L, d], some pictures hidden in training."""
        read = None if image_embeds is None else self.read_embeds(image_embeds)
        inputs = self._fill(input_ids, self._hide_some(input_ids, read, visual_target))
        if self.training and read is None:  # so that every process touches every trained module
            for module in filter(None, (self.visual_mask, self.visual_projector)):
                inputs = inputs + sum(0 * one.sum() for one in module.parameters())
        return inputs

    def _hide_some(self, input_ids: Tensor, read: Tensor | None, visual_target: Tensor | None) -> Tensor | None:
        """What training reads [M, N, d]: some learned pictures that nothing follows are hidden."""
        if self.visual_mask is None or read is None or visual_target is None or not self.training:
            return read
        slots = input_ids == self.config.image_placeholder_id
        last = slots & ~nn.functional.pad(slots[:, 1:], (0, 1))
        ends = nn.functional.pad(input_ids[:, 2:], (0, 2)) == self.config.text_config.eos_token_id  # after [/IMG]
        drawn = torch.rand(len(read), device=input_ids.device) < self.config.visual_input_dropout
        hidden = (visual_target & ends)[last] & drawn
        return torch.where(hidden[:, None, None], self.visual_mask.weight.to(read.dtype), read)

    def visual_targets(self, input_ids: Tensor, image_embeds: Tensor | None, steps: Tensor) -> Tensor:
        """The embeddings [K, d] that follow the K chosen steps of [B, L - 1], at their full precision."""
        if image_embeds is None:
            return torch.zeros(0, self.config.text_config.hidden_size, device=input_ids.device)
        slots = input_ids == self.config.image_placeholder_id
        order = slots.flatten().cumsum(0).view_as(slots) - 1  # which visual embedding fills each placeholder
        return image_embeds.flatten(0, 1)[order[:, 1:][steps]]


def _check_fit(config: VLGPTConfig) -> None:
    width, vocabulary = config.text_config.hidden_size, config.text_config.vocab_size
    if config.tokenizer_config.embed_width != width:
        raise UserError(
            f"the image tokenizer gives width {config.tokenizer_config.embed_width}, the language model reads"
            f" {width}; train the tokenizer with embed_width={width}"
        )
    largest = max(config.image_start_id, config.image_end_id)
    if config.image_token_rows == "shared" and largest >= vocabulary:
        raise UserError(
            f"an image token has id {largest} but the language model has {vocabulary} entries; take"
            " image_token_rows='separate' or resize its embeddings"
        )


AutoModel.register(VLGPTConfig, VLGPTForConditionalGeneration)
