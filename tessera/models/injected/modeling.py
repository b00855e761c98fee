"""A frozen language model that sees: class tokens of a frozen encoder's last blocks, each through a linear layer, stand
as one token before the states of the later decoder layers, and learned tokens before the words (eP-ALM, 2303.11403).

Legend: B rows, each with one picture, L words, T words with those in the cache, V words of the vocabulary, K class
tokens of width C, P tokens of the prompt, e width of the table of words, d width of the layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    Cache,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteriaList,
)

from tessera.connect.connectors import Linear
from tessera.data.beside import Batch
from tessera.data.images import Pixels
from tessera.data.sample import Image
from tessera.errors import TrainingStopped, UserError
from tessera.models.folder import read_config
from tessera.models.injected.configuration import InjectedLMConfig
from tessera.models.injected.prefix import Prefix, grown_mask, word_mask, word_places
from tessera.models.lvlm.generation import within_context
from tessera.models.lvlm.language import learned_words
from tessera.models.lvlm.layers import decoder_of
from tessera.models.lvlm.outputs import LVLMOutput
from tessera.models.lvlm.seeing import SeeingLanguageModel
from tessera.objectives.next_token import next_token
from tessera.objectives.routing import route
from tessera.vision.base import VisionBackbone
from tessera.weights import load_state, shapes_in

LOSS_WEIGHT = 0.1  # of the sum over a row's words, in the official code
TRAINED = "trained.safetensors"


class SoftPrompt(nn.Module):
    """Learned tokens [P, e], through two linear layers with a tanh between where `mlp`."""

    def __init__(self, length: int, width: int, mlp: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(length, width)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width)) if mlp else None

    def forward(self) -> Tensor:
        return self.table.weight if self.mlp is None else self.mlp(self.table.weight)


class InjectedLMForConditionalGeneration(SeeingLanguageModel):
    """Encoder and language model are frozen and stay in evaluation mode; connector and prompt are trained.

    Args:
        vision, language_model: ready parts, taken as they are with their weights; by default made from the
            configuration.

    Raises:
        UserError: nothing can be put before the layers of this language model.
    """

    config: InjectedLMConfig
    config_class = InjectedLMConfig

    def __init__(
        self,
        config: InjectedLMConfig,
        vision: VisionBackbone | None = None,
        language_model: PreTrainedModel | None = None,
    ) -> None:
        super().__init__(config, vision, language_model)
        decoder_of(self.language_model)  # refuses what cannot be injected into before anything is trained
        count = min(config.levels, 1) if config.shared_connector else config.levels
        width = config.text_config.hidden_size
        self.connector = nn.ModuleList(Linear(self.vision.width, width) for _ in range(count))
        table: Any = self.language_model.get_input_embeddings()
        self.prompt = (
            SoftPrompt(config.prompt_length, table.embedding_dim, config.prompt_mlp) if config.prompt_length else None
        )
        self.post_init()
        self._freeze()

    @classmethod
    def from_pretrained(cls, *arguments: Any, **options: Any) -> Any:
        """As everywhere; transformers lets every weight learn that it has read."""
        parent: Any = super()
        loaded = parent.from_pretrained(*arguments, **options)
        (loaded[0] if isinstance(loaded, tuple) else loaded)._freeze()
        return loaded

    def _freeze(self) -> None:
        self.vision.requires_grad_(False)
        self.language_model.requires_grad_(False)

    @classmethod
    def from_trained(
        cls, folder: str | Path, vision: str | VisionBackbone, language_model: str | PreTrainedModel
    ) -> InjectedLMForConditionalGeneration:
        """What `save_trained` left in `folder`, between the parts that it was trained with, in evaluation mode.

        Raises:
            CheckpointError: it is missing, damaged, or of other parts.
            UserError: as `from_parts`.
        """
        folder = Path(folder)
        given = read_config(folder, InjectedLMConfig).to_dict()
        own = {name for name in InjectedLMConfig.__annotations__ if name not in ("vision_config", "text_config")}
        model = cls.from_parts(vision, language_model, **{name: given[name] for name in given.keys() & own})
        shapes_in(folder / TRAINED)
        load_state(model.trained(), load_file(folder / TRAINED), str(folder / TRAINED))
        return model.eval()

    def save_trained(self, folder: str | Path) -> None:
        """Write the configuration, and of the weights those that are trained, to `folder`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.config.save_pretrained(folder)
        state = {name: value.detach().contiguous() for name, value in self.trained().state_dict().items()}
        save_file(state, folder / TRAINED, metadata={"format": "pt"})

    def trained(self) -> nn.ModuleDict:
        """The connector and the prompt."""
        return nn.ModuleDict({"connector": self.connector} | ({} if self.prompt is None else {"prompt": self.prompt}))

    def train(self, mode: bool = True) -> InjectedLMForConditionalGeneration:
        """As everywhere, but what is frozen drops nothing."""
        super().train(mode)
        self.vision.eval()
        self.language_model.eval()
        return self

    @property
    def pixels(self) -> Pixels:
        """How pictures enter the encoder."""
        config = self.config
        return Pixels(config.vision_config.image_size, tuple(config.image_mean), tuple(config.image_std))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As PyTorch makes them, which the official code keeps; the frozen parts have habits of their own."""
        if isinstance(module, nn.Linear | nn.Embedding):
            module.reset_parameters()

    @torch.no_grad()
    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] -> class tokens [B, K, C] after the encoder's last K blocks, the shallowest first, each
        through its final norm.

        Raises:
            UserError: the encoder has fewer blocks, or its states there have no class token.
        """
        levels, eyes = self.config.levels, self.vision
        if not levels:
            return pixel_values.new_zeros(len(pixel_values), 0, eyes.width)
        seen = eyes(pixel_values.to(eyes.dtype), output_hidden_states=True)
        states = seen.hidden_states or ()
        if len(states) < levels:
            raise UserError(f"levels is {levels}, but the encoder has {len(states)} blocks")
        wanted = (1 + seen.grid[0] * seen.grid[1], eyes.width)
        for state in states[-levels:]:
            if tuple(state.shape[1:]) != wanted:
                raise UserError(
                    f"a block of the {type(eyes).__name__} gives states of shape {list(state.shape[1:])}, not"
                    f" {list(wanted)} with a class token first; take a ViT or a CLIP"
                )
        return eyes.final_norm(torch.stack([state[:, 0] for state in states[-levels:]], dim=1))

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        class_states: Tensor | None = None,
        past_key_values: Cache | None = None,
        logits_to_keep: int | Tensor = 0,
        **options: Any,
    ) -> LVLMOutput:
        """Scores of the next word, or with labels the loss: 0.1 times the sum over a row's learned words, mean over the
        rows. Prompt and token are in no output but `hidden_states` and the cache.

        Args:
            input_ids: int64 [B, L].
            labels: int64 [B, L], unshifted; -100 where the position is no learned word.
            attention_mask: [B, T], 0 for padding; needed with a cache that holds words.
            pixel_values: [B, 3, H, W], one picture a row, or `class_states` [B, K, C] from `encode_images`; neither
                for words alone, or where the picture is in the cache.
            logits_to_keep: as in transformers.
            options: for the language model: use_cache (off unless asked for), output_hidden_states, ...

        Raises:
            UserError: another number of pictures than rows; a picture after words that are in the cache; a cache that
                cannot be used.
            TrainingStopped: nothing in the batch is learned.
        """
        if class_states is None and pixel_values is not None:
            class_states = self.encode_images(pixel_values)
        options = {"use_cache": past_key_values is not None, **options, "return_dict": True}
        if past_key_values is not None:
            options["past_key_values"] = past_key_values
        prefix = self._prefix(input_ids, attention_mask, class_states, past_key_values)
        if prefix is None:
            options["attention_mask"] = attention_mask
        else:
            valid = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            # The token that reads padding too reads it where OPT, the one model of the official code, puts it.
            official = self.config.attention == "faithful" and self.config.text_config.model_type == "opt"
            places = word_places(valid, input_ids.shape[1], padding=-1 if official else 0)
            options |= {"position_ids": places, "attention_mask": prefix.masks[0]}
        within = nullcontext() if prefix is None else prefix.before(self.language_model)
        with within:
            if labels is not None:
                return self._learned(input_ids, labels, options)
            return LVLMOutput.of(self.language_model(input_ids, logits_to_keep=logits_to_keep, **options))

    def _prefix(
        self, ids: Tensor, attention_mask: Tensor | None, class_states: Tensor | None, cache: Cache | None
    ) -> Prefix | None:
        """What stands before the words of this pass; None where nothing does. Raises as `forward`."""
        config, (rows, words) = self.config, ids.shape
        if class_states is not None and len(class_states) != rows:
            raise UserError(f"{len(class_states)} pictures and {rows} rows of words; give one picture a row")
        if cache is not None and cache.is_compileable:
            raise UserError("a static cache has no room for the tokens before the words; take a dynamic one")
        begun = cache is not None and cache.get_seq_length() > 0
        if begun and (attention_mask is None or class_states is not None):
            raise UserError("with words in the cache give their attention_mask too, and the picture only before them")
        valid = torch.ones_like(ids) if attention_mask is None else attention_mask
        faithful = config.attention == "faithful"
        mask = word_mask(valid.bool(), words, faithful)
        if begun:
            return self._continued(mask, cache)
        if class_states is None and self.prompt is None:
            return None
        prompt = config.prompt_length
        tokens = {} if class_states is None else self._tokens(class_states)
        masks = (grown_mask(mask, prompt, False, False), grown_mask(mask, prompt, bool(tokens), faithful))
        return Prefix(start=config.start, masks=masks, prompt=self._prompt(rows), tokens=tokens)

    def _continued(self, mask: Tensor, cache: Any) -> Prefix:
        """The mask [B, L, T] with what else lies in the cache, all of it before the words."""
        past = mask.shape[2] - mask.shape[1]
        ends = (0, self.config.text_config.num_hidden_layers - 1)
        first, last = (F.pad(mask, (cache.get_seq_length(at) - past, 0), value=True)[:, None] for at in ends)
        return Prefix(start=self.config.start, masks=(first, last), prompt=None, tokens={})

    def _prompt(self, rows: int) -> Tensor | None:
        """[B, P, d]."""
        if self.prompt is None:
            return None
        narrow = getattr(decoder_of(self.language_model)[0], "project_in", None)  # of the smallest OPT
        made = self.prompt() if narrow is None else narrow(self.prompt())
        return made.expand(rows, -1, -1)

    def _tokens(self, class_states: Tensor) -> dict[int, Tensor]:
        """The token [B, 1, d] before each layer that takes one."""
        layers = range(self.config.start, self.config.end) if self.config.levels else ()
        made = [
            self.connector[place % len(self.connector)](class_states[:, place : place + 1], (1, 1))
            for place in range(self.config.levels)
        ]
        return {layer: made[self.config.level(layer)] for layer in layers}

    def _learned(self, ids: Tensor, labels: Tensor, options: dict[str, Any]) -> LVLMOutput:
        steps = route(labels, None, None).text
        output = learned_words(self.language_model, {"input_ids": ids, **options}, labels, steps)
        assert output.logits is not None and output.words is not None
        output.text = next_token(output.logits, output.words)
        if not output.text.number:
            raise TrainingStopped("the batch has no learned word; check `learned` of its samples")
        output.loss = LOSS_WEIGHT * output.text.mean(len(ids))
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
        **options: Any,
    ) -> Any:
        """Continue words with transformers' own `generate`; the paper takes 3 beams. Pictures are encoded once.

        Args:
            inputs: int64 [B, L], or as `input_ids`; pad on the left and give `attention_mask`.
            pixel_values: [B, 3, H, W], one picture a row; or `class_states` [B, K, C].

        Raises:
            UserError: words leave the language model no position to answer in; a cache is asked for where words can
                learn of later ones, so that it would change them.
        """
        ids = options.get("input_ids") if inputs is None else inputs
        if ids is not None:
            stopping_criteria = within_context(self.config, stopping_criteria, ids, options.get("attention_mask"))
        if self.config.leaks and options.setdefault("use_cache", False):
            raise UserError("with attention 'faithful' a cache changes what is said; leave out use_cache")
        if pixel_values is not None:
            options["class_states"] = self.encode_images(pixel_values)
        parent: Any = super()  # whose own types ask for a protocol that no model is known to meet; as below
        return parent.generate(inputs, generation_config, logits_processor, stopping_criteria, **options)

    def prepare_inputs_for_generation(self, input_ids: Tensor, *arguments: Any, **kwargs: Any) -> dict[str, Any]:
        """As everywhere, for all words [B, T] so far; the picture enters once, and positions are counted from the mask,
        which transformers leaves out where nothing is padding."""
        parent: Any = super()
        inputs = parent.prepare_inputs_for_generation(input_ids, *arguments, **kwargs)
        inputs.pop("position_ids", None)
        if inputs.get("attention_mask") is None:
            inputs["attention_mask"] = torch.ones_like(input_ids)
        if not kwargs.get("is_first_iteration") and inputs.get("use_cache", True):
            inputs.pop("class_states", None)
        return inputs


def perceive(
    look: Callable[[Sequence[Image]], Tensor], levels: int, model: nn.Module, batch: Batch
) -> dict[str, tuple[Tensor, int, float]]:
    """The loss of a batch as a stage's objective: its sum, the samples, the weight.

    Args:
        look: class tokens [B, K', C] of pictures, of which the last `levels` are taken.
    """
    seen = look(batch.images).to(batch.input_ids.device)
    given = {"labels": batch.labels, "attention_mask": batch.attention_mask}
    output = model(batch.input_ids, class_states=seen[:, seen.shape[1] - levels :], **given)
    return {"words": (output.text.total, len(batch.images), LOSS_WEIGHT)}


AutoModel.register(InjectedLMConfig, InjectedLMForConditionalGeneration)
AutoModelForImageTextToText.register(InjectedLMConfig, InjectedLMForConditionalGeneration)
