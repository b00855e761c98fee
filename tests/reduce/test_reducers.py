"""Token reducers: what W, P and sizes are, the limits in which one becomes another, and parity with direct code."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from scipy.fft import dctn, idctn
from torch import Tensor

from tessera.errors import UserError
from tessera.reduce import REDUCERS, class_importance, create, mean_importance
from tessera.reduce.base import Reduction
from tessera.reduce.grids import smaller_grid

CASES = [(name, number) for name in REDUCERS for number in (16, 25, 36) if name != "tome" or number > 16]
COLD = 1e-6  # a temperature at which a softmax is a maximum
AVERAGING = {name: {"norm": "mean"} if name == "dct" else {} for name in REDUCERS}  # rows sum to 1


def seen(tokens: int = 36, batch: int = 3, width: int = 8, grid: tuple[int, int] | None = (6, 6)) -> dict:
    """Tokens, and what there is to know about them."""
    torch.manual_seed(tokens)
    return {
        "x": torch.randn(batch, tokens, width), "keys": torch.randn(batch, tokens, 5),
        "importance": torch.rand(batch, tokens).softmax(1), "sizes": 1.0 + torch.randint(0, 3, (batch, tokens)),
        "grid": grid,
    }  # fmt: skip


def reduce(name: str, given: dict, number: int, **options) -> Reduction:
    rest = {key: value for key, value in given.items() if key != "x"}
    return create(name, **options)(given["x"], number, **rest)


@pytest.mark.light("token-transforming", "exact")
@pytest.mark.parametrize(("name", "number"), CASES)
def test_tokens_are_w_x_and_w_has_rows_that_sum_to_1(name: str, number: int) -> None:
    given = seen()
    found = reduce(name, given, number, **AVERAGING[name])
    assert found.matrix.shape == (3, number, 36)
    assert found.tokens.shape == (3, number, 8)
    torch.testing.assert_close(found.tokens, found.matrix @ given["x"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.matrix.sum(-1), torch.ones(3, number), atol=1e-5, rtol=1e-5)
    assert name == "dct" or (found.matrix >= 0).all()


@pytest.mark.light("token-transforming", "exact")
@pytest.mark.parametrize("name", REDUCERS)
def test_equal_tokens_pass_unchanged(name: str) -> None:
    given = seen()
    given["x"] = given["x"][:, :1].expand(-1, 36, -1)
    found = reduce(name, given, 25, **AVERAGING[name])
    torch.testing.assert_close(found.tokens, given["x"][:, :25], atol=1e-5, rtol=1e-5)


@pytest.mark.light("token-transforming", "exact")
@pytest.mark.parametrize("name", [name for name, kind in REDUCERS.items() if kind.expands])
def test_sizes_are_p_m_and_going_back_is_p_transposed(name: str) -> None:
    given = seen()
    found = reduce(name, given, 25)
    torch.testing.assert_close(
        found.sizes, (found.membership @ given["sizes"][..., None])[..., 0], atol=1e-4, rtol=1e-4
    )
    back = found.expand(found.tokens)
    torch.testing.assert_close(back, found.membership.mT @ found.tokens, atol=1e-5, rtol=1e-5)


@pytest.mark.light("token-transforming", "exact")
@pytest.mark.parametrize("name", ["evit", "tome", "nearest", "column", "pool"])
def test_no_token_is_lost_where_every_one_goes_somewhere(name: str) -> None:
    given = seen()
    found = reduce(name, given, 25)
    torch.testing.assert_close(found.membership.sum(1), torch.ones(3, 36))
    torch.testing.assert_close(found.sizes.sum(1), given["sizes"].sum(1))


@pytest.mark.light("token-transforming", "exact")
@pytest.mark.parametrize("name", ["prune", "evit", "random", "tome", "nearest", "pool", "dct", "row", "column"])
def test_as_many_tokens_as_there_are_stay_as_they_are_up_to_order(name: str) -> None:
    given = seen()
    options = {"tau": COLD} if name in ("row", "column") else {}
    found = reduce(name, given, 36, **options)
    order = torch.arange(36).expand(3, -1) if found.centres is None else found.centres
    torch.testing.assert_close(
        found.tokens, given["x"].gather(1, order[..., None].expand(-1, -1, 8)), atol=1e-5, rtol=0
    )
    assert order.sort(1).values.equal(torch.arange(36).expand(3, -1))


@pytest.mark.light("token-transforming", "exact")
def test_pruning_takes_the_most_important_in_their_order() -> None:
    given = seen()
    found = reduce("prune", given, 10)
    for row in range(3):
        best = sorted(given["importance"][row].argsort(descending=True)[:10].tolist())
        assert torch.equal(found.tokens[row], given["x"][row, best])
        assert torch.equal(found.sizes[row], given["sizes"][row, best])


@pytest.mark.light("token-transforming", "exact")
def test_evit_is_the_most_important_and_one_mean_of_the_others_by_importance() -> None:
    given = seen()
    found = reduce("evit", given, 10)
    for row in range(3):
        best = sorted(given["importance"][row].argsort(descending=True)[:9].tolist())
        others = [place for place in range(36) if place not in best]
        weights = given["importance"][row, others]
        fused = (weights[:, None] * given["x"][row, others]).sum(0) / weights.sum()
        torch.testing.assert_close(
            found.tokens[row], torch.cat([given["x"][row, best], fused[None]]), atol=1e-6, rtol=0
        )
        assert found.sizes[row, -1] == given["sizes"][row, others].sum()


def scattered(x: Tensor, metric: Tensor, sizes: Tensor, gone: int) -> tuple[Tensor, Tensor]:
    """Bipartite soft matching by gathers and scatters, of tokens behind a class token that is never merged."""
    metric = metric / metric.norm(dim=-1, keepdim=True)
    a, b = metric[:, ::2], metric[:, 1::2]
    scores = a @ b.transpose(1, 2)
    scores[:, 0] = -torch.inf
    best, to = scores.max(-1)
    order = best.argsort(-1, descending=True)[..., None]
    merged, left = order[:, :gone], order[:, gone:].sort(1).values
    into = to[..., None].gather(1, merged)

    def merge(values: Tensor) -> Tensor:
        width = values.shape[-1]
        source, target = values[:, ::2], values[:, 1::2]
        stays = source.gather(1, left.expand(-1, -1, width))
        goes = source.gather(1, merged.expand(-1, -1, width))
        return torch.cat([stays, target.scatter_add(1, into.expand(-1, -1, width), goes)], 1)

    sums, total = merge(x * sizes[..., None]), merge(sizes[..., None])
    return sums / total, total[..., 0]


@pytest.mark.light("token-transforming", "exact")
@pytest.mark.parametrize(("tokens", "gone"), [(36, 11), (36, 18), (35, 17), (35, 1)])
def test_tome_equals_its_scatter_form_behind_a_class_token_over_two_steps(tokens: int, gone: int) -> None:
    given = seen(tokens, grid=None)
    cls = torch.randn(3, 1, 8)
    x, sizes = torch.cat([cls, given["x"]], 1), torch.cat([torch.ones(3, 1), given["sizes"]], 1)
    once, once_sizes = scattered(x, torch.cat([torch.randn(3, 1, 5), given["keys"]], 1), sizes, gone)
    found = reduce("tome", given, tokens - gone)
    torch.testing.assert_close(torch.cat([cls, found.tokens], 1), once, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.sizes, once_sizes[:, 1:])
    twice, _ = scattered(once, once, once_sizes, 3)
    again = create("tome")(found.tokens, tokens - gone - 3, sizes=found.sizes)
    torch.testing.assert_close(again.tokens, twice[:, 1:], atol=1e-5, rtol=1e-5)


@pytest.mark.light("token-transforming", "exact")
@pytest.mark.parametrize("centres", ["farthest", "importance", "strided", "mixed"])
def test_cold_columns_are_nearest_centre_merging_and_cold_rows_pick_the_centres(centres: str) -> None:
    given = seen()
    column = reduce("column", given, 12, tau=COLD, centres=centres)
    merged = reduce("nearest", given, 12, centres=centres)
    torch.testing.assert_close(column.matrix, merged.matrix, atol=1e-5, rtol=0)
    torch.testing.assert_close(column.sizes, merged.sizes)
    row = reduce("row", given, 12, tau=COLD, centres=centres)
    picked = given["x"].gather(1, row.centres[..., None].expand(-1, -1, 8))
    torch.testing.assert_close(row.tokens, picked, atol=1e-5, rtol=0)
    if centres == "importance":
        assert torch.equal(row.centres, reduce("prune", given, 12).centres)


@pytest.mark.light("token-transforming", "exact")
def test_a_hot_softmax_gives_the_mean_of_all() -> None:
    given = seen()
    given["sizes"] = torch.ones(3, 36)
    for name in ("row", "column"):
        found = reduce(name, given, 12, tau=1e4)
        torch.testing.assert_close(found.tokens, given["x"].mean(1, keepdim=True).expand(-1, 12, -1), atol=1e-3, rtol=0)


@pytest.mark.light("token-transforming", "exact")
@pytest.mark.parametrize("name", ["column", "tome", "nearest", "evit", "row"])
def test_two_steps_are_one_step_with_the_product_of_the_matrices(name: str) -> None:
    given = seen()
    first = reduce(name, given, 24)
    second = create(name)(
        first.tokens, 14, importance=first.map(given["importance"][..., None])[..., 0], sizes=first.sizes
    )
    both = second.matrix @ first.matrix
    torch.testing.assert_close(second.tokens, both @ given["x"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(both.sum(-1), torch.ones(3, 14))
    if name != "row":
        sizes = second.membership @ first.membership @ given["sizes"][..., None]
        torch.testing.assert_close(second.sizes, sizes[..., 0], atol=1e-4, rtol=1e-4)


@pytest.mark.light("token-transforming", "exact")
@pytest.mark.parametrize("name", ["prune", "evit", "nearest", "row", "column"])
def test_tokens_in_another_order_permute_the_columns_of_w_and_leave_y(name: str) -> None:
    given = seen(grid=None)
    order = torch.randperm(36)
    moved = {key: None if value is None else value[:, order] for key, value in given.items()}
    first, second = reduce(name, given, 12), reduce(name, moved, 12)
    # Outputs stand in the order of their centres: find each in the other.
    match = torch.cdist(second.tokens, first.tokens).argmin(-1)
    assert match.sort(1).values.equal(torch.arange(12).expand(3, -1))
    torch.testing.assert_close(
        second.tokens, first.tokens.gather(1, match[..., None].expand(-1, -1, 8)), atol=1e-5, rtol=0
    )
    rows = first.matrix.gather(1, match[..., None].expand(-1, -1, 36))
    torch.testing.assert_close(second.matrix, rows[:, :, order], atol=1e-5, rtol=0)


@pytest.mark.light("token-transforming", "exact")
@pytest.mark.parametrize("name", ["column", "nearest"])
def test_exact_clusters_come_back_whole_and_the_map_has_their_rank(name: str) -> None:
    torch.manual_seed(0)
    clusters, member = torch.randn(2, 5, 16), torch.randint(0, 5, (30,))
    member[:5] = torch.arange(5)
    x = clusters[:, member]
    found = create(name)(x, 5, importance=torch.rand(2, 30))
    torch.testing.assert_close(found.expand(found.tokens), x, atol=1e-4, rtol=0)
    composed = found.membership.mT @ found.matrix
    assert torch.linalg.matrix_rank(composed, tol=1e-4).tolist() == [5, 5]


def test_importance_multiplies_what_is_read_of_a_token() -> None:
    given = seen()
    plain, weighed = (reduce("column", given, 12, by_importance=by).matrix for by in (False, True))
    product = plain * given["importance"][:, None]
    torch.testing.assert_close(weighed, product / product.sum(-1, keepdim=True))
    given["importance"][:, 4] = 0
    for name in ("row", "column"):
        assert (reduce(name, given, 12, by_importance=True).matrix[..., 4] == 0).all()


def test_farthest_centres_are_those_of_the_definition() -> None:
    given = seen()
    keys = F.normalize(given["keys"][0], dim=-1)
    chosen = [int(given["importance"][0].argmax())]
    while len(chosen) < 9:
        alike = (keys @ keys[chosen].T).amax(1)
        alike[chosen] = torch.inf
        chosen.append(int(alike.argmin()))
    assert reduce("column", given, 9).centres[0].tolist() == sorted(chosen)


def test_k_means_only_lowers_the_distance_to_the_means_in_key_space() -> None:
    given = seen(64, grid=None)
    given["sizes"] = torch.ones(3, 64)
    keys = F.normalize(given["keys"], dim=-1)
    alike = []
    for iterations in (0, 1, 5):
        found = reduce("nearest", given, 8, iterations=iterations)
        means = F.normalize(found.map(keys), dim=-1)
        alike.append((found.spread.back(means) * keys).sum(-1).mean())
    assert alike[0] < alike[1] < alike[2]


def test_average_pooling_is_that_of_pytorch_where_sides_divide_and_where_not() -> None:
    for number, side in ((9, 3), (16, 4), (25, 5)):
        given = seen()
        image = given["x"].mT.unflatten(2, (6, 6))
        wanted = F.adaptive_avg_pool2d(image, side).flatten(2).mT
        found = reduce("pool", given, number)
        torch.testing.assert_close(found.tokens, wanted)
        assert found.grid == (side, side)


def test_the_dct_low_pass_is_that_of_scipy_with_orthonormal_rows_and_comes_back_as_zeros_above() -> None:
    given = seen(6 * 9, grid=(6, 9))
    found = reduce("dct", given, 24)
    rows, columns = found.grid
    assert (rows, columns) == smaller_grid((6, 9), 24) == (4, 6)
    grid = given["x"].unflatten(1, (6, 9)).numpy()
    low = dctn(grid, axes=(1, 2), norm="ortho")[:, :rows, :columns]
    torch.testing.assert_close(found.tokens, torch.from_numpy(idctn(low, axes=(1, 2), norm="ortho")).flatten(1, 2))
    torch.testing.assert_close(found.matrix @ found.matrix.mT, torch.eye(24).expand(3, -1, -1), atol=1e-5, rtol=0)
    again = create("dct")(found.expand(found.tokens), 24, grid=(6, 9))
    torch.testing.assert_close(again.tokens, found.tokens, atol=1e-5, rtol=1e-5)
    assert found.matrix.sum(-1)[0, 0].item() == pytest.approx((54 / 24) ** 0.5)
    scaled = reduce("dct", given, 24, norm="mean")
    torch.testing.assert_close(scaled.expand(scaled.tokens), found.expand(found.tokens), atol=1e-5, rtol=1e-5)


def test_random_dropping_follows_its_seed_and_not_the_batch() -> None:
    given = seen()
    first = reduce("random", given, 12)
    assert torch.equal(first.centres[0], create("random")(given["x"][:1], 12).centres[0])
    assert not torch.equal(first.centres, reduce("random", given, 12, seed=1).centres)


def test_the_class_token_s_row_alone_gives_the_importance_of_the_whole_map() -> None:
    torch.manual_seed(0)
    q, k, bias = torch.randn(2, 4, 10, 6), torch.randn(2, 4, 10, 6), torch.randn(2, 10)
    scores = q @ k.mT * 6**-0.5
    whole = (scores + bias[:, None, None]).softmax(-1).mean(1)
    torch.testing.assert_close(class_importance(q[:, :, 0], k, bias), whole[:, 0, 1:])
    torch.testing.assert_close(mean_importance(q, k), scores.softmax(-1).mean(1).mean(1))


def test_half_precision_tokens_stay_so_and_sizes_do_not() -> None:
    given = seen()
    given["x"] = given["x"].bfloat16()
    for name in REDUCERS:
        found = reduce(name, given, 25)
        assert found.tokens.dtype == torch.bfloat16
        assert found.sizes.dtype == torch.float32
        if found.spread is not None:
            assert found.expand(found.tokens).shape == (3, 36, 8)


def test_autocast_does_not_touch_how_the_matrix_is_made() -> None:
    given = seen()
    for name in REDUCERS:
        usual = reduce(name, given, 25)
        with torch.autocast("cpu", torch.bfloat16):
            found = reduce(name, given, 25)
        assert torch.equal(found.matrix, usual.matrix)
        assert torch.equal(found.sizes, usual.sizes)
        torch.testing.assert_close(found.tokens.float(), usual.tokens, atol=0.05, rtol=0.05)


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("colum", {}, "no token reducer 'colum'; did you mean 'column'"),
        ("column", {"taw": 1.0}, "'column' has no option 'taw'; did you mean 'tau'"),
        ("column", {"tau": 0.0}, "tau is 0.0; it is a number above 0"),
        ("column", {"tau": "warm"}, "tau of the reducer 'column' cannot be 'warm'; it is of type float"),
        ("nearest", {"centres": "fartest"}, "centres cannot be 'fartest'; did you mean 'farthest'"),
        ("nearest", {"iterations": -1}, "iterations is -1; it is at least 0"),
    ],
)
def test_a_reducer_that_cannot_be_is_refused_with_a_sentence(name: str, options: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        create(name, **options)


def test_what_a_reducer_cannot_do_is_said() -> None:
    x = torch.randn(1, 12, 4)
    for name in REDUCERS:
        for number in (0, 13):
            with pytest.raises(UserError, match=f"{number} tokens cannot be made of 12; ask for 1 to 12"):
                create(name)(x, number, grid=(3, 4))
    with pytest.raises(UserError, match="tome merges at most half"):
        create("tome")(x, 5)
    for name in ("prune", "evit"):
        with pytest.raises(UserError, match=f"{name}' chooses by importance"):
            create(name)(x, 5)
    with pytest.raises(UserError, match="'pool' works on a grid"):
        create("pool")(x, 5)
    with pytest.raises(UserError, match="a grid of 3 x 5 does not hold 12 tokens"):
        create("pool")(x, 5, grid=(3, 5))
    with pytest.raises(UserError, match="take the reducer 'column'"):
        found = create("row")(x, 5)
        found.expand(found.tokens)
