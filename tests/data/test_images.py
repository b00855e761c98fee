"""Pictures of every kind become the documented RGB, and bad ones are refused in one sentence of our own."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PIL

from tessera.data.images import (
    Augment,
    Pixels,
    fit_square,
    normalise,
    open_image,
    pixel_values,
    to_array,
)
from tessera.errors import BadSample


def _encoded(image: PIL.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _photo(width: int = 20, height: int = 12) -> PIL.Image:
    return PIL.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def _png_header(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be `width` x `height`."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"\0" * 100_000))
    return b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "WEBP", "JPEG"])
def test_the_five_formats_open_from_path_and_from_bytes(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "picture"
    file.write_bytes(_encoded(_photo(), kind))
    expected = np.asarray(PIL.open(file).convert("RGB"))
    for source in (file, str(file), file.read_bytes()):
        image = open_image(source)
        assert image.mode == "RGB"
        assert np.array_equal(np.asarray(image), expected)


@pytest.mark.parametrize("mode", ["CMYK", "L", "P", "RGBA", "LA", "1", "YCbCr"])
def test_other_modes_become_what_pillow_converts_them_to(mode: str) -> None:
    image = _photo().convert("L").convert("LA") if mode == "LA" else _photo().convert(mode)
    kind = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
    data = _encoded(image, kind)
    expected = PIL.open(io.BytesIO(data)).convert("RGB")
    assert np.array_equal(np.asarray(open_image(data)), np.asarray(expected))


def test_transparency_leaves_the_colour_under_it() -> None:
    data = _encoded(PIL.new("RGBA", (4, 4), (10, 20, 30, 0)))
    assert open_image(data).getpixel((0, 0)) == (10, 20, 30)
    palette = PIL.new("P", (4, 4), 1)
    palette.putpalette([1, 2, 3, 40, 50, 60])
    data = _encoded(palette, transparency=1)
    assert open_image(data).getpixel((0, 0)) == (40, 50, 60)


def test_grey_of_16_bits_keeps_its_high_byte() -> None:
    grey = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    image = open_image(_encoded(PIL.fromarray(grey)))
    assert [image.getpixel((x, 0))[0] for x in range(5)] == [0, 0, 1, 128, 255]


def test_exif_rotation_is_applied() -> None:
    exif = PIL.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    assert open_image(_encoded(_photo(20, 12), "JPEG", exif=exif)).size == (12, 20)


def test_an_animation_gives_its_first_frame() -> None:
    frames = [PIL.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = _encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert open_image(data).getpixel((3, 3)) == (255, 0, 0)


@pytest.mark.parametrize("channels", [0, 1, 3, 4])
def test_arrays_are_read_as_they_are(channels: int) -> None:
    array = np.full((5, 6, channels) if channels else (5, 6), 77, np.uint8)
    image = open_image(array)
    assert (image.size, image.getpixel((2, 2))) == ((6, 5), (77, 77, 77))


@pytest.mark.parametrize("array", [np.zeros((5, 6, 3)), np.zeros((5, 6, 2), np.uint8)])
def test_other_arrays_are_refused(array: np.ndarray) -> None:
    with pytest.raises(BadSample, match="a picture is uint8"):
        open_image(array)


def test_a_bomb_is_refused_from_its_header_and_memory_does_not_grow(tmp_path: Path) -> None:
    file = tmp_path / "bomb.png"
    file.write_bytes(_png_header(65_535, 65_535))
    tracemalloc.start()
    try:
        with pytest.raises(BadSample, match="bomb.png: 65535 x 65535 pixels are over the limit"):
            open_image(file)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_the_limit_lies_below_pillows_own_and_gives_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    with pytest.raises(BadSample, match="10000 x 10000"):
        open_image(_png_header(10_000, 10_000))
    assert len(recwarn) == 0


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("empty.png", b"", "empty"),
        ("words.jpg", b"these are words", "not a readable PNG, JPEG, WEBP, GIF or BMP"),
        ("cut.png", _encoded(_photo(64, 64))[:600], "cut short or damaged"),
        ("cut.jpg", _encoded(_photo(64, 64), "JPEG")[:700], "cut short or damaged"),
        ("cut.webp", _encoded(_photo(64, 64), "WEBP")[:300], "cut short or damaged"),
        ("head.gif", b"GIF89a", "cut short or damaged"),
        ("photo.tiff", _encoded(_photo(), "TIFF"), "not a readable"),
        ("page.pdf", b"%PDF-1.7 ...", "not a readable"),
        ("layers.psd", b"8BPS\0\1" + b"\0" * 50, "not a readable"),
        ("drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a readable"),
    ],
)
def test_a_bad_file_is_named_with_its_reason(tmp_path: Path, name: str, data: bytes, reason: str) -> None:
    file = tmp_path / name
    file.write_bytes(data)
    with pytest.raises(BadSample, match=f"{name}: .*{reason}"):
        open_image(file)


def test_a_missing_file_names_the_path_tried(tmp_path: Path) -> None:
    with pytest.raises(BadSample, match="nowhere.png: no such file"):
        open_image(tmp_path / "nowhere.png")
    with pytest.raises(BadSample, match="no such file"):
        open_image("null\0.png")


def test_a_file_over_the_byte_limit_is_not_opened() -> None:
    with pytest.raises(BadSample, match="bytes are over the limit of 100"):
        open_image(_encoded(_photo()), max_bytes=100)


def test_crop_keeps_the_middle_and_proportions() -> None:
    image = PIL.new("RGB", (90, 30), "red")
    image.paste("blue", (30, 0, 60, 30))
    assert np.all(np.asarray(fit_square(image, 10))[:, 2:8] == [0, 0, 255])
    assert fit_square(image, 10, "squash").getpixel((0, 5)) == (255, 0, 0)


@pytest.mark.parametrize("size", [(1, 500), (64, 64), (31, 33), (500, 3)])
def test_every_picture_fits_the_square(size: tuple[int, int]) -> None:
    assert fit_square(PIL.new("RGB", size), 16).size == (16, 16)


def test_normalised_values_are_hand_computed() -> None:
    array = to_array(PIL.new("RGB", (2, 2), (255, 0, 51)))
    assert array.shape == (3, 2, 2)
    result = normalise(array, (0.5, 0.5, 0.2), (0.5, 0.25, 0.1))
    assert np.allclose(result[:, 0, 0], [1.0, -2.0, 0.0])


def test_pixel_values_stack_pictures_of_any_size() -> None:
    values = pixel_values([_photo(), _photo(9, 40)], 8, (0.5,) * 3, (0.5,) * 3)
    assert (values.shape, values.dtype) == ((2, 3, 8, 8), torch.float32)
    assert values.abs().max() <= 1
    assert pixel_values([], 8, (0.5,) * 3, (0.5,) * 3).shape == (0, 3, 8, 8)


def test_augmentation_depends_on_its_generator_alone() -> None:
    pixels = Pixels(8, augment=Augment(crop=0.5, flip=0.5))
    one, same, other = (pixels.one(_photo(), np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_a_mirrored_picture_is_mirrored() -> None:
    flipped = Augment(crop=1.0, flip=1.0)(_photo(12, 12), np.random.default_rng(0))
    assert np.array_equal(np.asarray(flipped), np.asarray(_photo(12, 12))[:, ::-1])
