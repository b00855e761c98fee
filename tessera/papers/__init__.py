"""One file a paper, and the registry of all."""

from tessera.papers.registry import Paper, TrainOptions, entry, get, paper, papers

__all__ = ["Paper", "TrainOptions", "entry", "get", "paper", "papers"]
