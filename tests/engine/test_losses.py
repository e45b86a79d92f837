"""Golden values are those of the methods' official functions, run in float64 on two fixtures."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from expunge.engine.losses import divergence, npo, npo_weight
from expunge.engine.task import Predictions

# Fixture T1: probabilities of the model and of the reference, rows x tokens x vocabulary.
MODEL_BTV = [
    [[0.25] * 4, [0.1, 0.2, 0.6, 0.1], [0.25] * 4, [0.7, 0.1, 0.1, 0.1]],
    [[0.1, 0.8, 0.05, 0.05], [0.5, 0.2, 0.2, 0.1], [0.4, 0.3, 0.2, 0.1], [0.25] * 4],
]
REFERENCE_BTV = [
    [[0.25] * 4, [0.05, 0.05, 0.8, 0.1], [0.1, 0.1, 0.1, 0.7], [0.25] * 4],
    [[0.05, 0.9, 0.025, 0.025], [0.9, 0.05, 0.03, 0.02], [0.25] * 4, [0.25] * 4],
]
LABELS_BT = [[-100, -100, 2, 3], [-100, 1, 0, -100]]


def pack(logits_BTV, labels_BT):
    """Return the predictions at the labelled tokens; logits at t predict the label at t + 1."""
    shifted = torch.tensor(labels_BT)[:, 1:]
    kept = shifted != -100
    return Predictions(
        logits_BTV[:, :-1][kept], shifted[kept], kept.nonzero()[:, 0], len(labels_BT)
    )


def fixture_t1():
    logits = torch.tensor(MODEL_BTV, dtype=torch.float64).log().requires_grad_()
    reference = torch.tensor(REFERENCE_BTV, dtype=torch.float64).log()
    return logits, pack(logits, LABELS_BT), pack(reference, LABELS_BT)


def fixture_lm():
    """Fixture LM: logits sin(1 + 20 b + 4 t + v), reference cos(0.5 + 20 b + 4 t + v).

    Its golden values were computed from sines in float32, hence to be met within 1e-7.
    """
    b, t, v = np.meshgrid(np.arange(2), np.arange(5), np.arange(4), indexing="ij")
    angle = 20 * b + 4 * t + v
    labels = [[-100, -100, 2, 3, 1], [-100, 2, 1, 0, -100]]
    return (
        pack(torch.from_numpy(np.sin(1 + angle)), labels),
        pack(torch.from_numpy(np.cos(0.5 + angle)), labels),
    )


def close(value, golden, tolerance=1e-9):
    np.testing.assert_allclose(value.detach().numpy(), golden, rtol=0, atol=tolerance)


def test_nll_of_the_fixtures():
    _, model, reference = fixture_t1()
    close(model.nll_B(), [1.8971199849, 0.9162907319])
    close(reference.nll_B(), [0.5798184953, 0.2107210313])
    model, reference = fixture_lm()
    close(model.nll_B(), [3.681198365803316, 5.293737822462925], 1e-7)
    close(reference.nll_B(), [2.751913755803119, 5.506736573647718], 1e-7)


@pytest.mark.parametrize(
    ("beta", "golden"), [(0.1, 12.8794049582), (0.5, 1.8986570651), (1.0, 0.6386695772)]
)
def test_npo_on_t1(beta, golden):
    _, model, reference = fixture_t1()
    close(npo(model.nll_B(), reference.nll_B(), beta).mean(), golden)


@pytest.mark.parametrize(("beta", "golden"), [(0.1, 13.516158518605836), (1.0, 1.1380838233034385)])
def test_npo_on_lm(beta, golden):
    model, reference = fixture_lm()
    close(npo(model.nll_B(), reference.nll_B(), beta).mean(), golden, 1e-7)


@pytest.mark.parametrize(
    ("beta", "golden"),
    [(0.1, [0.9342300060, 0.9647361432]), (1.0, [30 / 71, 80 / 121])],
)
def test_npo_weight_on_t1(beta, golden):
    _, model, reference = fixture_t1()
    close(npo_weight(model.nll_B(), reference.nll_B(), beta), golden)


@pytest.mark.parametrize(
    ("beta", "golden"),
    [
        (0.1, [-0.0467115003, -0.0934230006, 0.1868460012, -0.0467115003]),
        (1.0, [-0.0211267606, -0.0422535211, 0.0845070423, -0.0211267606]),
    ],
)
def test_npo_gradient_on_t1(beta, golden):
    logits, model, reference = fixture_t1()
    npo(model.nll_B(), reference.nll_B(), beta).mean().backward()
    # Label 2 of row 0 is predicted at position 1: a step down this gradient makes it less likely.
    close(logits.grad[0, 1], golden)


@given(st.floats(-60, 60), st.sampled_from([0.05, 0.1, 0.5, 1.0]))
def test_npo_gradient_is_minus_the_weight(d, beta):
    nll_B = torch.tensor([d + 70.0], dtype=torch.float64, requires_grad=True)
    reference_B = torch.tensor([70.0], dtype=torch.float64)
    npo(nll_B, reference_B, beta).sum().backward()
    # softplus of torch is linear above 20, where it is off by exp(-20) = 2e-9.
    close(nll_B.grad, -npo_weight(nll_B, reference_B, beta).detach().numpy(), 5e-9)


@pytest.mark.parametrize(
    ("d", "loss", "weight"),
    [
        (-50.0, 100.1343069698, 1.9866142982),
        (0.0, 13.8629436112, 1.0),
        (50.0, 0.1343069698, 0.0133857018),
    ],
)
def test_npo_at_extremes(d, loss, weight):
    reference_B = torch.tensor([100.0], dtype=torch.float64)
    close(npo(reference_B + d, reference_B, 0.1), [loss], 1e-8)
    close(npo_weight(reference_B + d, reference_B, 0.1), [weight])


@pytest.mark.parametrize("d", [-1e6, 1e6])
def test_npo_never_overflows(d):
    nll_B = torch.tensor([d], requires_grad=True)
    loss = npo(nll_B, torch.zeros(1), 0.1)
    loss.sum().backward()
    assert loss.item() == pytest.approx(max(-2 * d, 0.0))
    assert nll_B.grad.item() == pytest.approx(-2.0 if d < 0 else 0.0)


def test_npo_tends_to_gradient_ascent():
    _, model, reference = fixture_t1()
    beta = 1e-7
    shifted = npo(model.nll_B(), reference.nll_B(), beta) - 2 * np.log(2) / beta
    close(shifted, (reference.nll_B() - model.nll_B()).detach().numpy(), 1e-6)


def test_masked_divergence_on_t1():
    # Over the four answer tokens; the official code averages over all eight and gets 0.1913614199.
    _, model, reference = fixture_t1()
    close(divergence(reference, model).sum() / 4, 0.2448252225)


def test_divergence_equals_numpy_on_lm():
    model, reference = fixture_lm()
    p = np.exp(reference.logits_NV.numpy())
    q = np.exp(model.logits_NV.numpy())
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    kl_N = (p * np.log(p / q)).sum(1)
    close(divergence(reference, model), [kl_N[:3].sum(), kl_N[3:].sum()], 1e-13)


def test_divergence_sees_answer_positions_only():
    logits = torch.tensor(MODEL_BTV, dtype=torch.float64).log()
    other = logits.clone()
    unscored = torch.tensor(LABELS_BT).roll(-1, 1) == -100
    unscored[:, -1] = True
    other[unscored] += torch.arange(4.0, dtype=torch.float64)
    assert divergence(pack(logits, LABELS_BT), pack(other, LABELS_BT)).tolist() == [0.0, 0.0]


def test_divergence_is_zero_with_zero_gradient_at_the_reference():
    logits, model, _ = fixture_t1()
    divergence(model, model).sum().backward()
    close(logits.grad, np.zeros((2, 4, 4)), 1e-15)


def test_divergence_sends_no_gradient_into_the_reference():
    logits, reference, _ = fixture_t1()
    current, model, _ = fixture_t1()
    (divergence(reference, model) + 1.0).sum().backward()
    assert logits.grad is None
    assert current.grad is not None


def test_divergence_gradient_is_the_difference_of_probabilities():
    logits, model, reference = fixture_t1()
    divergence(reference, model).sum().backward()
    # d KL(p || softmax(z)) / dz = softmax(z) - p, here at the token that predicts label 2 of row 0.
    expected = np.array(MODEL_BTV[0][1]) - np.array(REFERENCE_BTV[0][1])
    close(logits.grad[0, 1], expected, 1e-12)


def test_divergence_of_half_precision_is_computed_in_single():
    model, reference = fixture_lm()

    def cast(predictions, dtype):
        return Predictions(
            predictions.logits_NV.to(torch.bfloat16).to(dtype),
            predictions.targets_N,
            predictions.rows_N,
            predictions.num_rows,
        )

    half = divergence(cast(reference, torch.bfloat16), cast(model, torch.bfloat16))
    exact = divergence(cast(reference, torch.float64), cast(model, torch.float64))
    assert half.dtype == torch.float32
    close(half.double(), exact.numpy(), 1e-6)
