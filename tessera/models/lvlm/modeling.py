"""A language model with eyes: pictures through an encoder, a token reducer where one is named, and a connector into the
sequence of any causal language model.

Legend: B rows, L positions, V words, K learned words, M pictures in order of appearance row by row, N tokens a picture,
C width of what the connector reads, d width of the language model.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    Cache,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteriaList,
)

from tessera.connect.connectors import Connector, Grid
from tessera.connect.registry import create as create_connector
from tessera.errors import TrainingStopped, UserError
from tessera.layers.masks import positions_within
from tessera.layers.placeholders import fill
from tessera.models.lvlm.configuration import LVLMConfig
from tessera.models.lvlm.generation import never_a_picture, repeat_pictures, within_context
from tessera.models.lvlm.inside import Inside, sequences
from tessera.models.lvlm.language import learned_words, packed_mask, takes_positions
from tessera.models.lvlm.outputs import LVLMOutput
from tessera.models.lvlm.seeing import SeeingLanguageModel
from tessera.models.lvlm.sheets import Sheets
from tessera.objectives.next_token import next_token
from tessera.objectives.routing import route
from tessera.vision.base import VisionBackbone, VisionOutput


class LVLMForConditionalGeneration(SeeingLanguageModel):
    """Encoder, connector and language model. Which of them train is the stage's choice; an encoder in which nothing
    trains stays in evaluation mode.

    Args:
        vision, language_model, connector: ready parts, taken as they are with their weights; by default made from the
            configuration.

    Raises:
        UserError: no connector or reducer has that name, or the picture's grid does not suit it.
    """

    config: LVLMConfig
    config_class = LVLMConfig

    def __init__(
        self,
        config: LVLMConfig,
        vision: VisionBackbone | None = None,
        language_model: PreTrainedModel | None = None,
        connector: Connector | None = None,
    ) -> None:
        super().__init__(config, vision, language_model)
        if connector is None:
            table: Any = self.get_input_embeddings()
            read = self.vision.width * max(1, len(config.vision_feature_layers))
            connector = create_connector(
                config.connector, read, table.embedding_dim, **(config.connector_options or {})
            )
        self.connector = connector
        self.sheets: Sheets | None = None
        if config.image_grid_pinpoints is not None:
            words: Any = self.get_input_embeddings()
            self.sheets = Sheets(config.image_grid_pinpoints, config.vision_config.image_size, words.embedding_dim)
        self.slot = config.slot() if config.reduce_after is None else None
        if self.slot is not None:
            self.slot.check(self._grid())
        self.num_image_tokens()  # refuses a connector that the grid does not suit before anything is trained
        self.inside = self._inside()
        self.post_init()

    def train(self, mode: bool = True) -> LVLMForConditionalGeneration:
        """As everywhere, but a frozen encoder keeps its statistics and drops nothing."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.vision.parameters()):
            self.vision.eval()
        return self

    def num_image_tokens(self, height: int | None = None, width: int | None = None) -> int:
        """N of a picture of height x width pixels, by default of the size that the encoder is made for.

        Raises:
            UserError: the encoder or the connector cannot take such a picture.
        """
        grid = self._grid(height, width)
        strategy = self.config.vision_feature_select_strategy
        if strategy == "class":
            return self.connector.count((1, 1))
        if self.slot is not None:
            grid = self.slot.left(grid)
        return self.connector.count(grid, extra=int(strategy == "full"))

    def num_picture_tokens(self, height: int, width: int) -> int:
        """Tokens of a picture that was height x width pixels: N, unless it is shown on sheets."""
        if self.sheets is None:
            return self.num_image_tokens()
        return self.sheets.count(height, width, self.connector.left(self._grid()))

    def _inside(self) -> Inside | None:
        """The reducer inside the language model."""
        slot, layers = self.config.slot(), self.config.reduce_after
        if slot is None or layers is None:
            return None
        grid = self.connector.left(self._grid())
        inside = Inside(slot=slot, layers=layers, grid=grid, extra=self.num_image_tokens() - grid[0] * grid[1])
        inside.check(self.language_model)
        return inside

    def _grid(self, height: int | None = None, width: int | None = None) -> Grid:
        size = self.config.vision_config.image_size
        return self.vision.grid_of(height or size, width or size)

    def visual_features(self, pixel_values: Tensor) -> tuple[Tensor, Grid]:
        """Pixels [M, 3, H, W] -> what the connector reads, [M, S, C], and its grid (h, w).

        Raises:
            UserError: the encoder has no such layer, its states there are of another width than its last or not a grid
                with a class token where one is asked for, or its grid is too small for the reducer.
        """
        layers = self.config.vision_feature_layers
        seen = self.vision(pixel_values.to(self.vision.dtype), output_hidden_states=bool(layers))
        states = [self._state(seen, layer) for layer in layers] or [torch.cat([seen.pooled[:, None], seen.tokens], 1)]
        extra = states[0].shape[1] - seen.grid[0] * seen.grid[1]
        strategy = self.config.vision_feature_select_strategy
        if extra not in (0, 1) or (extra == 0 and strategy != "default"):
            raise UserError(
                f"layer {self.config.vision_feature_layer} of the {type(self.vision).__name__} has {states[0].shape[1]}"
                f" states, which is not its grid of {seen.grid[0]} x {seen.grid[1]} with a class token; set"
                " vision_feature_layer to None, or vision_feature_select_strategy to 'default'"
            )
        for layer, state in zip(layers, states, strict=False):
            if state.shape[-1] != self.vision.width:
                raise UserError(
                    f"the states of layer {layer} of the {type(self.vision).__name__} are {state.shape[-1]} wide, and"
                    f" its last ones {self.vision.width}, as the connector reads them; set vision_feature_layer to None"
                )
        tokens = torch.cat(states, dim=-1)
        if strategy == "class":
            return tokens[:, :1], (1, 1)
        first, tokens, grid = tokens[:, :extra], tokens[:, extra:], seen.grid
        if self.slot is not None:
            tokens, grid = self.slot(tokens, grid)
        return torch.cat([first, tokens], dim=1) if strategy == "full" else tokens, grid

    def _state(self, seen: VisionOutput, layer: int) -> Tensor:
        states = seen.hidden_states or ()
        place = layer - 1 if layer > 0 else layer  # the encoder's list begins after its first block
        if not -len(states) <= place < len(states):
            raise UserError(f"vision_feature_layer is {layer}, but the encoder has {len(states)} blocks")
        return states[place]

    def encode_images(self, pixel_values: Tensor, image_sizes: Tensor | None = None) -> Tensor:
        """Pixels [M, 3, H, W] -> tokens [M, N, d] for the language model; M may be 0. Where pictures are shown on
        sheets, pixels [T, 3, H, W] of their tiles -> tokens [S, d] of all of them, one after the other.

        Args:
            image_sizes: int64 [M, 2], height and width of the pictures that the tiles are of.

        Raises:
            UserError: pictures on sheets without their sizes.
            DataError: another number of tiles than such pictures have.
        """
        if not len(pixel_values):  # one blank picture, of which nothing is kept: each process touches each part
            return self._tokens(pixel_values.new_zeros(1, *pixel_values.shape[1:]))[0][:0]
        tokens, grid = self._tokens(pixel_values)
        if self.sheets is None:
            return tokens
        if image_sizes is None:
            raise UserError("this model shows pictures on sheets of tiles; give image_sizes, their height and width")
        return self.sheets(tokens, image_sizes, self.connector.left(grid))

    def _tokens(self, pixel_values: Tensor) -> tuple[Tensor, Grid]:
        """[M, 3, H, W] -> [M, N, d], and the grid that the connector read."""
        features, grid = self.visual_features(pixel_values)
        tokens = self.connector(features.to(next(self.connector.parameters()).dtype), grid)
        if self.inside is not None:
            self.inside.check_tokens(tokens.shape[1])
        return tokens, grid

    def embed(self, input_ids: Tensor, image_embeds: Tensor | None = None) -> Tensor:
        """Words and pictures as one run: input_ids [B, L], image_embeds [M, N, d] or [M * N, d] -> [B, L, d].

        Raises:
            DataError: the number of placeholders is not M * N.
        """
        slots = input_ids == self.config.image_token_id
        return fill(self.get_input_embeddings()(input_ids.masked_fill(slots, 0)), slots, image_embeds)

    def forward(
        self,
        input_ids: Tensor | None = None,
        labels: Tensor | None = None,
        position_ids: Tensor | None = None,
        segment_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_embeds: Tensor | None = None,
        image_sizes: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: Cache | None = None,
        logits_to_keep: int | Tensor = 0,
        num_text: float | Tensor | None = None,
        **options: Any,
    ) -> LVLMOutput:
        """Scores of the next word, or with labels the loss on learned words.

        Args:
            input_ids: [B, L], a picture as N placeholders; or `inputs_embeds` [B, L, d] from `embed`.
            labels: [B, L], unshifted; -100 where the position is no learned word.
            position_ids: [B, L]; by default counted within each sequence.
            segment_ids: [B, L], 0 for padding, then the number of the sequence in its row; sequences do not see each
                other. None: each row is one sequence.
            attention_mask: [B, L], 0 for padding; not together with `segment_ids`.
            pixel_values: [M, 3, H, W], or `image_embeds` [M, N, d] from `encode_images`.
            image_sizes: as of `encode_images`.
            logits_to_keep: as in transformers: how many of the last positions are scored, 0 for all.
            num_text: denominator of the mean, by default the targets of this batch: those of the whole accumulated
                step over all processes.
            options: for the language model: use_cache (off unless asked for), output_hidden_states, ...

        Raises:
            DataError: placeholders and pictures do not match.
            UserError: no input, or packed rows for a language model that cannot keep them apart.
            TrainingStopped: nothing in the batch is learned and no denominator was given.
        """
        if image_embeds is None and pixel_values is not None:
            image_embeds = self.encode_images(pixel_values, image_sizes)
        if inputs_embeds is None:
            if input_ids is None:
                raise UserError("give input_ids or inputs_embeds; both are missing")
            inputs_embeds = self.embed(input_ids, image_embeds)
        fewer = self._fewer(input_ids, inputs_embeds, attention_mask, segment_ids, past_key_values)
        if segment_ids is not None:
            if attention_mask is not None:
                raise UserError("give segment_ids, where 0 is padding, or attention_mask, not both")
            position_ids = positions_within(segment_ids)
            attention_mask = packed_mask(self.language_model, segment_ids, position_ids, inputs_embeds.dtype)
        options.setdefault("use_cache", past_key_values is not None)
        inputs = {"inputs_embeds": inputs_embeds, "attention_mask": attention_mask, **options, "return_dict": True}
        if position_ids is not None and takes_positions(self.language_model):
            inputs["position_ids"] = position_ids
        if past_key_values is not None:
            inputs["past_key_values"] = past_key_values
        with fewer:
            if labels is None:
                return LVLMOutput.of(self.language_model(**inputs, logits_to_keep=logits_to_keep))
            return self._learned(inputs, labels, route(labels, None, segment_ids).text, num_text)

    def _fewer(
        self, ids: Tensor | None, embeds: Tensor, mask: Any, segment_ids: Tensor | None, cache: Cache | None
    ) -> AbstractContextManager[None]:
        """Within, the later layers of the language model read what the reducer leaves, where one stands there."""
        if self.inside is None:
            return nullcontext()
        slots = None if ids is None else ids == self.config.image_token_id
        begun = 0 if cache is None else int(cache.get_seq_length())
        rows, length = embeds.shape[:2]
        segments = sequences(mask, segment_ids, rows, begun + length, embeds.device)
        return self.inside.within(self.language_model, slots, segments, cache, begun)

    def _learned(
        self, inputs: dict[str, Any], labels: Tensor, steps: Tensor, num_text: float | Tensor | None
    ) -> LVLMOutput:
        """The loss of the words [B, L] that follow the `steps`, bool [B, L - 1]. Raises as `forward`."""
        output = learned_words(self.language_model, inputs, labels, steps)
        assert output.logits is not None and output.words is not None
        output.text = next_token(output.logits, output.words)
        if num_text is None and not output.text.number:
            raise TrainingStopped(
                "the batch has no learned position; check `learned` and the label mask of its samples"
            )
        output.loss = output.text.mean(num_text)
        return output

    @torch.no_grad()
    def generate(  # type: ignore[override]
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: LogitsProcessorList | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
        *,
        pixel_values: Tensor | None = None,
        image_sizes: Tensor | None = None,
        **options: Any,
    ) -> Any:
        """Continue prompts with transformers' own `generate`, whose further arguments all work: beams, sampling,
        processors, caches, streamers. Pictures are encoded once.

        Args:
            inputs: int64 [B, L], or as `input_ids`; pad on the left and give `attention_mask`.
            pixel_values: [M, 3, H, W] of the pictures in the prompts, row by row; or `image_embeds` [M, N, d].
            image_sizes: as of `encode_images`.

        Raises:
            UserError: a prompt leaves the language model no position to answer in.
            DataError: placeholders and pictures do not match.
        """
        ids = options.get("input_ids") if inputs is None else inputs
        processors = never_a_picture(self.config, logits_processor, self.device)
        if ids is not None:
            stopping_criteria = within_context(self.config, stopping_criteria, ids, options.get("attention_mask"))
        if pixel_values is not None:
            options["image_embeds"] = self.encode_images(pixel_values, image_sizes)
        parent: Any = super()  # whose own types ask for a protocol that no model is known to meet; as below
        return parent.generate(inputs, generation_config, processors, stopping_criteria, **options)

    def prepare_inputs_for_generation(self, *arguments: Any, **kwargs: Any) -> dict[str, Any]:
        """As everywhere; pictures enter once, and are in the cache from then on."""
        # transformers looks at the name `kwargs` to know that arguments of `forward` are welcome
        parent: Any = super()
        inputs = parent.prepare_inputs_for_generation(*arguments, **kwargs)
        if not kwargs.get("is_first_iteration") and inputs.get("use_cache", True):
            inputs.pop("image_embeds", None)
        return inputs

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Any = None, **options: Any
    ) -> Any:
        embeds = options.pop("image_embeds", None)
        if embeds is not None:  # a row may have any number of pictures, so they do not multiply as rows do
            slots = input_ids == self.config.image_token_id
            embeds = repeat_pictures(embeds, slots, expand_size)
        parent: Any = super()
        ids, expanded = parent._expand_inputs_for_generation(expand_size, is_encoder_decoder, input_ids, **options)
        return ids, expanded if embeds is None else {**expanded, "image_embeds": embeds}


AutoModel.register(LVLMConfig, LVLMForConditionalGeneration)
AutoModelForImageTextToText.register(LVLMConfig, LVLMForConditionalGeneration)
