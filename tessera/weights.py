"""Weights from files: looked at before anything is built from them, and loaded whole or not at all.

Safetensors only. Looking reads no more than the headers of the files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from tessera.errors import CheckpointError, reason

NAME = "model.safetensors"
INDEX = f"{NAME}.index.json"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")

SHOWN = 5  # names in a sentence about what differs

Shapes = dict[str, tuple[int, ...]]
Model = TypeVar("Model", bound=PreTrainedModel)


def model_type(folder: Path) -> str:
    """What config.json in `folder` says it holds. Raises CheckpointError where it cannot be read."""
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return str(values["model_type"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder} is no folder of a model: its config.json cannot be read ({reason(error)})"
        ) from error


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
    differing = _differences(model, found)
    if differing:
        raise CheckpointError(f"the weights in {folder} do not fit its config.json: {differing}")


def load_state(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Give `model` the weights in `state`, every one of them and no others.

    Args:
        source: where they come from, for the message.

    Raises:
        CheckpointError: names or shapes differ, as for weights of another architecture, with the first of them.
    """
    differing = _differences(model, {name: tuple(value.shape) for name, value in state.items()})
    if differing:
        raise CheckpointError(f"{source} does not hold the weights of a {type(model).__name__}: {differing}")
    model.load_state_dict(dict(state), strict=False)  # strict would ask for tied weights twice


def write_model(model: PreTrainedModel, folder: Path) -> None:
    """Write weights and configuration under the names that `check_weights` compares: the model's own. By itself
    transformers would give those of a published part, such as a DINOv2, the names of its older versions."""
    model.save_pretrained(folder, save_original_format=False)


def read_model(kind: type[Model], folder: str | Path, dtype: torch.dtype = torch.float32, **options: Any) -> Model:
    """A model of transformers with every weight from its folder, in evaluation mode. Weights that the model has no
    place for, such as the text half of a CLIP, are passed over.

    Args:
        options: further arguments of `from_pretrained`.

    Raises:
        CheckpointError: the folder is absent, damaged, pickled, or of another model; what transformers would make up
            for a missing weight is never taken.
    """
    local = Path(folder)
    if local.is_dir():
        for file in weight_files(local):
            shapes_in(file)
    try:
        loaded: Any = kind.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, output_loading_info=True,
            ignore_mismatched_sizes=True, **options,  # they are refused below, by name
        )  # fmt: skip
    except Exception as error:  # the libraries raise many kinds, down to the bare class, for a file that is cut short
        raise CheckpointError(f"{folder} cannot be loaded as a {kind.__name__}: {reason(error)}") from error
    model, report = loaded
    lists = {
        "missing": sorted(report["missing_keys"]),
        "of another shape": sorted(str(one[0]) for one in report["mismatched_keys"]),
    }
    if any(lists.values()):
        lists["unexpected"] = sorted(report["unexpected_keys"])
        raise CheckpointError(f"{folder} does not hold a {kind.__name__}: of its weights are {_say(lists)}")
    return model


def _differences(model: nn.Module, found: Shapes) -> str:
    """How weights of these names and shapes differ from those of `model`; empty where they do not."""
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
    return _say(lists) if any(lists.values()) else ""


def _unique(model: nn.Module) -> set[str]:
    """Names of all parameters and buffers, each once."""
    return {name for name, _ in model.named_parameters()} | {name for name, _ in model.named_buffers()}


def _say(lists: Mapping[str, list[str]]) -> str:
    """How many of each, with the first SHOWN names, taken from the lists in turn."""
    turns = [(place, what) for what, names in lists.items() for place in range(len(names))]
    shown = [what for _, what in sorted(turns, key=lambda turn: turn[0])[:SHOWN]]
    parts = []
    for what, names in lists.items():
        first = names[: shown.count(what)]
        more = [] if len(first) == len(names) else ["..."]
        parts.append(f"{len(names)} {what}" + (f" ({', '.join(first + more)})" if names else ""))
    return ", ".join(parts)
