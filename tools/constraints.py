"""Write constraints.txt: the exact versions here of Tessera's requirements, and of theirs.

Usage: python -m tools.constraints [EXTRA ...], inside the environment that was tested. Without extras: dev.
"""

from __future__ import annotations

import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tessera.files import write_text

ROOT = Path(__file__).parent.parent
HEAD = "# Versions tested together; written by `python -m tools.constraints`. Ranges are in pyproject.toml.\n"


def wanted(extras: list[str]) -> list[Requirement]:
    """The project's own requirements, those of `extras` and of the build included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    lines = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    for extra in extras:
        lines += project["project"]["optional-dependencies"][extra]
    return [Requirement(line) for line in lines]


def pins(requirements: list[Requirement], own: dict[str, list[str]]) -> dict[str, str]:
    """Name -> version of every distribution here that `requirements` lead to. `own`: our extras by name."""
    found: dict[str, str] = {}
    queue = list(requirements)
    seen: set[tuple[str, frozenset[str]]] = set()
    while queue:
        requirement = queue.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        if name == "tessera-vl":
            queue += [Requirement(line) for extra in extras for line in own[extra]]
            continue
        try:
            there = distribution(name)
        except PackageNotFoundError:
            continue  # asked for on other platforms only
        found[name] = there.version.split("+")[0]  # 2.13.0+cpu is 2.13.0: which build is the user's choice
        for line in there.requires or ():
            inner = Requirement(line)
            if inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                queue.append(inner)
    return found


def main() -> None:
    extras = sys.argv[1:] or ["dev"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    found = pins(wanted(extras), project["project"]["optional-dependencies"])
    write_text(ROOT / "constraints.txt", HEAD + "".join(f"{name}=={found[name]}\n" for name in sorted(found)))


if __name__ == "__main__":
    main()
