"""NegGrad+: a plain numpy step, paced by the retain set."""

import numpy as np
import pytest

from expunge.core.errors import ConfigError
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.engine.order import epoch_steps
from expunge.forget.method import Given, apply


def test_one_step_equals_numpy(linear):
    """β of the retain gradient against 1 - β of that of the forget records drawn beside it."""
    beta, lr, draw = 0.7, 0.1, np.random.default_rng(2)
    x, y = draw.normal(size=(5, 3)), draw.integers(4, size=5)
    retain = Records(tuple("vwxyz"), {"x": x, "y": y})
    [step] = epoch_steps("paired", {"retain": 5, "forget": 6}, 64, 0, 0)
    rows = step["forget"]
    assert len(rows) == 5
    fw, fb = linear.gradient(linear.x[rows], linear.y[rows])
    rw, rb = linear.gradient(x, y)
    schedule = {"epochs": 1, "lr": lr, "weight_decay": 0.0}
    given = Given(linear.task, linear.forget, retain, guard=None)
    settings = {"beta": beta, "schedule": schedule}
    got = apply("neggrad_plus", linear.model(), given, Run(), settings).model
    np.testing.assert_allclose(
        got.weight.detach().numpy(),
        linear.w - lr * (beta * rw - (1 - beta) * fw),
        atol=1e-14,
    )
    np.testing.assert_allclose(
        got.bias.detach().numpy(), linear.b - lr * (beta * rb - (1 - beta) * fb), atol=1e-14
    )


def test_an_epoch_passes_over_the_retain_set(digits_world):
    world = digits_world
    given = Given(world.task, world.forget, world.retain, guard=None)
    schedule = {"epochs": 1, "batch_size": 16}
    history = apply("neggrad_plus", world.model, given, Run(), {"schedule": schedule}).history
    assert len(history.steps) == 10


@pytest.mark.parametrize("beta", [0.0, 1.0, -0.5])
def test_both_terms_have_a_share(linear, beta):
    with pytest.raises(ConfigError, match=f"beta = {beta}"):
        linear.apply("neggrad_plus", {"beta": beta})
