"""Episodes written as a LeRobot data set read back as they were; what is damaged is named."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as PIL

from tessera.cli.program import main
from tessera.data import lerobot
from tessera.data.episodes import Episode, Robot
from tessera.data.lerobot import write_lerobot
from tessera.data.readers import open_reader
from tessera.data.readers.lerobot import LeRobotEpisodes
from tessera.data.videos import frame_times, read_frames, write_video
from tessera.errors import BadSample, DataError, TesseraError, UserError

ROBOT = Robot("toy", 10, (-1, 1), ("x", "y", "z"), ("dx", "dy"))
FILM = "videos/observation.images.{}/chunk-000/file-000.mp4"
ROWS = "data/chunk-000/file-000.parquet"
OFF = 3  # of 255, what a film may change


def _episode(length: int, seed: int = 0, goal: str = "push it") -> Episode:
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (length, 2, 4, 4, 3), dtype=np.uint8).repeat(4, axis=2).repeat(4, axis=3)
    numbers = rng.uniform(-1, 1, (length, 5)).astype(np.float32)
    return Episode({"static": small[:, 0], "hand": small[:, 1]}, numbers[:, :3], numbers[:, 3:], goal)


EPISODES = [_episode(5, 0), _episode(12, 1, "lift it"), _episode(7, 2), _episode(3, 3, "stack it")]
ONE_EYED = Episode({"static": EPISODES[0].cameras["static"]}, EPISODES[0].state, EPISODES[0].action, "go")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("lerobot") / "set"
    assert write_lerobot(EPISODES, out, ROBOT) == (4, 27)
    return out


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def _same(one: Episode, other: Episode) -> bool:
    near = [np.abs(pictures.astype(int) - other.cameras[name]).max() <= OFF for name, pictures in one.cameras.items()]
    exact = np.array_equal(one.state, other.state) and np.array_equal(one.action, other.action)
    return all(near) and exact and one.goal == other.goal and one.cameras.keys() == other.cameras.keys()


def test_episodes_read_back_as_they_were_numbers_exactly_and_pictures_within_3(whole: Path) -> None:
    read = LeRobotEpisodes(whole)
    read.check_actions(-1, 1)
    assert read.lengths == [5, 12, 7, 3] and read.goals == ["push it", "lift it", "push it", "stack it"]
    assert not len(read.skipped) and read.fps == 10
    assert all(_same(one, other) for one, other in zip(EPISODES, read, strict=True))
    assert _same(EPISODES[-1], read[-1]) and _same(EPISODES[2], read[1:3][1])


def test_what_describes_the_set_is_what_lerobot_reads(whole: Path) -> None:
    info = json.loads((whole / "meta/info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["robot_type"]) == ("v3.0", 10, "toy")
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (4, 27, 3)
    assert info["splits"] == {"train": "0:4"} and info["chunks_size"] == 1000
    assert info["data_path"] == "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
    assert info["video_path"] == "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
    features = info["features"]
    assert features["action"] == {"dtype": "float32", "shape": [2], "names": ["dx", "dy"]}
    assert features["observation.images.hand"]["shape"] == [16, 16, 3]
    rows = pq.read_schema(whole / ROWS)
    assert rows.names == [key for key, feature in features.items() if feature["dtype"] != "video"]
    assert rows.field("action").type == pa.list_(pa.float32(), 2) and rows.field("timestamp").type == pa.float32()
    assert pq.ParquetFile(whole / ROWS).num_row_groups == 4
    tasks = pq.read_table(whole / "meta/tasks.parquet")
    assert tasks.to_pydict() == {"task_index": [0, 1, 2], "task": ["push it", "lift it", "stack it"]}
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["task"]


def test_each_episode_is_where_its_row_says(whole: Path) -> None:
    rows = pq.read_table(whole / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    data = pq.read_table(whole / ROWS).to_pydict()
    assert [row["dataset_from_index"] for row in rows] == [0, 5, 17, 24]
    assert [row["dataset_to_index"] for row in rows] == [5, 17, 24, 27]
    second = slice(rows[1]["dataset_from_index"], rows[1]["dataset_to_index"])
    assert data["episode_index"][second] == [1] * 12 and data["frame_index"][second] == list(range(12))
    assert rows[1]["tasks"] == ["lift it"] and rows[1]["length"] == 12
    # LeRobot adds a frame's timestamp to where its episode starts in the film, and wants a frame within 1e-4 s of that.
    for key in ("observation.images.static", "observation.images.hand"):
        times = frame_times(whole / FILM.format(key.rpartition(".")[2]))
        for row in rows:
            asked = row[f"videos/{key}/from_timestamp"] + np.arange(row["length"]) / 10
            assert np.abs(times[None] - asked[:, None]).min(1).max() < 1e-4


def test_statistics_are_those_of_all_frames(whole: Path) -> None:
    stats = json.loads((whole / "meta/stats.json").read_text())
    action = np.concatenate([one.action for one in EPISODES])
    assert np.allclose(stats["action"]["mean"], action.mean(0), atol=1e-6)
    assert np.allclose(stats["action"]["std"], action.std(0), atol=1e-6)
    assert np.allclose(stats["action"]["max"], action.max(0)) and stats["action"]["count"] == [27]
    pictures = np.concatenate([one.cameras["hand"] for one in EPISODES]) / 255
    hand = stats["observation.images.hand"]
    assert np.allclose(np.ravel(hand["mean"]), pictures.mean((0, 1, 2))) and np.shape(hand["q99"]) == (3, 1, 1)


def test_more_episodes_than_go_into_a_file_go_into_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lerobot, "PER_FILE", 2)
    monkeypatch.setattr(lerobot, "CHUNK", 1)
    write_lerobot(EPISODES, tmp_path / "set", ROBOT)
    files = {str(file.relative_to(tmp_path / "set")) for file in (tmp_path / "set").rglob("*.*") if file.is_file()}
    assert {"data/chunk-001/file-000.parquet", FILM.format("hand").replace("chunk-000", "chunk-001")} <= files
    read = LeRobotEpisodes(tmp_path / "set")
    assert all(_same(one, other) for one, other in zip(EPISODES, read, strict=True))


def test_an_episode_that_lacks_a_row_is_named_skipped_and_counted(
    copied: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = pq.read_table(copied / ROWS)
    pq.write_table(table.take([row for row in range(27) if row != 8]), copied / ROWS)
    read = LeRobotEpisodes(copied)
    assert read.lengths == [5, 7, 3] and _same(EPISODES[2], read[1])
    assert str(read.skipped) == "1 with 11 of 12 frames in their rows (episode 1)"
    assert "episode 1" in caplog.text and "11 of 12 frames" in caplog.text


def test_an_episode_that_lacks_pictures_is_named_skipped_and_counted(copied: Path) -> None:
    film = copied / FILM.format("hand")
    pictures = read_frames(film, 0, 27, 10)
    write_video(film, pictures[:25], 10)
    read = LeRobotEpisodes(copied)
    assert read.lengths == [5, 12, 7]
    assert str(read.skipped) == "1 with 1 of 3 frames in observation.images.hand (episode 3)"
    assert len(LeRobotEpisodes(copied, cameras={"static": "observation.images.static"})) == 4


def test_an_episode_with_an_action_that_is_no_number_is_named_skipped_and_counted(copied: Path) -> None:
    table = pq.read_table(copied / ROWS)
    actions = table["action"].to_pylist()
    actions[20][1] = float("nan")
    place, kind = table.column_names.index("action"), table.schema.field("action")
    pq.write_table(table.set_column(place, kind, pa.array(actions, kind.type)), copied / ROWS)
    read = LeRobotEpisodes(copied)
    assert read.lengths == [5, 12, 3]
    assert str(read.skipped) == "1 with a state or an action that is not a number (episode 2)"


def test_a_set_without_a_film_has_no_usable_episode(copied: Path) -> None:
    (copied / FILM.format("hand")).write_bytes(b"no film")
    with pytest.raises(DataError, match="holds no usable episode: 4 .*cannot be read as a film"):
        LeRobotEpisodes(copied)


def test_an_action_outside_the_limits_is_one_sentence(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"d[xy] of an action of episode 0 of .* is .*, outside its limits -0.5 and 0.5"
    ):
        LeRobotEpisodes(whole).check_actions(-0.5, 0.5)
    wild = _episode(4)
    wild.action[2, 1] = 7
    with pytest.raises(UserError, match="dy of an action of episode 1 is 7, outside its limits -1 and 1"):
        write_lerobot([EPISODES[0], wild], tmp_path / "set", ROBOT)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("episodes", "sentence"),
    [
        ([], "there is no episode to write"),
        ([_episode(3, goal=" ")], "episode 0 has no instruction"),
        ([_episode(0)], "episode 0 has no frames"),
        (
            [EPISODES[0], ONE_EYED],
            r"episode 1 has .*static \[16, 16, 3\], observation.state \[3\], .*those before it .*hand",
        ),
    ],
)
def test_episodes_that_cannot_be_written_are_one_sentence(
    episodes: list[Episode], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(TesseraError, match=sentence):
        write_lerobot(episodes, tmp_path / "set", ROBOT)
    assert not list(tmp_path.iterdir())


def test_an_episode_has_as_many_pictures_as_actions() -> None:
    with pytest.raises(UserError, match="2 of static, 3 of state, 3 of action"):
        Episode({"static": np.zeros((2, 4, 4, 3), np.uint8)}, np.zeros((3, 1)), np.zeros((3, 1)), "go")


def test_pictures_that_stand_in_the_rows_are_read_exactly(copied: Path) -> None:
    def png(picture: np.ndarray) -> dict[str, object]:
        held = io.BytesIO()
        PIL.fromarray(picture).save(held, format="PNG")
        return {"bytes": held.getvalue(), "path": None}

    pictures = np.concatenate([one.cameras["hand"] for one in EPISODES])
    table = pq.read_table(copied / ROWS).append_column("observation.images.hand", pa.array([png(p) for p in pictures]))
    pq.write_table(table, copied / ROWS)
    shutil.rmtree((copied / FILM.format("hand")).parent)
    info = json.loads((copied / "meta/info.json").read_text())
    info["features"]["observation.images.hand"]["dtype"] = "image"
    (copied / "meta/info.json").write_text(json.dumps(info))
    read = LeRobotEpisodes(copied)
    assert all(
        np.array_equal(one.cameras["hand"], other.cameras["hand"]) for one, other in zip(EPISODES, read, strict=True)
    )


def test_decoded_episodes_are_kept_up_to_a_size(whole: Path) -> None:
    few, many = LeRobotEpisodes(whole, memory=1), LeRobotEpisodes(whole)
    assert few[0] is few[0] and many[0] is many[0]
    first = few[0], many[0]
    assert few[1] is not few[0] and few[0] is not first[0]
    assert many[1] is not many[0] and many[0] is first[1]


def test_other_cameras_versions_and_folders_are_one_sentence(copied: Path) -> None:
    with pytest.raises(UserError, match=r"no camera 'observation.images.hat'; did you mean 'observation.images.hand'"):
        LeRobotEpisodes(copied, cameras={"hand": "observation.images.hat"})
    info = json.loads((copied / "meta/info.json").read_text())
    (copied / "meta/info.json").write_text(json.dumps({**info, "codebase_version": "v2.1"}))
    with pytest.raises(DataError, match=r"version v2.1, and v3.0 is read; LeRobot converts it"):
        LeRobotEpisodes(copied)
    with pytest.raises(DataError, match="is no LeRobot data set"):
        LeRobotEpisodes(copied / "data")


def test_damaged_tables_are_one_sentence(copied: Path) -> None:
    table = pq.read_table(copied / ROWS)
    pq.write_table(table.drop_columns(["task_index"]), copied / ROWS)
    with pytest.raises(DataError, match="file-000.parquet has no column 'task_index'"):
        LeRobotEpisodes(copied)
    (copied / "meta/tasks.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match="tasks.parquet cannot be read as Parquet"):
        LeRobotEpisodes(copied)
    (copied / "meta/info.json").write_text('{"codebase_version": "v3.0", "fps": 10}')
    with pytest.raises(DataError, match="info.json does not say features"):
        LeRobotEpisodes(copied)


def test_a_folder_of_episodes_is_a_world(whole: Path) -> None:
    world = open_reader(whole)
    assert world.tasks == ("episodes",)
    both = [*world.source("episodes", "train").records, *world.source("episodes", "heldout").records]
    assert len(both) == 4
    sample = world.source("episodes", "train")[0]
    assert len(sample.films) == 2 and sample.text in ("push it", "lift it", "stack it")
    assert world.fingerprint() == open_reader(whole).fingerprint()


def test_without_its_packages_the_command_that_installs_them_is_named(
    whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pip install 'tessera-vl\[robot\]'"):
        LeRobotEpisodes(whole)


def test_a_film_has_its_frames_and_an_even_size(tmp_path: Path) -> None:
    frames = np.full((6, 15, 17, 3), 100, np.uint8)
    write_video(tmp_path / "film.mp4", frames, 5)
    with av.open(str(tmp_path / "film.mp4")) as film:
        stream = film.streams.video[0]
        assert (stream.width, stream.height, stream.pix_fmt, stream.average_rate) == (18, 16, "yuv420p", 5)
    read = read_frames(tmp_path / "film.mp4", 0.2, 5, 5)
    assert read.shape == (5, 16, 18, 3) and np.abs(read.astype(int) - 100).max() <= OFF
    with pytest.raises(BadSample, match="lacks 1 of 6 frames from 0.2 s on, the first number 5"):
        read_frames(tmp_path / "film.mp4", 0.2, 6, 5)


def test_a_film_that_cannot_be_finished_leaves_nothing(tmp_path: Path) -> None:
    def frames() -> Iterator[np.ndarray]:
        yield np.zeros((8, 8, 3), np.uint8)
        yield np.zeros((8, 10, 3), np.uint8)

    with pytest.raises(UserError, match="a film of 8 x 8 cannot take a frame of 10 x 8"):
        write_video(tmp_path / "film.mp4", list(frames()), 5)
    with pytest.raises(UserError, match="at least one frame"):
        write_video(tmp_path / "film.mp4", [], 5)
    assert not list(tmp_path.iterdir())


def test_the_table_is_exported_and_shown_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "set"
    assert main(["worlds", "export", "tabletop", "--out", str(out), "--count", "3"]) == 0
    assert capsys.readouterr().out.startswith("3 episodes of ")
    made = LeRobotEpisodes(out)
    made.check_actions(-1, 1)
    assert len(made) == 3
    assert main(["worlds", "show", str(out), "--count", "1", "--out", str(tmp_path / "page.png")]) == 0
    assert PIL.open(tmp_path / "page.png").width > 1000
    assert main(["worlds", "export", str(out), "--out", str(tmp_path / "again")]) == 2
    assert "is a LeRobot data set already" in capsys.readouterr().err
