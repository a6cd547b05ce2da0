"""FedAvg with a robust rule, under the names and with the keywords of Flower's strategies.

`FedMedian(...)` is `FedAvg(rule=robust.Median(), ...)`; every other strategy takes the same rules.
"""

from typing import Any

from fedfleet_strategies import robust
from fedfleet_strategies.fedavg import FedAvg


class FedMedian(FedAvg):
    """FedAvg with `robust.Median`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, rule=robust.Median(), **options)


class FedTrimmedAvg(FedAvg):
    """FedAvg with `robust.TrimmedMean`."""

    def __init__(self, *args: Any, beta: float = 0.2, **options: Any) -> None:
        super().__init__(*args, rule=robust.TrimmedMean(beta), **options)


class Krum(FedAvg):
    """FedAvg with `robust.Krum`."""

    def __init__(self, *args: Any, num_malicious_nodes: int = 0, **options: Any) -> None:
        super().__init__(*args, rule=robust.Krum(num_malicious_nodes), **options)


class MultiKrum(FedAvg):
    """FedAvg with `robust.MultiKrum`."""

    def __init__(self, *args: Any, num_malicious_nodes: int = 0, num_nodes_to_select: int = 1, **options: Any) -> None:
        super().__init__(*args, rule=robust.MultiKrum(num_malicious_nodes, num_nodes_to_select), **options)


class Bulyan(FedAvg):
    """FedAvg with `robust.Bulyan`."""

    def __init__(self, *args: Any, num_malicious_nodes: int = 0, **options: Any) -> None:
        super().__init__(*args, rule=robust.Bulyan(num_malicious_nodes), **options)
