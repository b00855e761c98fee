"""What ships inside the package: within 40 MiB, each weight once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tessera.errors import CheckpointError
from tessera.zoo import parts
from tessera.zoo.foundation import load_mini

LIMIT = 40 * 2**20


def test_all_parts_together_stay_within_the_limit() -> None:
    assert sum(file.stat().st_size for file in parts.SHIPPED.rglob("*") if file.is_file()) <= LIMIT


def test_the_painters_autoencoder_is_that_of_its_own_part() -> None:
    painter = load_mini().painter
    held = load_file(parts.SHIPPED / "autoencoder" / parts.WEIGHTS)
    assert all(torch.equal(painter.vae.state_dict()[name], value.float()) for name, value in held.items())


def test_a_painter_upon_another_autoencoder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("autoencoder", "diffusion"):
        (tmp_path / name).mkdir()
    shutil.copy(parts.SHIPPED / "autoencoder" / parts.WEIGHTS, tmp_path / "autoencoder")
    card = tmp_path / "diffusion" / parts.CARD
    card.write_text(json.dumps({"files": {f"vae/{parts.WEIGHTS}": "0"}}))
    monkeypatch.setattr(parts, "SHIPPED", tmp_path)
    with pytest.raises(CheckpointError, match="mini/diffusion was trained upon another mini/autoencoder than is here"):
        parts.autoencoder_of("mini/diffusion")
    (tmp_path / "diffusion" / "vae").mkdir()
    assert parts.autoencoder_of("mini/diffusion") is None and parts.autoencoder_of(str(tmp_path)) is None
