"""Attack scores against published values, plain loops and gradients by hand."""

import copy
import dataclasses
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numeric import LM_LABELS_BT, lm_logits, log_softmax, pack, targets
from scipy import stats
from sklearn.metrics import roc_auc_score

from expunge.audit.mia_scores import (
    above_shadows,
    below_reference,
    confidence,
    gradient_norm,
    loss,
    loss_per_byte,
    mean_of_lowest,
    min_k,
    min_k_plus,
    pooled_spread,
)
from expunge.audit.scores import Scores, score
from expunge.audit.stats import auc
from expunge.core.errors import Interrupted, NumericalError, UnsupportedModelError
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.engine.task import Batch
from expunge.engine.tasks.classifier import Classifier

MODEL, _ = lm_logits()
CARD_PROBABILITIES = [0.9, 0.5, 0.1, 0.8, 0.2, 0.6, 0.7]


class FixtureTask:
    """Answers with the logits of fixture LM, three targets a record."""

    def predict(self, model, batch):
        rows = [int(i) for i in batch.ids]
        return pack(MODEL[rows], [LM_LABELS_BT[row] for row in rows])

    def batch(self, records, rows):
        owners = torch.arange(len(rows)).repeat_interleave(3)
        ids = tuple(records.ids[row] for row in rows)
        return Batch(ids, {}, torch.zeros(len(owners), dtype=torch.long), owners)

    def num_targets(self, records):
        return [3] * len(records)

    lengths = num_targets


@pytest.fixture(scope="module")
def fixture_lm():
    return score(torch.nn.Linear(1, 1), FixtureTask(), Records(("0", "1"), {}), Run())


def one_record(logprobs):
    """Scores of one record with these log-probabilities and a standard deviation of 1 each."""
    values = np.asarray(logprobs, dtype=np.float32)
    zero = np.zeros_like(values)
    offsets = np.array([0, len(values)])
    return Scores(("r",), offsets, values, zero.astype(np.int32), zero, zero + 1)


def without_last(scores):
    """Drop each record's last target, as public code does."""
    kept_N = np.ones(len(scores.logprob_N), dtype=bool)
    kept_N[scores.offsets[1:] - 1] = False
    columns = ("logprob_N", "rank_N", "mean_N", "variance_N")
    return dataclasses.replace(
        scores,
        offsets=np.concatenate([[0], np.cumsum(scores.n_R - 1)]),
        **{name: getattr(scores, name)[kept_N] for name in columns},
    )


@pytest.mark.parametrize(
    ("k", "golden"), [(0.2, 2.302585), (0.4, 1.956012), (0.6, 1.278999), (0.05, 2.302585)]
)
def test_min_k_of_the_card(k, golden):
    """MUSE card, section 11: 1, 2, 4 and (public code: none, ours) 1 of 7 tokens."""
    value = min_k(one_record(np.log(CARD_PROBABILITIES)), k)
    assert value == pytest.approx([-golden], abs=1e-6)


def test_the_area_of_the_card():
    """MUSE card, section 11: 0.1875 in the official orientation is 0.8125 in ours."""
    forgotten, held = np.array([1.0, 2, 3, 4]), np.array([2.5, 3.5, 4.5, 5.5])
    assert auc(-forgotten, -held)[0] == 0.8125
    labels = np.repeat([1, 0], 4)
    assert roc_auc_score(labels, -np.concatenate([forgotten, held])) == 0.8125


def test_defect_5_public_min_k_is_ours_without_the_last_target(fixture_lm):
    """Public code keeps two of three targets; values of fixture LM in single precision."""
    np.testing.assert_allclose(
        -min_k(without_last(fixture_lm), 0.4), [1.6494348, 2.2652631], atol=1e-6
    )
    np.testing.assert_allclose(
        -min_k_plus(without_last(fixture_lm), 0.4), [0.7524109, 1.6695348], atol=1e-6
    )


@pytest.mark.parametrize("k", [0.4, 0.7, 1.0])
def test_min_k_and_min_k_plus_look_at_every_target(fixture_lm, k):
    rows, places, symbols = targets(LM_LABELS_BT)
    logprobs_NV = log_softmax(MODEL)[rows, places]
    target_N = logprobs_NV[np.arange(6), symbols]
    mean_N = (np.exp(logprobs_NV) * logprobs_NV).sum(1)
    variance_N = (np.exp(logprobs_NV) * logprobs_NV**2).sum(1) - mean_N**2
    z_N = (target_N - mean_N) / np.sqrt(variance_N)
    count = max(1, int(3 * k + 1e-9))
    for found, values_N in ((min_k(fixture_lm, k), target_N), (min_k_plus(fixture_lm, k), z_N)):
        by_hand = [np.sort(values_N[rows == b])[:count].mean() for b in range(2)]
        np.testing.assert_allclose(found, by_hand, atol=1e-5)


def test_a_certain_distribution_has_a_spread_all_the_same():
    scores = dataclasses.replace(one_record([-2.0]), variance_N=np.zeros(1, dtype=np.float32))
    assert min_k_plus(scores, 0.4) == pytest.approx([-2000.0])


records_of_values = st.lists(
    st.lists(st.floats(-50, 0, width=32), min_size=1, max_size=12), min_size=1, max_size=6
)


@given(records_of_values, st.floats(0.01, 1))
def test_the_lowest_values_are_those_of_a_loop(values, k):
    offsets = np.concatenate([[0], np.cumsum([len(own) for own in values])])
    found = mean_of_lowest(np.concatenate(values), offsets, k)
    for own, value in zip(values, found, strict=True):
        count = max(1, int(np.floor(len(own) * k + 1e-9)))
        assert value == pytest.approx(np.mean(sorted(own)[:count]), abs=1e-9)
        assert min(own) - 1e-9 <= value <= np.mean(own) + 1e-9


@given(records_of_values, st.randoms(use_true_random=False))
def test_the_order_of_targets_does_not_matter(values, random):
    offsets = np.concatenate([[0], np.cumsum([len(own) for own in values])])
    shuffled = [random.sample(own, len(own)) for own in values]
    np.testing.assert_allclose(
        mean_of_lowest(np.concatenate(values), offsets, 0.4),
        mean_of_lowest(np.concatenate(shuffled), offsets, 0.4),
        atol=1e-9,
    )


def test_a_share_that_is_a_whole_number_is_not_rounded_down():
    """0.29 of 100 is 29, although the product is 28.999999999999996."""
    values = np.arange(100.0)
    assert mean_of_lowest(values, np.array([0, 100]), 0.29) == [14.0]


def test_all_of_min_k_is_the_loss(fixture_lm):
    np.testing.assert_allclose(min_k(fixture_lm, 1.0), loss(fixture_lm), atol=1e-12)


def test_no_record_has_no_score():
    assert len(mean_of_lowest(np.empty(0), np.array([0]), 0.4)) == 0


def test_zlib_divides_the_mean_loss(fixture_lm):
    scores = dataclasses.replace(fixture_lm, measured={"zlib": np.array([10.0, 20.0])})
    losses = [3.681198365803316 / 3, 5.293737822462925 / 3]
    by_hand = [-losses[0] / 10, -losses[1] / 20]
    np.testing.assert_allclose(loss_per_byte(scores), by_hand, atol=1e-6)


def test_a_reference_takes_out_how_hard_a_record_is(make_scores):
    own = make_scores([-1.0, -5.0])
    others = [make_scores([-2.0, -4.0]), make_scores([-4.0, -6.0])]
    assert below_reference(own, others).tolist() == [2.0, 0.0]


@given(st.floats(1e-6, 1000))
def test_confidence_is_the_logit_of_the_mean_probability(value):
    """Fifty decimal digits, where 1 - p does not round to 1."""
    with localcontext(prec=50):
        p = (-Decimal(value)).exp()
        expected = float((p / (1 - p)).ln()) if value < 100 else -value
    assert confidence(np.array([value]))[0] == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(st.lists(st.floats(0, 1e5), min_size=2, max_size=20))
def test_confidence_is_finite_and_falls_with_the_loss(losses):
    found = confidence(np.sort(losses))
    assert np.isfinite(found).all()
    assert (np.diff(found) <= 0).all()


def test_confidence_at_one_half_and_far_out():
    np.testing.assert_allclose(confidence(np.array([np.log(2), 1000.0])), [0, -1000], atol=1e-12)


def test_offline_scores_rank_as_the_normal_distribution_does():
    rng = np.random.default_rng(0)
    own, shadows = rng.normal(size=40), rng.normal(size=(9, 40))
    found = above_shadows(own, shadows)
    by_hand = stats.norm.cdf(own, shadows.mean(0), shadows.std(0, ddof=1))
    np.testing.assert_allclose(stats.norm.cdf(found), by_hand, atol=1e-12)
    spread = pooled_spread(shadows)
    assert spread == pytest.approx(np.sqrt(np.mean([np.var(s, ddof=1) for s in shadows.T])))
    np.testing.assert_allclose(
        above_shadows(own, shadows, spread), (own - shadows.mean(0)) / spread, atol=1e-12
    )


def test_scores_that_the_distribution_would_round_to_one_keep_their_rank():
    shadows = np.array([[0.0, 0.0], [1.0, 1.0]])
    far = above_shadows(np.array([20.0, 30.0]), shadows)
    assert stats.norm.cdf(far).tolist() == [1.0, 1.0]
    assert far[0] < far[1]


def test_shadows_that_agree_leave_the_score_finite():
    found = above_shadows(np.array([1.0, 2.0, 3.0]), np.full((3, 3), 2.0))
    assert np.isfinite(found).all()
    assert found[0] < found[1] == 0 < found[2]


def test_gradient_norm_of_a_linear_classifier_by_hand():
    """The gradient over weights and bias is (p - e_y)(x, 1), of norm |p - e_y| sqrt(|x|^2 + 1)."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(5, 3)).astype(np.float32), np.array([0, 1, 2, 3, 0])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 4)
    records = Records(tuple("abcde"), {"x": x, "y": y})
    weight, bias = (p.detach().numpy().astype(np.float64) for p in model.parameters())
    error = np.exp(log_softmax(x @ weight.T + bias)) - np.eye(4)[y]
    by_hand = np.linalg.norm(error, axis=1) * np.sqrt((x.astype(np.float64) ** 2).sum(1) + 1)
    found = gradient_norm(model, Classifier(4), records, Run())
    np.testing.assert_allclose(found, by_hand, rtol=1e-5)


def test_defect_3_gradient_norms_depend_neither_on_company_nor_on_order(questions_world):
    """Public code fails for more than one record, trains with dropout and averages tensor norms."""
    world = questions_world
    whole = gradient_norm(world.model, world.task, world.forget, Run())
    for rows in ([5, 2, 0], [3], [0, 1, 2, 3, 4, 5][::-1]):
        part = gradient_norm(world.model, world.task, world.forget.take(rows), Run())
        assert part.tolist() == whole[rows].tolist()


def test_gradient_norms_are_those_of_the_models_own_loss(questions_world):
    """transformers' mean loss over labels, and one norm over all gradients."""
    world = questions_world
    model = copy.deepcopy(world.model).eval()
    found = gradient_norm(model, world.task, world.forget, Run())
    for row, (tokens, start) in enumerate(world.task.encoded(world.forget)):
        ids = torch.tensor([tokens])
        labels = ids.clone()
        labels[:, :start] = -100
        model.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        every = torch.cat([p.grad.flatten() for p in model.parameters()])
        assert found[row] == pytest.approx(float(every.norm()), rel=1e-4)


def test_a_model_is_left_as_it_was(digits_world):
    world = digits_world
    model = torch.nn.Sequential(copy.deepcopy(world.model), torch.nn.Dropout(0.5))
    frozen = model[0][0].weight
    frozen.requires_grad_(False)
    model[0][2].bias.grad = torch.ones(10)
    model.train()
    model[0].eval()
    records = world.forget.take([0, 1, 2])
    found = gradient_norm(model, world.task, records, Run())
    assert [m.training for m in (model, model[0], model[1])] == [True, False, True]
    grads = {name: p.grad for name, p in model.named_parameters()}
    assert grads.pop("0.2.bias").tolist() == [1] * 10
    assert set(grads.values()) == {None}
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True]
    # Neither dropout nor what is frozen changes the value.
    plain = gradient_norm(world.model, world.task, records, Run())
    assert found.tolist() == plain.tolist()


def test_damaged_weights_are_refused_and_the_model_is_restored(digits_world):
    model = copy.deepcopy(digits_world.model)
    with torch.no_grad():
        model[2].bias[0] = torch.nan
    model[0].weight.requires_grad_(False)
    with pytest.raises(NumericalError, match=r"2 records have a gradient that is not finite"):
        gradient_norm(model, digits_world.task, digits_world.forget.take([0, 1]), Run())
    assert not model[0].weight.requires_grad


def test_a_model_without_gradients_is_refused(digits_world):
    class Detached(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x).detach()

    with pytest.raises(UnsupportedModelError, match="a Detached passes no gradient"):
        gradient_norm(
            Detached(copy.deepcopy(digits_world.model)),
            digits_world.task,
            digits_world.forget.take([0]),
            Run(),
        )


def test_a_cancelled_run_stops_between_records(digits_world):
    run = Run()
    run.cancel()
    with pytest.raises(Interrupted):
        gradient_norm(digits_world.model, digits_world.task, digits_world.forget, run)
