"""NPO against known values and a plain numpy step, on sequences and on a classifier."""

import numpy as np
import pytest

from expunge.core.config import parse
from expunge.core.errors import ConfigError
from expunge.core.run import Run
from expunge.engine.weights import state_digest
from expunge.forget.method import Given, Sight, apply, methods
from expunge.forget.npo import NPOConfig


@pytest.mark.parametrize(
    ("beta", "loss", "row_0_position_1"),
    [
        (0.1, 12.8794049582, [-0.0467115003, -0.0934230006, 0.1868460012, -0.0467115003]),
        (0.5, 1.8986570651, None),
        (1.0, 0.6386695772, [-0.0211267606, -0.0422535211, 0.0845070423, -0.0211267606]),
    ],
)
def test_golden_loss_and_gradient(t1, beta, loss, row_0_position_1):
    """Values of the authors' function in double precision (Zhang et al., 2024)."""
    numbers, gradient = t1().step("npo", beta=beta, retain="none")
    assert numbers["forget"] == pytest.approx(loss, abs=1e-9)
    if row_0_position_1 is not None:
        assert gradient[0, 1] == pytest.approx(row_0_position_1, abs=1e-9)


def test_prompt_and_padding_do_not_move(t1):
    for retain in ("none", "kl", "nll"):
        _, gradient = t1().step("npo", retain=retain)
        moved = {place for place in np.ndindex(2, 4) if np.abs(gradient[place]).max() > 0}
        assert moved == {(0, 1), (0, 2), (1, 0), (1, 1)}


def numpy_step(linear, beta, reference, *, gamma=1.0, alpha=0.0, lr=0.1):
    """The gradient of eq. 3, by the weight W of each record and the gradient of its likelihood."""
    d = linear.nll(linear.x, linear.y) - reference
    weight = 2 / (1 + np.exp(beta * d))
    fw, fb = linear.gradient(linear.x, linear.y, weight)
    rw, rb = linear.gradient(linear.kept_x, linear.kept_y)
    return (
        linear.w + lr * (gamma * fw - alpha * rw),
        linear.b + lr * (gamma * fb - alpha * rb),
    )


def test_the_first_step_on_a_classifier_is_gradient_ascent_per_record(linear):
    """At the reference every weight is 1."""
    beta = {"beta": 2.0, "retain": "none"}
    reference = linear.nll(linear.x, linear.y)
    for got, expected in zip(
        linear.apply("npo", beta), numpy_step(linear, 2.0, reference), strict=True
    ):
        np.testing.assert_allclose(got, expected, atol=1e-14)


@pytest.mark.parametrize("beta", [0.1, 1.0, 10.0])
def test_a_step_away_from_the_reference_equals_numpy(linear, beta):
    other = linear.model(w=linear.w[::-1].copy())
    settings = {
        "beta": beta,
        "gamma": 0.5,
        "alpha": 2.0,
        "schedule": {"epochs": 1, "optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0}
        | {"batch_size": 64, "lr": 0.1, "warmup_epochs": 0},
    }
    info = methods.get("npo")
    config = parse(NPOConfig, settings, "npo")
    given = Given(linear.task, linear.forget, linear.retain, guard=None)
    sight = Sight(given, info.needs(config), other, Run())
    model = info.function(linear.model(), sight, config)
    reference = linear.nll(linear.x, linear.y, w=linear.w[::-1])
    w, b = numpy_step(linear, beta, reference, gamma=0.5, alpha=2.0)
    np.testing.assert_allclose(model.weight.detach().numpy(), w, atol=1e-13)
    np.testing.assert_allclose(model.bias.detach().numpy(), b, atol=1e-13)


def test_the_reported_loss_starts_at_two_over_beta_log_two(linear, digits_world):
    """d = 0 gives 13.8629436112 at beta 0.1."""
    given = Given(digits_world.task, digits_world.forget, digits_world.retain)
    result = apply("npo", digits_world.model, given, Run())
    assert result.history.steps[0]["forget"] == pytest.approx(13.8629436112, rel=1e-6)


def test_it_forgets_on_a_classifier_and_fades(digits_world):
    """Where gradient ascent goes on for ever, the weight of NPO falls with what is forgotten."""
    schedule = {"lr": 3e-3, "epochs": 20, "batch_size": 40, "warmup_epochs": 0}
    given = Given(digits_world.task, digits_world.forget, digits_world.retain, guard=None)

    def forget_loss(name, **settings):
        result = apply(name, digits_world.model, given, Run(), {"schedule": schedule, **settings})
        batch = digits_world.task.batch(digits_world.forget, range(40))
        return float(digits_world.task.predict(result.model, batch).nll_B().detach().mean())

    ascent = forget_loss("grad_ascent")
    npo = forget_loss("npo", beta=5.0, retain="none")
    assert 0.5 < npo < ascent / 2


def test_the_mask_of_salun_serves_npo_on_a_language_model(questions_world):
    """Composition: this objective, that mask; no class of its own."""
    world = questions_world
    given = Given(world.task, world.forget, world.retain)
    settings = {
        "beta": 1.0,
        "schedule": {"lr": 3e-3, "weight_decay": 0.1},
        "scope": {"mask": {"by": "saliency", "fraction": 0.3}},
    }
    masked = apply("npo", world.model, given, Run(), settings).model
    before, after = world.model.state_dict(), masked.state_dict()
    total = sum(v.numel() for v in before.values())
    moved = sum(int((before[n] != after[n]).sum()) for n in before)
    assert 0.25 * total < moved <= 0.3 * total
    batch = world.task.batch(world.forget, range(len(world.forget)))
    rise = [
        float(world.task.predict(model, batch).nll_B().detach().mean())
        for model in (world.model, masked)
    ]
    assert rise[1] > rise[0] + 1.0


def test_no_second_model_is_made_for_the_likelihood_ratio():
    info = methods.get("npo")
    assert "reference_model" not in info.needs(NPOConfig())
    assert "reference_model" in info.needs(NPOConfig(retain="kl"))
    assert "retain" not in info.needs(NPOConfig(retain="none"))


def test_beta_must_be_positive():
    with pytest.raises(ConfigError, match="beta = 0"):
        parse(NPOConfig, {"beta": 0}, "npo")


def test_single_record(digits_world):
    one = digits_world.forget.take([0])
    given = Given(digits_world.task, one, digits_world.retain)
    result = apply("npo", digits_world.model, given, Run(), {"schedule": {"lr": 1e-3}})
    assert state_digest(result.model) != state_digest(digits_world.model)
