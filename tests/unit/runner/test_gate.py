"""What the update gate refuses, why, and what it lets pass."""

from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from fedfleet_coordinator.errors import Misconfigured
from fedfleet_coordinator.runner import gate
from fedfleet_coordinator.runner.gate import Finding, Sent, Settings
from fedfleet_protocol.reasons import GATE

STRICT = Settings()


def arrays(**values: Any) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(value)) for name, value in values.items()})


MODEL = RecordDict({"arrays": arrays(w=np.zeros((2, 3), np.float32), n=np.int64(3))})


def reply(record: ArrayRecord | None = None, weight: Any = 10, **metrics: Any) -> RecordDict:
    if record is None:
        record = arrays(w=np.ones((2, 3), np.float32), n=np.int64(4))
    return RecordDict({"arrays": record, "metrics": MetricRecord({"num-examples": weight, **metrics})})


def against(records: RecordDict = MODEL, kind: str = "train", key: str | None = "num-examples", **given: Any) -> Sent:
    return gate.sent(records, kind, Settings.of(given), key)


def code(records: RecordDict, sent: Sent | None = None, **given: Any) -> str:
    finding = gate.measure(records, sent or against(), Settings.of(given))
    if finding.refusal is None:
        return ""
    assert finding.refusal.code in GATE and len(finding.refusal.text) > 20
    return finding.refusal.code


def refused(*findings: Finding, **given: Any) -> list[str]:
    return [v.code if v else "" for v in gate.judge(findings, against(), Settings.of(given))]


def test_a_reply_that_looks_like_what_was_sent_passes() -> None:
    finding = gate.measure(reply(), against(), STRICT)
    assert finding.refusal is None and finding.weight == 10.0 and finding.casts == frozenset()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_value_that_is_not_finite_is_found_wherever_it_is(value: float, dtype: type) -> None:
    sent = RecordDict({"arrays": arrays(w=np.zeros(3_000_001, dtype))})
    for place in (0, 1_500_000, 3_000_000):
        values: NDArray[Any] = np.zeros(3_000_001, dtype)
        values[place] = value
        assert code(reply(arrays(w=values)), against(sent)) == "not_finite"


def test_infinities_that_cancel_are_found() -> None:
    values = np.array([[np.inf, -np.inf, 0], [0, 0, 0]], np.float32)
    assert code(reply(arrays(w=values, n=np.int64(1)))) == "not_finite"


def test_large_finite_values_whose_sum_overflows_pass() -> None:
    values = np.full((2, 3), np.finfo(np.float32).max, np.float32)
    assert code(reply(arrays(w=values, n=np.int64(1)))) == ""


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (arrays(w=np.ones((3, 2), np.float32), n=np.int64(1)), "wrong_shape"),
        (arrays(w=np.ones(6, np.float32), n=np.int64(1)), "wrong_shape"),
        (arrays(w=np.ones((2, 3), np.float32), n=np.ones(1, np.int64)), "wrong_shape"),
        (arrays(w=np.ones((2, 3), np.complex64), n=np.int64(1)), "wrong_dtype"),
        (arrays(w=np.full((2, 3), "x"), n=np.int64(1)), "wrong_dtype"),
        (arrays(w=np.ones((2, 3), np.float32)), "wrong_names"),
        (arrays(w=np.ones((2, 3), np.float32), n=np.int64(1), z=np.int64(1)), "wrong_names"),
        (arrays(v=np.ones((2, 3), np.float32), n=np.int64(1)), "wrong_names"),
        (ArrayRecord(), "wrong_names"),
    ],
)
def test_arrays_unlike_those_sent_are_refused_and_pass_where_the_run_says_so(record: ArrayRecord, why: str) -> None:
    assert code(reply(record)) == why
    assert code(reply(record), shapes=False) == ""


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32, np.bool_, ">f4"])
def test_a_dtype_of_the_same_kind_is_cast_to_the_one_sent(dtype: Any) -> None:
    finding = gate.measure(reply(arrays(w=np.ones((2, 3), dtype), n=np.int64(1))), against(), STRICT)
    assert finding.refusal is None and finding.casts == {"w"}


def test_a_counter_that_averaging_made_a_float_comes_back_as_an_integer() -> None:
    sent = RecordDict({"arrays": arrays(w=np.ones(3, np.float32), batches=np.asarray(2.5))})
    assert code(reply(arrays(w=np.ones(3, np.float32), batches=np.int64(4))), against(sent)) == ""


def test_a_header_that_lies_about_the_length_is_refused_before_anything_is_allocated() -> None:
    honest = Array(np.zeros(4, np.float32))
    lying = Array("float32", (10**9, 3), honest.stype, honest.data.replace(b"(4,), }", b"(10000000000,), }"[:7]))
    huge = honest.data.replace(b"'shape': (4,), ", b"'shape': (2500000000,), ").replace(b" " * 9 + b"\n", b"\n")
    for bad in (lying, Array("float32", (2500000000,), honest.stype, huge)):
        assert code(reply(ArrayRecord({"w": bad}))) in {"unreadable", "wrong_shape"}
        assert code(reply(ArrayRecord({"w": bad})), against(key=None)) in {"unreadable", "wrong_shape"}


def test_a_serialisation_that_stock_strategies_cannot_read_is_refused_where_they_average() -> None:
    odd = ArrayRecord({"w": Array("float32", (2, 3), "torch.tensor", b"?"), "n": Array(np.asarray(1))})
    assert code(reply(odd)) == "wrong_dtype"
    assert code(reply(odd), against(key=None)) == ""


@pytest.mark.parametrize(
    ("records", "why"),
    [
        (RecordDict({"metrics": MetricRecord({"num-examples": 1})}), "wrong_records"),
        (RecordDict({**reply(), "more": arrays(w=np.ones(1))}), "wrong_records"),
        (RecordDict({"arrays": reply()["arrays"]}), "wrong_records"),
        (RecordDict({**reply(), "more": MetricRecord({"num-examples": 1})}), "wrong_records"),
        (RecordDict(), "wrong_records"),
        (RecordDict({**reply(), "config": ConfigRecord({"x": 1})}), ""),
    ],
)
def test_a_stock_strategy_gets_one_array_record_and_one_metric_record(records: RecordDict, why: str) -> None:
    assert code(records) == why


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf"), -0.5, [1, 2]])
def test_a_weight_that_is_no_positive_number_is_refused(weight: Any) -> None:
    assert code(reply(weight=weight)) == "bad_weight"
    assert code(reply(weight=weight), against(key=None)) == "bad_weight"
    assert code(reply(weight=weight), weight=False) == ""


def test_a_missing_weight_is_refused_where_a_stock_strategy_averages() -> None:
    records = RecordDict({"arrays": reply()["arrays"], "metrics": MetricRecord({"loss": 1.0})})
    assert code(records) == "bad_weight"
    assert code(records, against(key=None)) == ""
    assert code(records, against(weighted_by="loss")) == ""


def test_a_weight_far_above_the_cohorts_median_is_refused() -> None:
    honest = [Finding(weight=w) for w in (10.0, 20.0, 900.0)]
    assert refused(*honest, Finding(weight=1e12)) == ["", "", "", "weight_cap"]
    assert refused(*honest, weight_cap=10) == ["", "", "weight_cap"]
    assert refused(Finding(weight=1.0), Finding(weight=1e12)) == ["", "weight_cap"]
    assert refused(Finding(weight=1e12)) == [""]
    assert refused(*honest, Finding(weight=1e12), weight_cap=0) == [""] * 4


def test_of_two_looks_the_more_common_one_is_right() -> None:
    def looks(**metrics: Any) -> Finding:
        return gate.measure(reply(**metrics), against(), STRICT)

    assert refused(looks(loss=1.0), looks(loss=2.0), looks(acc=1.0)) == ["", "", "wrong_records"]
    assert refused(looks(loss=[1.0, 2.0]), looks(loss=[2.0]), looks(loss=[3.0, 4.0])) == ["", "wrong_records", ""]
    other = RecordDict({"model": reply()["arrays"], "metrics": reply()["metrics"]})
    assert refused(looks(), gate.measure(other, against(), STRICT), looks()) == ["", "wrong_records", ""]


def test_what_the_gate_refuses_does_not_depend_on_refused_replies() -> None:
    bad = Finding(gate.Refusal("not_finite", "..."))
    assert refused(bad, Finding(weight=5.0), Finding(weight=6.0)) == ["not_finite", "", ""]


def test_a_norm_bound_refuses_updates_that_go_too_far() -> None:
    far = reply(arrays(w=np.full((2, 3), 10, np.float32), n=np.int64(1)))
    sent = against(norm_bound=5)
    assert code(far, sent, norm_bound=5) == "norm_bound"
    assert code(reply(), sent, norm_bound=5) == ""


def test_evaluate_replies_have_the_rules_of_metric_records_only() -> None:
    sent = against(kind="evaluate")
    metrics = MetricRecord({"num-examples": 3, "loss": float("nan")})
    assert code(RecordDict({"metrics": metrics}), sent) == ""
    assert code(RecordDict({"arrays": arrays(z=np.array([np.nan])), "metrics": metrics}), sent) == ""
    assert code(RecordDict(), sent) == "wrong_records"
    assert code(RecordDict({"metrics": MetricRecord({"num-examples": -3})}), sent) == "bad_weight"


def test_trees_bytes_and_queries_are_left_alone() -> None:
    tree = RecordDict({"arrays": ArrayRecord([np.zeros(0, np.uint8)])})
    grown = reply(ArrayRecord([np.zeros(77, np.uint8)]))
    assert code(grown, against(tree)) == ""
    assert code(RecordDict(), against(tree)) == "wrong_records"
    assert code(RecordDict(), against(tree, key=None)) == ""
    masked = RecordDict({"secagg": ConfigRecord({"shares": [b"a", b"b"]})})
    assert code(masked, against(RecordDict({"secagg": ConfigRecord({"stage": "share"})}))) == ""
    assert code(RecordDict(), against(kind="query")) == ""
    texts = RecordDict({"words": ArrayRecord([np.array("a text"), np.array(["x", "yy"])])})
    assert code(texts, against(texts, key=None)) == ""


def test_strict_is_widened_and_ended_by_the_run() -> None:
    other = reply(arrays(g=np.ones(2)))
    assert code(other, against(key=None)) == ""
    assert code(other, against(key=None, strict="always"), strict="always") == "wrong_names"
    assert code(other, against(strict="never"), strict="never") == ""
    assert code(RecordDict(), against(), enabled=False) == ""


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"wieght": 1}, "no setting 'wieght'"),
        ({"weight_cap": "many"}, "it is a number"),
        ({"weight_cap": -1}, "it is a number"),
        ({"finite": "maybe"}, "true or false"),
        ({"strict": "sometimes"}, "auto, always or never"),
    ],
)
def test_settings_that_make_no_sense_are_refused_in_words(given: dict[str, Any], told: str) -> None:
    with pytest.raises(Misconfigured, match=told):
        Settings.of(given)


def test_settings_may_be_written_as_on_a_command_line() -> None:
    assert Settings.of({"weight-cap": "10", "shapes": "off", "finite": "on"}) == Settings(weight_cap=10.0, shapes=False)


def test_what_was_sent_can_be_kept_as_plain_values() -> None:
    sent = against()
    assert Sent.restored(sent.state()) == sent
