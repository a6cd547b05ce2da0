"""The parts of the client half, by name; the papers are cited where the server's half is.

A part has no state of its own: what it remembers of a device is in `call.memory`, and put there by `call.remembers`.
"""

from typing import Protocol

import numpy as np
from flwr.app import Array, ArrayRecord

from fedfleet_strategies.client import Call, Unmet, model_of
from fedfleet_strategies.correction import Correction, lent
from fedfleet_strategies.layout import Vector
from fedfleet_strategies.privacy.local import Private
from fedfleet_strategies.transforms.uplink import Encode


class Part(Protocol):
    """What a method does before and after the app."""

    def before(self, call: Call) -> None:
        """Change what the app gets."""
        ...

    def after(self, call: Call) -> None:
        """Change what it returns, and what is remembered. Not called if it failed."""
        ...


class Plain:
    """A part that does nothing; others say what they do."""

    def before(self, call: Call) -> None:
        """Leave the message as it is."""

    def after(self, call: Call) -> None:
        """Leave the reply as it is."""


class Local(Plain):
    """Arrays that stay: the device's own replace those that came, and never leave. Trained or not, they are kept."""

    def before(self, call: Call) -> None:
        """Put the device's own arrays into the model."""
        own = {name: value for name, value in call.memory.items() if name in call.layout.local}
        if own:
            mixed = ArrayRecord(dict(call.message.content[call.key]))
            for name, value in own.items():
                mixed[name] = Array(value.astype(call.arrays[name].numpy().dtype))
            call.arrays = call.message.content[call.key] = mixed

    def after(self, call: Call) -> None:
        """Take them out of the reply."""
        if not call.training:
            return
        model = call.returned
        kept = {name: np.array(model[name].numpy()) for name in call.layout.local if name in model}
        for name in kept:
            del model[name]
        call.remembers(kept)


class Steps(Plain):
    """FedNova: report how many steps were taken, if the app says so here."""

    def after(self, call: Call) -> None:
        """Report the steps."""
        if call.loan.steps is not None:
            call.scalars["steps"] = call.loan.steps


class Prox(Plain):
    """FedProx: hold the app near the model that came."""

    def before(self, call: Call) -> None:
        """Lend the proximal term."""
        call.correction = Correction(mu=float(call.settings["mu"]), anchor=call.layout.named(call.x))


class Scaffold(Plain):
    """SCAFFOLD: correct each step by c - c_i, and learn c_i (option II)."""

    def before(self, call: Call) -> None:
        """Lend c - c_i."""
        if call.training:
            c = call.shared["c"]
            call.correction = Correction(linear=call.layout.named(c - call.memory.get("c", np.zeros_like(c))))

    def after(self, call: Call) -> None:
        """Send the change of c_i; it holds if the server uses it."""
        if not call.training:
            return
        steps, lr = call.loan.steps, call.loan.lr
        if not steps or not lr:
            raise Unmet(
                "the app has not said what it did: SCAFFOLD needs fedfleet_strategies.client.done(steps=..., lr=...) "
                "after training, and each step's gradient through correction()"
            )
        c = call.shared["c"]
        own = call.memory.get("c", np.zeros_like(c))
        learnt = (own - c + (call.x - call.trained) / c.dtype.type(steps * lr)).astype(c.dtype)
        call.extra["c"] = learnt - own
        call.remembers({"c": learnt}, {"c": own})


class FedDyn(Plain):
    """FedDyn: a proximal term, and a linear one that is learnt."""

    def before(self, call: Call) -> None:
        """Lend alpha/2 |w - x|^2 - <g_k, w>."""
        if call.training:
            x = call.x
            g = call.memory.get("g", np.zeros_like(x))
            named = call.layout.named
            call.correction = Correction(linear=named(-g), mu=float(call.settings["alpha"]), anchor=named(x))

    def after(self, call: Call) -> None:
        """Learn g_k, if the server uses the reply."""
        if call.training:
            x = call.x
            g = call.memory.get("g", np.zeros_like(x))
            alpha = x.dtype.type(call.settings["alpha"])
            call.remembers({"g": g - alpha * (call.trained - x)}, {"g": g})


class Personal(Plain):
    """Evaluate the device's own model where it has one, if the method says so."""

    def before(self, call: Call) -> None:
        """Put the device's own model into an evaluation."""
        if not call.training and "v" in call.memory and call.settings.get("evaluate") == "personal":
            call.sends(call.memory["v"])


class Ditto(Personal):
    """Ditto: after the global model has trained, train the device's own one near the global one that came."""

    def after(self, call: Call) -> None:
        """Train the personal model; it stays on the device."""
        if call.training:
            x = call.x
            near = Correction(mu=float(call.settings["lambda"]), anchor=call.layout.named(x))
            call.remembers({"v": call.again(call.memory.get("v", x), near)})


class PFedMe(Personal):
    """PFedMe: the app solves for the personal model near w, and w follows it, R times."""

    def before(self, call: Call) -> None:
        """Lend the first proximal term."""
        super().before(call)
        if call.training:
            call.correction = self._near(call, call.x)

    def after(self, call: Call) -> None:
        """Return w; keep the personal model."""
        if not call.training:
            return
        w, theta = call.x, call.trained
        pull = w.dtype.type(call.settings["eta"] * call.settings["lambda"])
        w = w - pull * (w - theta)
        for _ in range(int(call.settings["rounds"]) - 1):
            theta = call.again(w, self._near(call, w))
            w = w - pull * (w - theta)
        call.returns(w)
        call.remembers({"v": theta})

    @staticmethod
    def _near(call: Call, w: Vector) -> Correction:
        return Correction(mu=float(call.settings["lambda"]), anchor=call.layout.named(w))


class PerFedAvg(Plain):
    """Per-FedAvg, first order: adapt, and move the model by the gradient found there."""

    def after(self, call: Call) -> None:
        """Return the model moved by what a second training, from the adapted one, changes; R times."""
        if not call.training:
            return
        w, adapted = call.x, call.trained
        ratio = w.dtype.type(call.settings["ratio"])
        for turn in range(int(call.settings["rounds"])):
            if turn:
                adapted = call.again(w, Correction())
            w = w + ratio * (call.again(adapted, Correction()) - adapted)
        call.returns(w)


class FedRep(Plain):
    """FedRep: train what stays while the rest is frozen, then the rest."""

    def before(self, call: Call) -> None:
        """Train the head first, and let the app go on from there with the head frozen."""
        if not call.training:
            return
        local = frozenset(call.layout.local)
        shared = frozenset(slot.name for slot in call.layout.floats)
        content = call.message.content
        start = content[call.key]
        with lent(Correction(frozen=shared)):
            reply = call.app(call.message, call.context)
        if reply.has_error():
            raise Unmet(f"the app failed to train what stays: {reply.error.reason}")
        trained = model_of(reply.content)
        mixed = ArrayRecord(dict(start))
        for name in local:
            mixed[name] = trained[name]
        call.arrays = content[call.key] = mixed
        call.correction = Correction(frozen=local)


PARTS: dict[str, Part] = {
    "encode": Encode(),
    "private": Private(),
    "local": Local(),
    "steps": Steps(),
    "prox": Prox(),
    "scaffold": Scaffold(),
    "feddyn": FedDyn(),
    "ditto": Ditto(),
    "pfedme": PFedMe(),
    "perfedavg": PerFedAvg(),
    "fedrep": FedRep(),
}
