"""ULD: subtraction of an assistant's logits, against known values and the traps of the release."""

import copy
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numeric import LABELS_BT, log_softmax, pack, slope, t1_logits, targets

from expunge.core.config import parse
from expunge.core.errors import ConfigError
from expunge.core.run import Run
from expunge.engine.composites.logit_difference import LogitDifference, combine, plausible
from expunge.engine.losses import to_uniform
from expunge.engine.task import Predictions
from expunge.engine.weights import state_digest
from expunge.forget.method import Given, apply, methods
from expunge.forget.uld import ULDConfig, first_blocks

TARGET = torch.tensor([0.6, 0.25, 0.1, 0.04, 0.01], dtype=torch.float64).log()
ASSISTANT = torch.tensor([2.0, 0, 0, 0, 1.0], dtype=torch.float64)


def shares(logits):
    return logits.softmax(-1).numpy()


# --- the composite's logits ---


def test_golden_composite_without_filter():
    golden = [0.2349313050, 0.4848426546, 0.1939370618, 0.0775748247, 0.0087141539]
    for shift in (0, 5, -5, 1000):
        logits = combine(TARGET, ASSISTANT + shift, 0.8, "difference")
        np.testing.assert_allclose(shares(logits), golden, atol=1e-9)


def test_golden_composite_with_filter_at_any_shift():
    """Filtered tokens get -inf. The release gives them .29, .96 or .007, as the shift may be."""
    golden = [0.3263959495, 0.6736040505, 0, 0, 0]
    allowed = plausible(TARGET, 0.5, 1)
    assert allowed.tolist() == [True, True, False, False, False]
    for shift in (0, 5, -5):
        logits = combine(TARGET, ASSISTANT + shift, 0.8, "difference")
        logits = logits.masked_fill(~allowed, -torch.inf)
        np.testing.assert_allclose(shares(logits), golden, atol=1e-9)


@pytest.mark.parametrize(
    ("shift", "official"),
    [
        (0, [0.2324488553, 0.4797194655, 0.1918877862, 0.0767551145, 0.0191887786]),
        (5, [0.0141502028, 0.0292026721, 0.6377647501, 0.2551059000, 0.0637764750]),
        (-5, [0.3239975598, 0.6686543413, 0.0048987326, 0.0019594930, 0.0004898733]),
    ],
)
def test_the_release_scores_move_with_the_shift_and_ours_do_not(shift, official):
    """Its path: an assistant logit of 0 outside the filter, the raw one inside."""
    raw = torch.where(plausible(TARGET, 0.5, 1), ASSISTANT + shift, 0.0)
    np.testing.assert_allclose(shares(TARGET - 0.8 * raw), official, atol=1e-9)
    ours = combine(TARGET, ASSISTANT + shift, 0.8, "difference")
    assert np.abs(shares(ours) - official).max() > 1e-3


@given(
    target=st.lists(st.floats(-20, 20), min_size=4, max_size=4),
    assistant=st.lists(st.floats(-20, 20), min_size=4, max_size=4),
    alpha=st.floats(0, 5),
    shift=st.floats(-100, 100),
)
def test_it_equals_numpy_and_a_constant_changes_nothing(target, assistant, alpha, shift):
    z, a = np.array(target), np.array(assistant)
    pair = [
        combine(torch.from_numpy(z), torch.from_numpy(a + s), alpha, "difference").numpy()
        for s in (0, shift)
    ]
    np.testing.assert_allclose(pair[0], z - alpha * log_softmax(a), atol=1e-12)
    np.testing.assert_allclose(pair[1], pair[0], atol=1e-11)


def test_zero_alpha_returns_the_very_logits():
    assert combine(TARGET, ASSISTANT * float("nan"), 0.0, "difference") is TARGET


# --- the plausibility filter ---


@pytest.mark.parametrize(
    ("ratio", "min_keep", "kept"),
    [
        (0.5, 1, 2),  # k = floor(.5 * 5) = 2
        (0.1, 1, 3),  # k = 0 becomes 1: the threshold is ln .06; the release keeps all five
        (0.1, 4, 4),
        (0.01, 5, 5),
        (0.01, 1, 5),  # .01 is within a factor .01 of .6: .006
        (0.02, 1, 4),
        (0.9, 100, 5),  # no more than there are
    ],
)
def test_golden_filter(ratio, min_keep, kept):
    assert plausible(TARGET, ratio, min_keep).sum().item() == kept


@given(
    logits=st.lists(st.floats(-30, 30), min_size=1, max_size=12, unique=True),
    ratio=st.floats(1e-6, 0.99),
    min_keep=st.integers(1, 15),
)
def test_the_filter_equals_numpy_and_keeps_the_best(logits, ratio, min_keep):
    logprobs = log_softmax(np.array(logits))
    kept = plausible(torch.from_numpy(logprobs), ratio, min_keep).numpy()
    order = np.sort(logprobs)[::-1]
    count = min(max(int(ratio * len(order)), min_keep), len(order))
    threshold = min(order[0] + np.log(ratio), order[count - 1])
    np.testing.assert_array_equal(kept, logprobs >= threshold)
    assert kept[np.argmax(logprobs)]
    assert kept.sum() >= min(min_keep, len(order))


def test_a_confident_target_leaves_a_choice():
    """With one plausible token nothing could be forgotten, since it would stay the best."""
    sure = torch.tensor([20.0, 1, 0, -1, -2, -3], dtype=torch.float64).log_softmax(0)
    assert plausible(sure, 0.01, 1).sum() == 1
    config = ULDConfig()
    assert plausible(sure, config.keep_ratio, config.min_keep).sum() == 5
    with pytest.raises(ConfigError, match="min_keep = 1"):
        parse(ULDConfig, {"min_keep": 1}, "uld")


def test_a_filtered_token_never_wins():
    """Scores (-3, -1, -2) with token 2 filtered: the release multiplies by the mask and picks 2."""
    scores, allowed = torch.tensor([-3.0, -1.0, -2.0]), torch.tensor([True, True, False])
    assert (scores * allowed).argmax() == 2
    assert scores.masked_fill(~allowed, -torch.inf).argmax() == 1


# --- the assistant's loss ---


def test_golden_divergence_from_uniform():
    """.4298131946 for (.7, .1, .1, .1); beside a uniform position the mean is half of it."""
    logits = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.25] * 4], dtype=torch.float64).log()
    packed = Predictions(logits, torch.tensor([0, 1]), torch.tensor([0, 0]), 1)
    assert to_uniform(packed).item() / 2 == pytest.approx(0.2149065973, abs=1e-10)
    alone = Predictions(logits[:1], torch.tensor([0]), torch.tensor([0]), 1)
    assert to_uniform(alone).item() == pytest.approx(0.4298131946, abs=1e-10)


def test_the_slope_of_the_divergence_from_uniform_and_its_scope():
    """softmax minus 1/V at answer positions; prompt and padding do not enter."""
    current, _ = t1_logits()
    logits = torch.tensor(current, requires_grad=True)
    to_uniform(pack(logits, LABELS_BT)).sum().backward()
    rows, places, _ = targets(LABELS_BT)
    expected = np.zeros((2, 4, 4))
    expected[rows, places] = np.exp(log_softmax(current))[rows, places] - 0.25
    np.testing.assert_allclose(logits.grad.numpy(), expected, atol=1e-14)

    def oracle(z):
        return float((-log_softmax(z)[rows, places].mean(-1) - np.log(4)).sum())

    np.testing.assert_allclose(logits.grad.numpy(), slope(oracle, current), atol=1e-8)


def test_extreme_logits_stay_finite_in_half_precision():
    logits = torch.tensor([[300.0, -300.0]], dtype=torch.bfloat16, requires_grad=True)
    value = to_uniform(Predictions(logits, torch.tensor([0]), torch.tensor([0]), 1)).sum()
    value.backward()
    assert value.item() == pytest.approx(300 - np.log(2), rel=1e-5)
    assert torch.isfinite(logits.grad).all()


# --- the method ---

SCHEDULE = {"epochs": 40, "batch_size": 6, "lr": 1e-2}


@pytest.fixture(scope="module")
def suppressed(questions_world):
    world = questions_world
    given = Given(world.task, world.forget, world.retain.take(range(6)))
    settings = {"layers": 1, "alpha": 1.0, "schedule": SCHEDULE}
    return apply("uld", world.model, given, Run(), settings)


def loss(world, model, records):
    batch = world.task.batch(records, range(len(records)))
    with torch.no_grad():
        return float(world.task.predict(model, batch).nll_B().sum()) / len(batch.targets_N)


def test_the_target_keeps_its_bits_and_the_assistant_has_the_asked_blocks(
    questions_world, suppressed
):
    model = suppressed.model
    assert isinstance(model, LogitDifference)
    assert state_digest(model.target) == state_digest(questions_world.model)
    assert len(model.target.model.layers) == 2
    assert len(model.assistant.model.layers) == model.assistant.config.num_hidden_layers == 1
    assert model.target.config.num_hidden_layers == 2
    assert model.evidence == methods.get("uld").evidence == "output-suppressed"


def test_only_linear_layers_of_the_assistants_blocks_were_trained(questions_world, suppressed):
    """Adapters are merged; embeddings, norms and head are those of the target."""
    target = questions_world.model.state_dict()
    assistant = suppressed.model.assistant.state_dict()
    assert assistant.keys() == {n for n in target if not n.startswith("model.layers.1.")}
    moved = {name for name, value in assistant.items() if not torch.equal(value, target[name])}
    linear = {n for n in assistant if n.startswith("model.layers.0.") and n.endswith("proj.weight")}
    assert moved == linear
    assert len(linear) == 7


def test_the_assistant_knows_the_forget_set_and_nothing_else(questions_world, suppressed):
    world = questions_world
    assistant = suppressed.model.assistant
    assert loss(world, assistant, world.forget) < 0.2
    assert loss(world, assistant, world.retain) > 2.0
    steps = suppressed.history.steps
    assert steps[-1]["forget"] < 0.2
    assert steps[-1]["retain"] < steps[0]["retain"] / 4


def test_what_is_forgotten_grows_with_alpha(questions_world, suppressed):
    world = questions_world
    model, losses = copy.copy(suppressed.model), []
    for alpha in (0.0, 0.25, 0.5, 1.0, 1.5):
        model.alpha = alpha
        losses.append(loss(world, model, world.forget))
    assert losses == sorted(losses)
    assert losses[-1] > losses[0] + 2


def test_it_forgets_more_than_it_loses(questions_world, suppressed):
    world = questions_world
    rise = [
        loss(world, suppressed.model, records) - loss(world, world.model, records)
        for records in (world.forget, world.retain)
    ]
    assert rise[0] > 0.5
    assert rise[1] < rise[0] / 2


def test_without_subtraction_scores_are_the_targets_bit_by_bit(questions_world, suppressed):
    world = questions_world
    model = copy.copy(suppressed.model)
    model.alpha = 0.0
    batch = world.task.batch(world.forget, range(len(world.forget)))
    with torch.no_grad():
        pair = [world.task.predict(m, batch).logits_NV for m in (model, world.model)]
    assert torch.equal(*pair)


def test_scores_are_never_filtered_and_answers_are(questions_world, suppressed):
    world, model = questions_world, suppressed.model
    batch = world.task.batch(world.forget, range(len(world.forget)))
    assert model.keep_ratio > 0
    with torch.no_grad():
        scored = world.task.predict(model, batch).logits_NV
        written = model(**batch.inputs, writing=True).logits
    assert torch.isfinite(scored).all()
    kept = torch.isfinite(written).sum(-1)
    assert (kept >= model.min_keep).all()
    assert (kept < written.shape[-1]).any()
    assert not (written == 0).any()


def test_without_a_retain_term_a_warning_says_what_it_costs(questions_world):
    world = questions_world
    settings = {"retain_weight": 0.0, "schedule": {"epochs": 1}}
    with pytest.warns(UserWarning, match=r"retain_weight = 0: the assistant will know"):
        result = apply("uld", world.model, Given(world.task, world.forget), Run(), settings)
    assert "retain" not in result.history.steps[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        given = Given(world.task, world.forget, world.retain)
        apply("uld", world.model, given, Run(), {"schedule": {"epochs": 1}})


@pytest.mark.parametrize("layers", [1, 2])
def test_first_blocks_are_copies(questions_world, layers):
    model = questions_world.model
    assistant = first_blocks(model, layers)
    assert len(assistant.model.layers) == layers
    assert len(model.model.layers) == 2
    shared = {p.data_ptr() for p in model.parameters()} & {
        p.data_ptr() for p in assistant.parameters()
    }
    assert not shared
    with torch.no_grad():
        ids = torch.tensor([[2, 3, 4]])
        hidden = model(ids, output_hidden_states=True).hidden_states[layers]
        if layers < 2:
            hidden = model.model.norm(hidden)
        expected = model.lm_head(hidden)
        assert torch.equal(assistant(ids).logits, expected)


def test_a_quarter_of_the_blocks_and_at_least_one_by_default(questions_world):
    assert len(first_blocks(questions_world.model, None).model.layers) == 1


def test_more_blocks_than_the_model_has_are_refused(questions_world):
    world = questions_world
    given = Given(world.task, world.forget, world.retain)
    with pytest.raises(ConfigError, match=r"forget\.layers = 3 but the model has 2 layers"):
        apply("uld", world.model, given, Run(), {"layers": 3})


@pytest.mark.parametrize("setting", ["alpha", "retain_weight", "keep_ratio"])
def test_numbers_below_zero_are_refused(setting):
    with pytest.raises(ConfigError, match=rf"{setting} = -0\.1"):
        parse(ULDConfig, {setting: -0.1}, "uld")
    with pytest.raises(ConfigError, match=r"keep_ratio = 1"):
        parse(ULDConfig, {"keep_ratio": 1.0}, "uld")
