"""GR-1: its counted figures, parity with GPT-2 and the community's model, its mask and losses, its published layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import AutoModel, GPT2Config, GPT2Model, ViTMAEConfig, ViTMAEForPreTraining

from tessera.errors import CheckpointError, UserError
from tessera.layers.masks import additive
from tessera.models.policy import GR1Config, GR1Policy, Seen
from tessera.models.policy.learning import Lesson
from tessera.models.policy.masking import query_mask
from tessera.models.policy.published import load_published
from tessera.objectives.imitation import arm_error, foresight, gripper_error, patchify, standardised, unpatchify
from tests.models import gr1_layout as layout
from tests.models.policy_tiny import FIELDS, STEPS, WINDOWS, inputs, tiny

CLOSE = {"atol": 1e-6, "rtol": 1e-5}
STACK = {"attn.c_attn": "attn.qkv", "attn.c_proj": "attn.out", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}


def outputs(model: GR1Policy, **given: Any) -> list[torch.Tensor]:
    with torch.no_grad():
        said = model(**given)
    return [one for one in (said.arm, said.gripper, *(said.patches or ())) if one is not None]


def changed(given: dict[str, Any], where: torch.Tensor) -> dict[str, Any]:
    """`given` with other states and pictures at the steps that are True in `where`, bool [B, T]."""

    def other(values: torch.Tensor) -> torch.Tensor:
        return torch.where(where.view(*where.shape, *[1] * (values.dim() - 2)), values.flip(0) - 0.7, values)

    seen = {name: Seen(*map(other, one)) for name, one in given["seen"].items()}
    return {**given, "seen": seen, "state": other(given["state"])}


@pytest.mark.light("gr-1", "exact")
def test_query_mask_is_causal_and_no_query_and_no_padding_is_ever_read() -> None:
    mask = query_mask(torch.tensor([[True, True, False]]), inputs=2, queries=1)[0, 0]
    for reader in range(9):
        expected = [read <= reader and read % 3 < 2 and read // 3 < 2 for read in range(9)]
        assert mask[reader].tolist() == expected
    assert mask.any(-1).all()


@pytest.mark.light("gr-1", "exact")
def test_blocks_are_those_of_gpt2_without_positions_under_the_same_mask() -> None:
    model = tiny()
    config = GPT2Config(
        vocab_size=1, n_embd=32, n_layer=2, n_head=4, n_positions=60, activation_function="relu", bos_token_id=0,
        eos_token_id=0, attn_implementation="eager",
    )  # fmt: skip
    gpt = GPT2Model(config).eval()
    state = {"wte.weight": torch.zeros(1, 32), "wpe.weight": torch.zeros(60, 32)}
    state |= {f"ln_f.{name}": value for name, value in model.norm.state_dict().items()}
    for place, block in enumerate(model.blocks):
        for theirs, ours in STACK.items():
            layer = block.get_submodule(ours)
            state[f"h.{place}.{theirs}.weight"] = layer.weight.T
            state[f"h.{place}.{theirs}.bias"] = layer.bias
        for number in (1, 2):
            norm = block.get_submodule(f"norm{number}").state_dict()
            state |= {f"h.{place}.ln_{number}.{name}": value for name, value in norm.items()}
    gpt.load_state_dict(state)
    steps = torch.tensor([[True] * 5, [True, True, True, False, False]])
    mask = query_mask(steps, inputs=7, queries=5)
    embeds = torch.randn(2, 60, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        theirs = gpt(inputs_embeds=embeds, attention_mask=additive(mask, torch.float32)).last_hidden_state
        ours = model.run(embeds, mask)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.light("gr-1", "exact")
def test_leaving_out_the_queries_for_pictures_changes_no_action() -> None:
    model = tiny()
    given = inputs(model)
    whole, acting = outputs(model, **given), outputs(model, **given, foresee=False)
    assert (len(whole), len(acting)) == (4, 2)
    for ours, theirs in zip(acting, whole[:2], strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)
    for ours, theirs in zip(outputs(model, **given, act=False), whole[2:], strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)


@pytest.mark.light("gr-1", "exact")
@pytest.mark.parametrize("step", range(STEPS - 1))
def test_what_comes_later_changes_nothing_before_it(step: int) -> None:
    model = tiny()
    given = inputs(model)
    later = (torch.arange(STEPS) > step).expand(WINDOWS, -1)
    for ours, theirs in zip(outputs(model, **changed(given, later)), outputs(model, **given), strict=True):
        torch.testing.assert_close(ours[:, : step + 1], theirs[:, : step + 1], **CLOSE)
        assert (ours[:, step + 1] != theirs[:, step + 1]).any()


@pytest.mark.light("gr-1", "exact")
def test_valid_steps_do_not_depend_on_what_padding_holds_nor_on_how_much_there_is() -> None:
    model = tiny()
    given = inputs(model)
    given["steps"] = torch.tensor([[True] * 5, [True, True, True, False, False]])
    whole = outputs(model, **given)
    for ours, theirs in zip(outputs(model, **changed(given, ~given["steps"])), whole, strict=True):
        torch.testing.assert_close(ours[given["steps"]], theirs[given["steps"]], **CLOSE)
    short = {name: Seen(one.token[:, :3], one.patches[:, :3]) for name, one in given["seen"].items()}
    cut = {**given, "steps": given["steps"][:, :3], "seen": short, "state": given["state"][:, :3]}
    for ours, theirs in zip(outputs(model, **cut), whole, strict=True):
        torch.testing.assert_close(ours, theirs[:, :3], **CLOSE)


@pytest.mark.light("gr-1", "exact")
def test_patches_come_back_as_the_picture_and_are_those_of_masked_autoencoders() -> None:
    pictures = torch.randn(2, 3, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    patches = patchify(pictures, 8)
    assert patches.shape == (2, 3, 6, 192)
    assert torch.equal(unpatchify(patches, (2, 3), 8), pictures)
    assert torch.equal(patches[0, 1, 4].view(8, 8, 3), pictures[0, 1, :, 8:, 8:16].permute(1, 2, 0))
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    mae = ViTMAEForPreTraining(ViTMAEConfig(image_size=16, patch_size=8, **sizes, decoder_num_hidden_layers=1))
    assert torch.equal(patchify(pictures[0, :, :, :, :16], 8), mae.patchify(pictures[0, :, :, :, :16]))
    even = standardised(patches)
    torch.testing.assert_close(even.mean(-1), torch.zeros(2, 3, 6), atol=1e-6, rtol=0)
    torch.testing.assert_close(even.std(-1), torch.ones(2, 3, 6), atol=1e-5, rtol=0)


@pytest.mark.light("gr-1", "exact")
def test_a_future_is_learned_at_the_step_that_foresees_it_and_only_where_it_is() -> None:
    patches = torch.randn(2, 5, 4, 6, generator=torch.Generator().manual_seed(0))
    steps = torch.tensor([[True] * 5, [True, True, True, False, False]])
    foresaw = torch.cat([patches[:, 2:], torch.full((2, 2, 4, 6), 9.0)], dim=1)
    perfect = foresight(foresaw, patches, steps, ahead=2)
    assert (float(perfect.total), perfect.number) == (0.0, 4)  # three of the whole window, one of the padded
    copied = foresight(patches, patches, steps, ahead=2)
    by_hand = (patches[0, :3] - patches[0, 2:]).square().mean((1, 2)).sum() + (
        patches[1, 0] - patches[1, 2]
    ).square().mean()
    torch.testing.assert_close(copied.total, by_hand)
    torch.testing.assert_close(copied.mean(), by_hand / 4)


@pytest.mark.light("gr-1", "exact")
def test_action_losses_are_means_over_valid_steps() -> None:
    rng = torch.Generator().manual_seed(0)
    said, wanted = (torch.randn(2, 3, 4, generator=rng) * 2 for _ in range(2))
    steps = torch.tensor([[True, True, True], [True, False, False]])
    loss = arm_error(said, wanted, steps)
    torch.testing.assert_close(loss.mean(), F.smooth_l1_loss(said[steps], wanted[steps]))
    logits, opened = said[..., 0], wanted[..., 0] > 0
    expected = F.binary_cross_entropy_with_logits(logits[steps], opened[steps].float())
    torch.testing.assert_close(gripper_error(logits, opened, steps).mean(), expected)


def batch(model: GR1Policy) -> dict[str, Any]:
    """A batch as the loader gives it."""
    given = inputs(model)
    rng = torch.Generator().manual_seed(3)
    actions = torch.randn(WINDOWS, STEPS, model.config.action_size, generator=rng)
    made = {"goal": given["goal"], "steps": given["steps"], "state": given["state"], "action": actions}
    for name, one in given["seen"].items():
        made[f"seen {name}"] = torch.cat([one.token[:, :, None], one.patches], dim=2)
        made[f"pixels {name}"] = torch.rand(WINDOWS, STEPS, 3, 16, 16, generator=rng)
    return made


@pytest.mark.light("gr-1", "exact")
def test_actions_teach_nothing_to_what_foresees_pictures() -> None:
    model = tiny()
    lesson = Lesson(("static", "hand"), ahead=2)
    losses = lesson(model, batch(model))
    assert {name: number for name, (_, number) in losses.items()} == lesson.counts(batch(model), gripper=True)
    (losses["arm"][0] + losses["gripper"][0]).backward()
    foreseeing = [*model.decoder.parameters(), *(camera.queries.weight for camera in model.cameras)]
    assert all(one.grad is None or not one.grad.any() for one in foreseeing)
    assert model.action_query.weight.grad.any() and model.resampler.latents.weight.grad.any()
    model.zero_grad()
    (losses := lesson(model, batch(model)))["static ahead"][0].backward()
    assert model.cameras[0].queries.weight.grad.any() and not model.action.arm.weight.grad
    assert model.cameras[1].queries.weight.grad is None or not model.cameras[1].queries.weight.grad.any()


def test_a_lesson_without_actions_reads_clips_alone() -> None:
    model = tiny()
    clips = {name: one for name, one in batch(model).items() if name not in ("state", "action")}
    losses = Lesson(("static",), ahead=1, act=False)(model, clips)
    assert set(losses) == {"static ahead"} and losses["static ahead"][1] == WINDOWS * (STEPS - 1)
    losses = Lesson(("static", "hand"), ahead=2, foresee=False)(model, batch(model))
    assert set(losses) == {"arm", "gripper"}


def test_numbers_of_the_world_are_brought_to_the_network_s_units_and_back() -> None:
    scaled = {"action_mean": [1.0] * 6, "action_scale": [4.0] * 6, "state_mean": [2.0] * 6, "state_scale": [0.5] * 6}
    plain, model = tiny(), tiny(**scaled)
    given = inputs(plain)
    raw = given["state"].clone()
    raw[..., :6] = raw[..., :6] * 0.5 + 2
    with torch.no_grad():
        theirs, ours = plain(**given), model(**{**given, "state": raw})
    torch.testing.assert_close(ours.arm, theirs.arm, **CLOSE)
    actions = model.actions(ours)
    torch.testing.assert_close(actions[..., :6], theirs.arm * 4 + 1, **CLOSE)
    assert torch.equal(actions[..., 6], torch.where(theirs.gripper > 0, 1.0, -1.0))
    torch.testing.assert_close(model.arm_targets(actions), ours.arm, **CLOSE)


def test_a_policy_without_a_gripper_moves_every_number() -> None:
    model = tiny(gripper=False, state_size=2, action_size=2, cameras=["top"])
    said = model(**inputs(model))
    assert said.arm.shape == (WINDOWS, STEPS, 2) and said.gripper is None
    assert torch.equal(model.actions(said), said.arm)


def test_saved_and_loaded_it_says_the_same(tmp_path: Path) -> None:
    model = tiny(action_mean=[0.1] * 6, action_scale=[2.0] * 6)
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path).eval()
    assert all(torch.equal(one, again.state_dict()[name]) for name, one in model.state_dict().items())
    given = inputs(model)
    for ours, theirs in zip(outputs(again, **given), outputs(model, **given), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)  # kernels go by where weights lie in memory
    assert again.config.action_scale == [2.0] * 6


def test_told_places_tell_patches_apart_that_look_alike() -> None:
    def swapped(model: GR1Policy) -> float:
        given = inputs(model)
        seen = {name: Seen(one.token, one.patches.flip(2)) for name, one in given["seen"].items()}
        both = outputs(model, **given), outputs(model, **{**given, "seen": seen})
        return float((both[0][0] - both[1][0]).abs().max())

    assert swapped(tiny()) < 1e-5, "as published, features alone say where they are from"
    assert swapped(tiny(places=True)) > 1e-4
    with pytest.raises(UserError, match="places need features of a width that is a multiple of 4, not 18"):
        tiny(places=True, vision_width=18)


def test_new_weights_of_blocks_are_gpt2_s_and_queries_are_of_spread_one() -> None:
    torch.manual_seed(0)
    model = GR1Policy(GR1Config(**{**FIELDS, "width": 128}))
    with torch.no_grad():
        assert float(model.blocks[0].mlp.fc1.weight.std()) == pytest.approx(0.02, rel=0.05)
        assert float(model.time.weight.std()) == pytest.approx(1.0, rel=0.1)
        assert float(model.resampler.latents.weight.std()) == pytest.approx(1.0, rel=0.3)


def test_what_cannot_be_is_said_in_a_sentence() -> None:
    model = tiny()
    given = inputs(model)
    with pytest.raises(UserError, match="no camera 'wrist'; it has static, hand"):
        model(**{**given, "seen": {"wrist": given["seen"]["hand"]}})
    with pytest.raises(UserError, match="6 steps are more than the window of 5"):
        model(**{**given, "steps": torch.ones(WINDOWS, 6, dtype=torch.bool)})
    for fields, sentence in (
        ({"ahead": 5}, "5 steps ahead lies outside windows of 5"),
        ({"heads": 5}, "32 does not divide into 5 heads"),
        ({"cameras": []}, "name at least one camera"),
        ({"state_mean": [0.0] * 7}, "state_mean has 7 numbers; there are 6 without the gripper's"),
        ({"action_size": 1}, "at least one number beside a gripper's"),
        ({"image_size": 20}, "cannot be cut into tiles of 8 x 8"),
    ):
        with pytest.raises(UserError, match=sentence):
            tiny(**fields)


# ---- the published layout


def released(model: GR1Policy) -> dict[str, torch.Tensor]:
    """The weights of `model` under the names of the official code, with what that code keeps beside them."""
    ours = model.state_dict()
    names = {
        "goal": "embed_lang", "state.arm": "embed_arm_state", "state.gripper": "embed_gripper_state",
        "state.both": "embed_state", "time": "embed_timestep", "embed_norm": "embed_ln", "norm": "transformer.ln_f",
        "cameras.0.token": "embed_img", "cameras.1.token": "embed_hand_img", "cameras.0.patches": "embed_patch",
        "cameras.1.patches": "embed_hand_patch", "cameras.0.queries": "obs_queries",
        "cameras.1.queries": "obs_hand_queries", "action_query": "action_queries", "action.layers": "pred_act_mlps",
        "action.arm": "pred_arm_act", "action.gripper": "pred_gripper_act", "decoder.embed": "decoder_embed",
        "decoder.norm": "decoder_norm", "decoder.pixels": "decoder_pred", "resampler.norm": "perceiver_resampler.norm",
    }  # fmt: skip
    held = {
        "mask_token": ours["decoder.mask_token"].view(1, 1, 1, -1),
        "perceiver_resampler.latents": ours["resampler.latents.weight"],
        "perceiver_resampler.media_pos_emb": ours["resampler.media"].view(1, 1, -1),
        "decoder_pos_embed": ours["decoder.places.table"][None], "transformer.wte.weight": torch.zeros(1, 32),
        "transformer.h.0.attn.bias": torch.ones(1, 1, 60, 60), "transformer.h.0.attn.masked_bias": torch.tensor(-1e4),
    }  # fmt: skip
    inner = {"token_norm": "0.norm_media", "latent_norm": "0.norm_latents", "mlp_norm": "1.0", "mlp.fc1": "1.1",
             "mlp.fc2": "1.3", "q": "0.to_q", "kv": "0.to_kv", "out": "0.to_out"}  # fmt: skip
    for place in range(2):
        names |= {f"resampler.layers.{place}.{our}": f"perceiver_resampler.layers.{place}.{their}"
                  for our, their in inner.items()}  # fmt: skip
        names |= {f"decoder.blocks.{place}.{part}": f"decoder_blocks.{place}.{part.replace('attn.out', 'attn.proj')}"
                  for part in ("norm1", "norm2", "attn.qkv", "attn.out", "mlp.fc1", "mlp.fc2")}  # fmt: skip
        names |= {f"blocks.{place}.norm{n}": f"transformer.h.{place}.ln_{n}" for n in (1, 2)}
        for theirs, mine in STACK.items():
            held[f"transformer.h.{place}.{theirs}.weight"] = ours[f"blocks.{place}.{mine}.weight"].T
            held[f"transformer.h.{place}.{theirs}.bias"] = ours[f"blocks.{place}.{mine}.bias"]
    for name, value in ours.items():
        module, _, last = name.rpartition(".")
        found = next((mine for mine in names if module == mine or module.startswith(f"{mine}.")), None)
        if found is not None:
            held[f"{names[found]}{module[len(found) :]}.{last}"] = value
    return {name: value.contiguous() for name, value in held.items()}


@pytest.mark.light("gr-1", "exact")
def test_it_acts_and_foresees_as_the_community_s_model_on_the_same_weights() -> None:
    golden = json.loads((Path(__file__).parent / "gr1_golden.json").read_text(encoding="utf-8"))
    model = layout.policy()
    found = outputs(model, **layout.given(model))
    for one, wanted in zip(found, golden.values(), strict=True):
        ours = one[layout.VALID].flatten()[:: layout.STEP]
        torch.testing.assert_close(ours, torch.tensor(wanted), atol=1e-5, rtol=1e-5)


GIVEN = {"heads": 4, "decoder_heads": 4, "image_size": 16, "ahead": 2, "resampler_heads": 2}


@pytest.mark.light("gr-1", "weights")
def test_the_released_layout_loads_whole_and_says_the_same(tmp_path: Path) -> None:
    model = tiny()
    state = released(model)
    save_file(state, tmp_path / "released.safetensors")
    again = load_published(tmp_path / "released.safetensors", **GIVEN)
    given = inputs(model)
    for ours, theirs in zip(outputs(again, **given), outputs(model, **given), strict=True):
        assert torch.equal(ours, theirs)
    community = {
        **state, "transformer.wpe.weight": torch.zeros(60, 32),
        "action_queries.weight": state["action_queries.weight"] - 1,
        "action_chunk_queries.weight": torch.ones(1, 32),
    }  # fmt: skip
    save_file({f"module.{name}": value for name, value in community.items()}, tmp_path / "community.safetensors")
    found = outputs(load_published(tmp_path / "community.safetensors", **GIVEN), **given)
    torch.testing.assert_close(found[0], outputs(model, **given)[0], **CLOSE)


@pytest.mark.light("gr-1", "weights")
def test_files_that_are_no_such_policy_are_refused(tmp_path: Path) -> None:
    state = released(tiny())
    file = tmp_path / "file.safetensors"
    for change, sentence in (
        ({"transformer.wpe.weight": torch.ones(60, 32)}, "embeds the positions"),
        ({"action_chunk_queries.weight": torch.zeros(10, 32)}, "predicts 10 actions at once"),
        ({"embed_img.weight": torch.zeros(31, 16)}, r"embed_img|cameras.0.token.weight \[31, 16\] for \[32, 16\]"),
    ):
        save_file({**state, **change}, file)
        with pytest.raises(CheckpointError, match=sentence):
            load_published(file, **GIVEN)
    save_file({"weight": torch.zeros(2)}, file)
    with pytest.raises(CheckpointError, match="holds no policy of GR-1; its first names are weight"):
        load_published(file)
    torch.save(state, tmp_path / "snapshot.pt")
    with pytest.raises(CheckpointError, match="is a pickle"):
        load_published(tmp_path / "snapshot.pt")
