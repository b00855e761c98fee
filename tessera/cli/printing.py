"""How commands print: JSON for scripts, columns for people."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any


def print_json(value: Any) -> None:
    """`value` as indented JSON."""
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def print_table(rows: Sequence[Sequence[Any]], header: Sequence[str]) -> None:
    """Columns padded to their widest cell. In a terminal the last column is cut to what fits."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header) - 1)]
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    for row in cells:
        line = "  ".join([*(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)), row[-1]])
        print(line[: room - 1] + "…" if 0 < room < len(line) else line)


def print_result(result: Mapping[str, Any]) -> None:
    """A study's claims with their verdicts, its arms, and what it was made on."""
    from rich.console import Console  # a tenth of a second that most commands need not pay for

    from tessera.study.table import table

    Console(width=None if sys.stdout.isatty() else 160).print(table(result))


def number(value: Any) -> str:
    """A count with separators, another number with four digits, anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
