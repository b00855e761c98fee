"""One quantiser with the choices of VQ-VAE, VQGAN and ViT-VQGAN: its identities."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tessera.tokenizers.quantiser import Quantiser


def made(seed: int = 0, **options: Any) -> tuple[Quantiser, torch.Tensor]:
    """A quantiser of 40 codes, and vectors [2, 6, 8]."""
    torch.manual_seed(seed)
    quantiser = Quantiser(8, 40, **options)
    return quantiser, torch.randn(2, 6, quantiser.codes.embedding_dim)


@pytest.mark.light("vit-vqgan", "exact")
def test_the_nearest_of_unit_codes_is_the_one_of_the_highest_cosine() -> None:
    quantiser, vectors = made(code_width=4)
    cosine = F.cosine_similarity(vectors[:, :, None], quantiser.codes.weight, dim=-1)
    assert torch.equal(quantiser.nearest(vectors), cosine.argmax(-1))
    unit = F.normalize(quantiser.codes.weight, dim=-1)
    distance = torch.cdist(F.normalize(vectors, dim=-1).flatten(0, 1), unit).view(2, 6, 40)
    assert torch.equal(quantiser.nearest(vectors), distance.argmin(-1))


@pytest.mark.light("vit-vqgan", "exact")
def test_scaling_vectors_or_codes_changes_neither_ids_nor_what_the_decoder_reads() -> None:
    quantiser, states = made()
    before = quantiser(states)
    with torch.no_grad():
        quantiser.codes.weight.mul_(torch.rand(40, 1) * 9 + 0.1)
    after = quantiser(states * (torch.rand(2, 6, 1) * 9 + 0.1))
    assert torch.equal(before.ids, after.ids)
    torch.testing.assert_close(before.states, after.states)


@pytest.mark.light("vit-vqgan", "exact")
def test_the_gradient_passes_straight_through_to_the_unit_vector() -> None:
    quantiser, states = made()
    states.requires_grad_(True)
    weights = torch.randn(2, 6, 8)
    (quantiser(states).states * weights).sum().backward()
    other = states.detach().requires_grad_(True)
    (F.normalize(other, dim=-1) * weights).sum().backward()
    torch.testing.assert_close(states.grad, other.grad)
    assert quantiser.codes.weight.grad is None, "the codes learn from their own loss alone"


@pytest.mark.light("vit-vqgan", "exact")
def test_commitment_pulls_vectors_as_the_codebook_loss_pulls_codes_the_other_way() -> None:
    quantiser, states = made(normalise=False)
    states.requires_grad_(True)
    found = quantiser(states)
    (codes,) = torch.autograd.grad(found.codebook, quantiser.codes.weight, retain_graph=True)
    (vectors,) = torch.autograd.grad(0.25 * found.commitment, states)
    summed = torch.zeros_like(codes).index_add_(0, found.ids.flatten(), vectors.flatten(0, 1))
    torch.testing.assert_close(summed, -0.25 * codes)
    torch.testing.assert_close(found.codebook, found.commitment)


@pytest.mark.light("vit-vqgan", "exact")
def test_without_factors_and_unit_length_it_is_the_plain_vq_vae() -> None:
    quantiser, states = made(normalise=False, init="uniform")
    found = quantiser(states)
    table = quantiser.codes.weight
    ids = (states[:, :, None] - table).square().sum(-1).argmin(-1)
    assert torch.equal(found.ids, ids)
    torch.testing.assert_close(found.states, table[ids])
    torch.testing.assert_close(found.commitment, F.mse_loss(states, table[ids]))
    assert table.abs().max() <= 1 / 40
    assert sum(one.numel() for one in quantiser.parameters()) == 40 * 8


def test_vectors_are_looked_up_in_parts_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    quantiser, vectors = made()
    whole = quantiser.nearest(vectors)
    monkeypatch.setattr("tessera.tokenizers.quantiser.ROWS", 5)
    assert torch.equal(quantiser.nearest(vectors), whole)


def test_codes_that_follow_a_mean_go_to_what_they_stand_for_and_others_stay() -> None:
    quantiser, states = made(normalise=False, update="ema", decay=0.9)
    before = quantiser.codes.weight.clone()
    found = quantiser(states)
    sizes = 0.9 + 0.1 * torch.bincount(found.ids.flatten(), minlength=40)
    sums = 0.9 * before + 0.1 * torch.zeros_like(before).index_add_(0, found.ids.flatten(), states.flatten(0, 1))
    torch.testing.assert_close(quantiser.codes.weight.data, sums / sizes[:, None])
    unused = torch.bincount(found.ids.flatten(), minlength=40) == 0
    torch.testing.assert_close(quantiser.codes.weight[unused], before[unused])
    assert found.codebook == 0 and found.commitment > 0
    torch.testing.assert_close(found.states, before[found.ids], msg="the decoder reads codes as they were looked up")
    still = quantiser.codes.weight.clone()
    quantiser.eval()(states)
    assert torch.equal(quantiser.codes.weight, still)


@pytest.mark.parametrize("options", [{"code_width": 4}, {"normalise": False}, {"normalise": False, "update": "ema"}])
def test_codes_that_nobody_chooses_move_to_vectors_of_the_batch_and_others_stay(options: dict[str, Any]) -> None:
    quantiser, _ = made(restart=2, **options)
    states = torch.randn(2, 6, 8)
    vectors = quantiser.before(states).flatten(0, 1)
    first = quantiser(states)
    unused = torch.bincount(first.ids.flatten(), minlength=40) == 0
    assert torch.equal(quantiser.idle, unused.long()), "one batch is too early"
    table = quantiser.codes.weight.detach().clone()
    second = quantiser(states)
    read = quantiser.read(quantiser._unit(table[second.ids]))
    torch.testing.assert_close(second.states, read, msg="the decoder reads codes as they were looked up")
    gaps = torch.cdist(
        quantiser._unit(quantiser.codes.weight), quantiser._unit(vectors),
        compute_mode="donot_use_mm_for_euclid_dist",
    )  # fmt: skip
    assert gaps.min(1).values[unused].max() < 1e-5
    assert quantiser.idle.max() == 0
    if "update" not in options:
        assert torch.equal(quantiser.codes.weight[~unused], table[~unused])
    still = quantiser.codes.weight.clone()
    for _ in range(3):
        quantiser.eval()(torch.randn(1, 1, 8))
    assert torch.equal(quantiser.codes.weight, still)


def test_another_width_needs_a_projection() -> None:
    assert Quantiser(8, 5, 3, out_width=12)(torch.randn(1, 4, 8)).states.shape == (1, 4, 12)
    with pytest.raises(ValueError, match="without a code_width"):
        Quantiser(8, 5, out_width=12)
