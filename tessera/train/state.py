"""The state of a run as named tensors: weights, optimiser, random generators. Nothing here touches the
disk."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from tessera.errors import CheckpointError
from tessera.train.shards import full, like

Tensors = dict[str, Tensor]


def _whole(tensor: Tensor) -> Tensor:
    return full(tensor.detach()).to("cpu", copy=True).contiguous()


def weights(model: nn.Module) -> tuple[Tensors, list[str]]:
    """Trainable parameters and saved buffers of `model` by name, whole and on the CPU; and the frozen names
    left out."""
    kept = {name: _whole(p) for name, p in model.named_parameters() if p.requires_grad}
    left_out = [name for name, p in model.named_parameters() if not p.requires_grad]
    saved = set(model.state_dict(keep_vars=True))
    kept.update({name: _whole(buffer) for name, buffer in model.named_buffers() if name in saved})
    return kept, left_out


@torch.no_grad()
def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], origin: str) -> None:
    """Copy `tensors` into the parameters and buffers of `model` that bear their names.

    Raises:
        CheckpointError: a name that the model lacks, a trainable parameter without a tensor, or another
            shape.
    """
    places = dict(model.named_buffers()) | dict(model.named_parameters())
    unexpected = sorted(set(tensors) - set(places))
    missing = sorted(n for n, p in model.named_parameters() if p.requires_grad and n not in tensors)
    shapes = sorted(
        f"{n} {list(tensors[n].shape)} for {list(places[n].shape)}"
        for n in set(tensors) & set(places)
        if tensors[n].shape != places[n].shape
    )
    if unexpected or missing or shapes:
        raise CheckpointError(
            f"{origin} does not fit the model: missing {missing[:5]} ({len(missing)}),"
            f" unexpected {unexpected[:5]} ({len(unexpected)}), other shape {shapes[:5]} ({len(shapes)})"
        )
    for name, tensor in tensors.items():
        places[name].copy_(like(tensor, places[name]))


def frozen_fingerprint(model: nn.Module) -> str:
    """Hash of names, shapes and up to 64 values of each frozen parameter: other base weights give another
    one."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            flat = parameter.detach().flatten()
            sample = flat[:: max(1, flat.numel() // 64)][:64].float().cpu()
            digest.update(f"{name} {list(parameter.shape)}".encode() + sample.numpy().tobytes())
    return digest.hexdigest()[:16]


def optimiser(optimisers: list[torch.optim.Optimizer], model: nn.Module, keep: bool = True) -> Tensors:
    """State tensors as "parameter name|state name", whole and on the CPU.

    Gathering shards takes all processes; those that do not `keep` the result get an empty one.
    """
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    found: Tensors = {}
    for one in optimisers:
        for parameter, state in one.state.items():
            for key, value in state.items():
                whole = full(value)
                if keep:
                    found[f"{names[parameter]}|{key}"] = _whole(whole)
    return found


def load_optimiser(optimisers: list[torch.optim.Optimizer], model: nn.Module, tensors: Tensors) -> None:
    """Put `tensors` of `optimiser` back.

    Raises:
        CheckpointError: tensors for a parameter that the optimisers do not hold.
    """
    parameters = dict(model.named_parameters())
    owner = {p: one for one in optimisers for group in one.param_groups for p in group["params"]}
    for name, tensor in tensors.items():
        parameter = parameters.get(name.split("|")[0])
        if parameter is None or parameter not in owner:
            raise CheckpointError(f"the optimiser state {name!r} belongs to no parameter that is trained here")
        scalar = tensor.ndim == 0 and parameter.ndim > 0
        value = tensor.to(parameter.device) if scalar else like(tensor, parameter)
        owner[parameter].state[parameter][name.split("|")[1]] = value.clone()


def generators() -> Tensors:
    """States of the generators of torch (CPU and current CUDA device), numpy and python."""
    _, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002, as are the two below: libraries draw from it
    version, words, gauss_next = random.getstate()
    states = {
        "torch": torch.get_rng_state(),
        "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64)),
        "numpy_rest": torch.tensor([position, has_gauss, gauss], dtype=torch.float64),
        "python": torch.tensor([version, *words], dtype=torch.int64),
        "python_gauss": torch.tensor([] if gauss_next is None else [gauss_next], dtype=torch.float64),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_generators(states: Mapping[str, Tensor]) -> None:
    """Put the states of `generators` back."""
    torch.set_rng_state(states["torch"])
    position, has_gauss, gauss = states["numpy_rest"].tolist()
    keys = states["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, int(position), int(has_gauss), gauss))  # noqa: NPY002
    version, *words = states["python"].tolist()
    gauss_next = states["python_gauss"].tolist()
    random.setstate((version, tuple(words), gauss_next[0] if gauss_next else None))
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def seed_generators(*parts: int) -> None:
    """Seed torch, numpy and python from `parts` (seed, stage, rank), so that no stage depends on the one
    before."""
    words = np.random.SeedSequence(parts).generate_state(3)
    torch.manual_seed(int(words[0]))
    np.random.seed(int(words[1]))  # noqa: NPY002
    random.seed(int(words[2]))
