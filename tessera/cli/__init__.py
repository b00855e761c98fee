"""The command line: `tessera COMMAND`."""

from tessera.cli.program import main

__all__ = ["main"]
