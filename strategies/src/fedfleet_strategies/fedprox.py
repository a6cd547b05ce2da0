"""FedProx: devices are held near the model that was sent, and what slow ones got done counts.

Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith: Federated Optimization in Heterogeneous Networks, MLSys 2020,
arXiv:1812.06127, equation 2 and algorithm 2: device k minimises, as exactly as it can,

    h_k(w; w_t) = F_k(w) + mu/2 |w - w_t|^2

On the server it is FedAvg. The app adds the term: from `client.correction()`, or by itself from the configuration's
"proximal-mu", as with Flower's own FedProx. Work of stragglers is used as it comes: an app that stops early replies
with what it has.

Departures from the paper: devices are drawn uniformly and weighted by examples (the paper's experiments do so; its
algorithm draws by examples and weighs alike).
"""

from typing import Any, ClassVar

from flwr.app import ConfigRecord

from fedfleet_strategies.strategy import Strategy


class FedProx(Strategy):
    """Federated averaging with a proximal term on the devices.

    Args:
        proximal_mu: mu, at least 0; with 0 it is FedAvg.
    """

    halves: ClassVar[tuple[str, ...]] = ("prox",)

    def __init__(self, *args: Any, proximal_mu: float = 0.0, **options: Any) -> None:
        self.proximal_mu = proximal_mu
        super().__init__(*args, **options)

    def conflicts(self) -> list[str]:
        """Return what is wrong with the options."""
        wrong = [] if self.proximal_mu >= 0 else [f"proximal_mu is {self.proximal_mu}, it must be at least 0"]
        return super().conflicts() + wrong

    def settings(self) -> dict[str, Any]:
        """Tell the client half mu."""
        return {"mu": self.proximal_mu}

    def told(self, config: ConfigRecord) -> None:
        """Tell the app mu, too."""
        config["proximal-mu"] = self.proximal_mu
