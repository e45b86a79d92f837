"""Sign SGD: every weight moves by the learning rate, against the sign of its gradient."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


class SignSgd(torch.optim.Optimizer):
    """Takes steps of one length in every coordinate; a weight without gradient stays.

    It keeps no state. Momentum and weight decay do not apply.

    Args:
        parameters: The weights that may move.
        lr: Length of a step in every coordinate.

    Source: Bernstein et al. (2018), signSGD.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move the weights."""
        del closure
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.add_(parameter.grad.sign(), alpha=-group["lr"])
