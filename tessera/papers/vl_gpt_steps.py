"""VL-GPT's stages B and C against the plain way to train: the same weights, sequences and optimiser on both sides.

The plain way is that of nanoVLM and LLaVA: transformers' LlamaForCausalLM over rows that are padded to the longest, the
embeddings of pictures put in by `inputs_embeds`, scores of all words at every position. Both sides get those embeddings
ready, as `FeatureStore` keeps them, and both compute in the precision that the engine would choose.

Legend: B rows, L positions, S sequences, M pictures, N embeddings a picture, d width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig

from tessera.data.packing import Batch
from tessera.data.sequence import CLOSE, IGNORED, OPEN, PLACE
from tessera.data.worlds import open_world
from tessera.models.vlgpt.configuration import CausalTokenizerConfig, VLGPTConfig
from tessera.models.vlgpt.modeling import VLGPTForConditionalGeneration
from tessera.objectives.routing import route
from tessera.papers.vl_gpt import MINI, PUBLISHED, Recipe, Run, Schedule
from tessera.papers.vl_gpt_data import Streams
from tessera.study.bench_ceiling import linear_shapes
from tessera.train import parallel, select
from tessera.train.features import FeatureStore
from tessera.train.stage import Stage
from tessera.train.step import StepModule, gradients, norm_of_gradient, update
from tessera.zoo.foundation import read_tokenizer
from tessera.zoo.parts import locate

STEPS = 1000  # of the stage that a step stands in; nothing follows from it
RATE = 0.5  # of the highest learning rate
_IDS = ("image_start_id", "image_end_id", "image_placeholder_id")
# An image tokenizer that is never run: both sides get its embeddings ready.
UNUSED: dict[str, Any] = {
    "vision_config": {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1},
    "width": 8, "depth": 1, "heads": 1, "mlp_width": 8,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Size:
    """A VL-GPT of some size and the rows that it is trained on.

    Args:
        text: the language model; None for that of mini/lm.
        mfu: the size whose share of the ceiling is demanded, on this kind of device.
    """

    name: str
    recipe: Recipe
    rows: int
    text: Mapping[str, Any] | None = None
    mfu: str = ""

    def language(self) -> LlamaConfig:
        """The language model's configuration."""
        if self.text is None:
            return LlamaConfig.from_pretrained(locate("mini/lm"), dtype="float32")  # it was saved in half of that
        return LlamaConfig(**self.text)

    @property
    def positions(self) -> int:
        """N, embeddings of a picture."""
        return int(self.recipe.tokenizer.get("num_embeddings", 32))


def whole(rows: int) -> Recipe:
    """The published recipe with the whole language model trained."""
    return replace(PUBLISHED, lora=False, pretrain=Schedule(steps=STEPS, batch=rows, lr=2e-4))


def llama(width: int, inner: int, layers: int) -> dict[str, Any]:
    """LLaMA's shape at another size, with its vocabulary and heads of 64 numbers."""
    return {
        "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": width // 64, "vocab_size": 32000, "max_position_embeddings": 2048,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 3,
    }  # fmt: skip


SIZES = {
    "mini": Size(name="mini", recipe=MINI, rows=8),
    "100m": Size(name="100 M", recipe=whole(4), rows=4, text=llama(640, 1728, 12), mfu="cpu"),
    "1b": Size(name="1 B", recipe=whole(32), rows=32, text=llama(2048, 5504, 18), mfu="cuda"),
}


@dataclass
class Bench:
    """One batch of a stage, both ways over it, and what it costs.

    Args:
        stage: "pretrain" or "instruct".
        checkpointing: recompute our activations in the backward pass.
        precision: as the engine takes it.
        made: gives the batch from the ids of the picture's three words; by default it is the first of the stage.
    """

    size: Size
    device: torch.device
    stage: str = "pretrain"
    checkpointing: bool = False
    precision: str = "auto"
    seed: int = 0
    made: Callable[[Mapping[str, int]], Batch] | None = None
    batch: Batch = field(init=False)
    embeds: Tensor = field(init=False)

    def __post_init__(self) -> None:
        recipe, words = self.size.recipe, read_tokenizer(locate("mini/lm"))
        streams = Streams([(open_world("scenes"), 1.0)], words, self.size.positions, seed=self.seed)
        self.precision = select.choose_precision(self.precision, self.device)
        self._half = self.precision == "bf16" and select.has_fast_bf16(self.device)
        self._ids = {name: words.get_vocab()[token] for name, token in zip(_IDS, (OPEN, CLOSE, PLACE), strict=True)}
        if self.made is None:
            rows = self.size.rows, recipe.row_length
            pretraining = self.stage == "pretrain"
            loader = streams.pretraining(*rows) if pretraining else streams.instructions(*rows, recipe.draw_share)
            self.batch = next(iter(loader)).to(self.device)
        else:
            self.batch = self.made(self._ids)
        self._streams = streams
        draw = torch.Generator().manual_seed(self.seed)
        shape = (len({image.key for image in self.batch.images}), self.size.positions, self.size.language().hidden_size)
        drawn = torch.randn(shape, generator=draw)
        self._store = FeatureStore(lambda images: drawn[: len(images)])
        self.embeds = self._store(self.batch.images).to(self.device)

    def model(self) -> VLGPTForConditionalGeneration:
        """VL-GPT of this size with random weights, the same at every call, on the device."""
        torch.manual_seed(self.seed)
        recipe, text = self.size.recipe, self.size.language()
        tokenizer = {**UNUSED, "embed_width": text.hidden_size, "num_embeddings": self.size.positions}
        fields = {**recipe.model, "standardise": "none", "image_token_rows": "shared", **self._ids}
        config = VLGPTConfig(text_config=text, tokenizer_config=CausalTokenizerConfig(**tokenizer), **fields)
        model = VLGPTForConditionalGeneration(config)
        return nn.Module.to(model, self.device)

    def ours(self, model: VLGPTForConditionalGeneration) -> Callable[[], float]:
        """One step as the engine takes it, over the packed rows; gives its loss."""
        run = Run(None, self.size.recipe, self._streams)  # type: ignore[arg-type]  # the parts have done their work
        run.model, run.embeds = model, self._store
        stage: Stage = run.language_stage(self.stage, getattr(self.size.recipe, self.stage))
        select.set_trainable(model, stage.trainable)
        select.checkpoint_activations(model, self.checkpointing)
        accelerator = parallel.open_accelerator(self.device.type)
        module = StepModule(model, stage.objective, self.precision == "bf16")
        optimisers = stage.optimiser.build(model, self._half)

        def step() -> float:
            outcome = gradients(accelerator, module, stage, [self.batch], 0)
            norm = norm_of_gradient(model)
            update(model, optimisers, stage.optimiser, RATE, norm)
            return outcome.loss

        return step

    def plain(self, model: VLGPTForConditionalGeneration) -> Callable[[], float]:
        """One step of the plain way with a model of its own; gives its loss."""
        model.language_model.set_attn_implementation("sdpa")
        rows = padded(self.batch)
        recipe = getattr(self.size.recipe, self.stage).optimiser()
        select.set_trainable(model, _trained(model))
        optimisers = recipe.build(model, self._half)
        weight = model.config.visual_loss_weight

        def step() -> float:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                loss = plain_loss(model, rows, self.embeds, weight)
            loss.backward()
            norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
            update(model, optimisers, recipe, RATE, norm)
            return loss.item()

        return step

    def shapes(self) -> list[tuple[tuple[int, int, int], int]]:
        """Linear layers of the language model over the positions that hold something."""
        learned = int(route(self.batch.labels, self.batch.visual_target, self.batch.segment_ids).text.sum())
        return list(linear_shapes(self.size.language(), self.tokens, learned).values())

    @property
    def tokens(self) -> int:
        """Positions that hold something: padding left out."""
        return int((self.batch.segment_ids > 0).sum())

    @property
    def macs(self) -> float:
        """Multiply-adds of a step that are needed: three passes through the linear layers of the language model, its
        head at learned positions, and half of each sequence's square of scores, twice, in every layer."""
        text = self.size.language()
        lengths = torch.tensor([len(row) for row in sequences(self.batch)], dtype=torch.float64)
        attention = float(text.num_hidden_layers * text.hidden_size * lengths.square().sum())  # 2 products, half each
        linear = sum(float(m * k * n) * number for (m, k, n), number in self.shapes())
        return 3 * (linear + attention)

    @property
    def plain_macs(self) -> float:
        """Multiply-adds of the plain step: the same at every position of the padded rows, and the whole square."""
        text, (rows, longest) = self.size.language(), padded(self.batch)["input_ids"].shape
        shapes = linear_shapes(text, rows * longest, rows * longest).values()
        attention = 2.0 * text.num_hidden_layers * text.hidden_size * rows * longest**2
        return 3 * (sum(float(m * k * n) * number for (m, k, n), number in shapes) + attention)


def _trained(model: VLGPTForConditionalGeneration) -> list[str]:
    optional = ("visual_mask", "visual_projector")
    return [
        "language_model.*", "regression_head.*", *(f"{name}.*" for name in optional if getattr(model, name) is not None)
    ]  # fmt: skip


def sequences(batch: Batch) -> list[Tensor]:
    """The positions of each sequence of a batch, as indices into its flattened rows."""
    segments = batch.segment_ids.cpu()
    row = torch.arange(len(segments))[:, None] * (int(segments.max()) + 1) + segments
    held = segments.flatten() > 0
    places = torch.arange(segments.numel())[held]
    _, lengths = row.flatten()[held].unique_consecutive(return_counts=True)
    return list(places.split(lengths.tolist()))


def padded(batch: Batch) -> dict[str, Tensor]:
    """The same sequences, each in a row of its own, padded on the right to the longest: ids, labels, visual targets and
    attention mask, each [S, longest]."""
    device, each = batch.input_ids.device, [places.to(batch.input_ids.device) for places in sequences(batch)]

    def rows(values: Tensor, filler: int) -> Tensor:
        taken = [values.flatten()[places] for places in each]
        return nn.utils.rnn.pad_sequence(taken, batch_first=True, padding_value=filler).to(device)

    return {
        "input_ids": rows(batch.input_ids, 0), "labels": rows(batch.labels, IGNORED),
        "visual_target": rows(batch.visual_target.long(), 0).bool(),
        "attention_mask": rows(torch.ones_like(batch.input_ids), 0),
    }  # fmt: skip


def plain_loss(
    model: VLGPTForConditionalGeneration, rows: Mapping[str, Tensor], embeds: Tensor, weight: float
) -> Tensor:
    """The loss of VL-GPT by transformers' own path: every position's scores of every word, labels shifted within."""
    found = model.language_model(
        inputs_embeds=model.inputs(rows["input_ids"], embeds, rows["visual_target"]),
        attention_mask=rows["attention_mask"], labels=rows["labels"], use_cache=False, output_hidden_states=True,
    )  # fmt: skip
    steps = rows["visual_target"][:, 1:]
    predicted = model.regression_head(found.hidden_states[-1][:, :-1][steps])
    target = model.visual_targets(rows["input_ids"], embeds, steps)
    return found.loss + weight * F.mse_loss(predicted.float(), target.float())
