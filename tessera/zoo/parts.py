"""Pretrained parts by name: `mini/...` ship inside the package, every other name is a folder or a published one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from tessera.errors import CheckpointError, UserError, nearest
from tessera.files import sha256, write_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

Model = TypeVar("Model", bound="PreTrainedModel")
SHIPPED = Path(__file__).parent / "parts"
CARD = "card.json"
PREFIX = "mini/"
AUTOENCODER, WEIGHTS = "mini/autoencoder", "diffusion_pytorch_model.safetensors"


def shipped() -> list[str]:
    """Names of the parts inside the package, as `mini/NAME`."""
    return sorted(PREFIX + card.parent.name for card in SHIPPED.glob(f"*/{CARD}"))


def locate(name: str) -> str:
    """Where `from_pretrained` finds a part: a folder of the package for `mini/NAME`, else the name as it is.

    Raises:
        UserError: an unknown mini part.
    """
    if not name.startswith(PREFIX):
        return name
    folder = SHIPPED / name.removeprefix(PREFIX)
    if not folder.is_dir():
        raise UserError(f"there is no mini part {name!r}{nearest(name, shipped())}")
    return str(folder)


@contextmanager
def quiet() -> Iterator[None]:
    """Load without the libraries' progress bars and reports of the weights that a part leaves out on purpose."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    both = (transformers_logging, diffusers_logging)
    before = [library.get_verbosity() for library in both]
    bars = transformers_logging.is_progress_bar_enabled()
    for library in both:
        library.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        for library, level in zip(both, before, strict=True):
            library.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def trained_part(place: str | Path, kind: type[Model], released: Callable[[Path], Model]) -> Model:
    """A trained part: from the folder that `save_pretrained` wrote, or what `released` reads from a file in another
    layout.

    Raises:
        CheckpointError: it is none, or damaged.
    """
    from tessera.weights import read_model

    path = Path(place)
    with quiet():
        return released(path) if path.is_file() else read_model(kind, path)


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerFast:
    """The fast tokenizer of a part, shipped or in a folder."""
    from transformers import AutoTokenizer

    return cast("PreTrainedTokenizerFast", AutoTokenizer.from_pretrained(locate(str(name)), trust_remote_code=False))


def write_tokenizer(folder: Path) -> None:
    """mini/tokenizer into the folder of a part, on one line: line breaks and indents would be most of the file."""
    load_tokenizer("mini/tokenizer").save_pretrained(folder)
    file = folder / "tokenizer.json"
    held = json.loads(file.read_text(encoding="utf-8"))
    write_text(file, json.dumps(held, ensure_ascii=False, separators=(",", ":")))


def autoencoder_of(name: str) -> Path | None:
    """Where the autoencoder of a diffusion part lies: None for its own folder, or that of mini/autoencoder, where a
    mini part ships without its own copy of it.

    Raises:
        CheckpointError: the part was trained upon another one, by the hash on its card.
    """
    if not name.startswith(PREFIX) or (Path(locate(name)) / "vae").is_dir():
        return None
    folder = Path(locate(AUTOENCODER))
    if sha256(folder / WEIGHTS) != card(name)["files"].get(f"vae/{WEIGHTS}"):
        raise CheckpointError(
            f"{name} was trained upon another {AUTOENCODER} than is here; put its own in its folder vae"
        )
    return folder


def card(name: str) -> dict[str, Any]:
    """What the card of a mini part says: recipe, seed, steps, time, machine, scores with intervals, gates."""
    return json.loads((Path(locate(name)) / CARD).read_text(encoding="utf-8"))


def list_parts() -> list[dict[str, Any]]:
    """The cards of all mini parts, each with its name."""
    return [{"name": name, **card(name)} for name in shipped()]
