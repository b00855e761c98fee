"""What the package promises about itself: requirements, pins, and a light start."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tessera.papers import lights

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CONSTRAINTS = (ROOT / "constraints.txt").read_text(encoding="utf-8")
PINS = dict(re.findall(r"^([\w.-]+)==(\S+)$", CONSTRAINTS, re.MULTILINE))
MODULE_OF = {"pillow": "PIL"}
OPTIONAL = {"pycocoevalcap", "sklearn", "lmms_eval", "gymnasium"}


def _third_party_imports() -> dict[str, str]:
    """Top-level module -> a file of tessera/ that imports it."""
    found = {}
    for file in sorted((ROOT / "tessera").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names = [node.module]
            found.update({name.split(".")[0]: str(file.relative_to(ROOT)) for name in names})
    return {name: file for name, file in found.items() if name not in sys.stdlib_module_names and name != "tessera"}


def test_every_import_is_a_declared_requirement() -> None:
    declared = {Requirement(line).name for line in PROJECT["dependencies"]}
    modules = {MODULE_OF.get(name, name) for name in declared}
    imported = _third_party_imports()
    undeclared = {name: file for name, file in imported.items() if name not in modules | OPTIONAL}
    assert undeclared == {}


def test_every_requirement_is_pinned_inside_its_range() -> None:
    extras = PROJECT["optional-dependencies"].values()
    for line in [*PROJECT["dependencies"], *(line for extra in extras for line in extra)]:
        requirement = Requirement(line)
        if requirement.name != "tessera-vl":
            assert requirement.specifier.contains(PINS[canonicalize_name(requirement.name)]), line


def test_pins_name_no_index_and_no_build() -> None:
    assert PINS["torch"] == "2.13.0"
    assert len(PINS) == len([line for line in CONSTRAINTS.splitlines() if not line.startswith("#")])
    assert not any("+" in version for version in PINS.values())


def test_every_dependency_has_its_reason_written_down() -> None:
    reasons = (ROOT / "docs/dependencies.md").read_text(encoding="utf-8")
    for line in PROJECT["dependencies"]:
        assert f"| {Requirement(line).name} |" in reasons, line


def test_importing_the_package_loads_no_heavy_library() -> None:
    heavy = "('torch', 'transformers', 'diffusers', 'numpy', 'PIL')"
    code = f"import sys, tessera; print([name for name in {heavy} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_results_go_with_the_package_to_where_they_are_read() -> None:
    built = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]["targets"]
    assert built["wheel"]["force-include"] == {"results": "tessera/results"}
    assert "results" in built["sdist"]["include"]
    assert lights.shipped() in (ROOT / "results", ROOT / "tessera/results")
