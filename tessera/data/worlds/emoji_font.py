"""The machine's colour emoji font: where it is, which emoji it has, and their pictures.

Pillow draws the glyphs. Sequences of several code points (flags, families, skin tones) need its Raqm layout,
which the Pillow wheels carry but which looks for the FriBiDi library at run time; without it only emoji of
one code point are found.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, features

from tessera.errors import UserError
from tessera.files import sha256, write_json

VARIATION = "\ufe0f"
BITMAP_SIZES = (
    109,
    160,
    137,
    136,
    128,
    96,
    72,
    64,
)  # Noto first, then the strikes of Apple's and older fonts
FONTS = (
    "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf",
    "/usr/share/fonts/noto/NotoColorEmoji.ttf",
    "/usr/share/fonts/noto-emoji/NotoColorEmoji.ttf",
    "/usr/share/fonts/google-noto-emoji/NotoColorEmoji.ttf",
    "/usr/share/fonts/google-noto-color-emoji-fonts/NotoColorEmoji.ttf",
    "/usr/local/share/fonts/NotoColorEmoji.ttf",
    "~/.local/share/fonts/NotoColorEmoji.ttf",
    "~/.fonts/NotoColorEmoji.ttf",
    "/System/Library/Fonts/Apple Color Emoji.ttc",
    "C:/Windows/Fonts/seguiemj.ttf",
)
INSTALL = {
    "linux": "install one with `sudo apt-get install fonts-noto-color-emoji` (Debian, Ubuntu) or"
    " `sudo dnf install google-noto-color-emoji-fonts` (Fedora)",
    "darwin": "macOS keeps its own in /System/Library/Fonts; or install one with"
    " `brew install --cask font-noto-color-emoji`",
    "win32": "Windows keeps its own in C:/Windows/Fonts/seguiemj.ttf; or download NotoColorEmoji.ttf",
}


def find_font(path: str | Path | None = None) -> Path:
    """The colour emoji font: `path`, else $TESSERA_EMOJI_FONT, else the first known place that has one.

    Raises:
        UserError: there is none; the sentence says how to install one.
    """
    asked = path or os.environ.get("TESSERA_EMOJI_FONT")
    if asked:
        if not Path(asked).expanduser().is_file():
            raise UserError(f"the emoji font {str(asked)!r} is not a file; give the path of a colour emoji font")
        return Path(asked).expanduser()
    for place in FONTS:
        if Path(place).expanduser().is_file():
            return Path(place).expanduser()
    hint = INSTALL.get(sys.platform, INSTALL["linux"])
    raise UserError(f"no colour emoji font was found; {hint}, or set TESSERA_EMOJI_FONT to the path of one")


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tessera"


@dataclass(frozen=True)
class EmojiFont:
    """One colour emoji font, opened when first used. Picklable, so that loader workers can carry it."""

    path: Path

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the font file."""
        return sha256(self.path)

    @cached_property
    def font(self) -> ImageFont.FreeTypeFont:
        """The font at a size that it has.

        Raises:
            UserError: the file is not a font that FreeType can draw.
        """
        for size in BITMAP_SIZES:
            try:
                return ImageFont.truetype(str(self.path), size)
            except OSError as error:
                reason = str(error)
        raise UserError(f"the emoji font {str(self.path)!r} cannot be drawn ({reason}); give another one")

    @property
    def shapes_sequences(self) -> bool:
        """Whether emoji of several code points can be drawn here."""
        return bool(features.check_feature("raqm") and features.version_feature("fribidi"))

    def __getstate__(self) -> dict[str, Path]:
        return {"path": self.path}

    def is_one_glyph(self, sequence: str) -> bool:
        """Whether the font lays `sequence` out as wide as one emoji, not as its parts side by side."""
        if not self.shapes_sequences:
            return len(sequence.replace(VARIATION, "")) == 1
        return self.font.getlength(sequence) <= 1.05 * self.font.getlength("\U0001f600")

    def picture(self, sequence: str) -> Image.Image:
        """The emoji as the font has it, RGBA, cropped to what is drawn."""
        shown = sequence if self.shapes_sequences else sequence.replace(VARIATION, "")
        side = 2 * int(self.font.size) + 32
        canvas = Image.new("RGBA", (side, side))
        ImageDraw.Draw(canvas).text((16, 16), shown, font=self.font, embedded_color=True)
        return canvas.crop(canvas.getbbox() or (0, 0, 1, 1))

    def index(self, sequences: Sequence[str]) -> dict[str, str]:
        """Those of `sequences` that the font has, each with a hash of its picture.

        Drawing all takes some seconds, so the answer is kept in the user's cache folder.
        """
        asked = "\n".join((self.digest, str(self.shapes_sequences), features.version("pil") or "", *sequences))
        file = _cache_folder() / f"emoji-{hashlib.sha256(asked.encode()).hexdigest()[:16]}.json"
        with suppress(OSError, ValueError):  # not written yet, or by a run that was stopped
            return dict(json.loads(file.read_text(encoding="utf-8")))
        nothing = {self._digest(" "), self._digest("\U0010fffd")}  # empty; an unknown character
        pictures = {one: self._digest(one) for one in sequences if self.is_one_glyph(one)}
        found = {one: digest for one, digest in pictures.items() if digest not in nothing}
        with suppress(OSError, UserError):  # a read-only home costs the next start some seconds, nothing else
            write_json(file, found)
        return found

    def _digest(self, sequence: str) -> str:
        picture = self.picture(sequence)
        return hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).hexdigest()[:16]
