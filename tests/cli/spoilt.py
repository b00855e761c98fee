"""What a user may hand over by mistake: pictures, data and model folders, sound, odd and spoilt."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PIL
from PIL import ImageOps
from safetensors.torch import load_file, save_file

from tessera.assistant import Assistant
from tessera.data.images import Pixels
from tessera.models.vlgpt import VLGPTForConditionalGeneration
from tessera.zoo.parts import load_tokenizer
from tests.models import diffusion_tiny, vlgpt_tiny

Change = Callable[[Path], object]
Refused = Callable[..., str]  # the fixture `refused`


def photo(seed: int = 0, width: int = 60, height: int = 40) -> PIL.Image:
    """Coloured noise."""
    return PIL.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: PIL.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be `width` x `height`."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(10_000))) + chunk(b"IEND", b"")


BAD_PICTURES = {  # name -> content, and what is said of it
    "zero.png": (b"", "the file is empty (0 bytes)"),
    "cut.png": (encoded(photo())[:900], "cut short or damaged"),
    "cut.jpg": (encoded(photo(), "JPEG")[:700], "cut short or damaged"),
    "words.jpg": (b"these are words", "not a readable PNG, JPEG, WEBP, GIF or BMP"),
    "bomb.png": (bomb(10_000, 10_000), "10000 x 10000 pixels are over the limit of 89,000,000"),
    "huge.png": (bomb(65_535, 65_535), "65535 x 65535 pixels are over the limit"),
    "scan.tiff": (encoded(photo(), "TIFF"), "not a readable"),
    "layers.psd": (b"8BPS\0\1" + bytes(50), "not a readable"),
    "drawing.svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a readable"),
    "page.pdf": (b"%PDF-1.7", "not a readable"),
}


def _turned() -> PIL.Exif:
    exif = PIL.Exif()
    exif[0x0112] = 6
    return exif


_GREY_16 = np.random.default_rng(3).integers(0, 65536, (40, 60), dtype=np.uint16)
_FRAMES: dict[str, Any] = {"save_all": True, "append_images": [photo(1)]}
ODD_PICTURES = {  # name -> content; all of them work
    "cmyk.jpg": encoded(photo().convert("CMYK"), "JPEG"),
    "palette.png": encoded(photo().convert("P"), transparency=3),
    "grey-16.png": encoded(PIL.fromarray(_GREY_16)),
    "alpha.png": encoded(photo().convert("RGBA")),
    "grey-alpha.png": encoded(photo().convert("LA")),
    "black-white.png": encoded(photo().convert("1")),
    "turned.jpg": encoded(photo(), "JPEG", exif=_turned()),
    "moving.gif": encoded(photo(), "GIF", **_FRAMES),
    "moving.webp": encoded(photo(), "WEBP", lossless=True, **_FRAMES),
    "moving.png": encoded(photo(), **_FRAMES),
}


def as_rgb(name: str) -> PIL.Image:
    """What an odd picture should be read as: Pillow's own RGB of its first frame, upright, 16 bits by their high
    byte."""
    if name == "grey-16.png":
        return PIL.fromarray((_GREY_16 >> 8).astype(np.uint8)).convert("RGB")
    return ImageOps.exif_transpose(PIL.open(io.BytesIO(ODD_PICTURES[name]))).convert("RGB")


def tar(path: Path, samples: int, keep: int | None = None) -> Path:
    """A shard of captioned pictures, cut after `keep` bytes."""
    with tarfile.open(path, "w") as archive:
        for number in range(samples):
            for end, data in (("png", encoded(photo(number))), ("txt", f"no {number}".encode())):
                info = tarfile.TarInfo(f"{number:04d}.{end}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    path.write_bytes(path.read_bytes()[:keep])
    return path


# ---- model folders


def model_folder(folder: Path) -> Path:
    """A model of tiny random parts with the tokenizer that ships, as a training leaves it."""
    words = load_tokenizer("mini/lm")
    numbers = words.get_vocab()
    painter = diffusion_tiny.mini_painter()
    text = vlgpt_tiny.text_config(vocab_size=len(words), max_position_embeddings=512)
    conditions = {"image_condition_tokens": 4, "text_condition_tokens": diffusion_tiny.WORDS}
    widths = dict.fromkeys(("image_condition_width", "text_condition_width"), diffusion_tiny.WIDTH)
    ids = zip(("image_start_id", "image_end_id", "image_placeholder_id"), ("[IMG]", "[/IMG]", "<image>"), strict=True)
    config = vlgpt_tiny.tiny_config(
        text, vlgpt_tiny.tokenizer_config(**conditions, **widths),
        image_token_rows="shared", draw_steps=2, **{field: numbers[token] for field, token in ids},
    )  # fmt: skip
    torch.manual_seed(0)
    Assistant(VLGPTForConditionalGeneration(config).eval(), words, Pixels(16), painter).save(folder)
    return folder


class Evil:
    """Pickled, it makes a file when it is opened."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def evil(folder: Path) -> bytes:
    return pickle.dumps(Evil(folder / "OPENED"))


def archive(_: Path) -> bytes:
    """What `torch.save` writes."""
    held = io.BytesIO()
    torch.save({"weight": torch.ones(2)}, held)
    return held.getvalue()


def header(values: Any, body: int = 0, length: int | None = None) -> bytes:
    """The bytes of a safetensors file with this header, which may lie about its own length."""
    text = json.dumps(values).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(body)


OVERLAP = header({name: {"dtype": "F32", "shape": [2], "data_offsets": at} for name, at in
                  (("a", [0, 8]), ("b", [4, 12]))}, 12)  # fmt: skip


def put(name: str, data: bytes | Callable[[Path], bytes]) -> Change:
    """Write a file of the folder anew."""
    return lambda folder: (folder / name).write_bytes(data if isinstance(data, bytes) else data(folder))


def cut(name: str, keep: int) -> Change:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:keep])


def remove(name: str) -> Change:
    def change(folder: Path) -> None:
        place = folder / name
        shutil.rmtree(place) if place.is_dir() else place.unlink()

    return change


def fields(file: str, **values: Any) -> Change:
    """Set fields of a JSON file; `a__b` is the field b inside a."""

    def change(folder: Path) -> None:
        held = json.loads((folder / file).read_text())
        for name, value in values.items():
            *outer, last = name.split("__")
            inner = held
            for key in outer:
                inner = inner[key]
            inner[last] = value
        (folder / file).write_text(json.dumps(held))

    return change


def tensors(file: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    """Change the tensors of a safetensors file."""

    def rewrite(folder: Path) -> None:
        held = load_file(folder / file)
        change(held)
        save_file(held, folder / file, metadata={"format": "pt"})

    return rewrite


def drop_first(held: dict[str, torch.Tensor]) -> None:
    held.pop(min(held))


def add_one(held: dict[str, torch.Tensor]) -> None:
    held["added.weight"] = torch.ones(2)


def reshape_first(held: dict[str, torch.Tensor]) -> None:
    held[min(held)] = torch.ones(3, 7)


def only_pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(evil(folder))
