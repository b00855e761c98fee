"""What a training of LXMERT starts from: sentences about pictures, what finds and sees their regions, a tokenizer."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import CLIPVisionModel, PreTrainedTokenizerFast

from tessera.data.answers import AnswerTable, count_answers
from tessera.data.readers.detections import Detections
from tessera.data.readers.grounded import GroundedWorld
from tessera.data.regions import Regions
from tessera.data.sample import Image, Sample
from tessera.data.sentences import MASK, Sentences
from tessera.data.source import Source, Split, World
from tessera.data.worlds import open_world, world_names
from tessera.data.worlds.scenes.regions import ATTRIBUTE_CLASSES, OBJECT_CLASSES
from tessera.data.worlds.scenes.world import ScenesWorld
from tessera.errors import BadSample, DataError, UserError, nearest
from tessera.evaluate.intervals import t_interval
from tessera.models.fusion import FusionConfig, FusionForQuestionAnswering
from tessera.models.fusion.configuration import REGIONS
from tessera.papers.lxmert_data import Detector, Found, Streams, answer_scores, grounded
from tessera.papers.registry import TrainOptions
from tessera.weights import read_model
from tessera.zoo.foundation import read_tokenizer
from tessera.zoo.parts import locate, quiet
from tessera.zoo.regions import RegionEncoder

ROLES = ("tokenizer", "vision", "model")
COUNTED, TRIED = 6000, 200  # questions that a table of answers is counted from, or compared with
JUDGED = 500  # held-out samples that a finished model is judged on
WIDTH = 2048  # of published features
DETECTED = {"num_object_labels": 1600, "num_attr_labels": 400}  # classes of the published detector
KNOWN = {"num_object_labels": len(OBJECT_CLASSES), "num_attr_labels": len(ATTRIBUTE_CLASSES)}


@dataclass
class Material:
    """Everything outside the model.

    Args:
        worlds: each with its share of the samples.
        encoder: sees the regions of pictures; None where files hold their features.
        fields: of FusionConfig, which follow from the regions.
        own_table: the table of answers that came with the data.
    """

    worlds: Sequence[tuple[World, float]]
    detector: Detector
    encoder: RegionEncoder | None
    tokenizer: PreTrainedTokenizerFast
    fields: Mapping[str, int]
    own_table: AnswerTable | None = None

    def sources(self, *tasks: str, split: Split = "train") -> list[tuple[Source, float]]:
        """Sources of these tasks in all worlds that have them, each with its share.

        Raises:
            UserError: no world has one.
        """
        found = []
        for world, share in self.worlds:
            own = [task for task in tasks if task in world.tasks]
            found += [(world.source(task, split), share / len(own)) for task in own]
        if not found:
            have = sorted({task for world, _ in self.worlds for task in world.tasks})
            raise UserError(
                f"the data hold no {' or '.join(tasks)}, which this training reads; they hold {', '.join(have)}"
            )
        return found

    def table(self, most: int) -> AnswerTable:
        """The table of answers that came with the data, or the commonest answers of the training questions.

        Raises:
            UserError: the table that came has no answer to any of the questions that are tried.
        """
        if self.own_table is None:
            return count_answers(self._answers(COUNTED), most)
        if "questions" in {task for world, _ in self.worlds for task in world.tasks}:
            tried = self._answers(TRIED)
            if all(self.own_table.place(answer) is None for answer in tried):
                raise UserError(f"the table of answers has none of {len(tried)} that were tried, such as {tried[:1]}")
        return self.own_table

    def _answers(self, questions: int) -> list[str]:
        """Answers to so many training questions, spread over all."""
        found: list[str] = []
        for source, share in self.sources("questions"):
            for index in np.linspace(0, len(source) - 1, max(1, round(share * questions))).astype(int).tolist():
                with contextlib.suppress(BadSample):  # it is met again, and told, when it is read to be learned
                    found += list(grounded(source[index]).scores)
        return found

    def sentences(self, max_words: int) -> Sentences:
        """Words to ids."""
        return Sentences(self.tokenizer, max_words)

    def decided(self, streams: Streams) -> dict[str, Any]:
        """Fields of FusionConfig that follow from the data."""
        names = dict(enumerate(streams.table.answers))
        sizes = {"vocab_size": streams.sentences.vocabulary, "num_qa_labels": len(names), "id2label": names}
        return {**self.fields, **sizes}

    @staticmethod
    def places(table: AnswerTable, before: FusionConfig) -> list[int | None]:
        """Where each answer of `table` stands in that of a pre-trained model."""
        names = {int(place): name for place, name in (before.id2label or {}).items()}
        older = {name: place for place, name in names.items() if place < before.num_qa_labels}
        found = AnswerTable(list(older)) if len(older) > 1 else None
        return [None if found is None or (at := found.place(answer)) is None else older[found.answers[at]]
                for answer in table.answers]  # fmt: skip

    def to(self, device: torch.device) -> Material:
        """What sees regions, on `device`."""
        if self.encoder is not None:
            torch.nn.Module.to(self.encoder.encoder, device)
        return self

    def judged(self, model: Any, streams: Streams, task: str) -> str:
        """A sentence: how well held-out questions are answered, or statements judged."""
        samples = []
        for source, share in self.sources(task, split="heldout"):
            for index in range(min(len(source), round(share * JUDGED))):
                with contextlib.suppress(BadSample):
                    samples.append(source[index])
        if len(samples) < 2:
            return "held out: too few samples to judge by"
        found = t_interval(answer_scores(model, streams, samples, self.encoder))
        what = "questions answered" if task == "questions" else "statements judged"
        return (
            f"held out: {found.value:.1%} of {found.n} {what} right (95 % interval {found.low:.1%} to {found.high:.1%})"
        )


def open_material(options: TrainOptions, task: str) -> Material:
    """What `options` name: files of features with their sentences, or worlds and pictures.

    Raises:
        UserError: an unknown role, a published size without a tokenizer, or statements without files of features.
        DataError: data that cannot be read.
    """
    for role in options.parts:
        if role not in ROLES:
            raise UserError(f"lxmert has no part {role!r}{nearest(role, ROLES)}")
    featured = [Path(name) for name in options.data if _has_features(Path(name))]
    tokenizer = _tokenizer(options)
    if featured:
        return _of_files(options, featured, tokenizer)
    if task == "statements":
        raise UserError(
            "statements about two pictures are learned from files of features; name their folder with --data"
        )
    return of_pictures(_worlds(options.data), tokenizer, options.parts.get("vision", "mini/clip"))


def of_pictures(
    worlds: Sequence[tuple[World, float]], tokenizer: PreTrainedTokenizerFast, vision: str = "mini/clip"
) -> Material:
    """Worlds with pictures, whose regions a CLIP vision encoder sees.

    Raises:
        CheckpointError: `vision` holds none.
    """
    with quiet():
        encoder = RegionEncoder(read_model(CLIPVisionModel, locate(vision)))
    return Material(worlds, Found(), encoder, tokenizer, {**KNOWN, "visual_feat_dim": encoder.width})


def _has_features(path: Path) -> bool:
    return path.suffix in (".tsv", ".npz") or (
        path.is_dir() and any(file.suffix in (".tsv", ".npz") for file in path.rglob("*"))
    )


def _of_files(options: TrainOptions, featured: Sequence[Path], tokenizer: PreTrainedTokenizerFast) -> Material:
    published = options.size == "published"
    sets = [
        Detections(path, regions=REGIONS if published else None, width=WIDTH if published else None)
        for path in featured
    ]
    folders = [Path(name) for name in options.data if Path(name).is_dir() and list(Path(name).glob("*.json"))]
    if not folders:
        raise DataError(f"{', '.join(options.data)}: no folder has a .json file of sentences about these pictures")
    worlds = [GroundedWorld(folder) for folder in folders]
    tables = [table for table in (world.table() for world in worlds) if table is not None]
    if len(tables) > 1:
        raise UserError(
            "several folders have a table of answers; train on one after the other, with --parts model=FOLDER"
        )

    def detector(sample: Sample, image: Image) -> Regions:
        held = next((one for one in sets if str(image.key) in one), sets[0])
        return held[str(image.key)]

    width = WIDTH if published else sets[0].any_width()
    shares = [(world, 1.0 / len(worlds)) for world in worlds]
    fields = {**DETECTED, "visual_feat_dim": width}
    return Material(shares, detector, None, tokenizer, fields, tables[0] if tables else None)


def _worlds(data: Sequence[str]) -> list[tuple[World, float]]:
    """One's own data get half of the samples, the scenes the rest: their regions have names."""
    # Few pictures with many sentences each, since what sees regions takes longer than what reads.
    scenes: World = ScenesWorld(train_pictures=6000, captions_each=4, questions_each=16)  # type: ignore[assignment]
    others = [name for name in data if name != "scenes"]
    if not others:
        return [(scenes, 1.0)]
    own = [(open_world(name), 0.5 / len(others)) for name in others]
    if all(name in world_names() for name in others) and "scenes" not in data:
        return [(world, 2 * share) for world, share in own]
    return [*own, (scenes, 0.5)]


def _tokenizer(options: TrainOptions) -> PreTrainedTokenizerFast:
    if options.size == "published" and "tokenizer" not in options.parts and "model" not in options.parts:
        raise UserError(
            "the published size needs BERT's tokenizer; give it as --parts tokenizer=FOLDER, for instance that of"
            " bert-base-uncased"
        )
    return with_mask(options.parts.get("tokenizer", options.parts.get("model", "mini/tokenizer")))


def with_mask(name: str) -> PreTrainedTokenizerFast:
    """A tokenizer with a token for hidden words, which mini ones lack."""
    tokenizer = read_tokenizer(locate(name))
    if tokenizer.mask_token is None:
        tokenizer.add_special_tokens({"mask_token": MASK})
    return tokenizer


def start_from(
    options: TrainOptions, material: Material, chosen: Mapping[str, Any]
) -> FusionForQuestionAnswering | None:
    """The pre-trained model of `--parts model=FOLDER`, of this kind or in transformers' layout; None without it.

    Raises:
        CheckpointError: the folder holds another model.
        UserError: it does not fit the data, or its size is to be set.
    """
    clash = sorted(set(chosen) & {*material.fields, "vocab_size", "num_qa_labels", "id2label"})
    if clash:
        raise UserError(f"model.{clash[0]} follows from the data and cannot be set")
    if "model" not in options.parts:
        return None
    with quiet():
        model = read_model(FusionForQuestionAnswering, options.parts["model"])
    config = model.config
    found = {"vocab_size": config.vocab_size, "visual_feat_dim": config.visual_feat_dim}
    wanted = {"vocab_size": len(material.tokenizer), "visual_feat_dim": material.fields["visual_feat_dim"]}
    for name, value in wanted.items():
        if found[name] != value:
            raise UserError(
                f"the model {options.parts['model']} has {name} {found[name]}, the data and the tokenizer {value};"
                " take those that it was trained with"
            )
    return model
