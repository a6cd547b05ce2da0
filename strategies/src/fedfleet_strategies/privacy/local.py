"""Local differential privacy: each device clips its update and adds noise before anybody sees it.

Duchi, Jordan, Wainwright: Local Privacy and Statistical Minimax Rates, FOCS 2013, arXiv:1302.3203, with the Gaussian
mechanism on the clipped update:

    sent: clip(delta, C) + N(0, (z C)^2),    clip(d, C) = d min(1, C / |d|)

Two updates differ by at most twice C, so one costs as much as noise of z / 2 does, and a device's own rounds add up.
What is told in the metrics assumes a device that took part in every round, and no amplification.

What else a reply says leaves the device without noise: its weight becomes 1, its metrics are left out, and integers
and booleans of the model return as they came. Evaluations tell of the data, too: there must be none.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict

from fedfleet_strategies.client import Call
from fedfleet_strategies.errors import Incompatible
from fedfleet_strategies.layout import Layout, Vector
from fedfleet_strategies.privacy import noise
from fedfleet_strategies.privacy.accountant import Event, Ledger
from fedfleet_strategies.privacy.privacy import Planned, State
from fedfleet_strategies.updates import Aggregate, Update, finite, squared_norm

if TYPE_CHECKING:
    from fedfleet_strategies.strategy import Strategy

_ROUNDS = "privacy.rounds"
Mod = Callable[[Message, Context, Callable[[Message, Context], Message]], Message]


def protected(delta: Vector, noise_multiplier: float, clipping_norm: float) -> Vector:
    """Return a clipped update with noise, new; the noise is drawn with a key that is used once.

    Raises:
        ValueError: the update is not finite.
    """
    if not finite(delta):
        raise ValueError("an update with NaN or infinity cannot be protected")
    norm = math.sqrt(squared_norm(delta))
    made: Vector = np.array(delta)
    if norm > clipping_norm:
        made *= delta.dtype.type(clipping_norm / norm * (1 - 1e-6))
    noise.add_gaussian(made, noise_multiplier * clipping_norm, noise.new_key(), "local", 0)
    return made


def mod(noise_multiplier: float, clipping_norm: float, *, weighted_by_key: str = "num-examples") -> Mod:
    """Return a Flower mod that protects what an app sends, under any strategy; the device decides, not the server.

    Args:
        weighted_by_key: the one metric that is sent, as 1.

    Raises:
        Incompatible: a number is not what `LocalPrivacy` takes.
    """
    LocalPrivacy(noise_multiplier, clipping_norm)

    def local_privacy(message: Message, context: Context, call_next: Callable[[Message, Context], Message]) -> Message:
        sent = {name: record for name, record in message.content.items() if isinstance(record, ArrayRecord)}
        reply = call_next(message, context)
        if reply.has_error():
            return reply
        content = reply.content
        if message.metadata.message_type.partition(".")[0] != "train" or len(sent) != 1:
            raise ValueError("under local privacy a device only trains, and on one model; it tells nothing else")
        models = [record for record in content.values() if isinstance(record, ArrayRecord)]
        if len(models) != 1:
            raise ValueError(f"the app's reply holds {len(models)} models, one is needed")
        (origin,) = sent.values()
        layout = Layout.of(origin)
        made = _protected_model(layout, origin, models[0], noise_multiplier, clipping_norm)
        reply.content = _only(content, made, weighted_by_key)
        return reply

    return local_privacy


class Private:
    """The part of the client half that `LocalPrivacy` names."""

    def before(self, call: Call) -> None:
        """Leave the message as it is."""

    def after(self, call: Call) -> None:
        """Protect the reply: model, metrics, and what parts would send besides."""
        if not call.training or call.reply is None:
            return
        layout, told = call.layout, call.settings["privacy"]
        made = _protected_model(layout, call.arrays, call.returned, told["z"], told["clip"])
        call.reply.content = _only(call.reply.content, made, told["weight"])
        call.extra.clear()
        call.scalars.clear()


class LocalPrivacy:
    """Clipping and noise by each device.

    Args:
        noise_multiplier: z, standard deviation of the noise in clipping norms; at least 0.
        clipping_norm: C, above 0.
        epsilon: the budget of a device that is asked every round; None for none.
        delta: at which epsilon is told, above 0 and below 1.
    """

    central = False

    def __init__(
        self, noise_multiplier: float, clipping_norm: float, *, epsilon: float | None = None, delta: float = 1e-5
    ) -> None:
        if not 0 <= noise_multiplier < math.inf or not 0 < clipping_norm < math.inf:
            raise Incompatible(
                f"noise_multiplier is {noise_multiplier}, it must be finite and at least 0; "
                f"clipping_norm {clipping_norm}, finite and above 0"
            )
        if not 0 < delta < 1 or (epsilon is not None and not epsilon > 0):
            raise Incompatible(f"delta is {delta}, it must be above 0 and below 1; epsilon {epsilon}, above 0")
        self.noise_multiplier, self.clipping_norm = noise_multiplier, clipping_norm
        self.epsilon, self.delta = epsilon, delta

    def begin(self, state: State) -> None:
        """Begin to count rounds."""
        state[_ROUNDS] = 0

    def refuse_round(self, state: State, planned: Planned) -> str | None:
        """Return why the round would cost a device too much, or None."""
        then = self.spent(state[_ROUNDS] + 1)
        if self.epsilon is None or then <= self.epsilon:
            return None
        return (
            f"round {planned.server_round} would bring epsilon of a device to {then:.4g} at delta {self.delta:g}, "
            f"the budget is {self.epsilon:g}"
        )

    def rng(self, state: State, planned: Planned) -> np.random.Generator | None:
        """Return None: nothing depends on a secret cohort."""
        del state, planned
        return None

    def clip(self, update: Update, state: State) -> Update:
        """Return the update as it is: it was clipped where it was made."""
        del state
        return update

    def noise(self, aggregate: Aggregate, state: State, planned: Planned) -> Aggregate:
        """Return the aggregate as it is; count the round."""
        del planned
        state[_ROUNDS] += 1
        return aggregate

    def metrics(self, state: State) -> dict[str, float]:
        """Return epsilon of a device that was asked every round."""
        spent = self.spent(state[_ROUNDS])
        return {"fedfleet.epsilon": spent} if math.isfinite(spent) else {}

    def settings(self) -> dict[str, Any]:
        """Return both numbers for the device."""
        return {"z": self.noise_multiplier, "clip": self.clipping_norm}

    def conflicts(self, strategy: "Strategy") -> list[str]:
        """Return what would leave a device without noise."""
        found = []
        if strategy.fraction_evaluate:
            found.append("local privacy allows no evaluation on devices, set fraction_evaluate=0")
        if strategy.extras or strategy.scalars:
            found.append(f"local privacy does not cover {', '.join((*strategy.extras, *strategy.scalars))}")
        if strategy.cohort.reads & {"loss"}:
            found.append(f"local privacy tells no losses, which {type(strategy.cohort).__name__} looks at")
        return found

    def spent(self, rounds: int) -> float:
        """Return epsilon of a device that was asked in so many rounds."""
        return Ledger([Event("all", self.noise_multiplier / 2, 1.0, rounds)]).epsilon(self.delta)


def _protected_model(
    layout: Layout, origin: ArrayRecord, returned: ArrayRecord, noise_multiplier: float, clipping_norm: float
) -> ArrayRecord:
    x, ints = layout.flat(origin)
    trained, _ = layout.flat(returned)
    made = layout.record(x + protected(trained - x, noise_multiplier, clipping_norm), ints, returned)
    return ArrayRecord({name: made[name] for name in returned if name in made})


def _only(content: RecordDict, model: ArrayRecord, weighted_by_key: str) -> RecordDict:
    """Return a reply with a model and a weight, under the names the app gave."""
    made = RecordDict()
    for name, record in content.items():
        if isinstance(record, ArrayRecord):
            made[name] = model
        elif isinstance(record, MetricRecord):
            made[name] = MetricRecord({weighted_by_key: 1})
    return made
