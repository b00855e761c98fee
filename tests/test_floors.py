"""The house rules that `make lint` checks hold for the code, and the checks see what they should."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import check_floors, check_sizes


def _house(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        file = root / "tessera" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


def test_every_room_stands_on_those_below_it() -> None:
    assert check_floors.check() == []


def test_no_file_and_no_function_is_too_long() -> None:
    assert check_sizes.check() == []


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("from tessera.models import vlgpt", "layers imports tessera.models.vlgpt from a floor above it"),
        ("import tessera.models.vlgpt", "layers imports tessera.models.vlgpt from a floor above it"),
        ("from ..models.vlgpt import VLGPT", "layers imports tessera.models.vlgpt from a floor above it"),
        ("def f():\n    from tessera import models", "layers imports tessera.models from a floor above it"),
        ("from tessera.attic import dust", "'attic' stands on no floor"),
    ],
)
def test_an_import_from_above_is_found(tmp_path: Path, line: str, sentence: str) -> None:
    files = {"__init__.py": "", "layers/__init__.py": "", "layers/a.py": line, "models/__init__.py": ""}
    root = _house(tmp_path, {**files, "models/vlgpt.py": "", "attic.py": ""})
    (found,) = check_floors.check(root)
    assert found.startswith("tessera/layers/a.py:")
    assert sentence in found


def test_rooms_of_one_floor_do_not_import_each_other(tmp_path: Path) -> None:
    root = _house(tmp_path, {"train/a.py": "from tessera.evaluate.b import x", "evaluate/b.py": "x = 1"})
    (found,) = check_floors.check(root)
    assert "another room of its own floor" in found


def test_a_circle_inside_a_room_is_found_even_through_a_function(tmp_path: Path) -> None:
    files = {
        "data/a.py": "from tessera.data import b",
        "data/b.py": "from tessera.data.c import x",
        "data/c.py": "x = 1\ndef f():\n    import tessera.data.a",
        "data/__init__.py": "",
    }
    (found,) = check_floors.check(_house(tmp_path, files))
    assert found == "import circle: tessera.data.a -> tessera.data.b -> tessera.data.c -> tessera.data.a"


def test_imports_of_lower_floors_and_of_the_version_pass(tmp_path: Path) -> None:
    files = {
        "__init__.py": "__version__ = '0'",
        "models/a.py": "from tessera import __version__\nfrom tessera.layers import b\nimport torch",
        "layers/b.py": "from tessera.errors import UserError",
        "layers/__init__.py": "",
        "errors.py": "",
    }
    assert check_floors.check(_house(tmp_path, files)) == []


def test_a_long_function_and_a_long_file_are_found(tmp_path: Path) -> None:
    body = "\n".join(f"    x = {i}" for i in range(70))
    root = _house(tmp_path, {"data/a.py": f"def f():\n{body}\n", "data/b.py": "x = 1\n" * 501})
    assert len(check_sizes.check(root)) == 2
