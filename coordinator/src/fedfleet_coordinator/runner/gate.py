"""The update gate: which replies an aggregation may see.

A reply is measured on its own (`measure`), then the replies of a closed exchange together (`judge`), so what the gate
refuses depends on the closed set alone and never on the order of arrival. There are three kinds of rules:

- for every train reply: its arrays are as many bytes as their headers say; floats are finite; a weight that is there
  is a finite, positive number, at most `weight_cap` times the cohort's median (the lower one, so that of two weights
  the larger cannot vouch for itself);
- where a stock strategy aggregates: exactly one array record and one metric record, a weight, and records named and
  keyed like those of the other replies, because stock Flower ends the run over a single one that differs; and if the
  message held floats, the names and shapes that were sent, in dtypes that cast to the ones sent (numpy's "same_kind":
  apps in numpy return float64, an integer counter may have become a float);
- for evaluate replies to such strategies: the rules for the metric record.

"Where a stock strategy aggregates" is: a strategy with `weighted_by_key` (FedAvg and its descendants) sent a message
with one array record. Trees grow, secure aggregation sends bytes, and a hand-written loop knows itself what it wants.
The run's gate setting `strict` widens that or ends it. Each refusal has a code of `reasons.GATE` and says which setting
lets such replies pass.

Everything here is a function of its arguments; nothing is copied: large arrays are looked at in blocks.
"""

import io
import math
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from fedfleet_coordinator.errors import Misconfigured
from fedfleet_flower.arrays import NUMPY, split

DEFAULT_WEIGHT = "num-examples"
_NUMBERS = "fiub"
"""Kinds of dtypes that can be averaged: floats, integers and booleans."""
_BLOCK = 1 << 20
_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
Spec = tuple[tuple[int, ...], np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class Settings:
    """The gate settings of a run.

    Attributes:
        enabled: whether anything is refused at all.
        strict: which messages have the rules of averaging strategies: "auto" as told above, "always" or "never".
        finite, shapes, records, weight: whether the rules of that kind hold. `shapes` is names and dtypes, too.
        weighted_by: the weight's key in the metric record; empty: the strategy's own, else "num-examples".
        weight_cap: the largest weight, as a multiple of the cohort's median; 0 for none. 100 stops a lie like 1e12 and
            lets the skew of honest fleets pass.
        norm_bound: the largest L2 distance between a reply's float arrays and those sent; 0 for none.
    """

    enabled: bool = True
    strict: Literal["auto", "always", "never"] = "auto"
    finite: bool = True
    shapes: bool = True
    records: bool = True
    weight: bool = True
    weighted_by: str = ""
    weight_cap: float = 100.0
    norm_bound: float = 0.0

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "Settings":
        """Return the settings in a run's `gate`.

        Raises:
            Misconfigured: one of them is unknown or has an impossible value.
        """
        known = {one.name: one.default for one in fields(cls)}
        values: dict[str, Any] = {}
        for name, value in given.items():
            key = name.replace("-", "_")
            if key not in known:
                raise Misconfigured(f"the update gate has no setting {name!r}; it has {', '.join(sorted(known))}")
            values[key] = _setting(name, value, known[key])
        if values.get("strict", "auto") not in ("auto", "always", "never"):
            raise Misconfigured(f"gate setting strict is {values['strict']!r}; it is auto, always or never")
        return cls(**values)


def _setting(name: str, value: Any, default: Any) -> Any:
    if isinstance(default, bool):
        words = {"on": True, "true": True, "yes": True, "off": False, "false": False, "no": False}
        if isinstance(value, str) and value.lower() in words:
            return words[value.lower()]
        if isinstance(value, bool):
            return value
        raise Misconfigured(f"gate setting {name} is {value!r}; it is true or false")
    if isinstance(default, str):
        return str(value)
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number) or number < 0:
        raise Misconfigured(f"gate setting {name} is {value!r}; it is a number, 0 for no limit")
    return number


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a reply is left out: a code of `reasons.GATE` and a sentence."""

    code: str
    text: str


@dataclass(frozen=True, slots=True)
class Sent:
    """What a reply is held against.

    Attributes:
        train, evaluate: what kind of message it was; neither for queries, which are not looked at.
        strict: whether a stock strategy will aggregate the replies.
        arrays: shape and dtype of each array sent, by name; None if replies need not look like them.
        record: the array record itself, for the norm bound.
    """

    train: bool = False
    evaluate: bool = False
    strict: bool = False
    weighted_by: str = DEFAULT_WEIGHT
    arrays: Mapping[str, Spec] | None = None
    record: ArrayRecord | None = None

    def state(self) -> list[Any]:
        """Return this as plain values, without the record."""
        arrays = None
        if self.arrays is not None:
            arrays = [[name, list(shape), dtype.str] for name, (shape, dtype) in self.arrays.items()]
        return [self.train, self.evaluate, self.strict, self.weighted_by, arrays]

    @classmethod
    def restored(cls, state: list[Any]) -> "Sent":
        """Return what `state` was made of."""
        train, evaluate, strict, weighted_by, arrays = state
        if arrays is not None:
            arrays = {name: (tuple(shape), np.dtype(dtype)) for name, shape, dtype in arrays}
        return cls(train, evaluate, strict, weighted_by, arrays)


@dataclass(frozen=True, slots=True)
class Finding:
    """What is known of one reply before the others are.

    Attributes:
        looks: how its records are named and keyed; None where that does not matter.
        casts: names of arrays to be cast to the dtype sent.
    """

    refusal: Refusal | None = None
    weight: float | None = None
    looks: Any = None
    casts: frozenset[str] = field(default_factory=frozenset)


def sent(records: RecordDict, message_type: str, settings: Settings, weighted_by: str | None) -> Sent:
    """Return what replies to a message are held against.

    Args:
        weighted_by: the key of the strategy that sent it; None for a hand-written loop.
    """
    category = message_type.partition(".")[0]
    found = [record for record in records.values() if isinstance(record, ArrayRecord)]
    try:
        arrays = _specs(found[0]) if len(found) == 1 else None
    except _Refused:  # the app sends what only its own devices can read
        arrays = None
    averages = arrays is not None and any(dtype.kind == "f" for _, dtype in arrays.values())
    # With a client half, replies may hold less than a model, or its code; the strategy that asked for it checks them.
    half = isinstance(records.get("fedfleet"), ConfigRecord)
    stock = weighted_by is not None and (len(found) == 1 or category != "train") and not half
    always = settings.strict == "always"
    return Sent(
        train=category == "train",
        evaluate=category == "evaluate",
        strict=always or (settings.strict == "auto" and stock),
        weighted_by=settings.weighted_by or weighted_by or DEFAULT_WEIGHT,
        arrays=arrays if (averages and not half) or always else None,
        record=found[0] if settings.norm_bound and len(found) == 1 else None,
    )


def measure(records: RecordDict, against: Sent, settings: Settings) -> Finding:
    """Return what can be said of a reply without the others."""
    if not settings.enabled or not (against.train or against.evaluate):
        return Finding()
    try:
        if against.train:
            casts = _check_arrays(records, against, settings)
        else:
            casts = frozenset()
        weight, looks = _check_metrics(records, against, settings)
    except _Refused as refused:
        return Finding(Refusal(refused.code, str(refused)))
    return Finding(None, weight, looks, casts)


def judge(findings: Sequence[Finding], against: Sent, settings: Settings) -> list[Refusal | None]:
    """Return for each reply of a closed exchange why it is left out, or None.

    Args:
        findings: in the order of agent ids; it decides which of two equally common looks is the right one.
    """
    verdicts = [finding.refusal for finding in findings]
    if not settings.enabled:
        return verdicts
    _judge_looks(findings, verdicts)
    _judge_weights(findings, verdicts, against, settings)
    return verdicts


def _judge_looks(findings: Sequence[Finding], verdicts: list[Refusal | None]) -> None:
    looks = [finding.looks for finding, verdict in zip(findings, verdicts, strict=True) if verdict is None]
    if not looks or None in looks:
        return
    usual, _ = Counter(looks).most_common(1)[0]
    for i, finding in enumerate(findings):
        if verdicts[i] is None and finding.looks != usual:
            verdicts[i] = Refusal(
                "wrong_records",
                f"its records are {_told(finding.looks)}, those of most other replies {_told(usual)}; a stock strategy "
                f"cannot average both (gate setting records=false lets it try)",
            )


def _judge_weights(
    findings: Sequence[Finding], verdicts: list[Refusal | None], against: Sent, settings: Settings
) -> None:
    weights = [f.weight for f, verdict in zip(findings, verdicts, strict=True) if verdict is None and f.weight]
    if not weights or not settings.weight_cap or not settings.weight:
        return
    cap = settings.weight_cap * statistics.median_low(weights)
    for i, finding in enumerate(findings):
        if verdicts[i] is None and finding.weight is not None and finding.weight > cap:
            verdicts[i] = Refusal(
                "weight_cap",
                f"its weight {against.weighted_by} is {finding.weight:g}, more than {settings.weight_cap:g} times the "
                f"median of {cap / settings.weight_cap:g} (gate setting weight_cap)",
            )


class _Refused(Exception):
    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


# --- arrays ----------------------------------------------------------------------------------------------------------


def _check_arrays(records: RecordDict, against: Sent, settings: Settings) -> frozenset[str]:
    found = [record for record in records.values() if isinstance(record, ArrayRecord)]
    specs = [_specs(record) for record in found]
    casts: frozenset[str] = frozenset()
    if against.strict:
        if settings.records and len(found) != 1:
            raise _Refused(
                "wrong_records",
                f"it has {len(found)} array records where a stock strategy needs one (gate setting records=false)",
            )
        if settings.shapes and len(found) == 1 and against.arrays is not None:
            casts = _check_specs(specs[0], against.arrays)
    distance = 0.0
    for record, spec in zip(found, specs, strict=True):
        for name, (_, dtype) in spec.items():
            if dtype.kind in "fc":
                distance += _check_values(name, record[name], against, settings)
    if settings.norm_bound and math.sqrt(distance) > settings.norm_bound:
        raise _Refused(
            "norm_bound",
            f"it is {math.sqrt(distance):.4g} away from what was sent, the bound is {settings.norm_bound:g} "
            f"(gate setting norm_bound)",
        )
    return casts


def _check_specs(specs: Mapping[str, Spec], wanted: Mapping[str, Spec]) -> frozenset[str]:
    if specs.keys() != wanted.keys():
        missing, extra = sorted(wanted.keys() - specs.keys()), sorted(specs.keys() - wanted.keys())
        told = [f"lacks {_names(missing)}"] if missing else []
        told += [f"has {_names(extra)}, not sent"] if extra else []
        raise _Refused("wrong_names", f"its array record {' and '.join(told)} (gate setting shapes=false)")
    casts = set()
    for name, (shape, dtype) in wanted.items():
        got_shape, got_dtype = specs[name]
        if got_shape != shape:
            raise _Refused(
                "wrong_shape",
                f"array {name[:80]!r} has shape {got_shape} where {shape} was sent (gate setting shapes=false)",
            )
        numbers = dtype.kind in _NUMBERS
        if (got_dtype.kind not in _NUMBERS) if numbers else (got_dtype.kind != dtype.kind):
            raise _Refused(
                "wrong_dtype",
                f"array {name[:80]!r} is of {got_dtype} where {dtype} was sent (gate setting shapes=false)",
            )
        if dtype.kind != "f":
            continue
        if not np.can_cast(got_dtype, dtype, casting="same_kind"):
            raise _Refused(
                "wrong_dtype",
                f"array {name[:80]!r} is of {got_dtype} where {dtype} was sent (gate setting shapes=false)",
            )
        if got_dtype != dtype:
            casts.add(name)
    return frozenset(casts)


def _specs(record: ArrayRecord) -> dict[str, Spec]:
    """Return shape and dtype of each array, as its bytes say."""
    return {name: _spec(name, array) for name, array in record.items()}


_OPAQUE = np.dtype("V0")


def _spec(name: str, array: Array) -> Spec:
    if array.stype != NUMPY:
        return tuple(array.shape), _OPAQUE
    prefix, raw = split(array)
    try:
        stream = io.BytesIO(prefix)
        shape, _, dtype = _READERS[np.lib.format.read_magic(stream)](stream)
    except Exception as error:  # numpy raises ValueError, SyntaxError, TokenError and whatever it trips over
        raise _Refused("unreadable", f"array {name[:80]!r} has no header that numpy could read: {error}") from error
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(raw):
        raise _Refused(
            "unreadable",
            f"array {name[:80]!r} claims shape {shape} of {dtype}, which is not what its {len(raw)} bytes are",
        )
    return shape, dtype


def _check_values(name: str, array: Array, against: Sent, settings: Settings) -> float:
    """Return the squared distance from what was sent, 0 if there is no bound.

    Raises:
        _Refused: a value is not finite.
    """
    values = array.numpy()
    if settings.finite and not _finite(values):
        raise _Refused("not_finite", f"array {name[:80]!r} holds NaN or infinity (gate setting finite=false)")
    origin = against.record.get(name) if against.record is not None else None
    if origin is None or not settings.norm_bound:
        return 0.0
    was = origin.numpy()
    return _squared_distance(values, was) if was.shape == values.shape else 0.0


def _blocks(values: NDArray[Any]) -> Iterator[NDArray[Any]]:
    flat = values.ravel(order="K")
    for start in range(0, flat.size, _BLOCK):
        yield flat[start : start + _BLOCK]


def _finite(values: NDArray[Any]) -> bool:
    with np.errstate(all="ignore"):
        # A finite sum has finite terms, and costs a third of asking each; one that overflows says nothing.
        return all(bool(np.isfinite(block.sum())) or bool(np.isfinite(block).all()) for block in _blocks(values))


def _squared_distance(values: NDArray[Any], was: NDArray[Any]) -> float:
    total = 0.0
    left, right = values.ravel(), was.ravel()
    for start in range(0, left.size, _BLOCK):
        apart = left[start : start + _BLOCK].astype(np.float64) - right[start : start + _BLOCK]
        total += float(np.dot(apart, apart))
    return total


# --- metrics ---------------------------------------------------------------------------------------------------------


def _check_metrics(records: RecordDict, against: Sent, settings: Settings) -> tuple[float | None, Any]:
    found = [(name, record) for name, record in records.items() if isinstance(record, MetricRecord)]
    if against.strict and settings.records and len(found) != 1:
        raise _Refused(
            "wrong_records",
            f"it has {len(found)} metric records where a stock strategy needs one (gate setting records=false)",
        )
    if len(found) != 1:
        return None, None
    name, record = found[0]
    weight = _weight(record, against) if settings.weight else None
    if not against.strict or not settings.records:
        return weight, None
    names = [other for other, one in records.items() if isinstance(one, ArrayRecord)] if against.train else []
    keys = tuple(sorted((key, len(value) if isinstance(value, list) else -1) for key, value in record.items()))
    return weight, (tuple(names), name, keys)


def _weight(record: MetricRecord, against: Sent) -> float | None:
    value = record.get(against.weighted_by)
    if value is None:
        if not against.strict:
            return None
        raise _Refused(
            "bad_weight",
            f"its metric record has no {against.weighted_by!r}; it has {_names(sorted(record))} "
            f"(gate setting weighted_by names another key)",
        )
    if isinstance(value, list) or not math.isfinite(value) or value <= 0:
        raise _Refused(
            "bad_weight",
            f"its weight {against.weighted_by} is {str(value)[:80]}, which is no positive number "
            f"(gate setting weight=false)",
        )
    return float(value)


def _told(looks: Any) -> str:
    arrays, metrics, keys = looks
    spelled = [key if length < 0 else f"{key} (a list of {length})" for key, length in keys]
    return f"{_names([*arrays, metrics])} with the metrics {', '.join(one[:60] for one in spelled[:8])}"


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name[:60]) for name in names[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown or "nothing"
