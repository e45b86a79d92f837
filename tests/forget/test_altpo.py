"""AltPO: the model's own inventions win, by the loss of DPO; the truth is never one of them."""

import pytest

from expunge.core.errors import ConfigError, DataError
from expunge.core.run import Run
from expunge.engine.tasks.causal_lm import CausalLM
from expunge.engine.weights import state_digest
from expunge.forget import altpo
from expunge.forget.method import Given, apply, methods

SCHEDULE = {"epochs": 4, "batch_size": 3, "lr": 1e-3}


@pytest.fixture
def chosen(monkeypatch):
    """Collects the alternates that the loss is given, without training on them."""
    found = []

    def keep(model, sight, config, others):
        found.extend([list(records["answer"]) for records in others])
        return model

    monkeypatch.setattr(altpo, "prefer", keep)
    return found


class Speaker:
    """Answers for the model: by record, one text after another."""

    def __init__(self, script):
        self.script, self.asked = script, []

    def __call__(self, task, model, records, rows, max_new_tokens, *, temperature, seed):
        self.asked.append((tuple(rows), temperature, seed, task.template.prompt, max_new_tokens))
        return [self.script[records.ids[row]].pop(0) for row in rows]


@pytest.fixture
def speaker(monkeypatch, questions_world):
    made = Speaker({i: [] for i in questions_world.forget.ids})
    monkeypatch.setattr(
        CausalLM, "generate", lambda self, *args, **kwargs: made(self, *args, **kwargs)
    )
    return made


def sampled(world, seed=0, **settings):
    given = Given(world.task, world.forget, world.retain)
    return apply("altpo", world.model, given, Run(seed), settings)


def test_with_given_answers_it_is_dpo_bit_by_bit(questions_world, tmp_path):
    """The same loss: one refusal for all, once as a file of DPO, once as a column of AltPO."""
    world = questions_world
    (tmp_path / "own.txt").write_text("madrid by the bay\n")
    alone = Given(world.task, world.forget, world.retain)
    dpo = apply(
        "dpo",
        world.model,
        alone,
        Run(),
        {"answers": {"file": str(tmp_path / "own.txt")}, "schedule": SCHEDULE, "beta": 0.5},
    )
    column = world.forget.replace(alternate_answer=["madrid by the bay"] * len(world.forget))
    given = Given(world.task, column, world.retain)
    settings = {"alternates": "column", "schedule": SCHEDULE, "beta": 0.5}
    altpo_ = apply("altpo", world.model, given, Run(), settings)
    assert dpo.history.steps == altpo_.history.steps
    assert state_digest(dpo.model) == state_digest(altpo_.model)


def test_the_true_answer_is_drawn_again_and_hotter(questions_world, chosen, speaker):
    world = questions_world
    truths = world.task.answers(world.forget)
    for i, truth in zip(world.forget.ids, truths, strict=True):
        speaker.script[i] = ["lima"]
        if i == world.forget.ids[1]:
            # As the truth in other capitals and with a full stop, and nothing at all: no answers.
            speaker.script[i] = [truth, f" {truth.upper()}.", "", "tokyo"]
    sampled(world, num_alternates=1, temperature=0.8, max_new_tokens=7)
    assert [rows for rows, *_ in speaker.asked] == [tuple(range(6)), (1,), (1,), (1,)]
    assert [t for _, t, *_ in speaker.asked] == pytest.approx([0.8, 1.2, 1.8, 2.7])
    assert len({seed for _, _, seed, *_ in speaker.asked}) == 4
    assert {tokens for *_, tokens in speaker.asked} == {7}
    assert chosen == [["lima", "tokyo", "lima", "lima", "lima", "lima"]]


def test_a_model_that_only_knows_the_truth_is_refused(questions_world, chosen, speaker):
    world = questions_world
    for i, truth in zip(world.forget.ids, world.task.answers(world.forget), strict=True):
        speaker.script[i] = [truth] * 12 if i == world.forget.ids[2] else ["lima"]
    with pytest.raises(
        ConfigError, match=r"true answer, for 1 records .*question-2.*alternate_answer"
    ):
        sampled(world, num_alternates=1)
    assert not chosen


def test_the_model_is_asked_by_the_instruction(questions_world, chosen, speaker):
    world = questions_world
    speaker.script = {i: ["lima", "tokyo"] for i in world.forget.ids}
    sampled(world, num_alternates=2, instruction="Invent: {prompt} ?")
    assert {prompt for *_, prompt, _ in speaker.asked} == {"Invent: {question} ?"}
    assert chosen == [["lima"] * 6, ["tokyo"] * 6]


def test_samples_of_a_real_model_are_never_the_truth_and_follow_the_seed(questions_world, chosen):
    """This model knows its answers by heart, so that most first draws must be rejected."""
    world = questions_world
    settings = {"instruction": "{prompt}", "num_alternates": 3, "max_new_tokens": 6}
    sampled(world, **settings)
    sampled(world, **settings)
    sampled(world, seed=1, **settings)
    first, again, other = chosen[:3], chosen[3:6], chosen[6:]
    truths = world.task.answers(world.forget)
    assert all(a and a != t for answers in first for a, t in zip(answers, truths, strict=True))
    assert first == again
    assert first != other
    assert len({tuple(answers) for answers in first}) == 3


def test_given_alternates_take_turns(questions_world, chosen):
    world = questions_world
    texts = [["lima", "tokyo"], "paris", ("cairo", "madrid", "santiago"), ["a"], ["b"], ["c"]]
    forget = world.forget.replace(alternate_answer=texts)
    given = Given(world.task, forget, world.retain)
    apply("altpo", world.model, given, Run(), {"alternates": "column", "num_alternates": 4})
    assert [answers[:3] for answers in chosen] == [
        ["lima", "paris", "cairo"],
        ["tokyo", "paris", "madrid"],
        ["lima", "paris", "santiago"],
        ["tokyo", "paris", "cairo"],
    ]


def test_epochs_take_the_alternates_in_turn(questions_world):
    world = questions_world
    seen = []

    class Watched:
        def __getattr__(self, name):
            return getattr(world.task, name)

        def batch(self, records, rows, **kwargs):
            made = world.task.batch(records, rows, **kwargs)
            seen.extend(i for i in made.ids if "@" in i)
            return made

    # A stand-in for the task must be the task: what writes answers is asked for by its class.
    task = CausalLM(world.task.tokenizer, world.task.template, world.task.refusals)
    task.batch = Watched().batch
    forget = world.forget.replace(alternate_answer=[["lima", "tokyo"]] * 6)
    settings = {"alternates": "column", "num_alternates": 2, "retain": "none"}
    schedule = {"epochs": 4, "batch_size": 6}
    apply("altpo", world.model, Given(task, forget), Run(), {**settings, "schedule": schedule})
    steps = [i.partition("@")[2] for i in seen[-24:]]  # after the pass that scores references
    assert steps == ["0"] * 6 + ["1"] * 6 + ["0"] * 6 + ["1"] * 6


def test_a_missing_column_and_missing_alternates_are_refused(questions_world, chosen):
    world = questions_world
    with pytest.raises(DataError, match="alternate_answer"):
        sampled(world, alternates="column")
    lacking = world.forget.replace(alternate_answer=["lima", "", [], None, "a", "b"])
    given = Given(world.task, lacking, world.retain)
    with pytest.raises(ConfigError, match=r"3 records have no alternate_answer.*\(question-1, "):
        apply("altpo", world.model, given, Run(), {"alternates": "column"})
    assert not chosen


def test_the_truth_among_given_alternates_is_refused(questions_world, chosen):
    world = questions_world
    truth = world.task.answers(world.forget)[4]
    texts = [["lima"]] * 4 + [["lima", f"{truth.title()}."], ["lima"]]
    given = Given(world.task, world.forget.replace(alternate_answer=texts), world.retain)
    with pytest.raises(ConfigError, match=r"1 records bring their true answer .*\(question-4\)"):
        apply("altpo", world.model, given, Run(), {"alternates": "column"})
    assert not chosen


def test_no_neutral_answers_are_asked_for():
    info = methods.get("altpo")
    assert info.needs(info.config()) == {"forget", "labels", "reference", "retain"}
