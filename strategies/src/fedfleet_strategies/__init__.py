"""Flower strategies and mods: what to aggregate, whom to ask, what goes on the wire, what is protected.

Here belongs one paper per module, on Flower's public interface, so that each runs on any Flower runtime. Here does not
belong anything that knows fedfleet's coordinator or agent.

The names below are imported when somebody asks for them: a device that needs `client` does not load the server's half.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedfleet_strategies.cohorts import LabelQuotas, OverSelection, Poisson, Random, RoundRobin
    from fedfleet_strategies.ditto import Ditto
    from fedfleet_strategies.each import Each
    from fedfleet_strategies.errors import AppFault, Incompatible, Refused
    from fedfleet_strategies.fedadagrad import FedAdagrad
    from fedfleet_strategies.fedadam import FedAdam
    from fedfleet_strategies.fedavg import FedAvg
    from fedfleet_strategies.fedavgm import FedAvgM
    from fedfleet_strategies.feddyn import FedDyn
    from fedfleet_strategies.fednova import FedNova
    from fedfleet_strategies.fedprox import FedProx
    from fedfleet_strategies.fedyogi import FedYogi
    from fedfleet_strategies.named import Bulyan, FedMedian, FedTrimmedAvg, Krum, MultiKrum
    from fedfleet_strategies.oort import Oort
    from fedfleet_strategies.perfedavg import PerFedAvg
    from fedfleet_strategies.personal import FedBN, FedPer, FedRep
    from fedfleet_strategies.pfedme import PFedMe
    from fedfleet_strategies.power_of_choice import PowerOfChoice
    from fedfleet_strategies.qfedavg import QFedAvg
    from fedfleet_strategies.robust.fltrust import FLTrust
    from fedfleet_strategies.scaffold import Scaffold
    from fedfleet_strategies.strategy import Strategy
    from fedfleet_strategies.sums import Mean
    from fedfleet_strategies.updates import Aggregate, Update

_MODULES = {
    "Aggregate": "updates",
    "AppFault": "errors",
    "Bulyan": "named",
    "Ditto": "ditto",
    "Each": "each",
    "FLTrust": "robust.fltrust",
    "FedAdagrad": "fedadagrad",
    "FedAdam": "fedadam",
    "FedAvg": "fedavg",
    "FedAvgM": "fedavgm",
    "FedBN": "personal",
    "FedDyn": "feddyn",
    "FedMedian": "named",
    "FedNova": "fednova",
    "FedPer": "personal",
    "FedProx": "fedprox",
    "FedRep": "personal",
    "FedTrimmedAvg": "named",
    "FedYogi": "fedyogi",
    "Incompatible": "errors",
    "Krum": "named",
    "LabelQuotas": "cohorts",
    "Mean": "sums",
    "MultiKrum": "named",
    "Oort": "oort",
    "OverSelection": "cohorts",
    "PFedMe": "pfedme",
    "PerFedAvg": "perfedavg",
    "Poisson": "cohorts",
    "PowerOfChoice": "power_of_choice",
    "QFedAvg": "qfedavg",
    "Random": "cohorts",
    "Refused": "errors",
    "RoundRobin": "cohorts",
    "Scaffold": "scaffold",
    "Strategy": "strategy",
    "Update": "updates",
}

__all__ = [
    "Aggregate",
    "AppFault",
    "Bulyan",
    "Ditto",
    "Each",
    "FLTrust",
    "FedAdagrad",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedBN",
    "FedDyn",
    "FedMedian",
    "FedNova",
    "FedPer",
    "FedProx",
    "FedRep",
    "FedTrimmedAvg",
    "FedYogi",
    "Incompatible",
    "Krum",
    "LabelQuotas",
    "Mean",
    "MultiKrum",
    "Oort",
    "OverSelection",
    "PFedMe",
    "PerFedAvg",
    "Poisson",
    "PowerOfChoice",
    "QFedAvg",
    "Random",
    "Refused",
    "RoundRobin",
    "Scaffold",
    "Strategy",
    "Update",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
