"""Two-hop questions: which may be asked, and what they bring back."""

import dataclasses

import numpy as np
import pytest

from expunge.audit.audit import audits, plan_readings, run_audit
from expunge.audit.evidence import Evidence, Subject
from expunge.audit.readings import Reading
from expunge.audit.two_hop import hop_readings
from expunge.audit.views import Scene, see
from expunge.core.errors import ConfigError, DataError
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.core.sets import Sets
from expunge.data.dataset import Dataset
from expunge.engine.tasks.causal_lm import Template

FORGET, TWO_HOP = Reading("forget"), Reading("forget", "two_hop")
HOPS = tuple(Reading("forget", f"hop:{number}") for number in (0, 1))
N = 60


def records_of(**changes):
    columns = {
        "question": ["who wrote Salt", "where is Oslo", "what is red", "what is blue"],
        "answer": ["anna", "norway", "a colour", "another"],
        "perturbed_answer": [["bo"], ["france"], None, None],
        "two_hop_question": [
            "who is the child of Carl",
            "which land has the fjord town",
            None,
            "x",
        ],
        "hops": [
            [["who is Carl", "a father"], ["who is his child", "anna"]],
            [("Where is  OSLO", "norway"), ("what is a fjord", "a bay")],
            [["a", "b"], ["c", "d"]],
            [["a", "b"], ["c", "d"]],
        ],
    }
    return Records(("r-0", "r-1", "r-2", "r-3"), {**columns, **changes})


@pytest.fixture(scope="module")
def look(language_model):
    def see_it(view, records=None, gone=3, template=None):
        task = language_model[1]
        task = task.with_template(template) if template else task
        records = records or records_of()
        scene = Scene(
            Dataset("causal_lm", records), Sets.partition(records.ids, records.ids[:gone])
        )
        return see(task, scene, Reading("forget", view))

    return see_it


def test_a_question_whose_hop_is_forgotten_is_not_asked(look):
    """One hop of the second record is its own question, in other letters."""
    task, seen = look("two_hop")
    assert seen.ids == ("r-0",)
    assert task._texts(seen, [0]) == [("who is the child of Carl", " anna")]
    assert look("two_hop", gone=1)[1].ids == ("r-0",)
    other = records_of(paraphrased_question=["x", "who is Carl", None, None])
    assert look("two_hop", other)[1].ids == ()


def test_the_hops_are_asked_with_their_own_answers(look):
    task, seen = look("hop:1")
    assert seen.ids == ("r-0",)
    assert task._texts(seen, [0]) == [("who is his child", " anna")]
    assert look("hop:0")[0]._texts(look("hop:0")[1], [0]) == [("who is Carl", " a father")]
    assert list(look("two_hop:perturbed:0")[1]["answer"]) == ["bo"]
    with pytest.raises(ConfigError, match="two hops"):
        look("hop:2")


def test_what_asks_no_question_has_no_two_hops(look):
    assert len(look("two_hop", template=Template(prompt="", answer="{answer}"))[1]) == 0
    both = Template(prompt="{question}", answer="{answer} {question}")
    assert len(look("two_hop", template=both)[1]) == 0
    bare = Records(records_of().ids, {n: records_of()[n] for n in ("question", "answer")})
    assert len(look("two_hop", bare)[1]) == 0


@pytest.mark.parametrize(
    "hops", ["text", [["a", "b"]], [["a"], ["b"]], [["a", 1], ["c", "d"]], [["a", "b"]] * 3]
)
def test_hops_that_are_no_two_pairs_are_refused(look, hops):
    with pytest.raises(DataError, match="two pairs of texts"):
        look("two_hop", records_of(hops=[hops, None, None, None]))


def test_they_are_read_where_the_data_have_them():
    assert list(hop_readings(records_of(), "exact")) == [TWO_HOP, *HOPS]
    without = Records(("a",), {"question": ["x"], "answer": ["y"], "hops": [None]})
    assert not list(hop_readings(without, "exact"))
    views = {reading.view for reading in hop_readings(records_of(), "knowledge")}
    assert views == {"two_hop", "two_hop:perturbed:0", "hop:0", "hop:1"}
    info = audits.get("in_context")
    planned = plan_readings([(info, info.config())], Dataset("causal_lm", records_of()))
    assert {TWO_HOP, *HOPS} <= set(planned)
    planned = plan_readings(
        [(info, info.config(two_hops=False))], Dataset("causal_lm", records_of())
    )
    assert not {TWO_HOP, *HOPS} & set(planned)


@pytest.fixture
def model(make_scores):
    """A model that answers so many of 60 questions: plain, in two hops, and each of the hops."""

    def hits(count, n=N):
        return make_scores([-0.1] * n, wrong=range(count, n))

    def make(role, plain, asked, hops=(N, N), seed=None, kept=N):
        scores = {FORGET: hits(plain), TWO_HOP: hits(asked, kept)}
        scores |= {reading: hits(count, kept) for reading, count in zip(HOPS, hops, strict=True)}
        return Subject(role, f"{role}{seed}", scores, seed)

    return make


def found(after, before=None, references=(), **settings):
    info = audits.get("in_context")
    chosen = {"by": "exact", "budgets": (1,), "kinds": (), "filter": "", **settings}
    evidence = Evidence(after, before, tuple(references), "sets")
    return run_audit(info, info.config(**chosen), evidence, Run())


def by_name(findings, subject="after"):
    return {f.metric: f for f in findings if f.subject == subject}


def test_the_share_that_comes_back_and_its_excess_over_retraining(model):
    before, after = model("before", 54, 48), model("after", 6, 30, hops=(45, 60))
    reference = model("reference", 6, 12, seed=1)
    told = found(after, before, [reference], max_excess=0.1)
    own = by_name(told)
    assert own["rho_two_hop"].value == pytest.approx(0.5)
    assert own["excess_two_hop"].value == pytest.approx(0.5 - 0.125)
    assert own["excess_two_hop"].verdict == "fail"
    assert own["score_two_hop"].value == pytest.approx(0.5)
    assert own["score_two_hop"].reference.values == pytest.approx((0.2,))
    assert own["hops_known"].value == pytest.approx(0.75)
    assert by_name(told, "before")["score_two_hop"].value == pytest.approx(0.8)


def test_records_that_cannot_be_asked_are_counted(model):
    before, after = model("before", 54, 30, kept=40), model("after", 6, 20, kept=40)
    told = by_name(found(after, before))
    assert told["rho_two_hop"].n == 40
    assert told["rho_two_hop"].note.startswith("20 of 60 records left out")
    few = by_name(found(model("after", 6, 2, kept=19), model("before", 54, 3, kept=19)))
    assert few["rho_two_hop"].value is None
    assert "19 records" in few["rho_two_hop"].note


def test_without_two_hop_questions_the_reason_is_given_and_a_bound_stays_open(model):
    after, before = model("after", 6, 6), model("before", 54, 54)
    after, before = (
        dataclasses.replace(one, scores={FORGET: one.scores[FORGET]}) for one in (after, before)
    )
    told = by_name(found(after, before))
    assert told["rho_two_hop"].value is None
    assert told["rho_two_hop"].verdict == "not_applicable"
    assert told["rho_two_hop"].note == "the data have no columns two_hop_question and hops"
    assert "score_two_hop" not in told
    assert by_name(found(after, before, max_excess=0.1))["excess_two_hop"].verdict == "inconclusive"
    assert "rho_two_hop" not in by_name(found(after, before, two_hops=False))


def test_without_the_model_before_there_is_no_share(model):
    told = by_name(found(model("after", 6, 30)))
    assert told["rho_two_hop"].value is None
    assert "no model before unlearning" in told["rho_two_hop"].note
    assert told["score_two_hop"].value == pytest.approx(0.5)
    assert np.isclose(told["hops_known"].value, 1)
