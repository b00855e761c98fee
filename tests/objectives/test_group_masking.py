"""Group masking: how much is hidden, where, with what, and that the seed alone decides."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import ViTConfig, ViTForMaskedImageModeling

from tessera.errors import UserError
from tessera.objectives.group_masking import NO_PARTNER, Corrupted, GroupMasking, put_partners
from tessera.objectives.masked_l1 import masked_l1

RELEASED = GroupMasking()
FILLED = GroupMasking(replace=0.0)
PARTNERS = GroupMasking(fills="")
TOKENS = GroupMasking(align=16)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def picture(side: int = 64, seed: int = 0) -> np.ndarray:
    return rng(seed).standard_normal((3, side, side), np.float32)


@pytest.mark.light("gmml", "exact")
@pytest.mark.parametrize("masking", [RELEASED, TOKENS, replace(RELEASED, align=4, block=0.0)])
def test_the_share_that_is_drawn_is_covered_and_passed_by_less_than_one_rectangle(masking: GroupMasking) -> None:
    for seed in range(20):
        share = float(rng(seed).uniform(0.1, 0.9))
        mask, _ = masking.cover(64, 64, share, rng(seed))
        assert share <= mask.mean() < share + max(masking.block, masking.align / 64) ** 2 + 1e-9


@pytest.mark.light("gmml", "exact")
@pytest.mark.parametrize("fills", ["noise", "zeros", "copies"])
def test_pixels_outside_the_mask_are_the_clean_ones_bit_for_bit_and_those_inside_are_the_fill(fills: str) -> None:
    clean = picture()
    kept = clean.copy()
    shown, mask, partner = replace(FILLED, fills=fills)(clean, rng(1))
    assert partner == NO_PARTNER
    assert np.array_equal(clean, kept)
    assert np.array_equal(shown[:, ~mask], clean[:, ~mask])
    inside = shown[:, mask]
    if fills == "zeros":
        assert not inside.any()
    elif fills == "copies":
        assert np.isin(inside, clean).all() and not np.array_equal(inside, clean[:, mask])
    else:
        assert not np.isin(inside, clean).any()
        assert abs(inside.mean()) < 0.05 and abs(inside.std() - 1) < 0.05


@pytest.mark.light("gmml", "exact")
def test_whole_tokens_are_hidden_where_rectangles_are_aligned_to_them() -> None:
    for seed in range(5):
        _, mask, _ = TOKENS(picture(224), rng(seed))
        cells = mask.reshape(14, 16, 14, 16).mean((1, 3))
        assert set(np.unique(cells)) == {0.0, 1.0}


@pytest.mark.light("gmml", "exact")
def test_replaced_pixels_are_another_picture_s_at_the_same_place() -> None:
    clean = np.stack([picture(32, seed) for seed in range(5)])
    rows = [PARTNERS(one, rng(place)) for place, one in enumerate(clean)]
    shown, masks, draws = (np.stack(column) for column in zip(*rows, strict=True))
    result = put_partners(clean, shown, masks, draws)
    for place, (seen, mask) in enumerate(zip(result, masks, strict=True)):
        assert np.array_equal(seen[:, ~mask], clean[place][:, ~mask])
        others = [other for other in range(5) if np.array_equal(seen[:, mask], clean[other][:, mask])]
        assert len(others) == 1 and others[0] != place
    assert np.array_equal(shown, clean), "what was handed in stays"


def test_partners_are_put_where_one_was_drawn_and_a_picture_alone_has_none() -> None:
    clean = np.stack([picture(8, seed) for seed in range(3)])
    masks, draws = np.ones((3, 8, 8), bool), np.array([NO_PARTNER, 0.0, 0.99])
    result = put_partners(clean, np.zeros_like(clean), masks, draws)
    assert not result[0].any()
    assert np.array_equal(result[1:], clean[[2, 1]])
    with pytest.raises(UserError, match="a batch of one picture has no other"):
        put_partners(clean[:1], clean[:1], masks[:1], draws[1:2])


@pytest.mark.light("gmml", "exact")
def test_one_seed_gives_one_result_whatever_was_drawn_before() -> None:
    def corrupted(seed: int) -> Corrupted:
        return RELEASED(picture(), rng(seed))

    forth, back = [corrupted(seed) for seed in range(6)], [corrupted(seed) for seed in reversed(range(6))]
    for one, again in zip(forth, reversed(back), strict=True):
        assert all(np.array_equal(mine, theirs) for mine, theirs in zip(one, again, strict=True))
    assert len({one.mask.tobytes() for one in forth}) == 6


@pytest.mark.light("gmml", "exact")
def test_blocks_of_one_step_are_isolated_tokens_that_may_lie_anywhere() -> None:
    isolated = replace(RELEASED, block=0.0, align=4)
    _, blocks = isolated.cover(32, 32, 0.5, rng())
    assert {(rows.stop - rows.start, columns.stop - columns.start) for rows, columns in blocks} == {(4, 4)}
    assert isolated.cover(32, 32, 1.0, rng())[0].all()
    assert isolated.cover(4, 4, 1.0, rng())[0].all(), "a picture of one token"


@pytest.mark.light("gmml", "exact")
@pytest.mark.parametrize(
    ("masking", "share", "rectangles", "touched", "full"),
    [(replace(FILLED), 0.645, 62, 0.87, 0.36), (replace(FILLED, align=16), 0.644, 34, 0.64, 0.64)],
)
def test_masks_have_the_statistics_of_the_released_sampler_at_224_pixels(
    masking: GroupMasking, share: float, rectangles: int, touched: float, full: float
) -> None:
    draws = rng(0)
    found = [masking.cover(224, 224, draws.uniform(0.5, 0.75), draws) for _ in range(600)]
    cells = np.stack([mask.reshape(14, 16, 14, 16).mean((1, 3)) for mask, _ in found])
    assert np.mean([mask.mean() for mask, _ in found]) == pytest.approx(share, abs=0.015)
    assert np.mean([len(blocks) for _, blocks in found]) == pytest.approx(rectangles, rel=0.06)
    assert (cells > 0).mean() == pytest.approx(touched, abs=0.02)
    assert (cells == 1).mean() == pytest.approx(full, abs=0.02)


def test_each_way_of_hiding_is_as_likely_as_the_others() -> None:
    masking, small = GroupMasking(fills="noise-zeros"), picture(16)
    drawn = [masking(small, rng(seed)) for seed in range(600)]
    partners = np.mean([one.partner != NO_PARTNER for one in drawn])
    zeros = np.mean([not one.shown[:, one.mask].any() for one in drawn])
    assert partners == pytest.approx(1 / 3, abs=0.06)
    assert zeros == pytest.approx(1 / 3, abs=0.06)


def test_no_area_leaves_the_picture_as_it_is() -> None:
    clean = picture()
    shown, mask, _ = GroupMasking(least=0, most=0, replace=0)(clean, rng())
    assert np.array_equal(shown, clean) and not mask.any()


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"most": 1.5}, "most is a share of the picture in .0, 1., not 1.5"),
        ({"align": 0}, "align is 0 pixels; it is at least 1"),
        ({"fills": "nois-zeros"}, "cannot be filled with 'nois'; did you mean 'noise'"),
        ({"fills": "", "replace": 0}, "nothing is hidden; name some of noise, zeros, copies"),
    ],
)
def test_what_masking_cannot_be_is_said(fields: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        GroupMasking(**fields)


def test_steps_that_do_not_divide_the_picture_are_refused() -> None:
    with pytest.raises(UserError, match="align is 16 pixels, which does not divide a picture of 64 x 40"):
        TOKENS(np.zeros((3, 64, 40), np.float32), rng())


@pytest.mark.light("gmml", "exact")
def test_the_loss_pulls_at_hidden_values_alone_each_by_one_over_their_number() -> None:
    clean = torch.from_numpy(np.stack([picture(8, seed) for seed in range(2)]))
    mask = torch.from_numpy(rng().random((2, 1, 8, 8)) < 0.4)
    restored = torch.randn(2, 3, 8, 8, requires_grad=True)
    loss = masked_l1(restored, clean, mask)
    loss.mean().backward()
    wide = mask.expand(-1, 3, -1, -1)
    assert loss.number == int(wide.sum())
    assert not restored.grad[~wide].any()
    torch.testing.assert_close(restored.grad[wide].abs(), torch.full((loss.number,), 1 / loss.number))
    torch.testing.assert_close(loss.mean(), (restored - clean)[wide].abs().mean())
    torch.testing.assert_close(masked_l1(restored, clean).mean(), (restored - clean).abs().mean())
    with pytest.raises(ValueError, match="a picture of"):
        masked_l1(restored, clean[:1], mask)


@pytest.mark.light("gmml", "exact")
def test_the_loss_is_that_of_masked_image_models_of_transformers_on_what_they_restore() -> None:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=16, patch_size=4,
        encoder_stride=4,
    )  # fmt: skip
    model = ViTForMaskedImageModeling(config).eval()
    pictures, tokens = torch.randn(2, 3, 16, 16), torch.rand(2, 16) < 0.5
    out = model(pictures, bool_masked_pos=tokens)
    mask = tokens.view(2, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    torch.testing.assert_close(masked_l1(out.reconstruction, pictures, mask).mean(), out.loss, rtol=1e-5, atol=0)
