import numpy as np
import pytest

from expunge.core.errors import ConfigError
from expunge.core.run import Run
from expunge.engine.tasks.regressor import Regressor
from expunge.engine.weights import state_digest
from expunge.forget.method import Given, apply

FAST = {"schedule": {"batch_size": 32, "epochs": 40, "lr": 5e-3}}


def test_forgotten_targets_are_not_read_and_new_ones_are_drawn_once(heights_world) -> None:
    """Outputs end near the one draw of epoch 0; targets drawn anew would average to their mean."""
    world = heights_world
    wrong = world.forget.replace(y=[1e6] * len(world.forget))
    settings = {"schedule": {"batch_size": 32, "epochs": 150, "lr": 1e-2}}
    first, second = (
        apply(
            "gaussian_amnesiac",
            world.model,
            Given(world.task, forget, world.retain, guard=None),
            Run(),
            settings,
        )
        for forget in (world.forget, wrong)
    )
    assert state_digest(first.model) == state_digest(second.model)
    drawn = np.array(world.task.neutral(world.forget, Run().seed, 0)["y"])
    batch = world.task.batch(world.forget, range(len(world.forget)))
    outputs = world.task.predict(first.model, batch).outputs_BD.detach().numpy()[:, 0]
    assert np.abs(outputs - drawn).mean() < 0.7 * np.abs(drawn - drawn.mean()).mean()


def test_draws_have_the_targets_mean_and_deviation() -> None:
    from expunge.core.records import Records

    task = Regressor(mean=(3.0,), deviation=(2.0,))
    many = Records(tuple(f"r{i}" for i in range(4000)), {"x": [[0.0]] * 4000, "y": [9.0] * 4000})
    drawn = np.array(task.neutral(many, 0, 0)["y"])
    assert drawn.mean() == pytest.approx(3.0, abs=0.1)
    assert drawn.std(ddof=1) == pytest.approx(2.0, abs=0.07)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (Regressor(), "not known"),
        (Regressor(mean=(1.0,), deviation=(0.0,)), "constant target"),
    ],
)
def test_no_gaussian_to_draw_from_is_refused_before_any_work(heights_world, task, message) -> None:
    given = Given(task, heights_world.forget, heights_world.retain)
    with pytest.raises(ConfigError, match=message):
        apply("gaussian_amnesiac", heights_world.model, given, Run(), FAST)
