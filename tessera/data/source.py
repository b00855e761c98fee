"""Source: an indexable run of Samples; World: a named place they come from, with a train and a held-out split."""

from __future__ import annotations

from typing import Literal, Protocol, runtime_checkable

from tessera.data.sample import Sample

Split = Literal["train", "heldout"]


@runtime_checkable
class Source(Protocol):
    """Samples by index. The order in which they are visited belongs to the loader, never to the source."""

    name: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample:
        """Sample `index`. Raises BadSample where it cannot be used (the loader skips, counts and names it)."""
        ...

    def fingerprint(self) -> str:
        """A short stable hash of what the source holds: a run refuses to resume on another fingerprint."""
        ...


@runtime_checkable
class World(Protocol):
    """A place Samples come from. `tasks` names what it can give: pairs, questions, edits, pages, conversations."""

    name: str
    tasks: tuple[str, ...]

    def source(self, task: str, split: Split = "train") -> Source:
        """The samples of one task. Raises UserError for a task that this world does not have."""
        ...
