"""FLAT against known values, its bounds, and plain numpy; nothing but forget records is read."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numeric import LABELS_BT, WIN_BT, log_softmax, slope, t1_logits, targets, with_answers

from expunge.core.config import parse
from expunge.core.errors import ConfigError, DataError
from expunge.core.run import Run
from expunge.engine.weights import state_digest
from expunge.forget.flat import PULL, PUSH, FlatConfig
from expunge.forget.method import Given, apply, methods

DIVERGENCES = ("kl", "js", "pearson", "tv")
SCALARS = {  # L(p_e, p_f) of the official function
    (0.2, 0.6): (0.4703200460, 0.2493324587, 0.49, 0.1698371234),
    (0.0, 1.0): (1.0, 0.6201145070, 1.25, 0.3807970780),
    (1.0, 0.0): (-0.6321205588, -0.3798854930, -1.0, -0.3807970780),
    (0.5, 0.5): (0.1065306597, 0.0618596072, 0.0625, 0.0),
}
WEIGHTS = {  # dL/dp_e and dL/dp_f at (0.2, 0.6)
    "kl": (-1.0, 0.6703200460),
    "js": (-0.4501660027, 0.6456563062),
    "pearson": (-1.0, 1.3),
    "tv": (-0.4805214915, 0.3557888813),
}
BOUNDS = {  # at (1, 0) and (0, 1)
    "kl": (np.exp(-1) - 1, 1.0),
    "js": (-0.3798854930, 0.6201145070),
    "pearson": (-1.0, 1.25),
    "tv": (-0.3807970780, 0.3807970780),
}
CANONICAL = {
    "kl": 0.4461964793,
    "js": 0.2167215317,
    "pearson": 0.4253906250,
    "tv": 0.1506601874,
}
OFFICIAL = {
    "kl": 0.4014143353,
    "js": 0.1345837254,
    "pearson": 0.2654340278,
    "tv": 0.1096960716,
}


def loss(divergence, template, forget):
    e, f = (torch.tensor(v, dtype=torch.float64) for v in (template, forget))
    return PUSH[divergence](f) - PULL[divergence](e)


@pytest.mark.parametrize("point", SCALARS)
def test_golden_scalars(point):
    for divergence, golden in zip(DIVERGENCES, SCALARS[point], strict=True):
        assert loss(divergence, *point).item() == pytest.approx(golden, abs=1e-9), divergence


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_golden_weights(divergence):
    point = torch.tensor([0.2, 0.6], dtype=torch.float64, requires_grad=True)
    (PUSH[divergence](point[1]) - PULL[divergence](point[0])).backward()
    np.testing.assert_allclose(point.grad.numpy(), WEIGHTS[divergence], atol=1e-9)


# The printed forms, with the conjugate taken of the dual function.
G = {
    "kl": lambda v: v,
    "js": lambda v: np.log(2 / (1 + np.exp(-v))),
    "pearson": lambda v: v,
    "tv": lambda v: np.tanh(v) / 2,
}
F = {
    "kl": lambda u: np.exp(u - 1),
    "js": lambda u: -np.log(2 - np.exp(u)),
    "pearson": lambda u: u**2 / 4 + u,
    "tv": lambda u: u,
}


@pytest.mark.parametrize("divergence", DIVERGENCES)
@given(st.floats(0, 1), st.floats(0, 1))
def test_it_is_the_printed_form_and_stays_within_its_bounds(divergence, template, forget):
    value = loss(divergence, template, forget).item()
    g, f = G[divergence], F[divergence]
    assert value == pytest.approx(f(g(forget)) - g(template), abs=1e-12)
    low, high = BOUNDS[divergence]
    assert low - 1e-9 <= value <= high + 1e-9


def probabilities(z_BTV, labels, official_scale):
    """Mean token probability of each record, or of every position of the batch."""
    rows, places, symbols = targets(labels)
    p_N = np.exp(log_softmax(z_BTV))[rows, places, symbols]
    sums_B = np.bincount(rows, p_N)
    return np.full(2, sums_B.sum() / (2 * 3)) if official_scale else sums_B / 2


def oracle(z_BTV, divergence, official_scale=False):
    g, f = G[divergence], F[divergence]
    own, other = (probabilities(z_BTV, labels, official_scale) for labels in (LABELS_BT, WIN_BT))
    return float(np.mean(f(g(own)) - g(other)))


@pytest.mark.parametrize("official_scale", [False, True])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_golden_sequences_and_slope(t1, divergence, official_scale):
    """Canonical means, and those of the release over every position, by its own functions."""
    golden = (OFFICIAL if official_scale else CANONICAL)[divergence]
    settings = {"divergence": divergence, "official_scale": official_scale}
    numbers, gradient = with_answers(t1()).step("flat", **settings)
    current, _ = t1_logits()
    assert numbers["forget"] + numbers["template"] == pytest.approx(golden, abs=1e-9)
    assert oracle(current, divergence, official_scale) == pytest.approx(golden, abs=1e-9)
    expected = slope(lambda z: oracle(z, divergence, official_scale), current)
    np.testing.assert_allclose(gradient, expected, atol=1e-9)


def test_the_two_halves_are_shown_apart(t1):
    """TV at p_f = (.425, .65) and p_e = (.225, .15)."""
    numbers, _ = with_answers(t1()).step("flat", divergence="tv")
    assert numbers["forget"] == pytest.approx(np.tanh([0.425, 0.65]).mean() / 2, abs=1e-12)
    assert numbers["template"] == pytest.approx(-np.tanh([0.225, 0.15]).mean() / 2, abs=1e-12)


def test_names_of_the_release_are_accepted(t1):
    for alias, name in {"jenson-shannon": "js", "total-variation": "tv"}.items():
        other, expected = (
            with_answers(t1()).step("flat", divergence=divergence)[1]
            for divergence in (alias, name)
        )
        np.testing.assert_array_equal(other, expected)
    with pytest.raises(ConfigError, match="divergence = 'jss'"):
        parse(FlatConfig, {"divergence": "jss"}, "flat")


class Untouchable:
    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, row):
        raise AssertionError("retain records were read")


def test_retain_records_and_references_are_never_read(questions_world):
    world = questions_world
    info = methods.get("flat")
    assert info.needs(FlatConfig()) == {"forget", "labels", "neutral"}
    names = world.retain.columns
    hidden = world.retain.replace(**{name: Untouchable(len(world.retain)) for name in names})
    given = Given(world.task, world.forget, hidden, guard=None)
    settings = {"schedule": {"lr": 1e-3}}
    with_retain = apply("flat", world.model, given, Run(), settings).model
    without = apply("flat", world.model, Given(world.task, world.forget), Run(), settings).model
    assert state_digest(with_retain) == state_digest(without) != state_digest(world.model)


def test_template_and_forgotten_answer_are_of_one_record(questions_world):
    world = questions_world
    seen = []

    class Watched:
        def __getattr__(self, name):
            return getattr(world.task, name)

        def predict(self, model, batch):
            seen.append(batch.ids)
            return world.task.predict(model, batch)

    settings = {"schedule": {"epochs": 2, "batch_size": 4}}
    apply("flat", world.model, Given(Watched(), world.forget), Run(), settings)
    assert len(seen) == 8
    # A term sorts its rows by length, so that a step's two batches may differ in order.
    assert all(sorted(a) == sorted(b) for a, b in zip(seen[::2], seen[1::2], strict=True))


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_ascent_without_end_becomes_a_loss_that_settles(questions_world, divergence):
    world = questions_world
    settings = {"divergence": divergence, "schedule": {"epochs": 40, "lr": 3e-3}}
    given = Given(world.task, world.forget, guard=None)
    steps = apply("flat", world.model, given, Run(), settings).history.steps
    losses = [step["forget"] + step["template"] for step in steps]
    low, high = BOUNDS[divergence]
    assert all(low <= value <= high for value in losses)
    assert losses[-1] < losses[0] - 0.2
    assert steps[-1]["grad_norm"] < steps[0]["grad_norm"]


def test_a_template_that_is_the_true_answer_is_refused(questions_world, tmp_path):
    """The card: under TV the two halves would cancel."""
    answers = tmp_path / "answers.txt"
    answers.write_text(questions_world.forget["answer"][0] + "\n")
    given = Given(questions_world.task, questions_world.forget, guard=None)
    with pytest.raises(DataError, match=r"3 records have a template answer for their true answer"):
        apply("flat", questions_world.model, given, Run(), {"answers": {"file": str(answers)}})


def test_warm_up_steps_are_cross_entropy_to_the_template_and_nothing_else(questions_world):
    """Off by default, and shown in the history where it is used."""
    world = questions_world
    given = Given(world.task, world.forget, world.retain, guard=None)
    schedule = {"epochs": 2, "batch_size": 6, "lr": 1e-2, "warmup_epochs": 0}
    once = {"schedule": {**schedule, "epochs": 1}}
    warm = apply("flat", world.model, given, Run(), {**once, "warmup_ce_steps": 1})
    taught = apply("idk", world.model, given, Run(), {**once, "retain": "none"})
    pairs = zip(warm.model.parameters(), taught.model.parameters(), strict=True)
    # idk decays its rate differently, but not in the first and only step.
    assert max(float((a - b).abs().max().detach()) for a, b in pairs) < 1e-6
    longer = apply("flat", world.model, given, Run(), {"schedule": schedule, "warmup_ce_steps": 1})
    assert all("warm-up" in step for step in longer.history.steps)
    plain = apply("flat", world.model, given, Run(), {"schedule": schedule})
    assert all("warm-up" not in step for step in plain.history.steps)


def test_not_even_the_guard_reads_retain_records(questions_world):
    world = questions_world

    class Untouchable(list):
        def __getitem__(self, row):
            raise AssertionError("retain records were read")

    columns = {name: Untouchable(values) for name, values in world.retain.columns.items()}
    given = Given(world.task, world.forget, world.retain.replace(**columns))
    result = apply("flat", world.model, given, Run(), {"schedule": {"epochs": 1, "lr": 1e-3}})
    assert result.history.guarded is False


def test_the_scale_of_the_release_takes_no_split_batch(questions_world):
    given = Given(questions_world.task, questions_world.forget, guard=None)
    settings = {"official_scale": True, "schedule": {"micro_batch": 1}}
    with pytest.raises(ConfigError, match=r"a batch cannot be split; leave schedule\.micro_batch"):
        apply("flat", questions_world.model, given, Run(), settings)


def test_a_mixed_step_of_nothing_but_forget_records_is_a_paired_one(questions_world):
    """Both answers of a record count once, so that the two orders follow the same gradient."""
    given = Given(questions_world.task, questions_world.forget, guard=None)
    norms = [
        apply(
            "flat",
            questions_world.model,
            given,
            Run(),
            {"schedule": {"epochs": 1, "batch_size": 6, "order": order}},
        ).history.steps[0]["grad_norm"]
        for order in ("paired", "mixed")
    ]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
