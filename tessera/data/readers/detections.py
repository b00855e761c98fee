"""Files of detected regions, as the bottom-up attention detector's are published (36 regions of width 2048).

- `.tsv`: a line a picture, ten columns without a header: img_id, img_h, img_w, objects_id, objects_conf, attrs_id,
  attrs_conf, num_boxes, boxes, features; the arrays are base64 of int64 and float32 (official LXMERT);
- `.npz`: a file a picture, its name the img_id; arrays under the same names, or as the detector's PyTorch version names
  them: x, bbox, image_h, image_w. Classes and confidences may be missing.

A set is listed once; features are read when they are asked for, so that a file of 30 GB costs no memory.

Legend: K regions, F width of their features.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tessera.data.quality import Tally
from tessera.data.regions import Regions, as_shares
from tessera.errors import BadSample, DataError

COLUMNS = (
    "img_id", "img_h", "img_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf", "num_boxes", "boxes",
    "features",
)  # fmt: skip
LABELS = {"objects_id": np.int64, "objects_conf": np.float32, "attrs_id": np.int64, "attrs_conf": np.float32}
_ALSO = {"features": "x", "boxes": "bbox", "img_h": "image_h", "img_w": "image_w"}  # names of the PyTorch version


@dataclass(frozen=True)
class _Line:
    """Where a picture's line of a .tsv begins, and how long it is."""

    file: Path
    start: int
    length: int


class Detections:
    """Regions by picture, out of one file, or of all .tsv and .npz files of a folder.

    Args:
        path: a .tsv, a .npz, or a folder.
        regions, width: how many there must be of a picture, and how wide their features; None takes any. Published
            models were trained with 36 and 2048.

    Raises:
        DataError: nothing there, no such file in the folder, or a .tsv that is none of these.
    """

    def __init__(self, path: str | Path, *, regions: int | None = None, width: int | None = None) -> None:
        self.path, self.regions, self.width = Path(path), regions, width
        self.tally = Tally()
        self._places: dict[str, _Line | Path] = {}
        files = _files(self.path)
        for file in files:
            for name, place in _lines(file).items() if file.suffix == ".tsv" else [(file.stem, file)]:
                if name in self._places:
                    self.tally.add("met twice, the first is used", name)
                else:
                    self._places[name] = place
        if not self._places:
            raise DataError(f"{self.path} holds no line of detections: the file is empty")
        stamps = [f"{file.name} {file.stat().st_size}" for file in files]
        self._hash = hashlib.sha256("\n".join([*stamps, *self._places]).encode()).hexdigest()[:16]
        self.tally.log(str(self.path), len(self._places))

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def fingerprint(self) -> str:
        """A hash of the files' names and sizes and of the pictures' names."""
        return self._hash

    def any_width(self) -> int:
        """How wide features are, by the first picture. Raises BadSample where that cannot be read."""
        features = self[next(iter(self._places))].features
        assert features is not None
        return features.shape[1]

    def __getitem__(self, name: str) -> Regions:
        """The regions of picture `name`.

        Raises:
            BadSample: there are none, or they are damaged, of another number or width, or outside their picture.
        """
        place = self._places.get(name)
        if place is None:
            raise BadSample(f"{self.path} has no regions of picture {name!r}")
        try:
            fields = _read_line(place) if isinstance(place, _Line) else _read_arrays(place)
            return self._regions(fields)
        except BadSample as error:
            raise BadSample(f"{self.path}, picture {name!r}: {error}") from None

    def _regions(self, fields: Mapping[str, np.ndarray]) -> Regions:
        boxes, features = fields["boxes"], fields["features"]
        number, width = features.shape
        if number == 0:
            raise BadSample("there is no region")
        if len(boxes) != number:
            raise BadSample(f"{number} regions have features and {len(boxes)} have boxes")
        for what, found, wanted in (("regions", number, self.regions), ("wide features", width, self.width)):
            if wanted is not None and found != wanted:
                raise BadSample(f"{found} {what}, and the model takes {wanted}; extract them anew with that setting")
        if not np.isfinite(features).all():
            raise BadSample("the features hold values that are no finite number")
        labels = [np.array(fields.get(name, np.zeros(number)), kind) for name, kind in LABELS.items()]
        for name, found in zip(LABELS, labels, strict=True):
            if found.shape != (number,):
                raise BadSample(f"{name} has the shape {list(found.shape)}, not one value for each of {number} regions")
        size = float(fields["img_w"]), float(fields["img_h"])
        objects, object_confidence, attributes, attribute_confidence = labels
        return Regions(
            as_shares(boxes, *size), objects, object_confidence, attributes, attribute_confidence,
            features=np.array(features, np.float32),
        )  # fmt: skip


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if file.suffix in (".tsv", ".npz"))
        if not found:
            raise DataError(f"{path} has no .tsv and no .npz file of detected regions")
        return found
    if not path.is_file():
        raise DataError(f"{path}: no such file or folder")
    if path.suffix not in (".tsv", ".npz"):
        raise DataError(f"{path}: detected regions are read from .tsv or .npz files, not {path.suffix!r}")
    return [path]


def _lines(file: Path) -> dict[str, _Line]:
    """The lines of a .tsv by picture.

    Raises:
        DataError: a line has another number of columns, which means that the file is of another kind or cut short.
    """
    found: dict[str, _Line] = {}
    start = 0
    with open(file, "rb") as opened:
        for number, line in enumerate(opened, start=1):
            columns = line.count(b"\t") + 1
            if line.strip():
                if columns != len(COLUMNS):
                    raise DataError(
                        f"{file}, line {number}: {columns} columns, not the {len(COLUMNS)} of detected regions"
                        f" ({', '.join(COLUMNS)}); a file that is cut short ends so too"
                    )
                found.setdefault(line.split(b"\t", 1)[0].decode("utf-8", "replace"), _Line(file, start, len(line)))
            start += len(line)
    return found


def _read_line(place: _Line) -> dict[str, np.ndarray]:
    """The columns of a line as arrays."""
    with open(place.file, "rb") as opened:
        opened.seek(place.start)
        text = opened.read(place.length).rstrip(b"\r\n")
    columns = dict(zip(COLUMNS, text.split(b"\t"), strict=True))
    numbers = {name: _whole(columns[name], name) for name in ("img_h", "img_w", "num_boxes")}
    found: dict[str, Any] = {name: np.array(numbers[name]) for name in ("img_h", "img_w")}
    count = numbers["num_boxes"]
    for name in (*LABELS, "boxes", "features"):
        kind = np.dtype(LABELS.get(name, np.float32))
        try:
            held = np.frombuffer(base64.b64decode(columns[name], validate=True), np.uint8)
        except (binascii.Error, ValueError):
            raise BadSample(f"{name} is not whole base64") from None
        each = held.size // (kind.itemsize * count)
        if held.size != each * kind.itemsize * count or (name == "boxes" and each != 4):
            raise BadSample(f"{name} holds {held.size} bytes, which are not those of {count} regions")
        found[name] = held.view(kind).reshape(count, each) if name not in LABELS else held.view(kind)
    return found


def _whole(text: bytes, name: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise BadSample(f"{name} is {text.decode('utf-8', 'replace')!r}, not a whole number above 0")
    return value


def _read_arrays(file: Path) -> dict[str, np.ndarray]:
    """The arrays of a .npz. Members that are pickled are never opened."""
    try:
        with np.load(file, allow_pickle=False) as held:
            names = {name: _name(name, held.files) for name in (*LABELS, "boxes", "features", "img_h", "img_w")}
            found = {name: held[stored] for name, stored in names.items() if stored}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        pickled = "Object arrays" in str(error)
        why = "it holds a pickled object, which is never loaded" if pickled else "it is damaged or no .npz"
        raise BadSample(f"{file.name} cannot be read: {why}") from None
    missing = [name for name in ("boxes", "features", "img_h", "img_w") if name not in found]
    if missing:
        raise BadSample(f"{file.name} has no array {missing[0]!r} ({_ALSO[missing[0]]!r})")
    features, boxes = found["features"], found["boxes"]
    if features.ndim != 2 or boxes.ndim != 2 or boxes.shape[1] != 4:
        raise BadSample(f"features {list(features.shape)} and boxes {list(boxes.shape)} are not [K, F] and [K, 4]")
    return found


def _name(name: str, stored: list[str]) -> str | None:
    return next((one for one in (name, _ALSO.get(name)) if one in stored), None)
