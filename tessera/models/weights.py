"""Weights of a folder, looked at before anything is built from them: only the headers of their files are read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import nn

from tessera.errors import CheckpointError

NAME = "model.safetensors"
INDEX = f"{NAME}.index.json"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")

Shapes = dict[str, tuple[int, ...]]


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder as transformers lays it out.

    Raises:
        CheckpointError: there is none, or its index cannot be read. Pickles are named and left alone.
    """
    if (folder / NAME).is_file():
        return [folder / NAME]
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        return sorted({folder / name for name in index["weight_map"].values()})
    except FileNotFoundError:
        pickled = sorted(file.name for file in folder.glob("*") if file.suffix in PICKLES)
        raise CheckpointError(_pickled(folder / pickled[0]) if pickled else f"{folder} has no {NAME}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / INDEX} cannot be read: {error}") from error


def shapes_in(file: Path) -> Shapes:
    """Names and shapes of the tensors in a safetensors file.

    Raises:
        CheckpointError: it is absent, cut short, damaged, or a pickle.
    """
    try:
        with safe_open(file, framework="pt") as held:
            names = held.keys()
            return {name: tuple(held.get_slice(name).get_shape()) for name in names}
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing") from None
    except (SafetensorError, OSError) as error:
        with open(file, "rb") as opened:
            head = opened.read(2)
        if head[:1] == b"\x80" or head == b"PK":  # how pickles and PyTorch's archives of them begin
            raise CheckpointError(_pickled(file)) from None
        raise CheckpointError(f"{file} is not a whole safetensors file ({error}); copy or download it again") from error


def _pickled(file: Path) -> str:
    return (
        f"{file} is a pickle, which can run code when it is opened, so it is never loaded; where you trust it, convert"
        f" it to {NAME} with safetensors.torch.save_file"
    )


def check_weights(model: nn.Module, folder: Path) -> None:
    """Compare the weights in `folder` with those of `model`, which may be on the meta device.

    Raises:
        CheckpointError: with what is missing, unexpected and of another shape; or as `shapes_in`.
    """
    found: Shapes = {}
    for file in weight_files(folder):
        found |= shapes_in(file)
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    unsaved = wanted.keys() - _unique(model)  # tied to one that is saved
    lists = {
        "missing": sorted(wanted.keys() - found.keys() - unsaved),
        "unexpected": sorted(found.keys() - wanted.keys()),
        "of another shape": [
            f"{name} {list(found[name])} for {list(wanted[name])}"
            for name in sorted(found.keys() & wanted.keys())
            if found[name] != wanted[name]
        ],
    }
    if any(lists.values()):
        raise CheckpointError(f"the weights in {folder} do not fit its config.json: {_say(lists)}")


def _unique(model: nn.Module) -> set[str]:
    """Names of all parameters and buffers, each once."""
    return {name for name, _ in model.named_parameters()} | {name for name, _ in model.named_buffers()}


def _say(lists: Mapping[str, list[str]]) -> str:
    parts = []
    for what, names in lists.items():
        more = ", ..." if len(names) > 3 else ""
        parts.append(f"{len(names)} {what}" + (f" ({', '.join(names[:3])}{more})" if names else ""))
    return ", ".join(parts)
