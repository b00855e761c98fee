"""A folder to work in, a model of tiny random parts, and what every refusal has in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tessera.cli import main


@pytest.fixture(scope="module")
def no_report() -> Iterator[None]:
    """Trainings end with their model: what a report shows is tested elsewhere."""
    from tessera.papers import vl_gpt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vl_gpt, "write_report", lambda *_: None)
        yield


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.cli.spoilt import model_folder

    return model_folder(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, and a home of its own."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def _files(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*")}


@pytest.fixture
def refused(here: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command line that must be refused; gives the sentence. The working folder stays as it was."""

    def run(*words: object) -> str:
        before = _files(here)
        assert main([str(word) for word in words]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith("tessera: ") and said.err.count("\n") == 1, said.err
        assert len(said.err) < 700
        assert _files(here) == before
        return said.err

    return run
