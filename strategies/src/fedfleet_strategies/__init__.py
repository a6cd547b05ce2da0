"""Flower strategies and mods: what to aggregate, whom to ask, what goes on the wire, what is protected.

Here belongs one paper per module, on Flower's public interface, so that each runs on any Flower runtime. Here does not
belong anything that knows fedfleet's coordinator or agent.

The names below are imported when somebody asks for them: a device that needs `client` does not load the server's half.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedfleet_strategies.asynchronous.fedasync import FedAsync
    from fedfleet_strategies.asynchronous.fedbuff import FedBuff
    from fedfleet_strategies.cohorts import LabelQuotas, OverSelection, Poisson, Random, RoundRobin
    from fedfleet_strategies.ditto import Ditto
    from fedfleet_strategies.each import Each
    from fedfleet_strategies.errors import AppFault, Ended, Incompatible, Refused
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
    from fedfleet_strategies.privacy import AdaptivePrivacy, CentralPrivacy
    from fedfleet_strategies.privacy.local import LocalPrivacy
    from fedfleet_strategies.qfedavg import QFedAvg
    from fedfleet_strategies.robust.fltrust import FLTrust
    from fedfleet_strategies.scaffold import Scaffold
    from fedfleet_strategies.strategy import Strategy
    from fedfleet_strategies.sums import Mean
    from fedfleet_strategies.transforms.downlink import Downlink
    from fedfleet_strategies.updates import Aggregate, Update

_MODULES = {
    "AdaptivePrivacy": "privacy",
    "Aggregate": "updates",
    "AppFault": "errors",
    "Bulyan": "named",
    "CentralPrivacy": "privacy",
    "Ditto": "ditto",
    "Downlink": "transforms.downlink",
    "Each": "each",
    "Ended": "errors",
    "FLTrust": "robust.fltrust",
    "FedAdagrad": "fedadagrad",
    "FedAdam": "fedadam",
    "FedAsync": "asynchronous.fedasync",
    "FedAvg": "fedavg",
    "FedAvgM": "fedavgm",
    "FedBN": "personal",
    "FedBuff": "asynchronous.fedbuff",
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
    "LocalPrivacy": "privacy.local",
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
    "AdaptivePrivacy",
    "Aggregate",
    "AppFault",
    "Bulyan",
    "CentralPrivacy",
    "Ditto",
    "Downlink",
    "Each",
    "Ended",
    "FLTrust",
    "FedAdagrad",
    "FedAdam",
    "FedAsync",
    "FedAvg",
    "FedAvgM",
    "FedBN",
    "FedBuff",
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
    "LocalPrivacy",
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
