"""A policy in use: its memory is a window, its folder is whole, and what it cannot read is said."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel

import tessera
from tessera.actor import Actor
from tessera.data.sample import Image
from tessera.errors import CheckpointError, UserError
from tessera.models.policy import GR1Policy, Seen
from tessera.models.policy.senses import Senses
from tessera.zoo.senses import read_senses
from tests.models.policy_tiny import tiny
from tests.models.senses_tiny import WIDTHS, folder, senses

SIZES = {"vision_width": WIDTHS[0], "text_width": WIDTHS[1], "state_size": 4, "action_size": 4}
SHAPE = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16,
    "patch_size": 8,
}  # fmt: skip
GOAL = "push the red circle to the left"


def observed(steps: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    pictures = {
        name: rng.integers(0, 256, (steps, side, side, 3), np.uint8) for name, side in (("static", 16), ("hand", 8))
    }
    return {**pictures, "state": rng.standard_normal((steps, 4)).astype(np.float32)}


@pytest.fixture(scope="module")
def actor(tmp_path_factory: pytest.TempPathFactory) -> Actor:
    return Actor(tiny(**SIZES), senses(tmp_path_factory.mktemp("clip")))


def by_hand(actor: Actor, seen: dict[str, np.ndarray]) -> np.ndarray:
    """The last action of the policy over all of what was seen, without padding."""
    looked = {}
    for name in ("static", "hand"):
        found = actor.senses.look([Image(one) for one in seen[name]])[None]
        looked[name] = Seen(found[:, :, 0], found[:, :, 1:])
    policy: GR1Policy = actor.policy
    steps = torch.ones(1, len(seen["state"]), dtype=torch.bool)
    with torch.no_grad():
        said = policy(actor.senses.read([GOAL]), steps, looked, torch.from_numpy(seen["state"])[None])
        return policy.actions(said)[0, -1].numpy()


@pytest.mark.light("gr-1", "exact")
@pytest.mark.parametrize("steps", [1, 3, 5])
def test_a_short_past_is_padded_without_a_trace(actor: Actor, steps: int) -> None:
    seen = observed(steps)
    np.testing.assert_allclose(actor.act(seen, GOAL), by_hand(actor, seen), atol=1e-5)


def test_of_a_long_past_the_window_is_read_and_pictures_that_were_seen_are_not_looked_at_again(
    actor: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = observed(9, seed=1)
    looked = []
    look = actor.senses.look
    monkeypatch.setattr(actor.senses, "look", lambda pictures: looked.append(len(pictures)) or look(pictures))
    last = {name: values[-5:] for name, values in seen.items()}
    np.testing.assert_allclose(actor.act(seen, GOAL), actor.act(last, GOAL), atol=1e-6)
    assert looked == [5, 5]  # of both cameras, once
    actor.act({name: np.concatenate([values[-4:], values[:1]]) for name, values in seen.items()}, GOAL)
    assert looked == [5, 5, 1, 1]
    assert actor.act(seen, "something else").tolist() != actor.act(seen, GOAL).tolist()


def test_several_worlds_at_once_are_decided_as_each_alone(actor: Actor) -> None:
    seen = [observed(steps, seed=steps) for steps in (1, 9, 3)]
    goals = [GOAL, "lift the blue star", GOAL]
    alone = np.stack([actor.act(one, goal) for one, goal in zip(seen, goals, strict=True)])
    actor._recent.clear()
    np.testing.assert_allclose(actor.act_together(seen, goals), alone, atol=1e-5)


def test_in_an_environment_actions_stay_within_its_limits_and_lerobot_s_names_are_known(tmp_path: Path) -> None:
    alone = {"cameras": ["top"], "gripper": False, "action_scale": [1000.0] * 2, "action_mean": [256.0] * 2}
    one = Actor(tiny(**{**SIZES, "state_size": 2, "action_size": 2, **alone}), senses(tmp_path))
    env = SimpleNamespace(action_space=SimpleNamespace(low=np.zeros(2), high=np.full(2, 512.0)))
    rng = np.random.default_rng(0)
    for seed in range(5):
        pictures = np.random.default_rng(seed).integers(0, 256, (3, 24, 24, 3), np.uint8)
        action = one.within(env)({"pixels": pictures, "agent_pos": rng.uniform(0, 512, (3, 2))}, "push the T")
        assert action.shape == (2,) and (action >= 0).all() and (action <= 512).all()


def test_what_is_foreseen_is_a_picture_of_each_camera(actor: Actor) -> None:
    static, hand = actor.foresee(observed(2), GOAL)
    assert static.shape == hand.shape == (16, 16, 3) and static.dtype == np.uint8
    assert (static != hand).any()


def test_saved_and_loaded_it_decides_the_same(actor: Actor, tmp_path: Path) -> None:
    actor.save(tmp_path / "model")
    again = tessera.load(tmp_path / "model")
    assert isinstance(again, Actor) and again.abilities == ("act",) and again.senses.pixels == actor.senses.pixels
    np.testing.assert_allclose(again.act(observed(4), GOAL), actor.act(observed(4), GOAL), atol=1e-6)
    tiny().save_pretrained(tmp_path / "model/policy")
    with pytest.raises(CheckpointError, match="widths 16 and 12, and its encoders give 24 and 64"):
        tessera.load(tmp_path / "model")


def test_what_the_world_does_not_show_is_named(actor: Actor) -> None:
    seen = observed(2)
    del seen["hand"]
    with pytest.raises(UserError, match="reads static, hand, state; the world does not show hand, only static, state"):
        actor.act(seen, GOAL)


def published_eyes(path: Path, kind: str) -> Senses:
    """A published encoder of pictures of this kind, and the words of a CLIP."""
    AutoModel.from_config(AutoConfig.for_model(kind, **SHAPE)).save_pretrained(path / "eyes")
    return read_senses(str(path / "eyes"), str(folder(path / "words")))


@pytest.mark.parametrize("kind", ["clip_vision_model", "siglip_vision_model", "vit", "vit_mae", "dinov2"])
def test_a_policy_with_published_eyes_loads_as_often_as_it_is_saved(kind: str, tmp_path: Path) -> None:
    seeing = published_eyes(tmp_path, kind)
    sizes = {"vision_width": seeing.widths[0], "text_width": seeing.widths[1], "state_size": 4, "action_size": 4}
    actor = Actor(tiny(**sizes), seeing)
    actor.save(tmp_path / "once")
    once = tessera.load(tmp_path / "once")
    once.save(tmp_path / "twice")
    twice = tessera.load(tmp_path / "twice")
    for part in ("vision", "text"):
        kept, again = (getattr(one.senses, part).state_dict() for one in (actor, twice))
        assert kept.keys() == again.keys() and all(torch.equal(kept[name], again[name]) for name in kept)
