"""Forget some rows from a classifier of your own, and compare with retraining."""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import expunge

# Your data: inputs of one shape and integer classes. Here 1,797 pictures of 8 x 8 pixels.
pictures = load_digits()
x, y = (pictures.data / 16).astype(np.float32), pictures.target
data = expunge.from_arrays(
    x[:1000], y[:1000], holdout=(x[1000:1400], y[1000:1400]), test=(x[1400:], y[1400:])
)


def train(rows: np.ndarray, seed: int) -> nn.Module:
    """Train your network: any module from inputs (B, ...) to logits (B, classes)."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(300):
        batch = rows[torch.randint(len(rows), (64,))]
        optimizer.zero_grad()
        logits = model(torch.from_numpy(x[batch]))
        nn.functional.cross_entropy(logits, torch.from_numpy(y[batch])).backward()
        optimizer.step()
    return model


rows = np.arange(1000)
forgotten = rows[:100]  # row numbers of the training data; record ids do as well
before = train(rows, seed=0)
outcome = expunge.forget(
    before, data, forgotten, method="salun", settings={"schedule": {"epochs": 5, "lr": 0.01}}
)
outcome.save("after.safetensors")

# Two networks that never saw the rows show where the numbers should be, and how far apart
# two honest retrains are.
references = [train(rows[100:], seed=1), train(rows[100:], seed=2)]
findings = expunge.audit(outcome.model, data, outcome.sets, before=before, references=references)
for finding in findings:
    if finding.subject == "after" and finding.reference:
        retrained = " and ".join(f"{value:.3g}" for value in finding.reference.values)
        print(f"{finding.title}: {finding.value:.3g}, retrained {retrained}")
