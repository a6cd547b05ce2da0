"""What a method changes in a device's own training, lent to the app for one message.

An app that trains step by step asks for it and says at the end what it did:

    for batch in data:
        gradient = ...
        gradient = correction().applied(gradient, weights)
        weights = ...
    done(steps=len(data), lr=lr)

`torch_steps` does both for PyTorch. Without a method that needs it, both change nothing.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

Named = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Correction:
    """The gradient is to be g + linear + mu (w - anchor), and that of frozen arrays 0.

    Attributes:
        linear: by name of the array. anchor: the same; needed if mu is not 0.
        frozen: names of arrays that do not train now.
    """

    linear: Named = field(default_factory=dict)
    mu: float = 0.0
    anchor: Named = field(default_factory=dict)
    frozen: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.linear or self.mu or self.frozen)

    def applied(self, gradient: Named, weights: Named) -> dict[str, NDArray[Any]]:
        """Return the corrected gradient; both arguments by name of the array, and not changed."""
        found: dict[str, NDArray[Any]] = {}
        for name, g in gradient.items():
            if name in self.frozen:
                found[name] = g * 0
                continue
            one = g
            if name in self.linear:
                one = one + self.linear[name]
            if self.mu and name in self.anchor:
                one = one + self.mu * (weights[name] - self.anchor[name])
            found[name] = one
        return found


@dataclass
class Loan:
    """A correction on loan, and what the app says it did with it; None until it says so."""

    correction: Correction
    steps: float | None = None
    lr: float | None = None


_LOAN: ContextVar[Loan | None] = ContextVar("fedfleet_loan", default=None)


def correction() -> Correction:
    """Return what the run's method changes in this message's training; empty if it changes nothing."""
    loan = _LOAN.get()
    return Correction() if loan is None else loan.correction


def done(*, steps: float, lr: float = 0.0) -> None:
    """Say how many steps of gradient descent were taken and at which learning rate."""
    loan = _LOAN.get()
    if loan is not None:
        loan.steps, loan.lr = float(steps), float(lr)


@contextmanager
def lent(correction: Correction) -> Iterator[Loan]:
    """Lend a correction to the app, and take it back: trainers stay warm, and the next run's app must not find it."""
    loan = Loan(correction)
    token = _LOAN.set(loan)
    try:
        yield loan
    finally:
        _LOAN.reset(token)
