"""What the released pre-training of GMML leaves (github.com/Sara-Ahmed/GMML, `SiT_model` of its checkpoints): a ViT
with the names of timm under `backbone.`, and the head under `head_recons.`, as a safetensors file."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file

from tessera.errors import CheckpointError
from tessera.models.masked_image import MaskedImageConfig, MaskedImageModel
from tessera.vision.vit_published import assemble
from tessera.weights import load_state, shapes_in

BODY, HEAD = "backbone.", "head_recons."
_RENAMED = {"convTrans.": "tiles."}


def load_published(path: str | Path) -> MaskedImageModel:
    """Backbone and head, in evaluation mode.

    Raises:
        CheckpointError: it cannot be read, is a pickle, or of another architecture, with the first names that differ.
    """
    path = Path(path)
    shapes_in(path)  # says in a sentence what is wrong with a damaged file
    state = {name.removeprefix("module."): value for name, value in load_file(path).items()}
    body = {name.removeprefix(BODY): value for name, value in state.items() if name.startswith(BODY)}
    others = {name: value for name, value in state.items() if not name.startswith(BODY)}
    if not body:
        raise CheckpointError(f"{path} holds no {BODY}... of GMML; its first names are {', '.join(sorted(state)[:5])}")
    backbone, _ = assemble(body, path)
    model = MaskedImageModel(MaskedImageConfig(backbone_config=backbone.config), backbone)
    head = {}
    for name, value in others.items():
        name = name.removeprefix(HEAD)
        for theirs, ours in _RENAMED.items():
            name = name.replace(theirs, ours)
        head[name] = value
    load_state(model.head, head, str(path))
    return model.eval()
