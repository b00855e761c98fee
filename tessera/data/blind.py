"""Samples as a model reads them that sees no picture, and what such a model thought of each learned word.

The pictures' placeholders leave a sequence that was built with them, so that every word keeps exactly what stands
before it: begin mark, request, template.

Legend: B rows, L positions of a row, K learned words of one sequence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from tessera.data.loader import Skip
from tessera.data.mixture import Draw
from tessera.data.packing import Batch, Builder, Packed, Packer
from tessera.data.sample import Sample
from tessera.data.sequence import IGNORED, Sequence
from tessera.errors import CheckpointError, DataError, reason
from tessera.files import atomic_file

_KEY = 16  # bytes of a sequence's hash


class BlindBuilder:
    """Samples to the Sequences of another builder, their pictures' placeholders left out."""

    def __init__(self, builder: Builder) -> None:
        self.builder = builder
        self.place_id = builder.place_id

    def build(self, sample: Sample) -> Sequence:
        """As that builder's. Raises BadSample as it does."""
        built = self.builder.build(sample)
        words = built.input_ids != self.place_id
        return replace(
            built, input_ids=built.input_ids[words], labels=built.labels[words],
            visual_target=built.visual_target[words], images=(),
        )  # fmt: skip


def key(input_ids: np.ndarray, labels: np.ndarray) -> bytes:
    """A hash of the token ids [L] of a sequence without pictures, and of which are learned."""
    digest = hashlib.blake2b(np.asarray(input_ids, "<i4").tobytes(), digest_size=_KEY)
    digest.update((np.asarray(labels) != IGNORED).tobytes())
    return digest.digest()


@dataclass(frozen=True)
class Scores:
    """What a blind model gave each learned word: float16 [K] by the `key` of its sequence, in [0, 1]."""

    rows: Mapping[bytes, np.ndarray]

    def of(self, sequence: Sequence) -> np.ndarray:
        """Those of a sequence without pictures, float16 [K]. Raises KeyError where there are none."""
        return self.rows[key(sequence.input_ids, sequence.labels)]

    def shuffled(self, seed: int) -> Scores:
        """The same values of every sequence, each at a random one of its learned words."""
        rng = {name: np.random.default_rng([seed, int.from_bytes(name, "little")]) for name in self.rows}
        return Scores({name: rng[name].permutation(row) for name, row in self.rows.items()})

    def laid_out(self, batch: Batch, place_id: int) -> torch.Tensor:
        """Float32 [B, L]: the value of each learned word of packed rows, at its own position; elsewhere 0.

        Raises:
            DataError: a sequence that has none, because its tokens are others than those that were scored.
        """
        found = np.zeros(tuple(batch.labels.shape), np.float32)
        ids, labels, segments = batch.input_ids.numpy(), batch.labels.numpy(), batch.segment_ids.numpy()
        for row, names in enumerate(batch.sample_ids):
            for number, name in enumerate(names, start=1):
                words = (segments[row] == number) & (ids[row] != place_id)
                own = self.rows.get(key(ids[row][words], labels[row][words]))
                if own is None:
                    raise DataError(
                        f"the tokens of sample {name!r} are not those that the text-only reference scored: their hash"
                        " is unknown; choose another --out, where they are scored anew with this tokenizer and template"
                    )
                found[row][words & (labels[row] != IGNORED)] = own
        return torch.from_numpy(found)

    @property
    def values(self) -> np.ndarray:
        """All of them, one after the other, float16."""
        return np.concatenate([self.rows[name] for name in sorted(self.rows)])

    def fingerprint(self) -> str:
        """A short hash of all values."""
        digest = hashlib.blake2b(digest_size=8)
        for name in sorted(self.rows):
            digest.update(name + self.rows[name].tobytes())
        return digest.hexdigest()

    def save(self, path: str | Path) -> None:
        """Write them to one safetensors file: hashes, lengths, values."""
        names = sorted(self.rows)
        tensors: dict[str, np.ndarray] = {
            "keys": np.frombuffer(b"".join(names), np.uint8).reshape(-1, _KEY),
            "lengths": np.array([len(self.rows[name]) for name in names], np.int64),
            "values": self.values,
        }
        with atomic_file(path) as aside:
            save_file(tensors, aside)

    @classmethod
    def load(cls, path: str | Path) -> Scores:
        """Those that `save` wrote.

        Raises:
            CheckpointError: the file cannot be read, is damaged, or holds no such values.
        """
        try:
            held = load_file(path)
            names = [row.tobytes() for row in held["keys"]]
            rows = np.split(held["values"].astype(np.float16, casting="equiv"), np.cumsum(held["lengths"])[:-1])
            if [len(row) for row in rows] != held["lengths"].tolist() or len(names) != len(rows):
                raise ValueError("lengths and values do not match")
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
            raise CheckpointError(
                f"{path} holds no scores of a text-only reference: {reason(error)}; remove it, and they are made anew"
            ) from error
        return cls(dict(zip(names, rows, strict=True)))


@dataclass
class ScoredBatch(Batch):
    """Packed rows, and in `blind` float32 [B, L] what a blind model gave each learned word; elsewhere 0."""

    blind: torch.Tensor | None = None


class ScoredPacker:
    """The batcher of a Loader that packs as `packer` does and adds `scores` to the rows."""

    def __init__(self, packer: Packer, scores: Scores) -> None:
        self.packer, self.scores = packer, scores
        self.window, self.size = packer.window, packer.size

    def describe(self) -> str:
        """What a resumed run must have in common."""
        return f"{self.packer.describe()}, scores {self.scores.fingerprint()}"

    def read(self, draw: Draw) -> Packed:
        """As the packer. Raises BadSample."""
        return self.packer.read(draw)

    def plan(self, items: Seq[Packed]) -> tuple[list[list[list[Packed]]], list[Packed]]:
        """As the packer."""
        return self.packer.plan(items)

    def batch(self, rows: Seq[Seq[Packed]], skip: Skip) -> ScoredBatch:
        """As the packer, with `blind`. Raises DataError as `Scores.laid_out`."""
        plain = self.packer.batch(rows, skip)
        blind = self.scores.laid_out(plain, self.packer.builder.place_id)
        return ScoredBatch(**{field.name: getattr(plain, field.name) for field in fields(plain)}, blind=blind)
