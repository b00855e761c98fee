"""Three encoders over a sentence and the regions of a picture (LXMERT, Tan and Bansal 2019).

Language layers read the sentence, object-relationship layers the regions, cross-modality layers both. Parameters bear
the names of transformers' LxmertModel, so that its folders load as they are; the official checkpoints differ from them
by a prefix, `bert.` for `lxmert.`.

Legend: B pairs, L words, K regions, F width of their features, W width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init

from tessera.errors import UserError
from tessera.layers.bert import EPS, AddNorm, CrossAttention, Embeddings, Intermediate, Layer, Pooler, SelfAttention
from tessera.layers.bert import key_mask as keys_of
from tessera.models.fusion.configuration import FusionConfig
from tessera.models.fusion.outputs import FusionOutput


class RegionEmbedding(nn.Module):
    """(norm(features) + norm(box)) / 2, with a norm for each so that both carry the same energy.

    [B, K, F] and [B, K, 4] -> [B, K, W].
    """

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.visn_fc = nn.Linear(config.visual_feat_dim, width)
        self.visn_layer_norm = nn.LayerNorm(width, eps=EPS)
        self.box_fc = nn.Linear(config.visual_pos_dim, width)
        self.box_fc.no_muon = True  # type: ignore[assignment]  # four columns are no hidden matrix
        self.box_layer_norm = nn.LayerNorm(width, eps=EPS)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, features: Tensor, boxes: Tensor) -> Tensor:
        seen = self.visn_layer_norm(self.visn_fc(features))
        return self.dropout((seen + self.box_layer_norm(self.box_fc(boxes))) / 2)


class CrossLayer(nn.Module):
    """Attention from each stream to the other, then self-attention and MLP in each.

    Both directions read the layer's inputs, not one the result of the other, and by default share one weight set.
    """

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        self.visual_attention = CrossAttention(config)
        self.unshared_attention = None if config.shared_cross_attention else CrossAttention(config)
        self.lang_self_att = SelfAttention(config)
        self.lang_inter = Intermediate(config)
        self.lang_output = AddNorm(config, config.intermediate_size)
        self.visn_self_att = SelfAttention(config)
        self.visn_inter = Intermediate(config)
        self.visn_output = AddNorm(config, config.intermediate_size)

    def forward(
        self, words: Tensor, regions: Tensor, word_mask: Tensor | None, region_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        back = self.visual_attention if self.unshared_attention is None else self.unshared_attention
        seen, said = self.visual_attention(words, regions, region_mask), back(regions, words, word_mask)
        words, regions = self.lang_self_att(seen, word_mask), self.visn_self_att(said, region_mask)
        words = self.lang_output(self.lang_inter(words), words)
        return words, self.visn_output(self.visn_inter(regions), regions)


class Encoders(nn.Module):
    """The layers of all three encoders, and the embedding of regions."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        self.visn_fc = RegionEmbedding(config)
        self.layer = nn.ModuleList(Layer(config) for _ in range(config.l_layers))
        self.x_layers = nn.ModuleList(CrossLayer(config) for _ in range(config.x_layers))
        self.r_layers = nn.ModuleList(Layer(config) for _ in range(config.r_layers))

    def forward(
        self, words: Tensor, regions: Tensor, word_mask: Tensor | None, region_mask: Tensor | None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """States after each layer, words and regions; the embedding itself where a stream has no layer."""
        spoken, seen = [words], [regions]
        for layer in self.layer:
            spoken.append(layer(spoken[-1], word_mask))
        for layer in self.r_layers:
            seen.append(layer(seen[-1], region_mask))
        for layer in self.x_layers:
            one, other = layer(spoken[-1], seen[-1], word_mask, region_mask)
            spoken.append(one)
            seen.append(other)
        return spoken, seen


class FusionPreTrainedModel(PreTrainedModel):
    """What the model shares with its versions with heads."""

    config: FusionConfig
    config_class = FusionConfig
    base_model_prefix = "lxmert"
    main_input_name = "input_ids"
    input_modalities = ["text", "image"]
    _no_split_modules = ["Layer", "CrossLayer"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """N(0, initializer_range) for weights, 0 for biases, 1 and 0 for norms, as published.

        Rows that take no gradient start like all others: the official code never zeroes them.
        """
        std = self.config.initializer_range
        if isinstance(module, nn.Linear | nn.Embedding):
            init.normal_(module.weight, mean=0.0, std=std)
        if isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
        if isinstance(module, nn.Linear | nn.LayerNorm) and module.bias is not None:
            init.zeros_(module.bias)


class FusionModel(FusionPreTrainedModel):
    """The encoders: a sentence and regions to a state of each word and region, and one vector of the pair."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__(config)
        self.embeddings = Embeddings(config)
        self.encoder = Encoders(config)
        self.pooler = Pooler(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The word embedding."""
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the word embedding."""
        self.embeddings.word_embeddings = value  # type: ignore[assignment]

    def forward(
        self,
        input_ids: Tensor,
        visual_feats: Tensor,
        visual_pos: Tensor,
        attention_mask: Tensor | None = None,
        visual_attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        output_hidden_states: bool = False,
    ) -> FusionOutput:
        """Run the encoders.

        Args:
            input_ids: int64 [B, L], the first of each row [CLS].
            visual_feats: [B, K, F].
            visual_pos: [B, K, 4], boxes x0, y0, x1, y1 as shares of the picture's width and height.
            attention_mask, visual_attention_mask: [B, L] and [B, K], 1 where there is a word or region; None where
                there is one everywhere. Each row has at least one.
            token_type_ids: int64 [B, L], 0 by default.

        Raises:
            UserError: features or boxes of another width than the model's.
        """
        self._check(visual_feats, visual_pos)
        words = self.embeddings(input_ids, token_type_ids)
        regions = self.encoder.visn_fc(visual_feats, visual_pos)
        spoken, seen = self.encoder(words, regions, keys_of(attention_mask), keys_of(visual_attention_mask))
        return FusionOutput(
            language=spoken[-1], vision=seen[-1], pooled=self.pooler(spoken[-1]),
            language_hidden_states=tuple(spoken[1:]) if output_hidden_states else None,
            vision_hidden_states=tuple(seen[1:]) if output_hidden_states else None,
        )  # fmt: skip

    def _check(self, features: Tensor, boxes: Tensor) -> None:
        wanted = self.config.visual_feat_dim, self.config.visual_pos_dim
        found = features.shape[-1], boxes.shape[-1]
        if found != wanted:
            raise UserError(
                f"the regions have features of width {found[0]} and boxes of {found[1]} numbers; this model was built"
                f" for {wanted[0]} and {wanted[1]} (visual_feat_dim, visual_pos_dim)"
            )
