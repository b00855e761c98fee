"""Tests run offline: the hubs are told so, and a connection to another machine fails. Marked ones put on lights of
papers: see `tools/lights.py`."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tools import lights

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:  # each has a core to itself; more threads would only wait for one another
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--lights all` or `--lights SLUG`."""
    parser.addoption("--lights", metavar="SLUG|all", help="run the tests that put on lights, and record their outcomes")


def pytest_configure(config: pytest.Config) -> None:
    """Record lights where it is asked for."""
    wanted = config.getoption("--lights")
    if wanted:
        config.pluginmanager.register(lights.Recorder(wanted), "lights")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A mark that names no paper or no light stops every run, not only one that records."""
    for item in items:
        for mark in item.iter_markers(lights.MARK):
            lights.read(mark)


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """Refuse connections that leave this machine."""
    connect = socket.socket.connect

    def local_only(self: socket.socket, address: Any) -> None:
        remote = self.family in (socket.AF_INET, socket.AF_INET6)
        if remote and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise OSError(f"tests use no network, yet something connects to {address[0]}")
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", local_only)
        yield
