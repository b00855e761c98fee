"""Check that each room imports only from floors below it, and that modules import in no circle.

Usage: python -m tools.check_floors. Prints each breach as `file:line: sentence`; fails if there is one.

A room is a package or module directly under tessera/. Rooms on the same floor do not import each other. Every
import counts, wherever it stands: at the top, inside a function, or for type checking only.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("files", "extras"),
    ("cards",),
    ("weights",),
    ("data",),
    ("layers",),
    ("vision", "tokenizers", "connect", "reduce", "objectives"),
    ("models",),
    ("train", "generate", "evaluate", "adapt"),
    ("study", "vision_chat"),
    ("zoo",),  # its cards carry the study's intervals and machine
    ("assistant", "classifier", "answerer", "augmented", "image_maker", "perceiver", "actor"),
    ("prompted",),  # a classifier whose classes are named
    ("loading",),
    ("papers",),
    ("app", "serve", "harness"),
    ("cli",),
    ("__main__",),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


@dataclass(frozen=True)
class Import:
    """One module of Tessera named by another, as `importer` -> `imported`, at a line of a file."""

    importer: str
    imported: str
    file: Path
    line: int


def module_name(file: Path, root: Path) -> str:
    """tessera/data/sample.py -> tessera.data.sample; a package's __init__.py -> the package."""
    parts = file.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _resolve(base: str, name: str, modules: Mapping[str, Path]) -> str:
    """`from base import name` is about the module base.name where that is one, else about base."""
    return f"{base}.{name}" if f"{base}.{name}" in modules else base


def _named(node: ast.AST, importer: str, modules: Mapping[str, Path]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            package = importer.split(".")
            if modules[importer].name != "__init__.py":
                package = package[:-1]
            above = package[: len(package) - node.level + 1]
            base = ".".join([*above, base] if base else above)
        yield from (_resolve(base, alias.name, modules) for alias in node.names)


def imports_of(modules: Mapping[str, Path]) -> list[Import]:
    """Every import of one Tessera module by another."""
    found = []
    for importer, file in modules.items():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), filename=str(file))):
            for imported in _named(node, importer, modules):
                if imported.split(".")[0] == "tessera" and imported != importer:
                    found.append(Import(importer, imported, file, getattr(node, "lineno", 1)))
    return found


def _room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def breaches(imports: list[Import], root: Path) -> Iterator[str]:
    """Imports that go up or across, and rooms that stand on no floor."""
    for one in imports:
        here, there = _room(one.importer), _room(one.imported)
        if here == "" or there == "" or here == there:  # tessera/__init__.py only hands names on, lazily
            continue
        place = f"{one.file.relative_to(root)}:{one.line}"
        unknown = [room for room in (here, there) if room not in FLOOR_OF]
        if unknown:
            yield f"{place}: {unknown[0]!r} stands on no floor; add it to FLOORS in tools/check_floors.py"
        elif FLOOR_OF[there] > FLOOR_OF[here]:
            yield f"{place}: {here} imports {one.imported} from a floor above it"
        elif FLOOR_OF[there] == FLOOR_OF[here]:
            yield f"{place}: {here} imports {one.imported}, another room of its own floor"


def circles(imports: list[Import]) -> Iterator[str]:
    """Circles among modules. `tessera/__init__.py` is left out: it imports nothing when loaded."""
    graph: dict[str, set[str]] = {}
    for one in imports:
        if "tessera" not in (one.importer, one.imported):
            graph.setdefault(one.importer, set()).add(one.imported)
    done: set[str] = set()
    path: list[str] = []

    def visit(module: str) -> Iterator[str]:
        if module in path:
            yield "import circle: " + " -> ".join([*path[path.index(module) :], module])
        elif module not in done:
            path.append(module)
            for imported in sorted(graph.get(module, ())):
                yield from visit(imported)
            path.pop()
            done.add(module)

    for module in sorted(graph):
        yield from visit(module)


def check(root: Path = ROOT) -> list[str]:
    """All breaches under `root`/tessera."""
    modules = {module_name(file, root): file for file in sorted((root / "tessera").rglob("*.py"))}
    imports = imports_of(modules)
    return [*breaches(imports, root), *circles(imports)]


if __name__ == "__main__":
    found = check()
    print("\n".join(found) or "floors: every room stands on those below it")
    sys.exit(bool(found))
