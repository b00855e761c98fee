"""Films written and read with PyAV, which comes with the extra `robot`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from tessera.errors import BadSample, UserError, reason
from tessera.extras import needed
from tessera.files import atomic_file

# As large as the pictures are small: what is read back is off by 2 of 255 at most, from the change of colour space.
NEAR_LOSSLESS: Mapping[str, str] = {"pixels": "yuv444p", "crf": "0"}
# What every player shows.
FOR_PLAYERS: Mapping[str, str] = {"pixels": "yuv420p", "crf": "18"}


class VideoFile:
    """An H.264 film at `path` that frames are added to one by one; a context manager.

    Every second frame can be sought to, and frames come out in the order in which they are shown, at times that are
    exact multiples of 1 / fps.
    """

    def __init__(self, path: str | Path, fps: int, quality: Mapping[str, str] = NEAR_LOSSLESS) -> None:
        self._av = needed("av", "robot")
        self._container = self._av.open(str(path), "w", format="mp4")
        options = {"crf": quality["crf"], "g": "2", "bf": "0", "preset": "veryfast"}
        self._stream = self._container.add_stream("libx264", rate=fps, options=options)
        self._stream.pix_fmt = quality["pixels"]
        self.count = 0

    def add(self, frames: Iterable[np.ndarray]) -> None:
        """Frames uint8 [H, W, 3], all of one size."""
        for frame in frames:
            if not self.count:
                self._stream.height, self._stream.width = frame.shape[:2]
            elif frame.shape[:2] != (self._stream.height, self._stream.width):
                height, width = frame.shape[:2]
                raise UserError(
                    f"a film of {self._stream.width} x {self._stream.height} cannot take a frame of {width} x {height}"
                )
            picture = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            self._container.mux(self._stream.encode(picture))
            self.count += 1

    def close(self) -> None:
        """Write what is left."""
        if self.count:
            self._container.mux(self._stream.encode())
        self._container.close()

    def __enter__(self) -> VideoFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def write_video(path: str | Path, frames: Sequence[np.ndarray] | np.ndarray, fps: int) -> None:
    """Frames uint8 [H, W, 3] as an MP4 that any player shows; an odd side is made even by one more row or column.

    Raises:
        UserError: no frames, frames of different sizes, a full disk, or PyAV is not installed.
    """
    if not len(frames):
        raise UserError(f"{path}: a film needs at least one frame")
    with atomic_file(path) as aside, VideoFile(aside, fps, FOR_PLAYERS) as film:
        film.add(_even(frame) for frame in frames)


def _even(frame: np.ndarray) -> np.ndarray:
    height, width = frame.shape[:2]
    return np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def frame_times(path: str | Path) -> np.ndarray:
    """When each frame of a film is shown, float64 [N] in seconds, sorted; nothing is decoded.

    Raises:
        BadSample: the file is not there or is no film.
    """
    with _opened(path) as (container, stream):
        times = [float(packet.pts * stream.time_base) for packet in container.demux(stream) if packet.pts is not None]
    return np.sort(np.array(times))


def read_frames(path: str | Path, start: float, count: int, fps: float) -> np.ndarray:
    """`count` frames from `start` seconds on, uint8 [N, H, W, 3].

    Raises:
        BadSample: the file is not there, is no film, or lacks one of the frames.
    """
    found: dict[int, np.ndarray] = {}
    with _opened(path) as (container, stream):
        container.seek(max(0, round((start - 0.5 / fps) / stream.time_base)), stream=stream)
        for frame in container.decode(stream):
            number = (float(frame.pts * stream.time_base) - start) * fps
            if abs(number - round(number)) < 0.1 and 0 <= round(number) < count:
                found[round(number)] = frame.to_ndarray(format="rgb24")
            if number > count - 1.5 and len(found) == count:
                break
    missing = [number for number in range(count) if number not in found]
    if missing:
        raise BadSample(
            f"{path} lacks {len(missing)} of {count} frames from {start:g} s on, the first number {missing[0]}"
        )
    return np.stack([found[number] for number in range(count)])


@contextmanager
def _opened(path: str | Path) -> Iterator[tuple[Any, Any]]:
    """A film's container and first stream; what PyAV cannot read is a BadSample."""
    av = needed("av", "robot")
    try:
        with av.open(str(path)) as container:
            yield container, container.streams.video[0]
    except (av.error.FFmpegError, IndexError) as error:
        raise BadSample(f"{path} cannot be read as a film: {reason(error)}") from None
