"""Pictures as runs of codes, predicted one after the other (vector-quantised image modelling, Yu et al. 2022, arXiv
2110.04627, section 4).

Legend: B pictures, N = h * w codes of K, C classes, W width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from tessera.errors import UserError
from tessera.layers.causal import CausalBlock, KeyValues
from tessera.models.image_ar.configuration import ImageARConfig
from tessera.objectives.next_token import next_token


@dataclass
class ImageAROutput(ModelOutput):
    """Scores of the codes of B pictures.

    Attributes:
        loss: mean of -ln p over all codes, where asked for.
        logits: [B, N, K]; those at place n have read the codes before n.
    """

    loss: Tensor | None = None
    logits: Tensor = None  # type: ignore[assignment]


class ImageARModel(PreTrainedModel):
    """A class token (or that of no class), then the codes row by row; code tables and output share their weights.

    `probe` is a linear classifier over the features of the middle block, which `tessera train` fits last.
    """

    config: ImageARConfig
    config_class = ImageARConfig
    main_input_name = "ids"
    _no_split_modules = ["CausalBlock"]
    supports_gradient_checkpointing = True

    def __init__(self, config: ImageARConfig) -> None:
        super().__init__(config)
        width, classes = config.width, len(config.classes)
        self.tokens = nn.Embedding(config.codes, width)
        self.starts = nn.Embedding(classes + 1, width)  # the last: no class
        self.row = nn.Embedding(config.rows, width)
        self.column = nn.Embedding(config.columns, width)
        mlp = round(width * config.mlp_ratio)
        self.blocks = nn.ModuleList(
            CausalBlock(width, config.heads, mlp, dropout=config.dropout) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(width)
        self.probe: nn.Module | None = None
        if classes:
            self.probe = nn.Sequential(nn.BatchNorm1d(width, affine=False), nn.Linear(width, classes))
        self.post_init()

    def start(self, rows: int, labels: Tensor | None = None) -> Tensor:
        """What the first block reads before any code, [B, 1, W].

        Args:
            labels: int [B], places of classes; one past the last, or None for all, stands for no class.

        Raises:
            UserError: a label that is no class.
        """
        none = len(self.config.classes)
        if labels is None:
            labels = torch.full((rows,), none, device=self.starts.weight.device)
        elif int(labels.min()) < 0 or int(labels.max()) > none:
            raise UserError(f"there are {none} classes; labels {int(labels.min())} to {int(labels.max())} are not all")
        return self.starts(labels)[:, None]

    def embed(self, ids: Tensor, first: int = 0) -> Tensor:
        """Codes int [B, L] at the places from `first` on, [B, L, W]."""
        places = torch.arange(first, first + ids.shape[1], device=ids.device)
        where = self.row(places // self.config.columns) + self.column(places % self.config.columns)
        return self.tokens(ids) + where

    def run(self, embeds: Tensor, cache: KeyValues | None = None, blocks: int | None = None) -> Tensor:
        """[B, L, W] after the first `blocks` blocks, all by default, before the last norm. With a cache, the positions
        after those that it has, which it then has too."""
        x = embeds
        for place, block in enumerate(list(self.blocks)[:blocks]):
            x = block(x, cache, place) if cache is not None else block(x)
        if cache is not None:
            cache.advance(embeds.shape[1])
        return x

    def score(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., W] after all blocks -> scores of the next code [..., K]."""
        return F.linear(self.norm(hidden), self.tokens.weight)

    def cache(self, rows: int) -> KeyValues:
        """An empty cache for `rows` whole pictures."""
        config = self.config
        return KeyValues(config.depth, rows, config.heads, config.length, self.tokens.weight)

    def forward(self, ids: Tensor, labels: Tensor | None = None, return_loss: bool = False) -> ImageAROutput:
        """Codes int [B, N] of whole pictures, and what class each shows, int [B]; see `start`.

        Raises:
            UserError: another number of codes than N.
        """
        self._check(ids)
        x = torch.cat([self.start(len(ids), labels), self.embed(ids[:, :-1])], dim=1)
        logits = self.score(self.run(x))
        loss = next_token(logits.flatten(0, 1), ids.flatten()).mean() if return_loss else None
        return ImageAROutput(loss=loss, logits=logits)

    def features(self, ids: Tensor, block: int | None = None) -> Tensor:
        """Codes int [B, N] of pictures of which no class is told -> the mean over the codes of what block `block`,
        counted from 1, says of them, [B, W]; by default the middle one of the configuration.

        Raises:
            UserError: another number of codes than N.
        """
        self._check(ids)
        x = torch.cat([self.start(len(ids)), self.embed(ids)], dim=1)
        return self.run(x, blocks=block or self.config.middle)[:, 1:].mean(1)

    def _check(self, ids: Tensor) -> None:
        config = self.config
        if ids.shape[1] != config.length:
            raise UserError(
                f"{ids.shape[1]} codes for a picture of {config.rows} x {config.columns}; bring pictures to the size"
                " that the tokenizer was trained for"
            )

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=0.02)
        elif isinstance(module, nn.Linear):
            init.normal_(module.weight, std=0.02)
            init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm1d):
            init.zeros_(module.running_mean)  # type: ignore[arg-type]
            init.ones_(module.running_var)  # type: ignore[arg-type]
            init.zeros_(module.num_batches_tracked)  # type: ignore[arg-type]
        else:
            super()._init_weights(module)


class ImageARInTraining(nn.Module):
    """The model beside the frozen tokenizer, which turns pictures into codes on the fly, so that they can be augmented.

    Raises:
        UserError: they disagree about the codebook or the grid.
    """

    def __init__(self, model: ImageARModel, tokenizer: Any) -> None:
        super().__init__()
        check_pair(model.config, tokenizer.config)
        self.model, self.tokenizer = model, tokenizer


def check_pair(model: ImageARConfig, tokenizer: Any) -> None:
    """Raise UserError where a model of codes and a tokenizer's configuration disagree."""
    if model.codes != tokenizer.codes:
        raise UserError(
            f"the image model was made for a codebook of {model.codes} codes, and the tokenizer has {tokenizer.codes};"
            " take the tokenizer that it was trained with"
        )
    if (model.rows, model.columns) != tuple(tokenizer.grid):
        theirs = " x ".join(map(str, tokenizer.grid))
        raise UserError(
            f"the image model was made for {model.rows} x {model.columns} codes a picture, and the tokenizer gives"
            f" {theirs} at {tokenizer.image_size} pixels; take the tokenizer that it was trained with"
        )


def predict(module: Any, batch: dict[str, Any]) -> dict[str, tuple[Tensor, int]]:
    """The objective of a training stage: the next code of pictures `pixel_values` [B, 3, H, W] in [0, 1], with `labels`
    int [B] where the model has classes."""
    model = module.model
    ids = module.tokenizer.encode(batch["pixel_values"]).ids
    labels = batch["labels"] if model.config.classes else None
    if labels is not None and model.training and model.config.class_dropout:
        hidden = torch.rand(len(labels), device=labels.device) < model.config.class_dropout
        labels = labels.masked_fill(hidden, len(model.config.classes))
    logits = model(ids, labels).logits
    loss = next_token(logits.flatten(0, 1), ids.flatten())
    return {"codes": (loss.total, loss.number)}


def recognise(module: Any, batch: dict[str, Any]) -> dict[str, tuple[Tensor, int]]:
    """The objective of a stage that trains `probe` alone: cross-entropy of the class, read from frozen features."""
    with torch.no_grad():
        features = module.model.features(module.tokenizer.encode(batch["pixel_values"]).ids)
    labels = batch["labels"]
    loss = F.cross_entropy(module.model.probe(features).float(), labels, reduction="sum")
    return {"classes": (loss, len(labels))}


AutoModel.register(ImageARConfig, ImageARModel)
