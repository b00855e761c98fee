"""Pictures: opened within limits, resized, augmented and turned into arrays, with Pillow and NumPy alone.

Every picture becomes 8-bit RGB:
- EXIF rotation is applied, then Pillow's `convert("RGB")`, for CMYK, grey and palette pictures too;
- transparency is dropped, which leaves the colours stored under it (composite beforehand for another
  backdrop);
- 16-bit grey keeps its high byte (Pillow's own conversion would clip nearly all of it to white);
- of an animated picture the first frame is taken.

Shapes: H, W height and width in pixels; M pictures; S side of a square input.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    ImageFile,
    ImageOps,
    JpegImagePlugin,
    PngImagePlugin,
    WebPImagePlugin,
)
from PIL import Image as PIL

from tessera.errors import BadSample

if TYPE_CHECKING:
    import torch

MAX_PIXELS = 89_000_000
MAX_BYTES = 100_000_000
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")

Fit = Literal["crop", "squash"]

# Formats are told apart here and opened by their own class, so that no other decoder of Pillow is ever
# started.
_OPENERS: tuple[tuple[Callable[[bytes], bool], Callable[..., ImageFile.ImageFile]], ...] = (
    (lambda head: head.startswith(b"\x89PNG\r\n\x1a\n"), PngImagePlugin.PngImageFile),
    (lambda head: head.startswith(b"\xff\xd8\xff"), JpegImagePlugin.JpegImageFile),
    (lambda head: head.startswith(b"RIFF") and head[8:12] == b"WEBP", WebPImagePlugin.WebPImageFile),
    (lambda head: head.startswith((b"GIF87a", b"GIF89a")), GifImagePlugin.GifImageFile),
    (lambda head: head.startswith(b"BM"), BmpImagePlugin.BmpImageFile),
)


def open_image(
    source: PIL.Image | np.ndarray | str | Path | bytes,
    *,
    name: str = "",
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_BYTES,
) -> PIL.Image:
    """The picture as 8-bit RGB, by the rules at the head of this file.

    Args:
        source: a PIL image, an array uint8 [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], a path, or a file's
            bytes.
        name: what messages call it; by default its path, or what kind of thing it is.

    Raises:
        BadSample: missing, empty, over a limit, of another format, cut short or damaged. Size is read from
            the header, before any pixel is decoded.
    """
    if isinstance(source, PIL.Image):
        return _loaded(source, name or "a picture in memory", max_pixels)
    if isinstance(source, np.ndarray):
        return _from_array(source, max_pixels)
    if isinstance(source, bytes):
        name = name or f"a picture of {len(source)} bytes"
        _check_bytes(len(source), name, max_bytes)
        return _decode(io.BytesIO(source), name, max_pixels)
    name = name or str(source)
    try:
        _check_bytes(Path(source).stat().st_size, name, max_bytes)
        with open(source, "rb") as file:
            return _decode(file, name, max_pixels)
    except FileNotFoundError:
        raise BadSample(f"{name}: no such file") from None
    except OSError as error:
        raise BadSample(f"{name}: cannot be read ({error.strerror or 'input error'})") from None
    except ValueError:  # a name that no file can have, such as one with a null character
        raise BadSample(f"{name!r}: no such file") from None


def open_values(path: str | Path) -> np.ndarray:
    """The numbers that a PNG of one channel holds, as they are, int32 [H, W]: classes, palette entries, millimetres.

    Raises:
        BadSample: as `open_image`; or it has colours.
    """
    name = str(path)
    try:
        _check_bytes(Path(path).stat().st_size, name, MAX_BYTES)
        with open(path, "rb") as file:
            image = PngImagePlugin.PngImageFile(file)
            _check_pixels(image.size, name, MAX_PIXELS)
            image.load()
    except (BadSample, MemoryError):
        raise
    except FileNotFoundError:
        raise BadSample(f"{name}: no such file") from None
    except Exception:  # as in `_decode`
        raise BadSample(f"{name}: no PNG, or one that is cut short or damaged") from None
    if len(image.getbands()) != 1:
        raise BadSample(f"{name}: a PNG of one channel is needed, and this one has {len(image.getbands())}")
    return np.asarray(image).astype(np.int32)


def _check_bytes(number: int, name: str, limit: int) -> None:
    if number == 0:
        raise BadSample(f"{name}: the file is empty (0 bytes)")
    if number > limit:
        raise BadSample(f"{name}: {number:,} bytes are over the limit of {limit:,}")


def _check_pixels(size: tuple[int, int], name: str, limit: int) -> None:
    width, height = size
    if width * height > limit:
        raise BadSample(f"{name}: {width} x {height} pixels are over the limit of {limit:,}")
    if width * height == 0:
        raise BadSample(f"{name}: the picture has no pixels ({width} x {height})")


def _decode(file: io.BufferedIOBase, name: str, max_pixels: int) -> PIL.Image:
    head = file.read(16)
    file.seek(0)
    opener = next((opener for matches, opener in _OPENERS if matches(head)), None)
    if opener is None:
        raise BadSample(f"{name}: not a readable PNG, JPEG, WEBP, GIF or BMP")
    try:
        return _loaded(opener(file), name, max_pixels, own=True)
    except (BadSample, MemoryError):
        raise
    except Exception:  # decoders raise a dozen kinds of error on damaged files; their texts are not for users
        raise _damaged(name) from None


def _loaded(image: PIL.Image, name: str, max_pixels: int, own: bool = False) -> PIL.Image:
    _check_pixels(image.size, name, max_pixels)
    try:
        image.load()
    except MemoryError:
        raise
    except Exception:  # as above
        raise _damaged(name) from None
    if type(image) is PIL.Image and image.mode == "RGB" and not image.info:  # as this function leaves them
        return image
    return _to_rgb(image, own)


def _damaged(name: str) -> BadSample:
    return BadSample(f"{name}: the picture is cut short or damaged")


def _to_rgb(image: PIL.Image, own: bool) -> PIL.Image:
    """`image` upright and in colour; where it is nobody else's it may be turned itself."""
    try:
        if own:
            ImageOps.exif_transpose(image, in_place=True)
        else:
            image = ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF data; the pixels themselves are sound
        image = image.copy()
    if image.mode.startswith("I"):
        return _from_array((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8), MAX_PIXELS)
    return image.convert("RGB")


def _from_array(array: np.ndarray, max_pixels: int) -> PIL.Image:
    name = f"an array of shape {tuple(array.shape)} and type {array.dtype}"
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise BadSample(f"{name}: a picture is uint8 [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]")
    _check_pixels((array.shape[1], array.shape[0]), name, max_pixels)
    if array.ndim == 2:
        array = array[:, :, None]
    colours = array[:, :, :3] if array.shape[2] >= 3 else np.repeat(array, 3, axis=2)
    return PIL.fromarray(np.ascontiguousarray(colours))


def fit_square(
    image: PIL.Image, size: int, how: Fit = "crop", resample: PIL.Resampling = PIL.Resampling.BICUBIC
) -> PIL.Image:
    """`image` as `size` x `size` pixels. "crop" resizes the short side and cuts the middle out (as CLIP does);
    "squash" resizes both sides and so changes proportions. Labels of pixels are resized to the NEAREST."""
    if image.size == (size, size):
        return image
    if how == "squash":
        return image.resize((size, size), resample)
    width, height = image.size
    scale = size / min(width, height)
    width, height = max(size, round(width * scale)), max(size, round(height * scale))
    left, top = (width - size) // 2, (height - size) // 2
    resized = image.resize((width, height), resample)
    return resized.crop((left, top, left + size, top + size))


@dataclass(frozen=True)
class Augment:
    """A random square cut-out with a side of `crop` to 1 of the short side, mirrored with chance `flip`.

    Leave `flip` at 0 where captions speak of left and right.
    """

    crop: float = 0.9
    flip: float = 0.0

    def __call__(self, image: PIL.Image, rng: np.random.Generator) -> PIL.Image:
        width, height = image.size
        side = max(1, round(min(width, height) * rng.uniform(self.crop, 1.0)))
        left = int(rng.integers(width - side + 1))
        top = int(rng.integers(height - side + 1))
        cut = image.crop((left, top, left + side, top + side))
        mirrored = rng.random() < self.flip
        return cut.transpose(PIL.Transpose.FLIP_LEFT_RIGHT) if mirrored else cut


def to_array(image: PIL.Image) -> np.ndarray:
    """The picture as float32 [3, H, W] in [0, 1]."""
    array = np.array(image, dtype=np.float32)
    array /= 255.0
    return array.transpose(2, 0, 1)


def normalise(
    array: np.ndarray, mean: Sequence[float], std: Sequence[float], out: np.ndarray | None = None
) -> np.ndarray:
    """(array - mean) / std by channel; `array` float32 [..., 3, H, W]. `out` may be `array` itself."""
    centre = np.asarray(mean, dtype=np.float32)[:, None, None]
    spread = np.asarray(std, dtype=np.float32)[:, None, None]
    found = np.subtract(array, centre, out=out)
    found /= spread
    return found


@dataclass(frozen=True)
class Pixels:
    """How pictures become model inputs: side in pixels, the mean and spread of each channel, and
    augmentation."""

    size: int
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)  # CLIP's
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    augment: Augment | None = None
    fit: Fit = "crop"

    def one(self, image: PIL.Image, rng: np.random.Generator | None = None) -> np.ndarray:
        """One picture as float32 [3, S, S]; it is augmented only where `rng` is given."""
        if self.augment is not None and rng is not None:
            image = self.augment(image, rng)
        array = to_array(fit_square(image, self.size, self.fit))
        return normalise(array, self.mean, self.std, out=array)

    def several(self, image: PIL.Image, rng: np.random.Generator | None = None) -> list[np.ndarray]:
        """What a sequence shows of the picture, in order: the picture itself, as `one`."""
        return [self.one(image, rng)]


def pixel_values(
    images: Sequence[PIL.Image],
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    augment: Callable[[PIL.Image], PIL.Image] | None = None,
) -> torch.Tensor:
    """RGB pictures as one tensor float32 [M, 3, size, size]: augmented, cut square, scaled to [0, 1],
    normalised.

    Args:
        augment: applied to each picture before it is resized; bind the generator, as in
            `lambda image: Augment(0.9)(image, rng)`.
    """
    import torch

    pixels = Pixels(size, tuple(mean), tuple(std))
    arrays = [pixels.one(augment(image) if augment else image) for image in images]
    return torch.from_numpy(np.stack(arrays) if arrays else np.zeros((0, 3, size, size), np.float32))
