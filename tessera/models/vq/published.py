"""ViT-VQGAN in the layout of its best-known re-implementation (github.com/thuanz123/enhancing-transformers):
`encoder.`, `decoder.`, `quantizer.`, `pre_quant.` and `post_quant.` of its checkpoints, as a safetensors file."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from tessera.errors import CheckpointError
from tessera.models.vq.configuration import VQConfig
from tessera.models.vq.modeling import VQTokenizer
from tessera.models.vq.sizes import REBUILT
from tessera.weights import load_state, shapes_in

_RENAMED = (  # theirs to ours, one after the other
    (r"^encoder\.to_patch_embedding\.0\.", "encoder.patches."),
    (r"^decoder\.to_pixel\.conv_out\.", "decoder.tiles."),
    (r"^(encoder|decoder)\.(?:en|de)_pos_embedding$", r"\1.transformer.positions.table"),
    (r"^(encoder|decoder)\.transformer\.layers\.", r"\1.transformer.blocks."),
    (r"^(encoder|decoder)\.norm\.", r"\1.transformer.norm."),
    (r"\.0\.norm\.", ".norm1."),
    (r"\.1\.norm\.", ".norm2."),
    (r"\.0\.fn\.to_qkv\.", ".attn.qkv."),
    (r"\.0\.fn\.to_out\.", ".attn.out."),
    (r"\.1\.fn\.net\.0\.", ".mlp.fc1."),
    (r"\.1\.fn\.net\.2\.", ".mlp.fc2."),
    (r"^quantizer\.embedding\.", "quantiser.codes."),
    (r"^pre_quant\.", "quantiser.before."),
    (r"^post_quant\.", "quantiser.after."),
)
_OTHERS = ("loss.",)  # the critic and the network of the perceptual loss


def renamed(name: str) -> str:
    """Our name for a tensor of that layout; another stays as it is."""
    for pattern, ours in _RENAMED:
        name = re.sub(pattern, ours, name)
    return name


def load_published(path: str | Path) -> VQTokenizer:
    """The tokenizer, in evaluation mode. Its size follows from the shapes.

    Raises:
        CheckpointError: it cannot be read, is a pickle, or of another architecture, with the first names that differ.
    """
    path = Path(path)
    shapes_in(path)  # says in a sentence what is wrong with a damaged file
    state = {renamed(name): value for name, value in load_file(path).items() if not name.startswith(_OTHERS)}
    state = {name: value.flatten(0, -2) if name.endswith(".table") else value for name, value in state.items()}
    model = VQTokenizer(_from_shapes(state, path))
    load_state(model, state, str(path))
    return model.eval()


def _from_shapes(state: Mapping[str, Tensor], path: Path) -> VQConfig:
    try:
        found: dict[str, Any] = {}
        for side in ("encoder", "decoder"):
            body = f"{side}.transformer."
            found[f"{side}_width"] = state[f"{body}norm.weight"].shape[0]
            found[f"{side}_depth"] = sum(name.startswith(body) and name.endswith("mlp.fc1.bias") for name in state)
            inner = state[f"{body}blocks.0.attn.out.weight"].shape[1]
            found[f"{side}_heads"] = inner // REBUILT["head_width"]
        patches, codes = state["encoder.patches.weight"], state["quantiser.codes.weight"]
        side_of_grid = math.isqrt(state["encoder.transformer.positions.table"].shape[0])
        hidden = state["encoder.transformer.blocks.0.mlp.fc1.weight"].shape[0]
    except (KeyError, IndexError) as error:
        first = ", ".join(sorted(state)[:5])
        raise CheckpointError(f"{path} holds no ViT-VQGAN: it has no {error}; its first names are {first}") from None
    return VQConfig(
        image_size=side_of_grid * patches.shape[2], patch_size=patches.shape[2], num_channels=patches.shape[1],
        codes=codes.shape[0], code_width=codes.shape[1], mlp_ratio=hidden / patches.shape[0], **found, **REBUILT,
    )  # fmt: skip
