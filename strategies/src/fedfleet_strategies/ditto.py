"""Ditto: a model of its own for each device, held near the global one.

Li, Hu, Beirami, Smith: Ditto: Fair and Robust Federated Learning Through Personalization, ICML 2021,
arXiv:2012.04221, algorithm 1. The global model is FedAvg's; after that, device k trains its own

    v_k = argmin_v F_k(v) + lambda/2 |v - x|^2

The app is called twice, the second time with the proximal term in `client.correction()`. v_k stays on the device, and
is kept whether or not the reply was used.

Departures from the paper: the personal model trains as long as the global one does.
"""

from typing import Any, ClassVar, Literal

from fedfleet_strategies.strategy import Strategy


class Ditto(Strategy):
    """FedAvg with personal models.

    Args:
        lam: lambda, at least 0: from models that know nothing of each other to the global one.
        evaluate: which model devices evaluate.
    """

    halves: ClassVar[tuple[str, ...]] = ("ditto",)

    def __init__(
        self, *args: Any, lam: float = 0.1, evaluate: Literal["personal", "global"] = "personal", **options: Any
    ) -> None:
        self.lam, self.evaluate = lam, evaluate
        super().__init__(*args, **options)

    def conflicts(self) -> list[str]:
        """Return what is wrong with the options."""
        return super().conflicts() + ([] if self.lam >= 0 else [f"lam is {self.lam}, it must be at least 0"])

    def settings(self) -> dict[str, Any]:
        """Tell the client half lambda."""
        return {"lambda": self.lam, "evaluate": self.evaluate}
