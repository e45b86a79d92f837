import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from expunge.engine.task import Batch, Predictions


def draw(num_positions, num_classes, num_rows, dtype=torch.float64):
    generator = torch.Generator().manual_seed(num_positions)
    logits_NV = 5 * torch.randn(num_positions, num_classes, generator=generator, dtype=dtype)
    targets_N = torch.randint(num_classes, (num_positions,), generator=generator)
    rows_N = torch.randint(num_rows, (num_positions,), generator=generator)
    return Predictions(logits_NV, targets_N, rows_N, num_rows)


@given(st.integers(0, 40), st.integers(2, 9), st.integers(1, 5))
def test_values_equal_numpy(num_positions, num_classes, num_rows):
    drawn = draw(num_positions, num_classes, num_rows)
    logits_NV, targets_N, rows_N = (
        x.numpy() for x in (drawn.logits_NV, drawn.targets_N, drawn.rows_N)
    )
    probs_NV = np.exp(logits_NV) / np.exp(logits_NV).sum(1, keepdims=True)
    logprobs_N = np.log(probs_NV[np.arange(num_positions), targets_N])
    np.testing.assert_allclose(drawn.logprobs_N().numpy(), logprobs_N, atol=1e-12)
    nll_B = np.array([-logprobs_N[rows_N == row].sum() for row in range(num_rows)])
    np.testing.assert_allclose(drawn.nll_B().numpy(), nll_B, atol=1e-12)


def test_a_record_without_positions_sums_to_zero():
    drawn = Predictions(torch.zeros(1, 2), torch.tensor([0]), torch.tensor([1]), 3)
    np.testing.assert_allclose(drawn.nll_B().numpy(), [0.0, np.log(2), 0.0], rtol=1e-6)


def test_extreme_logits_stay_finite():
    logits_NV = torch.tensor([[1e4, -1e4], [-1e4, 1e4]])
    drawn = Predictions(logits_NV, torch.tensor([0, 0]), torch.tensor([0, 1]), 2)
    assert drawn.nll_B().tolist() == [0.0, 20000.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_single(dtype):
    half = draw(600, 50, 1, dtype)
    exact = Predictions(half.logits_NV.double(), half.targets_N, half.rows_N, 1)
    assert half.nll_B().dtype == torch.float32
    # About 5 nats for each of 600 positions; summed in bfloat16 the error exceeds 1 nat.
    assert float(half.nll_B()) == pytest.approx(float(exact.nll_B()), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_full_precision_is_kept(dtype):
    assert draw(3, 4, 2, dtype).nll_B().dtype == dtype


def test_batch_counts_positions_and_moves_as_a_whole():
    batch = Batch(
        ids=("a", "b", "c"),
        inputs={"x": torch.zeros(3, 2)},
        targets_N=torch.tensor([1, 0]),
        rows_N=torch.tensor([2, 2]),
        positions=torch.zeros(3, 2, dtype=torch.bool),
    )
    assert len(batch) == 3
    assert batch.counts_B.tolist() == [0, 0, 2]
    moved = batch.to("meta")
    tensors = (*moved.inputs.values(), moved.targets_N, moved.rows_N, moved.positions)
    assert {tensor.device.type for tensor in tensors} == {"meta"}
