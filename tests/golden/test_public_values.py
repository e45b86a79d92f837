"""Values of public implementations on one small fixture, beside ours.

Fixture LM: logits sin(1 + 20 b + 4 t + v), reference cos(0.5 + 20 b + 4 t + v), two records of five
tokens over four symbols, three targets each. The values were computed once by the functions of
locuslab/open-unlearning, some of them from sines in single precision, hence a tolerance of 1e-7.
Where the public code has no mask, the public number is reproduced without one and named so.

Truth ratio, probability with options, the KS test and ROUGE are in ``tests/audit``.
"""

import numpy as np
import pytest
import torch
from numeric import LM_LABELS_BT, LM_WIN_BT, lm_logits, log_softmax, nll, pack, slope, targets

from expunge.audit.measures import rouge_l_recall
from expunge.audit.scores import score
from expunge.audit.tofu_metrics import probability
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.engine.losses import (
    divergence,
    npo,
    preference,
    simnpo,
    unlikelihood,
    weighted_ascent,
)
from expunge.engine.task import Batch, Predictions

MODEL, REFERENCE = lm_logits()
COUNT = 6  # targets of the fixture
PER_RECORD = torch.tensor([3, 3])


@pytest.fixture
def model():
    return pack(MODEL, LM_LABELS_BT)


@pytest.fixture
def reference():
    return pack(REFERENCE, LM_LABELS_BT)


def near(value, golden, tolerance=1e-7):
    np.testing.assert_allclose(np.asarray(value), golden, rtol=0, atol=tolerance)


def at_targets(z_BTV):
    return log_softmax(z_BTV)[targets(LM_LABELS_BT)]


def test_likelihood_of_a_sequence(model, reference):
    near(model.nll_B(), [3.681198365803316, 5.293737822462925])
    near(reference.nll_B(), [2.751913755803119, 5.506736573647718])
    near(nll(MODEL, LM_LABELS_BT), [3.681198365803316, 5.293737822462925])


def test_probability(model):
    golden = [0.29315138766911, 0.1712588243434879]
    near(probability((model.nll_B() / PER_RECORD).numpy()), golden)


@pytest.mark.parametrize(("beta", "golden"), [(0.1, 13.516158518605836), (1.0, 1.1380838233034385)])
def test_npo(model, reference, beta, golden):
    near(npo(model.nll_B(), reference.nll_B(), beta).mean(), golden)
    d = nll(MODEL, LM_LABELS_BT) - nll(REFERENCE, LM_LABELS_BT)
    near(np.mean(2 / beta * np.log1p(np.exp(-beta * d))), golden)


def test_dpo(model, reference):
    win, win_reference = (pack(logits, LM_WIN_BT) for logits in (MODEL, REFERENCE))
    losses = [p.nll_B() for p in (win, win_reference, model, reference)]
    near(preference(*losses, 0.1).mean(), 13.323645502654307)


def test_simnpo(model):
    near(simnpo(model.nll_B(), PER_RECORD, 4.5, 0.0).mean(), 0.0009659127572098848, 1e-10)


def everywhere(logits):
    """Predictions at all positions of the batch, prompt and padding too."""
    rows = torch.arange(2).repeat_interleave(5)
    flat = torch.from_numpy(logits.reshape(10, 4))
    return Predictions(flat, torch.zeros(10, dtype=torch.long), rows, 2)


def test_divergence_over_all_positions_as_the_public_code_has_it():
    value = divergence(everywhere(REFERENCE), everywhere(MODEL)).sum() / 10
    near(value, 0.1833486548487273)


def test_divergence_over_answers_alone(model, reference):
    """Ours is masked: 0.2180 where the public code, over prompt and padding too, has 0.1833."""
    rows, places, _ = targets(LM_LABELS_BT)
    p, q = (np.exp(log_softmax(z)[rows, places]) for z in (REFERENCE, MODEL))
    by_hand = (p * np.log(p / q)).sum() / COUNT
    near(divergence(reference, model).sum() / COUNT, by_hand, 1e-13)
    assert by_hand == pytest.approx(0.2180, abs=1e-4)


def test_weighted_ascent(model):
    loss_B = weighted_ascent(model, lambda p_N: p_N)
    near(loss_B.sum() / COUNT, -0.323132023, 1e-8)
    logprobs = at_targets(MODEL)
    near(np.mean(np.exp(logprobs) * logprobs), -0.323132023, 1e-8)


def test_satimp(model):
    loss_B = weighted_ascent(model, lambda p_N: p_N**5 * (1 - p_N))
    near(loss_B.sum() / COUNT, -0.0018537052841000, 1e-9)


@pytest.mark.parametrize(("skip", "golden"), [(1, 1.2776488246938513), (0, 1.219373864512967)])
def test_ceu_has_the_gradient_of_the_public_cross_entropy(skip, golden):
    """Its value is the unlikelihood; the public value differs by an entropy held fixed."""
    kept = [place for place in range(COUNT) if place % 3 >= skip]
    rows, places, symbols = (part[kept] for part in targets(LM_LABELS_BT))
    others = MODEL[rows, places].copy()
    others[np.arange(len(kept)), symbols] = -np.inf
    q = np.exp(log_softmax(others))

    def public(z):
        return float(np.mean(-(q * log_softmax(z)[rows, places]).sum(-1)))

    near(public(MODEL), golden)
    logits = torch.tensor(MODEL, requires_grad=True)
    (unlikelihood(pack(logits, LM_LABELS_BT), skip).sum() / len(kept)).backward()
    near(logits.grad, slope(public, MODEL), 1e-9)


class _Table:
    """Answers with the fixture's logits."""

    def predict(self, model, batch):
        kept = [list(batch.ids).index(i) for i in batch.ids]
        assert kept == list(range(len(batch)))
        rows = torch.tensor([int(i) for i in batch.ids])
        return pack(MODEL[rows.numpy()], [LM_LABELS_BT[r] for r in rows])

    def batch(self, records, rows):
        ids = tuple(records.ids[row] for row in rows)
        owners = torch.arange(len(ids)).repeat_interleave(3)
        return Batch(ids, {}, torch.zeros(len(owners), dtype=torch.long), owners)

    def num_targets(self, records):
        return [3] * len(records)

    lengths = num_targets


def test_every_answer_token_is_scored():
    """The public metrics keep the first two of each record and drop the last; ours keep all."""
    records = Records(("0", "1"), {})
    scores = score(torch.nn.Linear(1, 1), _Table(), records, Run())
    kept = scores.logprob_N.reshape(2, 3)
    near(kept[:, :2], [[-1.093605219, -1.649434825], [-2.265263173, -1.173761126]], 1e-6)
    near(kept[:, 2], at_targets(MODEL)[[2, 5]], 1e-6)
    near(scores.loss_R, -np.log([0.29315138766911, 0.1712588243434879]), 1e-6)


def test_rouge_recall_with_stemming():
    told, truth = "a cat was sitting on the mats", "the cat sat on the mat"
    assert rouge_l_recall([told], [truth])[0] == pytest.approx(0.6667, abs=1e-4)
