"""GR-1 as a paper: what it counts, trains on, and lets act."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tessera
from tessera.cli import main
from tessera.data.episodes import Episode, Robot
from tessera.data.lerobot import LeRobotWriter
from tessera.errors import UserError
from tessera.models.policy import GR1Policy
from tessera.papers.figures import beside
from tessera.papers.gr_1 import RECIPES
from tessera.papers.gr_1_training import Learning, Recipe, open_data, table_episodes
from tessera.papers.registry import TrainOptions, get
from tessera.papers.settings import change
from tessera.train.optim import Optimiser
from tests.models.senses_tiny import folder
from tests.papers.path_to_loss import files_on_the_way_to

pytest.importorskip("gymnasium")
PARTS = {
    "GPT": 21_294_336, "word table that nothing reads": 384, "resampler": 18_897_408, "embeddings": 1_681_920,
    "queries": 8_064, "action head": 112_327, "image decoder": 3_993_600,
}  # fmt: skip
SMALL = [
    "model.width=32", "model.depth=1", "model.heads=2", "model.window=4", "model.patch_size=8", "model.decoder_heads=2",
    "model.resampler_head_width=8", "model.latents=2", "pretrain.batch=2", "act.batch=2",
]  # fmt: skip


@pytest.mark.light("gr-1", "size")
def test_every_count_of_the_dossier_is_exact(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["size", "gr-1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    numbers = found["parameters"]
    assert {name: numbers[name] for name in PARTS} == PARTS
    assert numbers["trained"] == sum(PARTS.values()) == 45_988_039
    assert (numbers["image encoder"], numbers["text encoder"], numbers["whole CLIP"]) == (
        85_798_656, 63_428_096, 151_277_313,
    )  # fmt: skip
    assert (numbers["total"], numbers["total with the whole CLIP"]) == (195_214_791, 283_064_008)
    assert found["tokens"] == {"step": 43, "window": 430}
    paper = get("gr-1")
    assert all(row.follows for row in beside(paper.figures(), lambda _: found))
    with pytest.raises(UserError, match="nothing to count"):
        paper.size("other")


def numbered(count: int, steps: int = 6) -> list[Episode]:
    """Episodes of a robot that goes where a bright column stands."""
    made = []
    for number in range(count):
        rng = np.random.default_rng(number)
        frames = rng.integers(0, 60, (steps, 16, 16, 3), np.uint8)
        frames[:, :, number % 16] = 250
        state = rng.uniform(-1, 1, (steps, 2)).astype(np.float32)
        made.append(
            Episode({"top": frames}, state, np.full((steps, 2), number / count, np.float32), "go to the column")
        )
    return made


@pytest.fixture(scope="module")
def episodes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve of them as a LeRobot data set."""
    out = tmp_path_factory.mktemp("lerobot") / "set"
    writer = LeRobotWriter(out, Robot("arm", 10, (-1.0, 1.0), ("x", "y"), ("dx", "dy")))
    for one in numbered(12):
        writer.add(one)
    writer.finish()
    return out


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def trained(episodes: Path, clip: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], list[str]]:
    """The run of a training on those episodes, the files on the way to its first loss, and the command line."""
    out = tmp_path_factory.mktemp("run")
    words = ["train", "gr-1", "--data", str(episodes), "--out", str(out), "--steps", "4"]
    words += ["--parts", f"vision={clip}", f"text={clip}", "--set", *SMALL]
    with files_on_the_way_to("tessera.models.policy.learning:foresight") as files:
        assert main(words) == 0
    return out, files, words


def test_a_step_goes_through_six_files_from_the_command_to_the_loss(trained: tuple[Path, list[str], list[str]]) -> None:
    assert trained[1] == [
        "cli/training.py", "papers/gr_1.py", "train/engine.py", "train/step.py", "models/policy/learning.py",
        "objectives/imitation.py",
    ]  # fmt: skip


@pytest.mark.light("gr-1", "use")
def test_one_s_own_episodes_are_foreseen_first_then_learned_to_act(
    trained: tuple[Path, list[str], list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _, words = trained
    actor = tessera.load(out / "model")
    config = actor.policy.config
    assert (list(config.cameras), config.gripper, config.state_size) == (["top"], False, 2)
    held = np.concatenate([one.action for one in numbered(12)])
    np.testing.assert_allclose(config.action_mean, held.mean(0), atol=1e-5)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == ["pretrain", "act", "act", "act"]
    on = [*words[:5], str(tmp_path), "--steps", "1", *words[8:11], f"policy={out / 'model/policy'}", *words[11:]]
    assert main(on) == 0
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1
    assert "actions from the expert's in 2 episodes" in capsys.readouterr().err


@pytest.mark.light("gr-1", "use")
def test_it_acts_in_an_environment_of_lerobot_s_kind(
    trained: tuple[Path, list[str], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gym_pusht")
    words = ["act", "--model", str(trained[0] / "model"), "--env", "gym_pusht/PushT-v0", "--goal", "push the T"]
    assert main([*words, "--episodes", "2", "--steps", "3", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["success"]["n"], said["steps"], said["film"]) == (2, 3.0, None)


@pytest.mark.light("gr-1", "use")
def test_it_learns_at_the_table_and_a_fresh_process_acts_and_films(tmp_path: Path, clip: Path) -> None:
    words = ["train", "gr-1", "--out", str(tmp_path / "run"), "--steps", "2", "--parts", f"vision={clip}"]
    words += [f"text={clip}", "--set", *SMALL, "episodes=3", "clips=3"]
    acts = ["act", "--model", str(tmp_path / "run/model"), "--episodes", "3", "--steps", "3", "--json", "--foresee"]
    acts += ["--task", "lift"]
    acts += ["--out", str(tmp_path / "film.mp4"), "--sheet", str(tmp_path / "sheet.png")]
    assert main(words) == 0
    code = f"from tessera.cli import main\nassert main({acts!r}) == 0"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    said = json.loads(ran.stdout)
    assert said["success"]["n"] == 3 and 0 <= said["success"]["low"] <= said["success"]["high"] <= 1
    assert {task: share["n"] for task, share in said["tasks"].items()} == {"lift": 3}
    assert main(["act", "--model", str(tmp_path / "run/model"), "--task", "lfit"]) == 2
    from tessera.data.videos import read_frames

    frames = read_frames(tmp_path / "film.mp4", 0.0, 12, 10)  # three tries of three steps and the last look
    assert frames.shape == (12, 256, 512, 3)
    assert Image.open(tmp_path / "sheet.png").size == (8 * 132 - 4, 3 * 68 - 4)
    actor = tessera.load(tmp_path / "run/model")
    assert list(actor.policy.config.cameras) == ["static", "hand"] and actor.policy.config.gripper


def test_clips_show_what_the_robot_s_first_camera_shows(episodes: Path, tmp_path: Path) -> None:
    writer = LeRobotWriter(tmp_path / "side", Robot("arm", 10, (-1.0, 1.0), ("x", "y"), ("dx", "dy")))
    (one,) = numbered(1)
    writer.add(Episode({"side": one.cameras["top"]}, one.state, one.action, one.goal))
    writer.finish()
    recipe = RECIPES["mini"]
    both = open_data(recipe, [str(episodes), str(episodes)])
    assert (len(both.clips), len(both.robot)) == (72, 60) and both.cameras == ("top",)
    with pytest.raises(UserError, match="have no camera 'top', the robot's first, .* they have side"):
        open_data(recipe, [str(tmp_path / "side"), str(episodes)])


def test_an_action_outside_the_limits_of_the_table_s_robot_stops_a_training(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tessera.data.worlds.tabletop.world import TabletopSource

    one = table_episodes(("lift",), 1)[0]
    one.action[3, 1] = 7
    writer = LeRobotWriter(tmp_path / "set", replace(TabletopSource.robot, limits=(-9.0, 9.0)))
    for _ in range(3):
        writer.add(one)
    writer.finish()
    words = ["train", "gr-1", "--data", str(tmp_path / "set"), "--out", str(tmp_path / "run"), "--steps", "2"]
    assert main([*words, "--parts", f"vision={clip}", f"text={clip}", "--set", *SMALL]) == 2
    assert "dy of an action of episode 0 of" in (said := capsys.readouterr().err)
    assert "is 7, outside its limits -1 and 1; clip the action" in said
    assert not (tmp_path / "run").exists(), "it is said before anything is trained"


def test_what_cannot_be_is_said_before_anything_is_written(episodes: Path, clip: Path, tmp_path: Path) -> None:
    both = {"vision": str(clip), "text": str(clip)}
    tiny = dict(one.split("=") for one in SMALL)
    for options, sentence in (
        ({"parts": {"vison": "x"}}, "no role 'vison' here; did you mean 'vision'"),
        ({"size": "published"}, "give --parts vision=FOLDER and --parts text=FOLDER"),
        ({"settings": {"tasks": "lift, slide"}}, "no task 'slide'"),
        ({"data": ("a", "b", "c")}, "clips and a robot's episodes, not 3 sets"),
        ({"data": (str(episodes),), "parts": both, "settings": tiny | {"model.patch_size": "5"}}, "tiles of 5 x 5"),
        (
            {"data": (str(episodes),), "parts": both, "settings": tiny | {"model.window": "3"}},
            "3 steps ahead lies outside",
        ),
    ):
        with pytest.raises(UserError, match=sentence):
            get("gr-1").train(TrainOptions(tmp_path / "run", **options))  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


def test_steps_are_shared_between_the_stages_and_go_to_the_second_alone_with_a_ready_policy() -> None:
    recipe = RECIPES["mini"].scaled(400, pretrained=False)
    assert (recipe.pretrain.steps, recipe.act.steps) == (100, 300)
    assert RECIPES["mini"].scaled(400, pretrained=True).act.steps == 400
    published = RECIPES["published"]
    assert published.act.length(5121) == 20 * 11 and published.scaled(None, pretrained=False) == published
    assert (published.scaled(10, False).pretrain.steps, published.scaled(10, False).act.steps) == (5, 5)
    assert change(recipe, {"weights.pictures": "0"}).lesson("act", ("static",)).foresee is False


def test_clips_are_of_other_tasks_than_the_robot_s() -> None:
    how = Learning(steps=1, batch=1, ahead=1, optimiser=Optimiser())
    recipe = Recipe(tasks="lift, lamp on", episodes=4, clips=6, pretrain=how, act=how)
    data = open_data(recipe, ["tabletop"])
    tasks = [{one.task for one in windows.episodes} for windows in (data.clips, data.robot, data.heldout)]
    assert tasks[1] | tasks[2] <= {"lift", "lamp on"} and not tasks[0] & {"lift", "lamp on"}
    assert (len(data.clips.episodes), len(data.robot.episodes), len(data.heldout.episodes)) == (6, 4, 1)
    assert data.heldout.episodes[0].goal and data.units["state_size"] == 4 and len(data.units["action_mean"]) == 3
    assert table_episodes(("lift",), 2)[0].action.shape[1] == 4


@pytest.mark.light("gr-1", "weights")
def test_a_released_policy_goes_on_learning_without_clips(tmp_path: Path) -> None:
    from tessera.models.policy.published import load_published
    from tessera.zoo.parts import trained_part
    from tests.models.policy_tiny import tiny

    model = tiny()
    model.save_pretrained(tmp_path / "policy")
    found = trained_part(tmp_path / "policy", GR1Policy, load_published)
    assert isinstance(found, GR1Policy)
    assert all(torch.equal(one, found.state_dict()[name]) for name, one in model.state_dict().items())
