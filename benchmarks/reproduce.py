"""Published numbers, reproduced: ours beside the paper's or the reference's, exit code 1 outside the tolerance.

`python -m benchmarks.reproduce [NAME ...]`. Everything is seeded and runs in this process.
"""

import argparse
import logging
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp import strategy as stock
from numpy.typing import NDArray

import fedfleet_strategies as own
from fedfleet_flower import compat
from fedfleet_strategies import client
from fedfleet_strategies.privacy.accountant import Event, Sampling, divergence, epsilon
from fedfleet_strategies.transforms import named
from fedfleet_strategies.transforms.transform import Call

Floats = NDArray[Any]
App = Callable[[Message, Context], Message]


@dataclass(frozen=True, slots=True)
class Line:
    """One number."""

    what: str
    ours: str
    reference: str
    holds: bool


class Fleet(Grid):
    """Devices in this process, which answer at once."""

    def __init__(self, app: App, count: int) -> None:
        compat.identify(run=1, node=compat.SERVER_NODE)
        self._app = app
        self.contexts = {node: Context(1, node, {}, RecordDict(), {}) for node in range(1, count + 1)}

    def set_run(self, run: Any) -> None: ...

    @property
    def run(self) -> Any:
        return None

    def create_message(self, *args: Any, **options: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> list[int]:
        return list(self.contexts)

    def push_messages(self, messages: Any) -> list[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Any) -> list[Message]:
        raise NotImplementedError

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        replies = []
        for message in messages:
            node, kind = message.metadata.dst_node_id, message.metadata.message_type
            call = compat.instruction(message.content, run=1, node=node, message_id="m", message_type=kind)
            answer = client.half(call, self.contexts[node], self._app)
            replies.append(reply(node, answer.content))
        return replies


def reply(node: int, content: RecordDict) -> Message:
    """Return what a ServerApp gets from a device."""
    return compat.reply(content, run=1, node=node, message_id=f"{node}", reply_to="m", message_type="train")


# --- digits -----------------------------------------------------------------------------------------------------------


def digits() -> list[Line]:
    """SCAFFOLD needs far fewer rounds than FedAvg where each device knows few of the digits."""
    found = {kind.__name__: [rounds_to(0.90, kind, seed) for seed in range(10)] for kind in (own.FedAvg, own.Scaffold)}
    plain, corrected = (float(np.mean(found[name])) for name in ("FedAvg", "Scaffold"))
    return [
        Line("digits, Dirichlet(0.1): rounds to 90%, FedAvg", f"{plain:.1f}", "15.7", True),
        Line("the same, SCAFFOLD", f"{corrected:.1f}", "6.2; at most half of FedAvg + 1", corrected <= plain / 2 + 1),
    ]


def rounds_to(
    accuracy: float, kind: Any, seed: int, *, most: int = 100, alpha: float = 0.1, lr: float = 0.5, epochs: int = 5
) -> int:
    """Return after how many rounds the model is that accurate on examples that nobody trained on.

    Args:
        kind: makes the strategy. most: rounds after which it is given up. alpha: of the Dirichlet; large is no skew.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(data.target))
    x, y = np.asarray(data.data[order] / 16.0, np.float32), data.target[order]
    test = len(y) // 5
    parts = dirichlet(y[test:], 10, alpha, rng)
    fleet = Fleet(softmax([(x[test:][part], y[test:][part]) for part in parts], seed, lr, epochs), 10)
    strategy = kind(fraction_evaluate=0.0, seed=seed)
    arrays = ArrayRecord({"w": Array(np.zeros((64, 10), np.float32)), "b": Array(np.zeros(10, np.float32))})
    for server_round in range(1, most + 1):
        messages = strategy.configure_train(server_round, arrays, ConfigRecord(), fleet)
        arrays, _ = strategy.aggregate_train(server_round, fleet.send_and_receive(messages))
        if arrays is None:
            raise RuntimeError(strategy.explain(server_round))
        scores = x[:test] @ arrays["w"].numpy() + arrays["b"].numpy()
        if float((scores.argmax(1) == y[:test]).mean()) >= accuracy:
            return server_round
    return most


def dirichlet(labels: Floats, devices: int, alpha: float, rng: np.random.Generator) -> list[Floats]:
    """Return the examples of each device: of each label, shares drawn from a Dirichlet; each has at least ten."""
    while True:
        parts: list[list[int]] = [[] for _ in range(devices)]
        for label in range(10):
            mine = rng.permutation(np.flatnonzero(labels == label))
            cuts = (np.cumsum(rng.dirichlet(np.full(devices, alpha)))[:-1] * len(mine)).astype(int)
            for part, some in zip(parts, np.split(mine, cuts), strict=True):
                part.extend(some.tolist())
        if min(map(len, parts)) >= 10:
            return [np.array(part) for part in parts]


def softmax(data: list[tuple[Floats, Floats]], seed: int, lr: float = 0.5, epochs: int = 5, batch: int = 32) -> App:
    """Return a ClientApp that trains softmax regression, corrected by the method; device k has `data[k - 1]`."""

    def train(message: Message, context: Context) -> Message:
        content: Any = message.content
        x, y = data[context.node_id - 1]
        now = {name: array.numpy() for name, array in content["arrays"].items()}
        rng = np.random.default_rng([seed, context.node_id, int(content["config"]["server-round"])])
        scores = x @ now["w"] + now["b"]
        loss = np.mean(
            np.log(np.exp(scores - scores.max(1, keepdims=True)).sum(1)) + scores.max(1) - scores[range(len(y)), y]
        )
        lent, steps = client.correction(), 0
        for _ in range(epochs):
            order = rng.permutation(len(y))
            for start in range(0, len(y), batch):
                some = order[start : start + batch]
                scores = x[some] @ now["w"] + now["b"]
                p = np.exp(scores - scores.max(1, keepdims=True))
                p /= p.sum(1, keepdims=True)
                p[np.arange(len(some)), y[some]] -= 1
                p /= len(some)
                gradient = lent.applied({"w": x[some].T @ p, "b": p.sum(0)}, now)
                now = {name: (now[name] - lr * gradient[name]).astype(np.float32) for name in now}
                steps += 1
        client.done(steps=steps, lr=lr)
        arrays = ArrayRecord({name: Array(value) for name, value in now.items()})
        metrics = MetricRecord({"num-examples": len(y), "train_loss": float(loss)})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    return train


# --- Krum -------------------------------------------------------------------------------------------------------------


def krum() -> list[Line]:
    """Multi-Krum selects what it would on paper; between float32 models the last digits decide."""
    n, f, keep, d, trials = 10, 2, 5, 1_000_000, 20
    right, stock_right, let_in = 0, 0, 0
    for seed in range(trials):
        rng = np.random.default_rng(seed)
        base = rng.normal(size=d).astype(np.float32)
        moved = [
            (base + 1e-4 * (rng.standard_normal(d) + (3.0 * rng.standard_normal(d) if i >= n - f else 0.0))).astype(
                np.float32
            )
            for i in range(n)
        ]
        wanted = _on_paper([one.astype(np.float64) - base for one in moved], f, keep)
        strategy = own.MultiKrum(num_malicious_nodes=f, num_nodes_to_select=keep)
        sent = ArrayRecord({"w": Array(base)})
        list(strategy.configure_train(1, sent, ConfigRecord(), Fleet(lambda message, context: message, n)))
        replies = [_trained(i + 1, one) for i, one in enumerate(moved)]
        strategy.aggregate_train(1, replies)
        right += set(range(n)) - {node - 1 for node in strategy.explain(1)} == wanted
        theirs = stock.MultiKrum(num_malicious_nodes=f, num_nodes_to_select=keep)
        chosen = _stock_choice(theirs, replies, moved)
        stock_right += chosen == wanted
        let_in += bool(chosen & set(range(n - f, n)))
    return [
        Line(
            f"Multi-Krum, {n} devices, {f} liars at 3 sigma, d = 1e6: the set on paper",
            f"{right} of {trials} (Flower's: {stock_right}, and lets liars in in {let_in})",
            f"{trials} of {trials}",
            right == trials,
        )
    ]


def _trained(node: int, values: Floats) -> Message:
    arrays = ArrayRecord({"w": Array(values)})
    return reply(node, RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})}))


def _on_paper(deltas: list[Floats], f: int, keep: int) -> set[int]:
    n = len(deltas)
    score = []
    for i in range(n):
        apart = sorted(float(((deltas[i] - deltas[j]) ** 2).sum()) for j in range(n) if j != i)
        score.append(sum(apart[: n - f - 2]))
    return set(np.argsort(score, kind="stable")[:keep].tolist())


def _stock_choice(strategy: stock.MultiKrum, replies: list[Message], moved: list[Floats]) -> set[int]:
    """Return which updates Flower's mean is the mean of: those whose removal from it fits."""
    arrays, _ = strategy.aggregate_train(1, replies)
    assert arrays is not None
    mean = arrays["w"].numpy().astype(np.float64)
    k = strategy.num_nodes_to_select
    few = np.array([one[:200] for one in moved], np.float64)

    def apart(chosen: Iterable[int]) -> float:
        return float(np.abs(few[list(chosen)].mean(0) - mean[:200]).max())

    return set(min(combinations(range(len(moved)), k), key=apart))


# --- Ditto ------------------------------------------------------------------------------------------------------------


def ditto() -> list[Line]:
    """Personal models on point estimation are the closed form, over lambda."""
    rng = np.random.default_rng(0)
    targets = rng.normal(size=(10, 4))
    worst = 0.0
    for lam in (0.01, 0.1, 1.0, 10.0):
        lr = 0.9 / (1 + lam)

        def train(message: Message, context: Context, lr: float = lr) -> Message:
            content: Any = message.content
            now = {"w": content["arrays"]["w"].numpy()}
            for _ in range(2000):
                gradient = client.correction().applied({"w": now["w"] - targets[context.node_id - 1]}, now)
                now = {"w": now["w"] - lr * gradient["w"]}
            arrays = ArrayRecord({"w": Array(now["w"])})
            return Message(
                RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})}), reply_to=message
            )

        fleet = Fleet(train, 10)
        strategy = own.Ditto(lam=lam, fraction_evaluate=0.0)
        strategy.start(fleet, ArrayRecord({"w": Array(np.zeros(4))}), num_rounds=3)
        for node, context in fleet.contexts.items():
            found = client.settled(dict(context.state), "ditto", 3)["v"]
            wanted = (targets[node - 1] + lam * targets.mean(0)) / (1 + lam)
            worst = max(worst, float(np.abs(found - wanted).max()))
    what = "Ditto, point estimation, largest distance from the closed form"
    return [Line(what, f"{worst:.1e}", "0; 1e-6", worst <= 1e-6)]


# --- privacy and codes ------------------------------------------------------------------------------------------------

ACCOUNTS: tuple[tuple[Sampling, float, float, int, float, float], ...] = (
    ("poisson", 0.04, 1.5, 2250, 7.3293, 6.7695),
    ("poisson", 0.1, 1.0, 100, 7.9039, 7.0466),
    ("fixed", 50 / 1000, 1.0, 100, 6.466584880743369, 0.0),
)
"""Sampling, q, sigma, rounds; epsilon by dp-accounting 0.6.0's RdpAccountant, and its PLD's lower bound."""


def accountant() -> list[Line]:
    """Epsilon at delta = 1e-5 is what dp-accounting says, within 1% above and never below the PLD's bound.

    Its series between whole orders ends early, so that it is up to 0.2% above the integral, which is ours.
    """
    lines = []
    for sampling, q, sigma, rounds, reference, lower in ACCOUNTS:
        found = epsilon(divergence(Event(sampling, sigma, q, rounds)), 1e-5)
        what = f"epsilon, {sampling} cohorts, q = {q:g}, sigma = {sigma:g}, {rounds} rounds"
        holds = max(lower, reference * 0.998) <= found <= reference * 1.01
        lines.append(Line(what, f"{found:.4f}", f"{reference:.4f}", holds))
    return lines


def codes() -> list[Line]:
    """The error of rotated Lloyd-Max codes, relative to the vector, mean of twenty seeds."""
    lines = []
    for bits, published in ((1, 0.5708), (2, 0.1331), (3, 0.0358), (4, 0.0096)):
        errors, code = [], named(f"rotated-{bits}")
        for seed in range(20):
            x = np.random.default_rng(seed).lognormal(size=1 << 16).astype(np.float32)
            back = code.decode(code.encode(x, Call(np.random.default_rng(seed))), x.size)
            errors.append(float(((back - x) ** 2).sum() / (x**2).sum()))
        found = float(np.mean(errors))
        what = f"rotated Lloyd-Max, {bits} bits, vNMSE"
        lines.append(Line(what, f"{found:.4f}", f"{published:.4f}; 3%", abs(found / published - 1) <= 0.03))
    return lines


LINES: dict[str, Callable[[], list[Line]]] = {
    "digits": digits, "krum": krum, "ditto": ditto, "accountant": accountant, "codes": codes,
}  # fmt: skip


def main() -> int:
    """Reproduce what was asked for; return how many numbers are outside their tolerance."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reproduce", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[*LINES, []], help=f"which: {', '.join(LINES)}; default: all")
    names = parser.parse_args().names or list(LINES)
    logging.getLogger("flwr").setLevel(logging.ERROR)
    missed = 0
    for name in names:
        for line in LINES[name]():
            missed += not line.holds
            mark = "ok    " if line.holds else "MISSED"
            print(f"{mark} {line.what}: {line.ours} (reference: {line.reference})", flush=True)
    return min(missed, 1)


if __name__ == "__main__":
    sys.exit(main())
