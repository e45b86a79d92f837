"""The scoring pass against a plain per-record oracle, and its invariance."""

import math

import numpy as np
import pytest
import torch

from expunge.audit.generation import generate_answers
from expunge.audit.measures import rouge_l_recall
from expunge.audit.scores import Scores, score
from expunge.core.errors import NumericalError, UnsupportedModelError
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.engine.tasks.classifier import Classifier


def by_hand(model, task, record):
    """Log-probability, rank, mean and variance of each answer token, one record, no padding."""
    tokenizer = task.tokenizer
    prompt = tokenizer(record["question"][0])["input_ids"]
    answer = tokenizer(record["answer"][0])["input_ids"] + [tokenizer.eos_token_id]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0].double().numpy()
    rows = []
    for place, token in enumerate(answer):
        row = logits[len(prompt) - 1 + place]
        logp = row - math.log(np.exp(row - row.max()).sum()) - row.max()
        p = np.exp(logp)
        mean = (p * logp).sum()
        rows.append((logp[token], (row > row[token]).sum(), mean, (p * logp**2).sum() - mean**2))
    return np.array(rows).T


def test_values_equal_a_plain_pass_per_record(language_model, people):
    model, task = language_model
    scores = score(model, task, people, Run())
    assert scores.ids == people.ids
    for row in range(len(people)):
        place = slice(scores.offsets[row], scores.offsets[row + 1])
        logprob, rank, mean, variance = by_hand(model, task, people.take([row]))
        np.testing.assert_allclose(scores.logprob_N[place], logprob, atol=1e-5)
        np.testing.assert_array_equal(scores.rank_N[place], rank)
        np.testing.assert_array_equal(scores.greedy_N[place], rank == 0)
        np.testing.assert_allclose(scores.mean_N[place], mean, atol=1e-5)
        np.testing.assert_allclose(scores.variance_N[place], variance, atol=1e-5)
        assert scores.nll_R[row] == pytest.approx(-logprob.sum(), abs=1e-5)
        assert scores.loss_R[row] == pytest.approx(-logprob.mean(), abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_batch_size_and_order_change_nothing(language_model, people, batch_size):
    model, task = language_model
    plain = score(model, task, people, Run(), batch_size=4)
    turned = people.take([2, 0, 3, 1])
    other = score(model, task, turned, Run(), batch_size=batch_size)
    back = other.rows(people.ids)
    assert other.ids == turned.ids
    np.testing.assert_allclose(other.nll_R[back], plain.nll_R, atol=1e-5)
    np.testing.assert_array_equal(other.n_R[back], plain.n_R)
    for name in ("logprob_N", "rank_N", "mean_N", "variance_N"):
        values, offsets = getattr(other, name), other.offsets
        joined = np.concatenate([values[offsets[r] : offsets[r + 1]] for r in back])
        np.testing.assert_allclose(joined, getattr(plain, name), atol=1e-5)


def test_modes_are_restored(language_model, people):
    model, task = language_model
    model.train()
    model.model.norm.eval()
    score(model, task, people, Run())
    assert model.training
    assert not model.model.norm.training
    model.eval()


def test_no_records_give_no_scores(language_model, people):
    model, task = language_model
    scores = score(model, task, people.take([]), Run())
    assert len(scores) == 0
    assert scores.nll_R.shape == (0,)


def test_classifier_has_one_target_per_record():
    task = Classifier(3)
    model = torch.nn.Linear(2, 3)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))
        model.bias.zero_()
    records = Records(("a", "b"), {"x": np.array([[2.0, 0.0], [0.0, 3.0]], "f4"), "y": [0, 2]})
    scores = score(model, task, records, Run())
    # log-softmax of (2, 0, 0) at 0 and of (0, 3, 0) at 2, by hand
    expected = [2 - math.log(math.e**2 + 2), 0 - math.log(math.e**3 + 2)]
    np.testing.assert_allclose(scores.logprob_N, expected, atol=1e-6)
    np.testing.assert_array_equal(scores.n_R, [1, 1])
    np.testing.assert_array_equal(scores.rank_N, [0, 2])  # symbol 0 is as likely and comes first


def test_entropy_survives_symbols_that_are_ruled_out():
    task = Classifier(3)
    model = torch.nn.Linear(1, 3)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.tensor([0.0, 0.0, -math.inf]))
    records = Records(("a",), {"x": np.ones((1, 1), "f4"), "y": [0]})
    scores = score(model, task, records, Run())
    assert scores.mean_N[0] == pytest.approx(-math.log(2), abs=1e-6)
    assert scores.variance_N[0] == pytest.approx(0, abs=1e-6)


def test_damaged_model_names_its_records():
    task = Classifier(2)
    model = torch.nn.Linear(1, 2)
    with torch.no_grad():
        model.bias.fill_(math.nan)
    records = Records(("digit-7",), {"x": np.ones((1, 1), "f4"), "y": [0]})
    with pytest.raises(NumericalError, match="digit-7"):
        score(model, task, records, Run())


def test_positive_log_probability_is_refused():
    one = np.array([0.5], np.float32)
    with pytest.raises(NumericalError, match="1 records"):
        Scores(("a",), np.array([0, 1]), one, one, one, one)


def test_greedy_answers_do_not_depend_on_their_batch(language_model, people):
    model, task = language_model
    together = generate_answers(model, task, people, Run(), max_new_tokens=5, batch_size=4)
    alone = generate_answers(model, task, people, Run(), max_new_tokens=5, batch_size=1)
    assert together == alone
    assert any(together)


def test_a_classifier_writes_no_answers(people):
    with pytest.raises(UnsupportedModelError, match="classifier"):
        generate_answers(torch.nn.Identity(), Classifier(2), people, Run(), max_new_tokens=1)


def test_rouge_l_recall():
    # Third pair: ROUGE with stemming from the public rouge_score package, 4 of 6 words in order.
    answers = ["the cat", "dogs", "a cat was sitting on the mats"]
    truths = ["the cat", "the cat", "the cat sat on the mat"]
    np.testing.assert_allclose(rouge_l_recall(answers, truths), [1.0, 0.0, 4 / 6], atol=1e-9)


def test_of_equal_symbols_the_first_is_the_choice():
    """A model that prefers nothing has not memorised the symbol that happens to be asked for."""
    from expunge.audit.scores import _describe
    from expunge.engine.task import Predictions

    logits_NV = torch.zeros(3, 5)
    logits_NV[2, 3] = 1.0
    predictions = Predictions(logits_NV, torch.tensor([0, 2, 4]), torch.arange(3), 3)
    _, rank_N, _, _ = _describe(predictions)
    assert rank_N.tolist() == [0, 2, 4]
    assert logits_NV.argmax(1).tolist() == [0, 0, 3]
