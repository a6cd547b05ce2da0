"""FedAvg: the mean of what devices trained, weighted by their examples.

McMahan, Moore, Ramage, Hampson, Agüera y Arcas: Communication-Efficient Learning of Deep Networks from Decentralized
Data, AISTATS 2017, arXiv:1602.05629, algorithm 1:

    w[t+1] = sum_k (n_k / m) w_k[t+1],    m = sum_k n_k over the round's cohort

Departures from the paper: differences to the model sent are averaged instead of models, which is the same on paper and
loses fewer digits. The sum of weights is that of the arXiv version's erratum: of the cohort, not of all devices.
"""

from fedfleet_strategies.strategy import Strategy


class FedAvg(Strategy):
    """Federated averaging; with another `rule`, the simplest robust strategy."""
