"""The low-pass of Fourier-VLM: equal to transforms made by FFT, and the identities that follow from them."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.fft import dctn, idctn
from torch import Tensor

from tessera.errors import UserError
from tessera.reduce import create
from tessera.reduce.grids import scaled_grid

SIDES = [
    ((24, 24), (12, 12)),
    ((24, 24), (5, 5)),
    ((3, 7), (2, 4)),
    ((7, 3), (4, 2)),
    ((6, 6), (1, 1)),
    ((5, 8), (5, 8)),
]
NORMS = {"orthonormal": "ortho", "none": "backward"}
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def tokens(grid: tuple[int, int], batch: int = 2, width: int = 6) -> Tensor:
    """Random ones, the same for a grid."""
    generator = torch.Generator().manual_seed(grid[0])
    return torch.randn(batch, grid[0] * grid[1], width, generator=generator)


def low(x: Tensor, grid: tuple[int, int], kept: tuple[int, int], norm: str = "ortho") -> Tensor:
    """The kept coefficients [B, h', w', C], by FFT."""
    whole = dctn(x.unflatten(1, grid).double().numpy(), axes=(1, 2), norm=norm)
    return torch.from_numpy(whole[:, : kept[0], : kept[1]])


@pytest.mark.light("fourier-vlm", "exact")
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("grid", "kept"), SIDES)
def test_the_matrix_form_is_the_fft_form(grid: tuple[int, int], kept: tuple[int, int], norm: str) -> None:
    x = tokens(grid)
    found = create("dct", norm=norm)(x, kept, grid=grid)
    block = low(x, grid, kept, NORMS[norm])
    back = torch.from_numpy(idctn(block.numpy(), axes=(1, 2), norm=NORMS[norm]))
    torch.testing.assert_close(found.tokens, back.flatten(1, 2).float(), **CLOSE)
    assert found.grid == kept
    raw = create("dct", norm=norm, coefficients=True)(x, kept, grid=grid)
    scale = 1.0 if norm == "orthonormal" else 4 * math.sqrt(math.prod(grid))  # sums instead of means, times 2 a side
    torch.testing.assert_close(raw.tokens / scale, block.flatten(1, 2).float() / scale, **CLOSE)


@pytest.mark.light("fourier-vlm", "exact")
@pytest.mark.parametrize("norm", ["orthonormal", "none", "mean"])
@pytest.mark.parametrize("coefficients", [False, True])
def test_what_is_put_back_and_reduced_again_stays_as_it_was(norm: str, coefficients: bool) -> None:
    reducer = create("dct", norm=norm, coefficients=coefficients)
    y = tokens((2, 4))
    template = reducer(tokens((3, 7)), (2, 4), grid=(3, 7))
    again = reducer(template.expand(y), (2, 4), grid=(3, 7)).tokens
    torch.testing.assert_close(again, y, **CLOSE)


@pytest.mark.light("fourier-vlm", "exact")
@pytest.mark.parametrize(("grid", "kept"), SIDES)
def test_putting_back_pads_the_transform_with_zeros(grid: tuple[int, int], kept: tuple[int, int]) -> None:
    x = tokens(grid)
    found = create("dct")(x, kept, grid=grid)
    padded = torch.zeros(2, *grid, 6, dtype=torch.float64)
    padded[:, : kept[0], : kept[1]] = low(x, grid, kept)
    wanted = torch.from_numpy(idctn(padded.numpy(), axes=(1, 2), norm="ortho")).flatten(1, 2)
    torch.testing.assert_close(found.expand(found.tokens), wanted.float(), **CLOSE)


@pytest.mark.light("fourier-vlm", "exact")
@pytest.mark.parametrize("grid", [(24, 24), (3, 7)])
def test_with_all_frequencies_nothing_changes(grid: tuple[int, int]) -> None:
    x = tokens(grid)
    for norm in ("orthonormal", "none", "mean"):
        found = create("dct", norm=norm)(x, grid, grid=grid).tokens
        torch.testing.assert_close(found, x, atol=2e-6, rtol=0)


@pytest.mark.light("fourier-vlm", "exact")
@pytest.mark.parametrize(("grid", "kept"), SIDES)
def test_the_map_is_linear_with_orthonormal_rows(grid: tuple[int, int], kept: tuple[int, int]) -> None:
    x, y = tokens(grid), tokens(grid).flip(1)
    reducer = create("dct")
    first, second = reducer(x, kept, grid=grid), reducer(y, kept, grid=grid)
    both = reducer(2 * x - 3 * y, kept, grid=grid).tokens
    torch.testing.assert_close(both, 2 * first.tokens - 3 * second.tokens, atol=1e-5, rtol=1e-4)
    rows = first.matrix[0]
    torch.testing.assert_close(rows @ rows.T, torch.eye(len(rows)), atol=1e-6, rtol=0)


@pytest.mark.light("fourier-vlm", "exact")
@pytest.mark.parametrize(("grid", "kept"), SIDES)
def test_the_energy_that_is_kept_is_that_of_the_kept_coefficients(grid: tuple[int, int], kept: tuple[int, int]) -> None:
    x = tokens(grid)
    found = create("dct")(x, kept, grid=grid).tokens.double()
    torch.testing.assert_close(found.square().sum((1, 2)), low(x, grid, kept).square().sum((1, 2, 3)), **CLOSE)


@pytest.mark.light("fourier-vlm", "exact")
@pytest.mark.parametrize(("grid", "kept"), SIDES)
def test_a_constant_grows_by_the_root_of_the_tokens_lost_or_not_at_all(
    grid: tuple[int, int], kept: tuple[int, int]
) -> None:
    x = torch.full((1, math.prod(grid), 3), 0.7)
    lost = math.prod(grid) / math.prod(kept)
    for norm, factor in {"orthonormal": math.sqrt(lost), "none": lost, "mean": 1.0}.items():
        found = create("dct", norm=norm)(x, kept, grid=grid).tokens
        torch.testing.assert_close(found, torch.full_like(found, 0.7 * factor), **CLOSE)


@pytest.mark.light("fourier-vlm", "exact")
def test_one_token_is_the_mean_times_the_root_of_their_number() -> None:
    x = tokens((24, 24))
    found = create("dct")(x, (1, 1), grid=(24, 24)).tokens
    torch.testing.assert_close(found, 24 * x.mean(1, keepdim=True), **CLOSE)


@pytest.mark.light("fourier-vlm", "exact")
def test_the_first_row_from_24_to_12_is_the_published_one() -> None:
    rows = create("dct")(torch.zeros(1, 24, 1), (1, 12), grid=(1, 24)).matrix[0]
    assert [round(value, 2) for value in rows[0, :4].tolist()] == [0.85, 0.51, 0.12, -0.06]


@pytest.mark.light("fourier-vlm", "exact")
def test_rows_stay_rows_and_columns_columns() -> None:
    """A picture that changes only across is the same in every row that is left."""
    x = torch.linspace(-1, 1, 7).repeat(3)[None, :, None]
    found = create("dct")(x, (2, 4), grid=(3, 7)).tokens.view(2, 4)
    torch.testing.assert_close(found[0], found[1])
    assert (found[0].diff() > 0).all()


@pytest.mark.light("fourier-vlm", "exact")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_full_and_rounded_once(dtype: torch.dtype) -> None:
    x = tokens((24, 24)).to(dtype)
    reducer = create("dct")
    wanted = reducer(x.float(), (12, 12), grid=(24, 24)).tokens.to(dtype)
    assert torch.equal(reducer(x, (12, 12), grid=(24, 24)).tokens, wanted)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(reducer(x.float(), (12, 12), grid=(24, 24)).tokens.to(dtype), wanted)


@pytest.mark.light("fourier-vlm", "exact")
def test_no_picture_changes_another_and_gradients_are_the_transposed_map() -> None:
    x = tokens((3, 7), batch=3).requires_grad_()
    reducer = create("dct")
    found = reducer(x, (2, 4), grid=(3, 7))
    alone = torch.cat([reducer(one[None], (2, 4), grid=(3, 7)).tokens for one in x])
    torch.testing.assert_close(found.tokens, alone)
    found.tokens.backward(tokens((2, 4), batch=3))
    torch.testing.assert_close(x.grad, found.expand(tokens((2, 4), batch=3)))


def test_a_ratio_rounds_each_side_down_and_leaves_at_least_one() -> None:
    assert scaled_grid((3, 7), 2 / 3) == (2, 4)
    assert scaled_grid((1, 24), 2 / 3) == (1, 16)
    assert [scaled_grid((side, side), 2 / 3)[0] for side in range(2, 99)] == [2 * side // 3 for side in range(2, 99)]


@pytest.mark.parametrize("name", ["dct", "pool"])
def test_the_sides_that_are_named_are_the_sides_that_are_left(name: str) -> None:
    found = create(name)(tokens((3, 7)), (1, 7), grid=(3, 7))
    assert found.grid == (1, 7)
    assert found.tokens.shape[1] == 7


@pytest.mark.parametrize(
    ("kept", "grid"), [((4, 4), (3, 7)), ((2, 8), (3, 7)), ((0, 4), (3, 7)), ((-1, -4), (3, 7)), ((-1, -4), None)]
)
def test_sides_that_cannot_be_left_are_refused(kept: tuple[int, int], grid: tuple[int, int] | None) -> None:
    with pytest.raises(UserError, match="tokens cannot be (left|made) of"):
        create("dct" if grid else "random")(tokens((3, 7)), kept, grid=grid)


def test_an_unknown_norm_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="norm cannot be 'orthonorm'; did you mean 'orthonormal'"):
        create("dct", norm="orthonorm")
