"""Robust rules: numbers from paper, the properties that make them robust, and whom they leave out."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from fedfleet_strategies import columns, robust
from fedfleet_strategies.each import Each, gram, squared_distances
from fedfleet_strategies.errors import Incompatible, Refused
from fedfleet_strategies.fedavg import FedAvg
from fedfleet_strategies.fedavgm import FedAvgM
from fedfleet_strategies.named import FedTrimmedAvg
from fedfleet_strategies.robust.fltrust import FLTrust
from fedfleet_strategies.robust.median import by_sorting
from fedfleet_strategies.robust.ordering import MOST_ROWS, between
from fedfleet_strategies.rules import Spool
from fedfleet_strategies.updates import Aggregate, Update
from tests.unit.strategies.fleet import aggregated, model, trained

RULES: dict[str, Callable[[], Any]] = {
    "Median": robust.Median,
    "TrimmedMean": lambda: robust.TrimmedMean(0.3),
    "Krum": lambda: robust.Krum(2),
    "MultiKrum": lambda: robust.MultiKrum(2, 5),
    "Bulyan": lambda: robust.Bulyan(2),
    "GeometricMedian": lambda: robust.GeometricMedian(8),
    "CentredClipping": lambda: robust.CentredClipping(2.0, 2),
    "NormClipping": lambda: robust.NormClipping(2.0),
}
FLOAT64 = np.dtype(np.float64)
N, D = 11, 4


def folded(rule: Any, rows: Any, *, dtype: Any = FLOAT64, reference: Any = None, seed: int = 0) -> Aggregate:
    rows = np.asarray(rows, dtype)
    fold = rule.open(rows.shape[1], 1, np.dtype(dtype), Spool(rng=np.random.default_rng(seed), reference=reference))
    for i, row in enumerate(rows):
        fold.add(Update(i + 1, 1.0, delta=row.copy(), ints=np.array([float(i)])))
    found: Aggregate = rule.close(fold)
    return found


matrices = hnp.arrays(np.float64, (N, D), elements=st.floats(-100, 100, width=32))


@pytest.mark.parametrize("name", RULES)
@settings(max_examples=25, deadline=None)
@given(rows=matrices, seed=st.integers(0, 1000))
def test_the_order_of_updates_does_not_matter(name: str, rows: Any, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(N)
    apart = np.unique(squared_distances(rows @ rows.T)[np.triu_indices(N, 1)])
    if name in {"Krum", "MultiKrum", "Bulyan"} and (len(apart) < N * (N - 1) // 2 or np.diff(apart).min() < 1e-6):
        return  # equal scores are decided by the order of node ids
    found, other = folded(RULES[name](), rows).delta, folded(RULES[name](), rows[order]).delta
    np.testing.assert_allclose(found, other, atol=1e-7)


@pytest.mark.parametrize("name", ["Median", "TrimmedMean", "Krum", "MultiKrum", "Bulyan"])
@settings(max_examples=25, deadline=None)
@given(rows=matrices, by=hnp.arrays(np.float64, D, elements=st.integers(-8, 8).map(float)))
def test_moving_all_updates_moves_the_result(name: str, rows: Any, by: Any) -> None:
    apart = np.unique(squared_distances(rows @ rows.T)[np.triu_indices(N, 1)])
    if name in {"Krum", "MultiKrum", "Bulyan"} and (len(apart) < N * (N - 1) // 2 or np.diff(apart).min() < 1e-3):
        return
    np.testing.assert_allclose(
        folded(RULES[name](), rows + by).delta, folded(RULES[name](), rows).delta + by, atol=1e-7
    )


@pytest.mark.parametrize("name", ["Median", "TrimmedMean", "Bulyan"])
@settings(max_examples=25, deadline=None)
@given(honest=matrices, liars=hnp.arrays(np.float64, (2, D), elements=st.floats(-1e12, 1e12)))
def test_two_liars_do_not_get_a_coordinate_out_of_the_honest_range(name: str, honest: Any, liars: Any) -> None:
    rows = np.concatenate([honest[:9], liars])
    found = folded(RULES[name](), rows).delta
    low, high = honest[:9].min(0), honest[:9].max(0)
    assert (found >= low - 1e-6).all() and (found <= high + 1e-6).all()


@settings(max_examples=25, deadline=None)
@given(rows=matrices, liars=hnp.arrays(np.float64, (2, D), elements=st.floats(-1e12, 1e12)))
def test_clipping_bounds_how_far_anybody_moves_the_model(rows: Any, liars: Any) -> None:
    rows = np.concatenate([rows[:9], liars])
    assert np.linalg.norm(folded(RULES["CentredClipping"](), rows).delta) <= 2 * 2.0 + 1e-3
    assert np.linalg.norm(folded(RULES["NormClipping"](), rows).delta) <= 2.0 + 1e-6


@settings(max_examples=25, deadline=None)
@given(rows=matrices)
def test_krum_gives_one_of_the_updates(rows: Any) -> None:
    found = folded(robust.Krum(2), rows)
    assert any(np.allclose(found.delta, row) for row in rows) and found.count == 1
    assert len(found.left_out) == N - 1


def test_krum_is_the_papers_on_a_line() -> None:
    # n = 5, f = 1: two closest. Scores: 0: 1+4, 1: 1+1, 2: 1+4 (from 1 and 0), 10: 64+81, 100: 90^2+98^2.
    found = folded(robust.Krum(1), [[0.0], [1.0], [2.0], [10.0], [100.0]])
    assert found.delta.tolist() == [1.0]
    assert "score is 145" in found.left_out[4]


def test_bulyan_is_iterated_krum_and_a_mean_around_the_median() -> None:
    rng = np.random.default_rng(5)
    rows = np.concatenate([rng.normal(size=(9, 6)), rng.normal(50, 1, size=(2, 6))])
    left, f = list(range(11)), 2
    for _ in range(11 - 2 * f):

        def score(i: int) -> float:
            apart = sorted(float(((rows[i] - rows[j]) ** 2).sum()) for j in left if j != i)
            return sum(apart[: max(len(left) - f - 2, 1)]) + 1e-9 * sum(apart)

        left.remove(min(left, key=score))
    picked = np.array([row for i, row in enumerate(rows) if i not in left])
    median = np.median(picked, axis=0)
    wanted = [np.mean(sorted(picked[:, c], key=lambda v: abs(v - median[c]))[: len(picked) - 2 * f]) for c in range(6)]
    found = folded(robust.Bulyan(f), rows)
    np.testing.assert_allclose(found.delta, wanted)
    assert sorted(found.left_out) == [i + 1 for i in left]


def test_the_geometric_median_converges_and_one_liar_cannot_drag_it() -> None:
    rng = np.random.default_rng(6)
    rows = rng.normal(size=(9, 3))
    found = folded(robust.GeometricMedian(300), rows).delta
    around = [np.linalg.norm(rows - found - 1e-3 * rng.normal(size=3), axis=1).sum() for _ in range(50)]
    assert np.linalg.norm(rows - found, axis=1).sum() <= min(around) + 1e-9
    rows[0] = 1e30
    assert np.linalg.norm(folded(robust.GeometricMedian(), rows).delta) < 3


@pytest.mark.parametrize(("rule", "liars"), [(robust.MultiKrum(2, 5), 2), (robust.Bulyan(1), 1)])
def test_distances_among_honest_devices_survive_a_liar_at_1e30(rule: Any, liars: int) -> None:
    rng = np.random.default_rng(7)
    honest = 1e-4 * rng.normal(size=(8, 1000))
    exact = squared_distances(honest @ honest.T)
    found = folded(rule, np.concatenate([honest, np.full((liars, 1000), 1e30)]), dtype=np.float32)
    assert {9, 10} & set(found.left_out) == set(range(9, 9 + liars))
    if isinstance(rule, robust.MultiKrum):
        score = np.sort(exact, axis=1)[:, : 10 - 2 - 2 + 1].sum(axis=1)
        assert sorted(set(range(1, 9)) - set(found.left_out)) == sorted((np.argsort(score)[:5] + 1).tolist())


@pytest.mark.parametrize(
    ("rule", "n", "why"),
    [
        (robust.Krum(2), 6, "needs at least 7 updates, got 6"),
        (robust.MultiKrum(0, 5), 4, "needs at least 5"),
        (robust.Bulyan(1), 6, "needs at least 7"),
        (robust.TrimmedMean(0.4), 2, "leaves nothing"),
        (robust.Median(), 0, "no update"),
        (robust.Bucketing(robust.Krum(1), 2), 8, "needs at least 5 updates, got 4"),
    ],
)
def test_too_few_updates_are_no_result_and_the_rule_says_how_many_it_needs(rule: Any, n: int, why: str) -> None:
    with pytest.raises(Refused, match=why):
        folded(rule, np.zeros((n, 2)))


def test_options_out_of_range_are_refused() -> None:
    makes: list[Callable[[], Any]] = [
        lambda: robust.TrimmedMean(0.5), lambda: robust.Krum(-1), lambda: robust.Bulyan(-1),
        lambda: robust.GeometricMedian(0), lambda: robust.CentredClipping(0.0), lambda: robust.NormClipping(0),
        lambda: robust.Bucketing(robust.Median(), 0),
    ]  # fmt: skip
    for make in makes:
        with pytest.raises(Incompatible):
            make()


def test_bucketing_averages_buckets_and_blames_all_in_one() -> None:
    rows = np.array([[0.0], [2.0], [4.0], [6.0], [8.0], [10.0], [12.0], [14.0], [1e6], [16.0]])
    found = folded(robust.Bucketing(robust.MultiKrum(1, 4), 2), rows)
    assert 9 in found.left_out and len(found.left_out) == 2 and "in its bucket" in found.left_out[9]
    assert found.count == 8 and 0 <= found.delta[0] <= 16
    assert folded(robust.Bucketing(robust.Median(), 1), rows).delta.tolist() == [9.0]


def test_bucketing_draws_the_same_buckets_for_the_same_round() -> None:
    rows = np.random.default_rng(3).normal(size=(9, 4))
    rule = robust.Bucketing(robust.Median(), 2)
    assert folded(rule, rows, seed=1).delta.tolist() == folded(rule, rows, seed=1).delta.tolist()
    assert folded(rule, rows, seed=1).delta.tolist() != folded(rule, rows, seed=2).delta.tolist()


def test_fltrust_follows_its_equations() -> None:
    own = np.array([1.0, 1.0])
    rows = np.array([[2.0, 0.0], [0.0, 5.0], [-3.0, -3.0]])
    cosine = rows @ own / (np.linalg.norm(rows, axis=1) * np.linalg.norm(own))
    trust = np.maximum(cosine, 0)
    wanted = (trust * np.linalg.norm(own) / np.linalg.norm(rows, axis=1)) @ rows / trust.sum()
    strategy = FLTrust(lambda arrays, server_round: model(arrays["a0"].numpy() + own, dtype=np.float64))
    sent = model([10.0, 20.0], dtype=np.float64)
    replies = [trained(i + 1, model(sent["a0"].numpy() + row, dtype=np.float64)) for i, row in enumerate(rows)]
    arrays, _ = aggregated(strategy, sent, replies)
    np.testing.assert_allclose(arrays["a0"].numpy() - [10, 20], wanted)
    assert "cosine -1" in strategy.explain(1)[3]


def test_any_strategy_takes_a_rule_of_the_readers_own() -> None:
    class NearestHalf(Each):
        def admit(self, n: int) -> str | None:
            return None if n >= 4 else f"NearestHalf needs at least 4 updates, got {n}"

        def select(self, squared_distances: NDArray[np.float64]) -> dict[int, str]:
            score = np.median(squared_distances, axis=1)
            order = np.argsort(score, kind="stable")
            return {int(i): f"far: median distance {score[i] ** 0.5:.3g}" for i in order[len(score) // 2 :]}

    strategy = FedAvgM(rule=NearestHalf())
    replies = [trained(n, model([v])) for n, v in enumerate([1.0, 1.5, 9.0, -70.0], 1)]
    arrays, metrics = aggregated(strategy, model([0.0]), replies)
    assert arrays["a0"].numpy().tolist() == [1.25] and metrics["fedfleet.left-out"] == 2
    assert "far: median distance" in strategy.explain(1)[4]
    assert aggregated(strategy, model([0.0]), replies[:2], 2) == (None, None)
    assert "needs at least 4" in strategy.explain(2)[0]


def test_integers_follow_the_same_rule() -> None:
    def made(i: int) -> ArrayRecord:
        from flwr.app import Array

        return ArrayRecord({"f": Array(np.zeros(2, np.float32)), "i": Array(np.asarray(i, np.int32))})

    arrays, _ = aggregated(
        FedAvg(rule=robust.Median()), made(0), [trained(n, made(i)) for n, i in [(1, 3), (2, 5), (3, 900)]]
    )
    assert arrays["i"].numpy() == 5


def test_updates_in_memory_and_updates_in_a_file_give_the_same() -> None:
    rng = np.random.default_rng(8)
    models = [rng.normal(size=(70, 3)).astype(np.float32) for _ in range(7)]
    replies = [trained(n, model(value, value[0])) for n, value in enumerate(models, 1)]
    sent = model(np.zeros((70, 3)), np.zeros(3))
    lying, _ = aggregated(FedTrimmedAvg(), sent, replies)
    once, _ = aggregated(FedTrimmedAvg(), sent, iter(replies))

    class Touching(FedTrimmedAvg):
        def prepare(self, update: Update) -> Update:
            update.delta *= 1
            return update

    spooled, _ = aggregated(Touching(), sent, replies)
    for name in sent:
        assert lying[name].data == once[name].data == spooled[name].data


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 10, 33, 100, MOST_ROWS + 1])
def test_the_network_sorts_as_numpy_does(n: int) -> None:
    block = np.random.default_rng(n).normal(size=(n, 50)).astype(np.float32)
    wanted = np.sort(block, axis=0)
    for low, high in ((0, n), ((n - 1) // 2, n // 2 + 1), (n // 5, n - n // 5)):
        np.testing.assert_array_equal(between(block.copy(), low, high), wanted[low:high])
    np.testing.assert_allclose(robust.Median().column(block.copy()), by_sorting(block), rtol=1e-6)


def test_distances_do_not_depend_on_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(9).normal(size=(5, 2 * columns.SEGMENT + 5)).astype(np.float32)
    found = []
    for threads in (1, 4):
        monkeypatch.setattr(columns, "_THREADS", threads)
        fold = robust.Median().open(rows.shape[1], 0, np.dtype(np.float32), Spool())
        for i, row in enumerate(rows):
            fold.add(Update(i, 1.0, delta=row))
        found.append(gram(fold))
        fold.close()
    np.testing.assert_array_equal(found[0], found[1])
    exact = rows.astype(np.float64)
    np.testing.assert_allclose(found[0], exact @ exact.T, rtol=1e-9)


@pytest.mark.parametrize("name", RULES)
def test_a_reply_with_nan_is_left_out_whatever_the_rule(name: str) -> None:
    replies = [trained(n, model([float(n % 3), 1.0 * n])) for n in range(1, 12)]
    spoilt = [*replies, trained(12, model([np.nan, 1.0]))]
    strategy = FedAvg(rule=RULES[name]())
    found, _ = aggregated(strategy, model([0.0, 0.0]), spoilt)
    wanted, _ = aggregated(FedAvg(rule=RULES[name]()), model([0.0, 0.0]), replies)
    assert "NaN" in strategy.explain(1)[12] and found["a0"].data == wanted["a0"].data
