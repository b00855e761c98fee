"""Episodes in the LeRobot data set format, version 3: our own and anyone's, without LeRobot itself.

Layout: `tessera.data.lerobot`. Pictures may stand in films (`video`) or in the rows (`image`).
"""

from __future__ import annotations

import hashlib
import io
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image as PIL

from tessera.data.episodes import Episode, checked_actions, episode_sample
from tessera.data.lerobot import ACTION, EPISODES, INFO, STATE, TASKS, VERSION
from tessera.data.quality import Tally
from tessera.data.readers.files import FileWorld, Record, read_json
from tessera.data.sample import Sample
from tessera.data.videos import frame_times, read_frames
from tessera.errors import BadSample, DataError, UserError, nearest, reason
from tessera.extras import needed
from tessera.files import sha256

MEMORY = 2**30  # bytes of decoded episodes that are kept


@dataclass(frozen=True)
class _Place:
    """Where one episode lies: `rows`, its rows of the file `data`, and for each camera in films the file and the second
    that it starts at."""

    number: int
    goal: str
    data: Path
    rows: tuple[int, ...]
    films: Mapping[str, tuple[Path, float]]


class LeRobotEpisodes(Sequence[Episode]):
    """The episodes of a data set at `path`, read when they are asked for, the ones used last kept decoded.

    An episode that lacks frames, in its rows or in a film, or has a state or an action that is not a number, is named
    in the log, skipped and counted in `skipped`.

    Args:
        cameras: our name of each camera -> the data set's feature; by default all, each by the last part of its
            feature's name ("observation.images.static" is "static").
        memory: bytes of decoded episodes to keep.

    Raises:
        DataError: no such data set, another version of the format, nothing usable in it.
        UserError: a camera that it does not have.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        cameras: Mapping[str, str] | None = None,
        memory: int = MEMORY,
    ) -> None:
        self.path, self.memory = Path(path), memory
        self.name = str(path)
        self.info = _read_info(self.path)
        self.fps = float(self.info["fps"])
        self.features: dict[str, dict[str, Any]] = self.info["features"]
        self.cameras = _cameras(self.name, self.features, cameras)
        self.skipped = Tally()
        self.places = self._find()
        if not self.places:
            raise DataError(f"{path} holds no usable episode: {self.skipped}")
        self.skipped.log(self.name, len(self.places))
        self._kept: OrderedDict[int, Episode] = OrderedDict()
        self._held = 0

    def __len__(self) -> int:
        return len(self.places)

    @property
    def lengths(self) -> list[int]:
        """Frames of each episode; nothing is decoded."""
        return [len(place.rows) for place in self.places]

    @property
    def goals(self) -> list[str]:
        """What each episode was told."""
        return [place.goal for place in self.places]

    def check_actions(self, low: ArrayLike, high: ArrayLike) -> None:
        """Raise UserError where an action of a usable episode is outside these limits, numbers or float [A]."""
        names = self.features[ACTION].get("names")
        actions = {path: _numbers(_table(path, [ACTION])[ACTION]) for path in {place.data for place in self.places}}
        for place in self.places:
            action = actions[place.data][list(place.rows)]
            called = names if isinstance(names, list) and len(names) == action.shape[-1] else ()
            checked_actions(action, low, high, called, where=f" of episode {place.number} of {self.name}")

    def fingerprint(self) -> str:
        """A hash of what describes the episodes, and of which of them are used."""
        numbers = ",".join(str(place.number) for place in self.places)
        files = "".join(sha256(file) for file in sorted(self.path.glob("meta/**/*.*")))
        return hashlib.sha256(f"{files} {numbers} {sorted(self.cameras.items())}".encode()).hexdigest()[:16]

    @overload
    def __getitem__(self, index: int) -> Episode: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Episode]: ...
    def __getitem__(self, index: int | slice) -> Episode | Sequence[Episode]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        if index not in self._kept:
            self._kept[index] = self._read(self.places[index])
            self._held += _bytes(self._kept[index])
            while len(self._kept) > 1 and self._held > self.memory:
                self._held -= _bytes(self._kept.popitem(last=False)[1])
        self._kept.move_to_end(index)
        return self._kept[index]

    def _read(self, place: _Place) -> Episode:
        shown = [key for key in self.cameras.values() if key not in place.films]
        table = _table(place.data, [STATE, ACTION, *shown]).take(list(place.rows))
        state, action = (_numbers(table[key]) for key in (STATE, ACTION))
        pictures = {}
        for name, key in self.cameras.items():
            if key in place.films:
                film, start = place.films[key]
                pictures[name] = read_frames(film, start, len(place.rows), self.fps)
            else:
                pictures[name] = np.stack([_picture(one, place, key) for one in table[key].to_pylist()])
        return Episode(pictures, state, action, place.goal)

    def _find(self) -> list[_Place]:
        """Every whole episode, by its number."""
        tasks = _read_tasks(self.path / TASKS)
        rows = self._described()
        data = {path: self._rows(path) for path in {self._data(row) for row in rows}}
        finite = {path: _finite(path) for path, found in data.items() if found}
        times: dict[Path, np.ndarray] = {}
        places = []
        for row in sorted(rows, key=lambda one: one["episode_index"]):
            number = int(row["episode_index"])
            try:
                place = self._place(row, data[self._data(row)], tasks)
                if not finite[place.data][list(place.rows)].all():
                    raise BadSample("with a state or an action that is not a number")
                for film, start in place.films.values():
                    if film not in times:
                        times[film] = frame_times(film)
                    _check_film(film, times[film], start, len(place.rows), self.fps)
            except BadSample as error:
                self.skipped.add(str(error), f"episode {number}")
            else:
                places.append(place)
        return places

    def _described(self) -> list[dict[str, Any]]:
        """The rows that describe the episodes, without their statistics."""
        files = sorted(self.path.glob("meta/episodes/*/*.parquet"))
        if not files:
            raise DataError(f"{self.path} has no {EPISODES.format(chunk_index=0, file_index=0)}")
        rows: list[dict[str, Any]] = []
        for file in files:
            rows += _table(file).to_pylist()
        wanted = {"episode_index", "length", "data/chunk_index", "data/file_index"}
        for key in self._filmed:
            wanted |= {f"videos/{key}/{name}" for name in ("chunk_index", "file_index", "from_timestamp")}
        missing = sorted(wanted - rows[0].keys()) if rows else []
        if missing:
            raise DataError(f"{files[0]} has no column {missing[0]!r}")
        return rows

    @property
    def _filmed(self) -> list[str]:
        return [key for key in self.cameras.values() if self.features[key]["dtype"] == "video"]

    def _data(self, row: Mapping[str, Any]) -> Path:
        where = {"chunk_index": row["data/chunk_index"], "file_index": row["data/file_index"]}
        return self.path / self.info["data_path"].format(**where)

    def _rows(self, path: Path) -> dict[int, list[tuple[int, int, int]]]:
        """Episode -> (frame, row, task) of each of its rows, in the order of frames."""
        found: dict[int, list[tuple[int, int, int]]] = {}
        if path.exists():
            table = _table(path, ["episode_index", "frame_index", "task_index"])
            columns = (table[name].to_pylist() for name in table.column_names)
            for row, (episode, frame, task) in enumerate(zip(*columns, strict=True)):
                found.setdefault(episode, []).append((frame, row, task))
        return {episode: sorted(rows) for episode, rows in found.items()}

    def _place(
        self, row: Mapping[str, Any], data: Mapping[int, list[tuple[int, int, int]]], tasks: Mapping[int, str]
    ) -> _Place:
        number, length = int(row["episode_index"]), int(row["length"])
        rows = data.get(number, [])
        if [frame for frame, _, _ in rows] != list(range(length)):
            raise BadSample(f"with {len({frame for frame, _, _ in rows})} of {length} frames in their rows")
        films = {}
        for key in self._filmed:
            where = {name: row[f"videos/{key}/{name}"] for name in ("chunk_index", "file_index")}
            film = self.path / self.info["video_path"].format(video_key=key, **where)
            films[key] = (film, float(row[f"videos/{key}/from_timestamp"]))
        goal = tasks.get(rows[0][2]) if rows else None
        if not goal:
            raise BadSample("without an instruction" if rows else "without a frame")
        return _Place(number, goal, self._data(row), tuple(place for _, place, _ in rows), films)


def _bytes(episode: Episode) -> int:
    return sum(values.nbytes for values in (*episode.cameras.values(), episode.state, episode.action))


def _read_info(path: Path) -> dict[str, Any]:
    if not (path / INFO).exists():
        raise DataError(f"{path} is no LeRobot data set: it has no {INFO}")
    info = read_json(path / INFO)
    version = str(info.get("codebase_version")) if isinstance(info, dict) else "unknown"
    if not version.startswith("v3"):
        raise DataError(
            f"{path} is a LeRobot data set of version {version}, and {VERSION} is read;"
            " LeRobot converts it: python -m lerobot.scripts.convert_dataset_v21_to_v30"
        )
    for key in ("fps", "features", "data_path"):
        if key not in info:
            raise DataError(f"{path / INFO} does not say {key}")
    for key in (STATE, ACTION):
        if key not in info["features"]:
            raise DataError(f"{path} has no feature {key}, which episodes need")
    return info


def _cameras(name: str, features: Mapping[str, Any], asked: Mapping[str, str] | None) -> dict[str, str]:
    there = [key for key, feature in features.items() if feature["dtype"] in ("video", "image")]
    for key in (asked or {}).values():
        if key not in there:
            raise UserError(f"{name} has no camera {key!r}{nearest(key, there)}")
    return dict(asked) if asked is not None else {key.rpartition(".")[2]: key for key in there}


def _table(path: Path, columns: list[str] | None = None) -> Any:
    """A Parquet file's table, of its columns but statistics where they are not named."""
    pa, parquet = needed("pyarrow", "robot"), needed("pyarrow.parquet", "robot")
    try:
        there = parquet.read_schema(path).names
        for name in columns or []:
            if name not in there:
                raise DataError(f"{path} has no column {name!r}")
        return parquet.read_table(path, columns=columns or [name for name in there if not name.startswith("stats/")])
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {reason(error)}") from None


def _read_tasks(path: Path) -> dict[int, str]:
    table = _table(path)
    words = next(name for name in table.column_names if name != "task_index")
    return dict(zip(table["task_index"].to_pylist(), table[words].to_pylist(), strict=True))


def _check_film(film: Path, times: np.ndarray, start: float, count: int, fps: float) -> None:
    wanted = start + np.arange(count) / fps
    off = np.abs(times[None] - wanted[:, None]).min(1) if len(times) else np.full(count, np.inf)
    missing = int((off > 0.1 / fps).sum())
    if missing:
        raise BadSample(f"with {count - missing} of {count} frames in {film.parent.parent.name}")


def _numbers(column: Any) -> np.ndarray:
    """float32 [T, D] of a column of numbers or of lists of equally many."""
    values = np.asarray(column.to_pylist(), dtype=np.float32)
    return values.reshape(len(values), -1)


def _finite(path: Path) -> np.ndarray:
    """Whether the state and the action of each row of a file are numbers, bool [T]."""
    table = _table(path, [STATE, ACTION])
    return np.isfinite(np.concatenate([_numbers(table[key]) for key in (STATE, ACTION)], axis=1)).all(axis=1)


def _picture(stored: Mapping[str, Any], place: _Place, key: str) -> np.ndarray:
    try:
        return np.asarray(PIL.open(io.BytesIO(stored["bytes"])).convert("RGB"))
    except (OSError, TypeError, KeyError) as error:
        raise BadSample(f"a picture {key} of episode {place.number} cannot be read: {error}") from None


def lerobot_world(path: Path) -> FileWorld[int]:
    """The data set as a World of the task "episodes": words, films, states and actions; see `episode_sample`.

    Raises:
        DataError: as `LeRobotEpisodes`.
    """
    episodes = LeRobotEpisodes(path)
    records = [
        Record(f"{path.name} {place.number}", str(place.number), index) for index, place in enumerate(episodes.places)
    ]
    make = partial(_sample, episodes)
    return FileWorld(str(path), "episodes", records, make, (episodes.fingerprint(),), episodes.skipped)


def _sample(episodes: LeRobotEpisodes, record: Record[int]) -> Sample:
    return episode_sample(episodes[record.item], episodes.fps, record.id)
