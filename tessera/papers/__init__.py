"""One file a paper, and the registry of all."""

from tessera.papers.figures import Figure
from tessera.papers.registry import Paper, TrainOptions, entry, get, paper, papers

__all__ = ["Figure", "Paper", "TrainOptions", "entry", "get", "paper", "papers"]
