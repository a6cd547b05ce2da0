"""Per-FedAvg: a model from which one step of training fits a device.

Fallah, Mokhtari, Ozdaglar: Personalized Federated Learning with Theoretical Guarantees: A Model-Agnostic Meta-Learning
Approach, NeurIPS 2020, arXiv:2002.07948, algorithm 1, the first-order variant (FO). On device i, from w = x, R times:

    w~ = w - alpha grad f_i(w),    w <- w - beta grad f_i(w~)

On the server it is FedAvg. The app is called twice for each of the R: from w, which gives w~, and from w~, which gives
w~ - alpha grad f_i(w~) and with it the gradient there. It should take one step of learning rate alpha each time: the
configuration's "local-steps" is 1.

Departures from the paper: an app that takes more steps adapts by more, as first-order MAML does. The Hessian-free
variant (HF) is left out. Devices evaluate the common model; an app that wants the adapted one trains a step first.
"""

from typing import Any, ClassVar

from flwr.app import ConfigRecord

from fedfleet_strategies.strategy import Strategy


class PerFedAvg(Strategy):
    """FedAvg of models that adapt well.

    Args:
        ratio: beta / alpha, above 0. local_rounds: R.
    """

    halves: ClassVar[tuple[str, ...]] = ("perfedavg",)

    def __init__(self, *args: Any, ratio: float = 1.0, local_rounds: int = 1, **options: Any) -> None:
        self.ratio, self.local_rounds = ratio, local_rounds
        super().__init__(*args, **options)

    def conflicts(self) -> list[str]:
        """Return what is wrong with the options."""
        wrong = [] if self.ratio > 0 and self.local_rounds >= 1 else ["ratio must be above 0, local_rounds at least 1"]
        return super().conflicts() + wrong

    def settings(self) -> dict[str, Any]:
        """Tell the client half its numbers."""
        return {"ratio": self.ratio, "rounds": self.local_rounds}

    def told(self, config: ConfigRecord) -> None:
        """Ask the app for single steps."""
        config["local-steps"] = 1
