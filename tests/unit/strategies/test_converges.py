"""Every strategy, rule and cohort policy learns the digits, on ten devices in memory."""

from collections.abc import Callable
from typing import Any

import pytest

import fedfleet_strategies as own
from benchmarks.reproduce import rounds_to
from fedfleet_strategies import robust

pytest.importorskip("sklearn")
MAKES: dict[str, Callable[..., Any]] = {
    "FedAvg": own.FedAvg,
    "FedAvgM": lambda **o: own.FedAvgM(server_momentum=0.5, **o),
    "FedAdam": lambda **o: own.FedAdam(eta=0.1, **o),
    "FedYogi": lambda **o: own.FedYogi(eta=0.1, **o),
    "FedAdagrad": lambda **o: own.FedAdagrad(eta=0.3, **o),
    "FedProx": lambda **o: own.FedProx(proximal_mu=0.1, **o),
    "FedNova": own.FedNova,
    "QFedAvg": lambda **o: own.QFedAvg(0.5, q=0.1, **o),
    "Scaffold": own.Scaffold,
    "FedDyn": lambda **o: own.FedDyn(alpha=0.1, **o),
    "FedBN": own.FedBN,
    "Ditto": own.Ditto,
    "PFedMe": lambda **o: own.PFedMe(lam=1.0, eta=0.5, local_rounds=3, **o),
    "PerFedAvg": own.PerFedAvg,
    "Median": own.FedMedian,
    "TrimmedMean": own.FedTrimmedAvg,
    "Krum": lambda **o: own.Krum(num_malicious_nodes=1, **o),
    "MultiKrum": lambda **o: own.MultiKrum(num_malicious_nodes=2, num_nodes_to_select=6, **o),
    "Bulyan": lambda **o: own.Bulyan(num_malicious_nodes=1, **o),
    "GeometricMedian": lambda **o: own.FedAvg(rule=robust.GeometricMedian(), **o),
    "CentredClipping": lambda **o: own.FedAvg(rule=robust.CentredClipping(2.0), **o),
    "NormClipping": lambda **o: own.FedAvg(rule=robust.NormClipping(2.0), **o),
    "Bucketing": lambda **o: own.FedAvg(rule=robust.Bucketing(robust.Median()), **o),
    "RoundRobin": lambda **o: own.FedAvg(fraction_train=0.3, cohort=own.RoundRobin(), **o),
    "PowerOfChoice": lambda **o: own.FedAvg(fraction_train=0.3, cohort=own.PowerOfChoice(), **o),
    "Oort": lambda **o: own.FedAvg(fraction_train=0.3, cohort=own.Oort(), **o),
}


@pytest.mark.parametrize("name", MAKES)
def test_it_learns_the_digits(name: str) -> None:
    assert rounds_to(0.88, MAKES[name], 1, most=30, alpha=10.0, epochs=2) < 30
