"""o3 on questions: what it suppresses, what it leaves alone, and one request after the other."""

import copy
import dataclasses
import json
from collections.abc import Sequence

import pytest
import torch

from expunge.core.config import parse, to_json
from expunge.core.errors import ConfigError, DataError, Interrupted, UnsupportedModelError
from expunge.core.records import Records, concatenate
from expunge.core.run import Budget, Run
from expunge.engine.composites.gated_adapter import GatedAdapter, overlap
from expunge.engine.composites.logit_difference import LogitDifference
from expunge.engine.tasks.causal_lm import Template
from expunge.engine.weights import state_digest
from expunge.forget.method import Given, apply, methods
from expunge.forget.o3 import O3Config
from expunge.models.language import read_language_model, write_language_model

QUICK = {"epochs": 2, "batch_size": 4, "lr": 1e-3}
STRONG = {"epochs": 40, "batch_size": 8, "lr": 6e-3}


@dataclasses.dataclass(frozen=True)
class Requests:
    """Questions about four places, about three others, and about the last one."""

    world: object
    first: object
    second: object
    retain: object
    kept: object

    def apply(self, forget, model=None, run=None, *, retain=None, task=None, **settings):
        given = Given(task or self.world.task, forget, retain)
        settings = {"schedule": QUICK, **settings}
        return apply("o3", model or self.world.model, given, run or Run(), settings)

    def loss(self, model, records):
        """Mean loss per target position, in nats."""
        batch = self.world.task.batch(records, range(len(records)))
        with torch.no_grad():
            nll = self.world.task.predict(model, batch).nll_B().sum()
        return float(nll) / len(batch.targets_N)


@pytest.fixture(scope="module")
def requests(questions_world):
    whole = concatenate([questions_world.forget, questions_world.retain])
    tenth = Records(("extra",), {"question": ["the capital of egypt"], "answer": ["cairo"]})
    first, second, retain = (whole.take(range(*b)) for b in ((0, 12), (12, 21), (21, 24)))
    kept = concatenate([second, retain])
    return Requests(questions_world, first, concatenate([second, tenth]), retain, kept)


@pytest.fixture(scope="module")
def forgotten(requests):
    """The first request, forgotten in earnest. Nobody may change the model."""
    return requests.apply(requests.first, schedule=STRONG)


@pytest.fixture(scope="module")
def after_two(requests, forgotten):
    """The second request after it."""
    return requests.apply(requests.second, forgotten.model, schedule=STRONG)


class Untouchable(Sequence):
    """A column that nobody may read."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, row):
        raise AssertionError("a retain record was read")


# --- one request ---


def test_it_suppresses_the_request_and_little_else(requests, forgotten):
    """Always on, the adapter refuses everything; the gate keeps that from other questions."""
    model, kept = forgotten.model, requests.kept
    assert requests.loss(requests.world.model, requests.first) < 0.05
    assert requests.loss(model, requests.first) > 1.0
    assert requests.loss(model, kept) < 0.1
    with model.forced(1.0):
        assert requests.loss(model, kept) > 1.0
    task = requests.world.task
    answers = task.generate(model, requests.first, range(12), 8)
    wrong = sum(a != b for a, b in zip(answers, requests.first["answer"], strict=True))
    assert wrong >= 9
    assert task.generate(model, kept, range(12), 8) == list(kept["answer"])


def test_it_learns_to_refuse(requests, forgotten):
    steps = forgotten.history.steps
    assert steps[-1]["neutral"] < steps[0]["neutral"] / 2
    with forgotten.model.forced(1.0):
        answers = requests.world.task.generate(forgotten.model, requests.first, range(12), 8)
    assert set(answers) <= {"unknown to me", "i cannot say"}


def test_the_target_keeps_its_bits_and_knows_all(requests, forgotten):
    model = forgotten.model
    assert state_digest(model.target) == state_digest(requests.world.model)
    with model.forced(0.0):
        bypassed = requests.loss(model, requests.first)
    assert bypassed == requests.loss(requests.world.model, requests.first)


def test_what_moves_is_the_adapter(requests, forgotten):
    model = forgotten.model
    assert isinstance(model, GatedAdapter)
    assert (model.rank, model.alpha, model.forced_gate) == (8, 32.0, None)
    assert all(bool(up.any()) for up in model.up.values())
    assert len(model.gates) == len(model.snapshots) == 1
    for name, snapshot in model.snapshots[0].items():
        assert torch.equal(snapshot, model.down[name.replace(".", "/")])
    assert {name for name in forgotten.history.steps[0]} == {"step", "lr", "neutral", "grad_norm"}


def test_no_retain_record_and_no_forgotten_answer_is_needed(requests):
    """Nor is the collapse guard, which would read retain records."""
    retain = requests.retain
    hidden = retain.replace(**{n: Untouchable(len(retain)) for n in retain.columns})
    alone = state_digest(requests.apply(requests.first).model)
    info, task = methods.get("o3"), requests.world.task
    given = Given(task, requests.first, hidden, guard=None)
    assert (
        state_digest(apply("o3", requests.world.model, given, Run(), {"schedule": QUICK}).model)
        == alone
    )
    assert info.needs(O3Config()) == {"forget", "neutral"}
    other = requests.first.replace(answer=["lima"] * 12)
    assert state_digest(requests.apply(other).model) == alone


def test_seeds_decide(requests):
    one, again, other = (
        state_digest(requests.apply(requests.first, run=Run(seed)).model) for seed in (0, 0, 1)
    )
    assert one == again != other


def test_a_split_batch_changes_nothing_but_rounding(requests):
    wide = copy.deepcopy(requests.world.model).double()
    for start in (wide, requests.apply(requests.first, wide).model):
        forget = requests.first if start is wide else requests.second
        results = [
            requests.apply(forget, start, schedule={**QUICK, "micro_batch": size}).model
            for size in (None, 3)
        ]
        pairs = zip(*(r.state_dict().values() for r in results), strict=True)
        assert max(float((a - b).abs().max()) for a, b in pairs) < 1e-9


def test_documents_without_a_prompt_are_read_whole(requests):
    """There is nothing else to recognise them by."""
    task = requests.world.task.with_template(Template(prompt="", answer="{question}"))
    with pytest.warns(UserWarning, match="have no prompt .* learned as the start of any text"):
        model = requests.apply(requests.first, task=task).model
    batch = task.batch(requests.first, range(12))
    states = model.pooled(batch.inputs["input_ids"], batch.inputs["attention_mask"])
    features = model.prompt_features(task, batch)
    assert all(torch.equal(a, b) for a, b in zip(features, states, strict=True))


def test_events_hold_numbers_only(requests, tmp_path):
    events = tmp_path / "events.jsonl"
    requests.apply(requests.first, run=Run(events=events))
    lines = [json.loads(line) for line in events.read_text().splitlines()]
    gate = next(line for line in lines if line["event"] == "gate")
    del gate["seconds"]
    assert gate == {
        "event": "gate",
        "request": 1,
        "used": 10,
        "held_out": 2,
        "layers": 2,
        "feature_size": 32,
    }
    assert "oslo" not in events.read_text()


def test_saved_it_holds_no_text_of_the_request(requests, forgotten, tmp_path):
    write_language_model(forgotten.model, requests.world.task.tokenizer, tmp_path / "model")
    card = json.loads((tmp_path / "model" / "composite.json").read_text())
    assert card["evidence"] == "output-suppressed"
    assert card["settings"]["gates"] == [to_json(O3Config().gate)]
    again, _ = read_language_model(str(tmp_path / "model"))
    assert state_digest(again) == state_digest(forgotten.model)
    for path in (tmp_path / "model").rglob("*"):
        if path.is_file() and "tokenizer" not in path.name:
            assert b"norway" not in path.read_bytes()


# --- requests one after the other ---


def test_a_second_request_keeps_the_first(requests, forgotten, after_two):
    model = after_two.model
    assert len(model.gates) == len(model.snapshots) == 2
    for name, snapshot in forgotten.model.snapshots[0].items():
        assert torch.equal(model.snapshots[0][name], snapshot)
        assert torch.equal(model.snapshots[1][name], model.down[name.replace(".", "/")])
        assert not torch.equal(model.snapshots[1][name], snapshot)
    before, after = forgotten.model.gates[0].tensors(), model.gates[0].tensors()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert len(forgotten.model.gates) == 1
    assert state_digest(model.target) == state_digest(requests.world.model)


def test_both_requests_are_suppressed_and_the_rest_is_not(requests, after_two):
    """The persistence matrix's last row."""
    model = after_two.model
    assert requests.loss(model, requests.first) > 0.5
    assert requests.loss(model, requests.second) > 1.0
    assert requests.loss(model, requests.retain) < 0.5
    with model.forced(0.0):
        assert requests.loss(model, requests.first) < 0.05


def test_it_starts_from_the_earlier_adapter_and_turns_it(forgotten, after_two):
    """At the first step A is the snapshot itself, so the term is at its largest."""
    first = forgotten.model
    by_hand = sum(float(overlap(a, a)) for a in first.snapshots[0].values()) / 2
    steps = after_two.history.steps
    assert steps[0]["orthogonality"] == pytest.approx(by_hand, rel=1e-5)
    assert steps[-1]["orthogonality"] < 0.9 * by_hand
    assert {"neutral", "orthogonality"} <= steps[0].keys()


def test_the_term_may_be_left_out(requests, forgotten):
    result = requests.apply(requests.second, forgotten.model, orthogonal_weight=0.0)
    assert "orthogonality" not in result.history.steps[0]
    other = requests.apply(requests.second, forgotten.model)
    assert state_digest(result.model) != state_digest(other.model)


def test_a_third_request_is_orthogonal_to_both(requests, after_two):
    other = requests.first.take(range(11))
    result = requests.apply(other, after_two.model)
    two = after_two.model
    by_hand = sum(
        float(overlap(snapshot[name], two.snapshots[1][name]))
        for snapshot in two.snapshots
        for name in snapshot
    )
    assert result.history.steps[0]["orthogonality"] == pytest.approx(by_hand / 2, rel=1e-5)
    assert len(result.model.gates) == 3


def test_it_goes_on_from_disk_with_the_same_bits(requests, forgotten, tmp_path):
    write_language_model(forgotten.model, requests.world.task.tokenizer, tmp_path / "model")
    again, _ = read_language_model(str(tmp_path / "model"))
    one = requests.apply(requests.second, forgotten.model).model
    assert state_digest(requests.apply(requests.second, again).model) == state_digest(one)


def test_an_interrupted_second_request_is_resumed_with_the_same_bits(requests, forgotten, tmp_path):
    whole = state_digest(requests.apply(requests.second, forgotten.model).model)
    with pytest.raises(Interrupted, match="budget of 3 steps is spent"):
        requests.apply(
            requests.second, forgotten.model, Run(folder=tmp_path, budget=Budget(max_steps=3))
        )
    assert forgotten.model.forced_gate is None
    resumed = requests.apply(requests.second, forgotten.model, Run(folder=tmp_path))
    assert state_digest(resumed.model) == whole


def test_an_adapter_cannot_change_its_shape_on_the_way(requests, forgotten):
    with pytest.raises(ConfigError) as error:
        requests.apply(requests.second, forgotten.model, rank=4, alpha=8.0, gate_map="official")
    for words in ("forget.rank = 4 but it was made with 8", "forget.alpha = 8.0", "gate_map"):
        assert words in str(error.value)


def test_other_composites_are_refused(requests):
    other = LogitDifference(requests.world.model, requests.world.fresh(), alpha=1.0)
    with pytest.raises(
        UnsupportedModelError, match="takes a plain model, not the composite 'logit_difference'"
    ):
        requests.apply(requests.first, other)


# --- settings ---


def test_tiny_requests_are_refused_before_any_training(requests):
    task = requests.world.task
    with pytest.raises(DataError, match=r"has 9 records .* set gate.allow_tiny: true"):
        requests.apply(requests.first.take(range(9)))
    allowed = requests.apply(requests.first.take(range(6)), gate={"allow_tiny": True})
    features = allowed.model.prompt_features(task, task.batch(requests.first, range(6)))
    assert float(allowed.model.gate(features).mean()) > 0.5


def test_a_rank_above_the_layers_is_refused(requests):
    with pytest.raises(ConfigError, match=r"forget.rank = 33 but layer"):
        requests.apply(requests.first, rank=33)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rank": 0}, "rank = 0"),
        ({"alpha": 0.0}, "alpha = 0"),
        ({"orthogonal_weight": -1.0}, "orthogonal_weight = -1"),
        ({"gate": {"nu": 0.0}}, "nu = 0"),
        ({"gate": {"variant": "other"}}, "variant"),
        ({"gate_map": "hard"}, "gate_map"),
    ],
)
def test_settings_are_checked(settings, words):
    with pytest.raises(ConfigError, match=words):
        parse(O3Config, settings, "forget")


def test_defaults_are_those_for_tofu():
    """The card's table."""
    plain = to_json(O3Config())
    schedule = plain["schedule"]
    assert (plain["rank"], plain["alpha"], plain["orthogonal_weight"]) == (8, 32, 0.1)
    assert (schedule["epochs"], schedule["lr"], schedule["weight_decay"]) == (10, 2e-4, 0.1)
    gate = plain["gate"]
    assert [gate[n] for n in ("nu", "gamma", "zeta", "offset")] == [0.01, 1000, 10, 2]
    assert (gate["variant"], plain["gate_map"]) == ("consistent", "soft")


@pytest.mark.parametrize("settings", [{"gate": {"variant": "official"}}, {"gate_map": "official"}])
def test_official_variants_run(requests, settings):
    model = requests.apply(requests.first, schedule=STRONG, **settings).model
    assert requests.loss(model, requests.first) > 1.0
    assert requests.loss(model, requests.retain) < 0.5
    if "gate_map" in settings:
        bare = requests.world.task.generate(requests.world.model, requests.retain, range(2), 8)
        assert requests.world.task.generate(model, requests.retain, range(2), 8) == bare
