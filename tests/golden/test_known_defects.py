"""Defects of public implementations that this one must not have, one test each.

Their numbers are those of a list made by running the public code; those that concern audits which
do not exist here, and runs in several processes, are tested elsewhere.
"""

import ast
import copy
import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from numeric import LABELS_BT, AnswersTask, log_softmax, pack, t1_logits, targets
from small_recipes import PEOPLE

import expunge
from expunge.audit.evidence import Subject
from expunge.audit.readings import Reading
from expunge.audit.score_table import read_scores, write_scores
from expunge.audit.scores import Scores, score
from expunge.audit.tofu_values import answer_losses, record_values
from expunge.core.errors import ExpungeError, Interrupted
from expunge.core.records import Records
from expunge.core.run import Budget, Run
from expunge.engine.losses import lowered_teacher
from expunge.engine.task import Batch
from expunge.engine.tasks.classifier import Classifier
from expunge.engine.weights import state_digest
from expunge.forget.method import Given, Sight, apply, methods, parse_config
from expunge.forget.rmu import distance
from expunge.pipeline import steps
from expunge.pipeline.execute import execute
from expunge.pipeline.recipe import make_recipe


class Table(torch.nn.Module):
    """A model whose logits are its parameters."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.tensor(logits))

    def forward(self, rows):
        return self.logits[rows]


def t1_step(name, **settings):
    """Return the numbers and the gradient of one step of a method on fixture T1."""
    current, reference = t1_logits()
    schedule = {"epochs": 1, "optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "lr": 1.0}
    info = methods.get(name)
    config = parse_config(info, {"schedule": schedule, **settings})
    given = Given(AnswersTask(), Records(("a", "b"), {"row": [0, 1]}), None, guard=None)
    sight = Sight(given, info.needs(config), Table(reference), Run())
    model = info.function(Table(current), sight, config)
    return sight.history.steps[0], current - model.logits.detach().numpy()


def planted(logprobs, ids):
    """Scores of one target a record."""
    values = np.asarray(logprobs, dtype=np.float32)
    zero = np.zeros_like(values)
    return Scores(tuple(ids), np.arange(len(ids) + 1), values, zero.astype(np.int32), zero, zero)


def subject():
    """Four records; the first and third have no wrong answer, or only one of two."""
    ids = ("r0", "r1", "r2", "r3")
    scores = {
        Reading("forget"): planted([-1.0, -2.0, -3.0, -4.0], ids),
        Reading("forget", "paraphrase"): planted([-1.5, -2.5, -3.5, -4.5], ids),
        Reading("forget", "perturbed:0"): planted([-5.0, -7.0, -8.0], ids[1:]),
        Reading("forget", "perturbed:1"): planted([-6.0, -10.0], (ids[1], ids[3])),
    }
    return Subject("after", "digest", scores)


def test_2_values_stay_with_their_record_when_another_one_lacks_an_answer():
    """Public: values of filtered items meet the unfiltered index list, so that each moves up."""
    true, wrong = answer_losses(subject(), Reading("forget"))
    assert true.tolist() == [2.5, 3.5, 4.5]  # r1, r2, r3
    np.testing.assert_array_equal(wrong[:, 1:], [[5, 6], [7, np.nan], [8, 10]])
    ratios = record_values(subject(), Reading("forget"))["truth_ratio"]
    expected = np.exp(-np.array([5.5 - 2.5, 7 - 3.5, 9 - 4.5]))
    np.testing.assert_allclose(ratios, expected, rtol=1e-6)


def test_4_undial_is_masked_and_ignored_labels_never_index_the_vocabulary():
    """Public: -100 penalises token V - 100, which fails for V = 4, and the mean runs over all."""
    numbers, gradient = t1_step("undial", beta=3.0)
    assert numbers["forget"] == pytest.approx(1.6417294867, abs=1e-10)
    rows, places, _ = targets(LABELS_BT)
    unscored = np.ones((2, 4), dtype=bool)
    unscored[rows, places] = False
    assert not gradient[unscored].any()
    # With V > 100 the public code lowers token V - 100 of the teacher at every ignored label.
    wide = torch.zeros(1, 3, 120, dtype=torch.float64)
    labels = [[-100, -100, 7]]
    teacher, current = pack(wide, labels), pack(wide, labels)
    lowered = np.zeros(120)
    lowered[7] = -3.0
    by_hand = -(np.exp(log_softmax(lowered)) * log_softmax(np.zeros(120))).sum()
    assert float(lowered_teacher(teacher, current, 3.0).sum()) == pytest.approx(by_hand, abs=1e-12)


def test_5_the_end_of_text_is_a_target_of_every_loss_and_every_score(questions_world):
    """Public: the last answer token is dropped by some metrics and kept by others."""
    world = questions_world
    end = world.task.tokenizer.eos_token_id
    words = [len(answer.split()) for answer in world.task.answers(world.forget)]
    assert world.task.num_targets(world.forget) == [n + 1 for n in words]
    batch = world.task.batch(world.forget, range(len(world.forget)))
    ends = np.cumsum(batch.counts_B.numpy()) - 1
    assert set(batch.targets_N.numpy()[ends]) == {end}
    scores = score(world.model, world.task, world.forget, Run())
    assert scores.n_R.tolist() == [n + 1 for n in words]
    with torch.no_grad():
        logprobs = world.task.predict(world.model, batch).logprobs_N().numpy()
    np.testing.assert_allclose(scores.logprob_N, logprobs, atol=1e-4)
    refused = world.task.neutral(world.forget, 0, 0)
    refusal = world.task.batch(refused, [0])
    assert int(refusal.targets_N[-1]) == end
    # Every method's loss moves the logits of the end of text.
    for name in ("grad_diff", "simnpo", "wga", "satimp", "ceu", "undial", "npo"):
        assert end_gradient(world, name) > 0, name


def end_gradient(world, name):
    """Return the size of the head's first step in the row of the end of text."""
    model = copy.deepcopy(world.model)
    schedule = {"epochs": 1, "optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "lr": 1.0}
    given = Given(world.task, world.forget, world.retain, guard=None)
    settings = {"schedule": schedule, "scope": {"patterns": ["lm_head.weight"]}}
    moved = apply(name, model, given, Run(), settings).model.lm_head.weight - model.lm_head.weight
    return float(moved.detach()[world.task.tokenizer.eos_token_id].abs().sum())


def test_6_a_finished_audit_is_not_computed_again(finished_people, tmp_path, monkeypatch):
    """Public: it logs "already evaluated" and computes anyway."""
    copied = shutil.copytree(finished_people, tmp_path / "run")
    before = (copied / "findings.json").read_bytes()

    def never(*arguments, **named):
        raise AssertionError("a finished audit was computed again")

    monkeypatch.setattr(steps, "audit", never)
    monkeypatch.setattr("expunge.audit.collecting.score_together", never)
    monkeypatch.setattr("expunge.audit.collecting.answer_together", never)
    recipe = make_recipe({**PEOPLE, "examples": 1})
    execute(recipe, copied, quiet=True)
    assert (copied / "findings.json").read_bytes() == before


def test_6_ids_that_were_read_back_are_those_that_were_written(tmp_path):
    """Public: strings from disk meet fresh integers, so that a resumed truth ratio fails."""
    fresh = subject()
    write_scores(tmp_path / "scores.parquet", fresh)
    back = read_scores(tmp_path / "scores.parquet")
    for reading, scores in fresh.scores.items():
        assert back.scores[reading].ids == scores.ids
        assert {type(i) for i in back.scores[reading].ids} == {str}
    mixed = dataclasses.replace(
        back, scores={**back.scores, Reading("forget"): fresh.scores[Reading("forget")]}
    )
    expected = record_values(fresh, Reading("forget"))["truth_ratio"]
    for other in (back, mixed):
        np.testing.assert_array_equal(
            record_values(other, Reading("forget"))["truth_ratio"], expected
        )


def test_8_training_goes_on_from_its_checkpoint_to_the_same_bits(questions_world, tmp_path):
    """Public: nothing is saved on the way and no checkpoint is ever read."""
    world = questions_world
    given = Given(world.task, world.forget, world.retain)
    settings = {"schedule": {"epochs": 4, "batch_size": 3, "lr": 1e-3}}
    whole = apply("npo", world.model, given, Run(), settings)
    with pytest.raises(Interrupted):
        apply("npo", world.model, given, Run(folder=tmp_path, budget=Budget(max_steps=5)), settings)
    taken = []

    class Tracker:
        def log(self, values, step):
            if "step/step" in values:
                taken.append(step)

    run = Run(folder=tmp_path, trackers=(Tracker(),))
    resumed = apply("npo", world.model, given, run, settings)
    assert taken == [6, 7, 8]
    assert state_digest(resumed.model) == state_digest(whole.model)
    assert resumed.history == whole.history


@pytest.mark.parametrize(
    ("hidden", "mask", "ours", "public"),
    [
        (
            [[[1, 2], [0, -1], [3, 1]], [[2, 0], [1, 1], [0, 0]]],
            [[0, 1, 1], [1, 0, 0]],
            2.375,
            2.8125,
        ),
        ([[[1, 2], [0, -1]], [[2, 0], [1, 1]]], [[1, 1], [1, 1]], 1.5, 1.5),
    ],
)
def test_9_rmu_divides_each_record_by_its_own_length(hidden, mask, ours, public):
    """Public: [B] over [B, 1] is a matrix; right only where all records are equally long."""
    rows, places = np.nonzero(mask)
    states = torch.tensor(np.array(hidden, dtype=float)[rows, places])
    batch = Batch(("a", "b"), {}, torch.from_numpy(rows), torch.from_numpy(rows))
    distance_B = distance(states, torch.zeros_like(states), batch)
    assert distance_B.mean().item() == ours
    sums_B = distance_B * batch.counts_B
    assert (sums_B / batch.counts_B[:, None]).mean().item() == public


def test_10_no_assertion_carries_an_error_for_users():
    """Public: ``assert x, ValueError(...)``, after x has been used."""
    package = Path(expunge.__file__).parent
    files = sorted(package.rglob("*.py"))
    assert len(files) > 50
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            assert not (isinstance(node, ast.Assert) and isinstance(node.msg, ast.Call)), file


def without_questions(records):
    return dataclasses.replace(records, columns={"answer": records["answer"]})


WRONG = {
    "nothing to forget": lambda w: {"forget": w.forget.take([])},
    "records on both sides": lambda w: {"retain": w.forget},
    "no such column": lambda w: {"forget": without_questions(w.forget)},
    "a classifier's task": lambda w: {"task": Classifier(3)},
}


@pytest.mark.parametrize("name", ["npo", "idk", "dpo", "altpo", "rmu", "uld", "wagle", "flat"])
@pytest.mark.parametrize("case", WRONG)
def test_10_wrong_input_is_no_assertion(questions_world, name, case):
    world = questions_world
    whole = Given(world.task, world.forget, world.retain)
    given = dataclasses.replace(whole, **WRONG[case](world))
    with pytest.raises(ExpungeError):
        apply(name, world.model, given, Run())


@pytest.mark.parametrize("name", ["npo", "wga", "dpo", "rmu", "task_vector"])
def test_10_an_empty_answer_is_no_assertion(questions_world, name):
    world = questions_world
    given = Given(world.task, world.forget.replace(answer=[""] * 6), world.retain)
    with pytest.raises(ExpungeError, match="no answer token"):
        apply(name, world.model, given, Run())


def test_10_what_is_registered_cannot_be_changed_by_a_run(digits_world):
    """Public: registered metrics are shared and changed by their users."""
    world = digits_world
    info = methods.get("npo")
    before = (info, info.config())
    given = Given(world.task, world.forget, world.retain)
    apply("npo", world.model, given, Run(), {"beta": 3.0, "schedule": {"epochs": 1}})
    assert (methods.get("npo"), info.config()) == before
    with pytest.raises(dataclasses.FrozenInstanceError):
        info.config = None
