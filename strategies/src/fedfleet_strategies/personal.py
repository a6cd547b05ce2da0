"""Strategies under which each device keeps something of its own.

FedBN     Li, Jiang, Zhang, Kamp, Dou: Federated Learning on Non-IID Features via Local Batch Normalization, ICLR 2021,
          arXiv:2102.07623, algorithm 1: the arrays of batch normalisation stay on the device.
FedPer    Arivazhagan, Aggarwal, Singh, Choudhary: Federated Learning with Personalization Layers, 2019,
          arXiv:1912.00818, algorithms 1 and 2: the last layers stay.
FedRep    Collins, Hassani, Mokhtari, Shakkottai: Exploiting Shared Representations for Personalized Federated
          Learning, ICML 2021, arXiv:2102.07078, algorithm 1: as FedPer, but a device trains first what stays, with the
          rest frozen, then the rest, with what stays frozen.

All three are FedAvg over the arrays whose names match no pattern in `local`; every other strategy here takes `local`,
too. The arrays that stay are sent with the model, as a device needs them to begin with, and never come back.

Departures from the papers: for FedRep the app is called twice, and trains as long each time as it usually does.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

from fedfleet_strategies.strategy import Strategy


class FedBN(Strategy):
    """FedAvg without the arrays of batch normalisation.

    Args:
        local: patterns of their names.
    """

    def __init__(self, *args: Any, local: Sequence[str] = ("*bn*", "*norm*", "*running_*"), **options: Any) -> None:
        super().__init__(*args, local=local, **options)


class FedPer(Strategy):
    """FedAvg without the last layers.

    Args:
        local: patterns of the names of their arrays.
    """

    def __init__(self, local: Sequence[str], *args: Any, **options: Any) -> None:
        super().__init__(*args, local=local, **options)

    def conflicts(self) -> list[str]:
        """Return what is wrong with the options."""
        return super().conflicts() + ([] if self.local else ["local names no arrays that stay on the devices"])


class FedRep(FedPer):
    """FedPer with two trainings: of what stays, then of the rest.

    Args:
        local: patterns of the names of the arrays that stay.
    """

    halves: ClassVar[tuple[str, ...]] = ("fedrep",)
