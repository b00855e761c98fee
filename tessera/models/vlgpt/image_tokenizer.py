"""Stage A of VL-GPT: the image tokenizer learns to tell a frozen diffusion model what the picture shows.

Legend: B pictures, S patch features of width C, N embeddings of width d, Q x Dv image condition, T x Dt text
condition.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import AutoModel, CLIPVisionModel, PreTrainedModel
from transformers import initialization as init

from tessera.errors import UserError
from tessera.models.vlgpt.configuration import CausalTokenizerConfig
from tessera.models.vlgpt.outputs import TokenizerOutput
from tessera.objectives.regression import regression
from tessera.objectives.tally import Tally
from tessera.tokenizers.causal import CausalImageTokenizer, Conditions, ImageDetokenizer, StackSize

Target = Tensor | Callable[[], Tensor] | None


class CausalTokenizerModel(PreTrainedModel):
    """Frozen vision encoder, causal image tokenizer and detokenizer (VL-GPT, image tokenizer).

    The diffusion model is never built here: only the conditions that it would read are estimated.

    Args:
        vision: a ready vision encoder, taken as it is; by default one is made from the configuration.
    """

    config: CausalTokenizerConfig
    config_class = CausalTokenizerConfig
    main_input_name = "pixel_values"
    input_modalities = "image"
    supports_gradient_checkpointing = True
    _no_split_modules = ["DecoderBlock", "CLIPEncoderLayer"]
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: CausalTokenizerConfig, vision: CLIPVisionModel | None = None) -> None:
        super().__init__(config)
        size = StackSize(config.width, config.depth, config.heads, config.mlp_width)
        self.vision = CLIPVisionModel._from_config(config.vision_config) if vision is None else vision
        self.tokenizer = CausalImageTokenizer(
            size,
            feature_width=config.vision_config.hidden_size * len(config.vision_layers),
            num_embeddings=config.num_embeddings,
            embed_width=config.embed_width,
        )
        self.detokenizer = ImageDetokenizer(
            size,
            embed_width=config.embed_width,
            image=(config.image_condition_tokens, config.image_condition_width),
            text=(config.text_condition_tokens, config.text_condition_width),
        )
        self.vision.requires_grad_(False)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):  # keeps the variance of its input at every width
            init.normal_(module.weight, std=module.in_features**-0.5)
            init.zeros_(module.bias)
        elif isinstance(module, CausalImageTokenizer | ImageDetokenizer):
            init.normal_(module.queries, std=self.config.query_std)
        else:
            super()._init_weights(module)

    def train(self, mode: bool = True) -> CausalTokenizerModel:
        """As everywhere, but the vision encoder stays frozen and in evaluation mode."""
        super().train(mode)
        # Again here, because from_pretrained makes new parameters and then calls eval().
        self.vision.eval().requires_grad_(False)
        return self

    @torch.no_grad()
    def patch_features(self, pixel_values: Tensor) -> Tensor:
        """Pixels [B, 3, H, W], normalised for the vision encoder -> features [B, S, C]. No gradient."""
        out = self.vision(pixel_values, output_hidden_states=self.config.vision_layer != -1)
        read = [
            out.last_hidden_state if layer == -1 else out.hidden_states[layer] for layer in self.config.vision_layers
        ]
        features = torch.cat(read, dim=-1)
        return features if self.config.keep_class_token else features[:, 1:]

    def encode(self, features: Tensor) -> Tensor:
        """Patch features [B, S, C] -> x_v [B, N, d]."""
        return self.tokenizer(features.to(self.tokenizer.queries.dtype))

    def decode(self, embeds: Tensor) -> Conditions:
        """x_v [B, N, d] -> z_v [B, Q, Dv] and z_t [B, T, Dt]."""
        return self.detokenizer(embeds.to(self.detokenizer.queries.dtype))

    def forward(
        self,
        pixel_values: Tensor | None = None,
        patch_features: Tensor | None = None,
        image_target: Target = None,
        text_target: Target = None,
        num_samples: float | Tensor | None = None,
    ) -> TokenizerOutput:
        """lambda 1 * MSE(z_v, e_v) + lambda 2 * MSE(z_t, e_t), means over tokens, channels and pictures.

        Args:
            pixel_values: [B, 3, H, W]; or `patch_features` [B, S, C], cached from this model's own method.
            image_target: e_v [B, Q, Dv], or a function that returns it. Never called where lambda 1 is 0.
            text_target: e_t [B, T, Dt], or a function that returns it. Never called where lambda 2 is 0.
            num_samples: what the sums are divided by, B by default: all pictures of an accumulated step.

        Raises:
            UserError: a target is missing while its weight is not 0, or has another shape than its estimate;
                or both weights are 0.
        """
        if patch_features is None:
            if pixel_values is None:
                raise UserError("the image tokenizer needs pixel_values or patch_features, and got neither")
            patch_features = self.patch_features(pixel_values)
        embeds = self.encode(patch_features)
        image, text = self.decode(embeds)
        output = TokenizerOutput(embeds=embeds, image_condition=image, text_condition=text)
        if image_target is None and text_target is None:
            return output
        output.image = _tally("image", self.config.image_weight, image, image_target)
        output.text = _tally("text", self.config.text_weight, text, text_target)
        terms = ((self.config.image_weight, output.image), (self.config.text_weight, output.text))
        if not self.config.image_weight and not self.config.text_weight:
            raise UserError("image_weight and text_weight are both 0: nothing to train the tokenizer on")
        means = [weight * tally.mean(num_samples) for weight, tally in terms if tally is not None]
        output.loss = torch.stack(means).sum()
        return output


def _tally(name: str, weight: float, estimate: Tensor, target: Target) -> Tally | None:
    if weight == 0:
        return None
    if target is None:
        raise UserError(f"{name}_weight is {weight} but no {name} target was given; give one or set the weight to 0")
    if callable(target):
        target = target()
    if target.shape != estimate.shape:
        raise UserError(
            f"the {name} target has shape {tuple(target.shape)}, its estimate {tuple(estimate.shape)};"
            f" set {name}_condition_tokens and {name}_condition_width to those of the diffusion model"
        )
    return regression(estimate, target)


AutoModel.register(CausalTokenizerConfig, CausalTokenizerModel)
