"""The LeRobot data set format, version 3.0, as files: where things lie, and episodes written into it.

Layout and names: huggingface/lerobot, src/lerobot/datasets (dataset_writer.py, dataset_metadata.py, utils.py).

    meta/info.json                              what each frame has, how many frames and episodes there are
    meta/stats.json                             smallest, largest, mean, ... of each feature
    meta/tasks.parquet                          the instructions, by number
    meta/episodes/chunk-000/file-000.parquet    a row an episode: its frames, its files, its own statistics
    data/chunk-000/file-000.parquet             a row a frame, without the pictures
    videos/KEY/chunk-000/file-000.mp4           the pictures of one camera, episode after episode

Legend: T steps of an episode.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tessera.data.episodes import Episode, Robot, checked_actions
from tessera.data.videos import VideoFile
from tessera.errors import DataError, UserError
from tessera.extras import needed
from tessera.files import atomic_folder, write_json

VERSION = "v3.0"
STATE, ACTION, CAMERA = "observation.state", "action", "observation.images."
INFO, STATS, TASKS = "meta/info.json", "meta/stats.json", "meta/tasks.parquet"
_FILE = "chunk-{chunk_index:03d}/file-{file_index:03d}"
EPISODES, DATA = f"meta/episodes/{_FILE}.parquet", f"data/{_FILE}.parquet"
VIDEO = "videos/{video_key}/" + f"{_FILE}.mp4"
CHUNK = 1000  # files in a folder
PER_FILE = 1000  # episodes in a file
_OWN = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}
_QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99)
_SEEN = 100  # pictures of an episode that its statistics are taken from, at most


@dataclass
class _Feature:
    """Statistics of one feature over the episodes so far."""

    rows: list[dict[str, np.ndarray]] = field(default_factory=list)

    def add(self, values: np.ndarray, *, pictures: bool = False) -> dict[str, np.ndarray]:
        """Those of one episode: of float [T, D], or of pictures uint8 [T, H, W, 3] by channel, in [0, 1]."""
        count = len(values)
        if pictures:
            places = np.linspace(0, count - 1, min(count, _SEEN)).round().astype(int)
            count, values = len(places), values[places].reshape(-1, values.shape[-1]) / 255
        flat = values.reshape(len(values), -1).astype(np.float64)
        row = {"min": flat.min(0), "max": flat.max(0), "mean": flat.mean(0), "std": flat.std(0)}
        quantiles = np.quantile(flat, _QUANTILES, axis=0)
        row |= {f"q{round(100 * share):02d}": value for share, value in zip(_QUANTILES, quantiles, strict=True)}
        row = {name: value.reshape(-1, 1, 1) if pictures else value for name, value in row.items()}
        row["count"] = np.array([count])
        self.rows.append(row)
        return row

    def all(self) -> dict[str, Any]:
        """Those of all episodes; of quantiles, which cannot be put together, the outermost, as LeRobot has them."""
        together = {name: np.stack([row[name] for row in self.rows]) for name in self.rows[0]}
        weight = together["count"].reshape(-1, *[1] * (together["mean"].ndim - 1)) / together["count"].sum()
        mean = (weight * together["mean"]).sum(0)
        variance = (weight * (together["std"] ** 2 + (together["mean"] - mean) ** 2)).sum(0)
        found = {"mean": mean, "std": np.sqrt(variance), "count": together["count"].sum(0)}
        for name in together.keys() - found.keys():
            low = name == "min" or name in ("q01", "q10", "q50")
            found[name] = together[name].min(0) if low else together[name].max(0)
        return {name: value.tolist() for name, value in found.items()}


class LeRobotWriter:
    """Writes episodes, one after the other, into a folder that is a LeRobot data set once `finish` is called.

    Args:
        robot: who acted; actions outside its limits are refused.
    """

    def __init__(self, folder: Path, robot: Robot) -> None:
        self.folder, self.robot = folder, robot
        self.frames = 0
        self._pa, self._parquet = needed("pyarrow", "robot"), needed("pyarrow.parquet", "robot")
        self._tasks: dict[str, int] = {}
        self._rows: list[dict[str, Any]] = []
        self._stats: dict[str, _Feature] = {}
        self._sizes: dict[str, tuple[int, ...]] = {}
        self._films: dict[str, VideoFile] = {}
        self._data: Any = None

    @property
    def episodes(self) -> int:
        """How many were written."""
        return len(self._rows)

    def add(self, episode: Episode) -> None:
        """One more episode.

        Raises:
            UserError: it is empty, its cameras or their sizes are others than the first's, an action is outside the
                limits, or its goal is empty.
        """
        self._check(episode)
        number, length = self.episodes, len(episode)
        chunk, file = divmod(number // PER_FILE, CHUNK)
        if number % PER_FILE == 0:
            self.close()
        columns = self._columns(episode)
        row: dict[str, Any] = {"episode_index": number, "tasks": [episode.goal], "length": length}
        row |= {"data/chunk_index": chunk, "data/file_index": file}
        row |= {"dataset_from_index": self.frames, "dataset_to_index": self.frames + length}
        for name, values in columns.items():
            row |= _flat(name, self._stats.setdefault(name, _Feature()).add(values))
        for camera, pictures in episode.cameras.items():
            row |= self._film(CAMERA + camera, pictures, chunk, file)
        row |= {"meta/episodes/chunk_index": chunk, "meta/episodes/file_index": file}
        self._write(columns, chunk, file)
        self._rows.append(row)
        self.frames += length

    def _check(self, episode: Episode) -> None:
        name = f"episode {self.episodes}"
        if not len(episode) or not episode.goal.strip():
            raise UserError(f"{name} has no {'frames' if episode.goal.strip() else 'instruction'}")
        checked_actions(episode.action, *self.robot.limits, self.robot.action_names, where=f" of {name}")
        sizes = {CAMERA + camera: pictures.shape[1:] for camera, pictures in episode.cameras.items()}
        sizes |= {STATE: episode.state.shape[1:], ACTION: episode.action.shape[1:]}
        if self._sizes and sizes != self._sizes:
            raise UserError(f"{name} has {_said(sizes)}, and those before it {_said(self._sizes)}")
        self._sizes = sizes

    def _columns(self, episode: Episode) -> dict[str, np.ndarray]:
        steps = np.arange(len(episode))
        task = self._tasks.setdefault(episode.goal, len(self._tasks))
        whole = {"frame_index": steps, "episode_index": np.full_like(steps, self.episodes)}
        whole |= {"index": steps + self.frames, "task_index": np.full_like(steps, task)}
        return {
            STATE: episode.state.astype(np.float32),
            ACTION: episode.action.astype(np.float32),
            "timestamp": (steps / self.robot.fps).astype(np.float32),
            **whole,
        }

    def _film(self, key: str, pictures: np.ndarray, chunk: int, file: int) -> dict[str, Any]:
        if key not in self._films:
            path = self.folder / VIDEO.format(video_key=key, chunk_index=chunk, file_index=file)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._films[key] = VideoFile(path, self.robot.fps)
        film = self._films[key]
        start = film.count / self.robot.fps
        film.add(pictures)
        row = {
            "chunk_index": chunk,
            "file_index": file,
            "from_timestamp": start,
            "to_timestamp": film.count / self.robot.fps,
        }
        stats = self._stats.setdefault(key, _Feature()).add(pictures, pictures=True)
        return {f"videos/{key}/{name}": value for name, value in row.items()} | _flat(key, stats)

    def _write(self, columns: Mapping[str, np.ndarray], chunk: int, file: int) -> None:
        """One row group an episode, so that a reader finds it without the rest."""
        table = self._pa.table({name: _array(self._pa, values) for name, values in columns.items()})
        if self._data is None:
            path = self.folder / DATA.format(chunk_index=chunk, file_index=file)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._data = self._parquet.ParquetWriter(path, table.schema)
        self._data.write_table(table)

    def close(self) -> None:
        """Close the files that are being written."""
        if self._data is not None:
            self._data.close()
        for film in self._films.values():
            film.close()
        self._data, self._films = None, {}

    def finish(self) -> None:
        """Write what describes the episodes.

        Raises:
            DataError: there are none.
        """
        self.close()
        if not self._rows:
            raise DataError("there is no episode to write")
        for start in range(0, self.episodes, PER_FILE):
            chunk, file = divmod(start // PER_FILE, CHUNK)
            path = self.folder / EPISODES.format(chunk_index=chunk, file_index=file)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._parquet.write_table(self._pa.Table.from_pylist(self._rows[start : start + PER_FILE]), path)
        self._parquet.write_table(_task_table(self._pa, list(self._tasks)), self.folder / TASKS)
        write_json(self.folder / STATS, {name: feature.all() for name, feature in self._stats.items()})
        write_json(self.folder / INFO, self._info())

    def _info(self) -> dict[str, Any]:
        names = {STATE: self.robot.state_names, ACTION: self.robot.action_names}
        features: dict[str, Any] = {
            key: {"dtype": "float32", "shape": list(size), "names": list(names[key])}
            if key in names
            else _camera(size, self.robot.fps)
            for key, size in self._sizes.items()
        }
        features |= {name: {"dtype": kind, "shape": [1], "names": None} for name, kind in _OWN.items()}
        return {
            "codebase_version": VERSION, "fps": self.robot.fps, "features": features, "total_episodes": self.episodes,
            "total_frames": self.frames, "total_tasks": len(self._tasks), "chunks_size": CHUNK,
            "data_files_size_in_mb": 100, "video_files_size_in_mb": 200, "data_path": DATA, "video_path": VIDEO,
            "robot_type": self.robot.name, "splits": {"train": f"0:{self.episodes}"},
        }  # fmt: skip


def _said(sizes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {list(size)}" for name, size in sizes.items())


def _flat(name: str, stats: Mapping[str, np.ndarray]) -> dict[str, Any]:
    return {f"stats/{name}/{kind}": value.tolist() for kind, value in stats.items()}


def _array(pa: Any, values: np.ndarray) -> Any:
    """A column of numbers [T] or [T, D]; lists of one number are numbers, as LeRobot has them."""
    if values.ndim == 2 and values.shape[1] > 1:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
    return pa.array(values.ravel())


def _camera(size: tuple[int, ...], fps: int) -> dict[str, Any]:
    height, width, channels = size
    info = {"height": height, "width": width, "codec": "h264", "pix_fmt": "yuv444p", "fps": fps, "channels": channels}
    described = {f"video.{name}": value for name, value in info.items()} | {"has_audio": False, "is_depth_map": False}
    return {"dtype": "video", "shape": list(size), "names": ["height", "width", "channels"], "info": described}


def _task_table(pa: Any, tasks: list[str]) -> Any:
    """The instructions as pandas writes a frame that has them as its index, since LeRobot reads it with pandas."""
    kinds = (("task_index", "int64", "int64"), ("task", "unicode", "object"))
    columns = [
        {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy, "metadata": None}
        for name, kind, numpy in kinds
    ]
    index = {"name": None, "field_name": None, "pandas_type": "unicode", "numpy_type": "object"}
    described = {
        "index_columns": ["task"],
        "column_indexes": [index | {"metadata": {"encoding": "UTF-8"}}],
        "columns": columns,
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.2.0",
    }
    table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), "task": pa.array(tasks, pa.string())})
    return table.replace_schema_metadata({"pandas": json.dumps(described)})


def write_lerobot(episodes: Iterable[Episode], out: str | Path, robot: Robot) -> tuple[int, int]:
    """Write `episodes` as the LeRobot data set `out`, whole or not at all; see `LeRobotWriter`.

    Returns:
        The numbers of episodes and of frames.

    Raises:
        UserError: `out` holds something already, the disk is full, or an episode cannot be taken.
        DataError: there is no episode.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} holds something already; choose another --out")
    with atomic_folder(out) as folder:
        writer = LeRobotWriter(folder, robot)
        try:
            for episode in episodes:
                writer.add(episode)
            writer.finish()
        finally:
            writer.close()
    return writer.episodes, writer.frames
