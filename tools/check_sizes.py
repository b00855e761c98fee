"""Check that no file is over 500 lines and no function over 60.

Usage: python -m tools.check_sizes. Prints each as `file:line: sentence`, exits with 1 if there is one.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
FILE_LINES = 500
FUNCTION_LINES = 60


def oversized(file: Path, name: str) -> Iterator[str]:
    """What in `file` is too long, as sentences that begin with `name`."""
    text = file.read_text(encoding="utf-8")
    lines = len(text.splitlines())
    if lines > FILE_LINES:
        yield f"{name}:1: {lines} lines, over {FILE_LINES}"
    for node in ast.walk(ast.parse(text, filename=name)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION_LINES:
                yield f"{name}:{node.lineno}: function {node.name} has {length} lines, over {FUNCTION_LINES}"


def check(root: Path = ROOT) -> list[str]:
    """Everything under tessera/, tools/ and tests/ that is too long."""
    files = [file for folder in ("tessera", "tools", "tests") for file in sorted((root / folder).rglob("*.py"))]
    return [found for file in files for found in oversized(file, str(file.relative_to(root)))]


if __name__ == "__main__":
    found = check()
    print("\n".join(found) or f"sizes: no file over {FILE_LINES} lines, no function over {FUNCTION_LINES}")
    sys.exit(bool(found))
