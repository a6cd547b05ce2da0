"""Corrections for a PyTorch model: call `correct(model)` between `loss.backward()` and `optimizer.step()`."""

from typing import Any

import numpy as np

from fedfleet_strategies.correction import correction


def correct(model: Any) -> None:
    """Change the gradients of a model as the run's method wants; its arrays are named as in its `state_dict()`."""
    import torch

    lent = correction()
    if not lent:
        return
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            continue
        if name in lent.frozen:
            parameter.grad = None
            continue
        like = {"dtype": parameter.dtype, "device": parameter.device}
        if name in lent.linear:
            parameter.grad += torch.from_numpy(np.array(lent.linear[name])).to(**like)
        if lent.mu and name in lent.anchor:
            anchor = torch.from_numpy(np.array(lent.anchor[name])).to(**like)
            parameter.grad += lent.mu * (parameter.detach() - anchor)
