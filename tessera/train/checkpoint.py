"""Checkpoints: folders that are whole or ignored.

    RUN/checkpoints/step-0000100/   weights, optimiser, generators (.safetensors), state.json, manifest.json
    RUN/stages/0-NAME/              weights.safetensors, state.json, manifest.json: results of a finished
    stage

A folder is written aside, flushed and renamed; its manifest, with sizes and SHA-256 of all other files, is
written last. A folder whose manifest is missing or does not check is not a checkpoint. Nothing is pickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from tessera.errors import CheckpointError, UserError
from tessera.files import atomic_folder, sha256, write_json

FORMAT = 1
NAMED = 5  # changed settings that a refusal names
Tensors = Mapping[str, Tensor]


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one with dotted names; values as JSON gives them back."""
    if isinstance(value, Mapping) and value:
        return {
            name: leaf
            for key, inner in value.items()
            for name, leaf in flatten(inner, f"{prefix}.{key}" if prefix else str(key)).items()
        }
    return {prefix: json.loads(json.dumps(value, default=str))}


def config_hash(config: Mapping[str, Any]) -> str:
    """Hash of a flattened configuration."""
    return hashlib.sha256(json.dumps(flatten(config), sort_keys=True).encode()).hexdigest()[:16]


def compare_config(saved: Mapping[str, Any], now: Mapping[str, Any], origin: Path) -> None:
    """Refuse to go on with other settings.

    Raises:
        CheckpointError: naming the fields that changed, outermost first, their old and their new values.
    """
    old, new = flatten(saved), flatten(now)
    changed = [
        f"{name}: {old.get(name, 'absent')!r} -> {new.get(name, 'absent')!r}"
        for name in sorted(set(old) | set(new), key=lambda name: (name.count("."), name))
        if old.get(name, "absent") != new.get(name, "absent")
    ]
    if changed:
        more = f"; and {len(changed) - NAMED} more" if len(changed) > NAMED else ""
        raise CheckpointError(
            f"{origin} was written with other settings ({'; '.join(changed[:NAMED])}{more});"
            " resume with the old ones, or start a new run in another --out"
        )


def compare_fingerprint(saved: str, now: str, origin: Path, allowed: bool) -> bool:
    """Whether the data are those of the checkpoint.

    Raises:
        CheckpointError: they are not, and the override is not given.
    """
    if saved != now and not allowed:
        raise CheckpointError(
            f"{origin} was trained on data with fingerprint {saved}, these have {now};"
            " give the old data, or pass --allow-other-data to go on from the start of these"
        )
    return saved == now


@dataclass(frozen=True)
class Checkpoint:
    """A folder whose manifest checks. `state` is its state.json."""

    path: Path
    state: dict[str, Any]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of one of its files: "weights", "optimiser", "generators"."""
        return load_file(self.path / f"{name}.safetensors")


def read(path: Path) -> Checkpoint:
    """Check the manifest of `path` and read its state.

    Raises:
        CheckpointError: saying what is wrong with it.
    """
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise CheckpointError(f"format {manifest['format']}, this version reads {FORMAT}")
        for name, entry in manifest["files"].items():
            if (path / name).stat().st_size != entry["bytes"]:
                raise CheckpointError(f"{name} has {(path / name).stat().st_size} bytes, not {entry['bytes']}")
            if sha256(path / name) != entry["sha256"]:
                raise CheckpointError(f"{name} has another SHA-256 than its manifest says")
        return Checkpoint(path, json.loads((path / "state.json").read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise CheckpointError(f"{Path(error.filename).name} is missing") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"its manifest or state cannot be read ({error})") from error


def write(path: Path, tensors: Mapping[str, Tensors], state: Mapping[str, Any]) -> None:
    """Write a checkpoint folder whole or not at all.

    Args:
        tensors: file stem -> tensors by name.

    Raises:
        UserError: the disk is full; with needed and free bytes where that is known beforehand.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    needed = sum(tensor.nbytes for group in tensors.values() for tensor in group.values())
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise UserError(
            f"the disk is full: {path} needs {needed / 2**20:.1f} MiB and {free / 2**20:.1f} MiB are free;"
            " make room or choose another --out; what was saved before is whole"
        )
    with atomic_folder(path) as folder:
        for stem, group in tensors.items():
            save_file(dict(group), folder / f"{stem}.safetensors")
        write_json(folder / "state.json", state)
        files = {file.name: {"bytes": file.stat().st_size, "sha256": sha256(file)} for file in sorted(folder.iterdir())}
        write_json(folder / "manifest.json", {"format": FORMAT, "files": files})


class Store:
    """The checkpoints of one run folder. Only the main process may call what writes."""

    def __init__(self, out: str | Path, keep: int, note: Callable[[str], None]):
        if keep < 1:
            raise UserError(f"keep is the number of checkpoints to keep, at least 1, not {keep}")
        self.out, self.keep, self.note = Path(out), keep, note

    def tidy(self) -> None:
        """Remove what killed runs left half-written; put back a finished folder that was being replaced."""
        for parent in (self.out / "checkpoints", self.out / "stages"):
            for left in sorted(parent.glob(".*")):
                old = left.name.endswith(".old") and not (parent / left.name[1:-4]).exists()
                if old:
                    left.rename(parent / left.name[1:-4])
                elif ".writing-" in left.name or left.name.endswith(".old"):
                    self.note(f"removed {left}, left by a run that was killed while saving")
                    shutil.rmtree(left, ignore_errors=True)

    def is_empty(self) -> bool:
        """Whether this folder holds no run yet."""
        return not any(self._steps()) and not (self.out / "stages").exists()

    def _steps(self) -> Iterator[Path]:
        yield from sorted((self.out / "checkpoints").glob("step-*"), reverse=True)

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint whose manifest checks; one line is noted for each newer one that does not."""
        for path in self._steps():
            try:
                return read(path)
            except CheckpointError as error:
                self.note(f"ignored {path}: {error}")
        return None

    def last_step(self, latest: Checkpoint | None) -> int:
        """The step that a resumed run goes on from: of the last checkpoint or finished stage; 0 for a new
        run."""
        last = latest.state["step"] if latest else 0
        for file in (self.out / "stages").glob("*/state.json"):
            with contextlib.suppress(ValueError, KeyError):  # `finished` says what is wrong with it
                last = max(last, json.loads(file.read_text(encoding="utf-8"))["step"])
        return last

    def save(self, step: int, tensors: Mapping[str, Tensors], state: Mapping[str, Any]) -> Path:
        """Write the checkpoint of `step`, then delete all but the newest `keep` (and damaged ones of later
        steps)."""
        path = self.out / "checkpoints" / f"step-{step:07d}"
        write(path, tensors, state)
        kept = [one for one in self._steps() if one.name <= path.name][: self.keep]
        for old in set(self._steps()) - set(kept):
            shutil.rmtree(old)
        return path

    def _stage(self, position: int, name: str) -> Path:
        return self.out / "stages" / f"{position}-{name}"

    def finished(self, position: int, name: str) -> Checkpoint | None:
        """The final weights of a stage, if it was finished.

        Raises:
            CheckpointError: the folder is there but damaged, or another stage stood at this position.
        """
        others = [p for p in (self.out / "stages").glob(f"{position}-*") if p != self._stage(position, name)]
        if others:
            raise CheckpointError(f"{others[0]} says that stage {position} was another one than {name!r}")
        path = self._stage(position, name)
        if not path.exists():
            return None
        try:
            return read(path)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}; delete the folder to train this stage again") from error

    def finish(self, position: int, name: str, weights: Tensors, state: Mapping[str, Any]) -> None:
        """Write the final weights of a stage."""
        write(self._stage(position, name), {"weights": weights}, state)
