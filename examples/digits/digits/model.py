"""A small network, trained and tested the same way each time."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)


def new_model(seed: int) -> nn.Module:
    """Return a network with the weights that belong to `seed`: 64 pixels to 10 digits by way of 64 units."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def train(
    model: nn.Module,
    images: NDArray[np.float32],
    labels: NDArray[np.int64],
    *,
    epochs: int,
    batch: int,
    rate: float,
    seed: int,
) -> float:
    """Return the mean loss of the last epoch; `seed` decides the order of the images."""
    inputs, targets = torch.from_numpy(images), torch.from_numpy(labels)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    criterion = nn.CrossEntropyLoss()
    model.train()
    loss = 0.0
    for _ in range(epochs):
        total = 0.0
        for indices in torch.randperm(len(inputs), generator=generator).split(batch):
            optimizer.zero_grad()
            error = criterion(model(inputs[indices]), targets[indices])
            error.backward()
            optimizer.step()
            total += error.item() * len(indices)
        loss = total / len(inputs)
    return loss


def test(model: nn.Module, images: NDArray[np.float32], labels: NDArray[np.int64]) -> tuple[float, float]:
    """Return mean loss and the share of images that were recognised."""
    model.eval()
    with torch.no_grad():
        scores = model(torch.from_numpy(images))
        targets = torch.from_numpy(labels)
        loss = nn.functional.cross_entropy(scores, targets).item()
        return loss, (scores.argmax(1) == targets).double().mean().item()
