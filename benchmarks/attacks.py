"""Three attacks against every robust rule, on digits: a table of accuracies, in Markdown.

Twenty devices with little skew, four of them liars who know all honest updates. `python -m benchmarks.attacks`.

    sign flip       Li, Xu, Chen, Giannakis, Ling 2019, arXiv:1811.03761: ten times the own update, turned round
    ALIE            Baruch, Baruch, Goldberg 2019, arXiv:1902.06156: mean - z deviations, z as large as goes unnoticed
    inner product   Xie, Koyejo, Gupta 2020, arXiv:1903.03936: minus half the honest mean
"""

import logging
from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

import fedfleet_strategies as own
from benchmarks.reproduce import Fleet, Floats, dirichlet, reply, softmax
from fedfleet_strategies import robust
from fedfleet_strategies.layout import Layout

N, F, ROUNDS = 20, 4, 25
Attack = Callable[[Floats, Floats], Floats]
"""What a liar sends, given all honest updates and its own."""


def _alie(honest: Floats, mine: Floats) -> Floats:
    supporters = N // 2 + 1 - F
    z = NormalDist().inv_cdf((N - F - supporters) / (N - F))
    found: Floats = honest.mean(0) - z * honest.std(0)
    return found


ATTACKS: dict[str, Attack | None] = {
    "none": None,
    "sign flip": lambda honest, mine: -10 * mine,
    "ALIE": _alie,
    "inner product": lambda honest, mine: -0.5 * honest.mean(0),
}
RULES: dict[str, Callable[[], Any]] = {
    "FedAvg's mean": own.Mean,
    "NormClipping(1)": lambda: robust.NormClipping(1.0),
    "Median": robust.Median,
    "TrimmedMean(0.2)": lambda: robust.TrimmedMean(0.2),
    "Krum(4)": lambda: robust.Krum(F),
    "MultiKrum(4, 12)": lambda: robust.MultiKrum(F, 12),
    "Bulyan(4)": lambda: robust.Bulyan(F),
    "GeometricMedian": robust.GeometricMedian,
    "CentredClipping(1, 3)": lambda: robust.CentredClipping(1.0, 3),
    "Bucketing(Median)": lambda: robust.Bucketing(robust.Median(), 2),
    "FLTrust": None,  # type: ignore[dict-item]  # a strategy of its own
}


def accuracy(rule: str, attack: Attack | None, seed: int) -> float:
    """Return the accuracy of the last model on examples that nobody trained on."""
    from sklearn.datasets import load_digits

    data = load_digits()
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(data.target))
    x, y = np.asarray(data.data[order] / 16.0, np.float32), data.target[order]
    parts = dirichlet(y[500:], N, 10.0, rng)
    mine = [(x[500:][part], y[500:][part]) for part in parts]
    # The server's own data, for FLTrust: a hundred examples.
    app = softmax([*mine, (x[400:500], y[400:500])], seed, epochs=1)
    options: dict[str, Any] = {"fraction_evaluate": 0.0, "seed": seed}

    def train(arrays: ArrayRecord, server_round: int) -> ArrayRecord:
        content = RecordDict({"arrays": arrays, "config": ConfigRecord({"server-round": server_round})})
        return _asked(Fleet(app, N + 1), content, N + 1)

    strategy = own.FLTrust(train, **options) if rule == "FLTrust" else own.FedAvg(rule=RULES[rule](), **options)
    fleet = Fleet(app, N)
    arrays = ArrayRecord({"w": Array(np.zeros((64, 10), np.float32)), "b": Array(np.zeros(10, np.float32))})
    for server_round in range(1, ROUNDS + 1):
        replies = fleet.send_and_receive(strategy.configure_train(server_round, arrays, ConfigRecord(), fleet))
        if attack is not None:
            replies = _attacked(replies, arrays, attack)
        found, _ = strategy.aggregate_train(server_round, replies)
        arrays = arrays if found is None else found
    scores = x[:400] @ arrays["w"].numpy() + arrays["b"].numpy()
    return float((scores.argmax(1) == y[:400]).mean())


def _attacked(replies: list[Any], arrays: ArrayRecord, attack: Attack) -> list[Any]:
    layout = Layout.of(arrays)
    x, ints = layout.flat(arrays)
    deltas = np.array([layout.flat(one.content["arrays"])[0] - x for one in replies])
    lied = []
    for i, one in enumerate(replies):
        if i < N - F:
            lied.append(one)
            continue
        values = (x + attack(deltas[: N - F], deltas[i])).astype(np.float32)
        metrics = MetricRecord({"num-examples": 80})
        lied.append(reply(i + 1, RecordDict({"arrays": layout.record(values, ints), "metrics": metrics})))
    return lied


def _asked(fleet: Fleet, content: RecordDict, node: int) -> ArrayRecord:
    from flwr.app import Message

    (answer,) = fleet.send_and_receive([Message(content, node, "train")])
    found = answer.content["arrays"]
    assert isinstance(found, ArrayRecord)
    return found


def main() -> None:
    """Print the table."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    print(f"| rule | {' | '.join(ATTACKS)} |\n|---|{'---|' * len(ATTACKS)}")
    for rule in RULES:
        cells = [
            f"{100 * float(np.mean([accuracy(rule, attack, seed) for seed in range(3)])):.1f}"
            for attack in ATTACKS.values()
        ]
        print(f"| `{rule}` | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
