"""The five lights of a work. They are computed from what commands wrote into results/; none is ever typed in.

size, exact, use and weights are the outcomes of tests marked `@pytest.mark.light(slug, light, ...)`, which
`make lights` records in `results/lights.json`. claim is the verdict of `results/SLUG.json`, which `tessera reproduce`
writes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from tessera.errors import DataError

LIGHTS = ("size", "exact", "claim", "use", "weights")
TESTED = tuple(name for name in LIGHTS if name != "claim")
RECORD = "lights.json"
SIGNS = {"on": "●", "off": "✗", "n/a": "–", "dark": "○"}
Light = Literal["on", "off", "n/a", "dark"]


def shipped() -> Path:
    """The folder of results that belong to this version: within the package, or in a checkout beside it."""
    package = Path(__file__).resolve().parents[1]
    packaged = package / "results"
    return packaged if packaged.is_dir() else package.parent / "results"


@lru_cache(maxsize=8)
def record(folder: Path) -> dict[str, Any]:
    """The outcomes of marked tests by paper; empty where none were recorded.

    Raises:
        DataError: the file is damaged.
    """
    file = folder / RECORD
    if not file.is_file():
        return {}
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["papers"]
        return found
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} is no record of lights; `make lights` writes it anew") from error


def result(name: str, *folders: Path) -> tuple[Path, dict[str, Any]] | None:
    """The result of a study, NAME.json, in the first folder that has it, with its file; None where none has.

    Raises:
        DataError: the file is there and is no result of a study.
    """
    file = next((folder / f"{name}.json" for folder in folders if (folder / f"{name}.json").is_file()), None)
    if file is None:
        return None
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        found["claims"], found["verdict"], found["budget"]["equal"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} is no result of a study; move it away, or run the study again") from error
    return file, found


def of_result(found: Mapping[str, Any]) -> Light:
    """The light claim of a study: on where every claim holds, each between arms of equal budget."""
    return "on" if found["verdict"] == "holds" and found["budget"]["equal"] else "off"


def of_tests(outcomes: Mapping[str, str]) -> Light:
    """The light of some tests' outcomes: on where every one passed; one that was skipped has shown nothing."""
    if not outcomes:
        return "dark"
    return "on" if set(outcomes.values()) == {"passed"} else "off"


def lights(slug: str, *folders: Path) -> dict[str, Light]:
    """The lights that results in `folders` put on for a work, before it is asked which ones apply to it.

    A result of the study is taken from the first folder that has one; outcomes of tests from the last folder.
    """
    tested = record(folders[-1]).get(slug, {}).get("lights", {})
    found: dict[str, Light] = {name: of_tests(tested.get(name, {})) for name in LIGHTS}
    study = result(slug, *folders)
    return {**found, "claim": of_result(study[1]) if study else "dark"}
