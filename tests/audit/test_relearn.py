"""Relearning finds models that only pretend to have forgotten."""

import dataclasses
import json

import attack_worlds
import numpy as np
import pytest
import torch

from expunge.audit.audit import audits, parse_config
from expunge.audit.collecting import collect
from expunge.audit.readings import Reading
from expunge.audit.relearning import seen_ids, split_ids
from expunge.audit.treatments import NotApplicable, attacked_ids, groups_of, treat
from expunge.core.errors import ConfigError
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.core.sets import Sets
from expunge.data.dataset import Dataset
from expunge.engine.composites.logit_difference import LogitDifference
from expunge.engine.weights import state_digest

IDS = tuple(f"i{n}" for n in range(23))
CLASSIFIER = {
    "steps": [10, 40],
    "splits": 2,
    "lr": 1e-3,
    "by": "exact",
    "benign": ["retain"],
    "max_excess": 0.1,
    "time": None,
}
LANGUAGE = {"steps": [5, 20], "lr": 1e-3, "benign_steps": 20, "max_excess": 0.1}


@pytest.fixture(scope="module")
def threes():
    return attack_worlds.threes()


@pytest.fixture(scope="module")
def people():
    return attack_worlds.people()


@pytest.fixture(scope="module")
def people_findings(people):
    return people.audit("relearn", LANGUAGE)


def of(findings, metric, subject="after"):
    return next(f for f in findings if f.metric == metric and f.subject == subject)


def test_a_masked_class_comes_back_sooner_than_retraining_learns_it(threes):
    findings = threes.audit("relearn", CLASSIFIER)
    assert of(findings, "score_steps_10").n == 31  # half of 62 threes
    found = of(findings, "excess_splits")
    assert found.n == 62
    assert found.value > 0.3
    assert found.verdict == "fail"
    assert of(findings, "area").reference.gap > 0


def test_denied_facts_come_back_from_training_on_others(people_findings):
    for metric in ("excess", "excess_benign"):
        assert of(people_findings, metric).value > 0.5
    assert of(people_findings, "excess_benign").verdict == "fail"
    assert of(people_findings, "excess").verdict == "inconclusive"  # 25 scored records
    assert of(people_findings, "recovery_steps_20", "reference").value < 0.3
    assert of(people_findings, "steps_to_half").value < 20
    assert of(people_findings, "steps_to_half", "reference").note == "not reached in 20 steps"
    assert of(people_findings, "steps_ratio").note.startswith("at most")
    # The data have no held-out records, so that nothing is said of them.
    assert not any("holdout" in f.metric for f in people_findings)


def test_findings_are_a_function_of_the_seed(people, people_findings):
    again = people.audit("relearn", LANGUAGE)
    assert [f.digest() for f in again] == [f.digest() for f in people_findings]


def test_the_original_passed_off_as_unlearned_is_told(people):
    settings = {"steps": [2], "benign": ["retain"], "benign_steps": 2, "max_excess": 0.1}
    findings = people.audit("relearn", settings, after=people.before)
    for metric in ("excess", "excess_benign"):
        assert of(findings, metric).verdict == "inconclusive"
        assert "nothing was forgotten" in of(findings, metric).note
    assert of(findings, "steps_to_half").value == 0


def test_a_model_is_trained_without_the_scored_records_and_stays_untouched(people):
    digest, scene = state_digest(people.after), people.scene()
    attacked, task = treat(people.after, people.task, scene, "relearn:20:0.5:0.001", Run(3))
    assert state_digest(people.after) == digest
    assert state_digest(attacked) != digest
    assert task is people.task
    # Other answers to the scored records change nothing.
    forget = people.sets.forget
    scored = set(forget) - set(attacked_ids(forget, 0.5, 3))
    train = people.dataset.train
    answers = [
        "unknown" if i in scored else a for i, a in zip(train.ids, train["answer"], strict=True)
    ]
    other = type(scene)(Dataset("causal_lm", train.replace(answer=answers)), people.sets, 3)
    again, _ = treat(people.after, people.task, other, "relearn:20:0.5:0.001", Run(3))
    assert state_digest(again) == state_digest(attacked)


def grouped(people, size=5):
    """The same data with an author for every few forget records."""
    place = {record_id: row for row, record_id in enumerate(people.sets.forget)}
    train = people.dataset.train
    authors = [f"a{place[i] // size}" if i in place else "kept" for i in train.ids]
    return train.replace(author=authors)


@pytest.mark.parametrize(
    ("spec", "reads"), [("relearn:5:0.5:0.001", "seen"), ("relearn_split:5:2:1", "parts")]
)
def test_an_attack_never_learns_of_an_author_that_is_scored(people, spec, reads):
    train, forget = grouped(people), people.sets.forget
    groups_R = groups_of(train.select(forget))
    if reads == "seen":
        scored = set(forget) - set(seen_ids(forget, 0.5, 3, 0, groups_R))
    else:
        scored = set(split_ids(forget, 2, 3, groups_R)[1])
    author = dict(zip(train.ids, train["author"], strict=True))
    assert {author[i] for i in scored}.isdisjoint({author[i] for i in set(forget) - scored})
    scene = type(people.scene())
    changed = [
        "unknown" if i in scored else a for i, a in zip(train.ids, train["answer"], strict=True)
    ]
    first, second = (
        treat(
            people.after,
            people.task,
            scene(Dataset("causal_lm", part), people.sets, 3),
            spec,
            Run(3),
        )[0]
        for part in (train, train.replace(answer=changed))
    )
    assert state_digest(first) == state_digest(second)


@pytest.mark.parametrize(
    ("name", "settings", "metric"),
    [
        ("relearn", {"steps": [1], "benign": []}, "score_steps_1"),
        ("ablation", {"directions": False}, "score_pruned_0_5_percent"),
        ("probe", {"blocks": [0]}, "probe_auc"),
    ],
)
def test_audits_score_the_authors_that_the_attack_did_not_see(people, name, settings, metric):
    """Seven authors, the last of two records: by record 25 of 50 would be scored."""
    train = grouped(people, 8)
    world = dataclasses.replace(people, dataset=Dataset("causal_lm", train))
    forget = people.sets.forget
    seen = attacked_ids(forget, 0.5, 3, groups_of(train.select(forget)))
    found = of(world.audit(name, settings), metric)
    assert found.n == len(forget) - len(seen) != 25
    if found.value is not None:
        assert "of 7 groups" in found.note


def test_fewer_groups_than_parts_are_divided_by_record():
    groups_R = np.arange(23) // 6
    assert split_ids(IDS, 5, 7, groups_R) == split_ids(IDS, 5, 7)
    parts = split_ids(IDS, 2, 7, groups_R)
    assert sorted(i for part in parts for i in part) == sorted(IDS)
    group = dict(zip(IDS, groups_R.tolist(), strict=True))
    assert {group[i] for i in parts[0]}.isdisjoint({group[i] for i in parts[1]})


def test_a_note_tells_how_records_were_divided(people_findings):
    assert "of the same subject" in of(people_findings, "score_steps_20").note


def test_a_part_that_is_left_out_is_not_trained_on(people):
    scene, part = people.scene(), split_ids(people.sets.forget, 2, 3)[1]
    train = people.dataset.train
    answers = [
        "unknown" if i in part else a for i, a in zip(train.ids, train["answer"], strict=True)
    ]
    other = type(scene)(Dataset("causal_lm", train.replace(answer=answers)), people.sets, 3)
    first, second, third = (
        treat(people.after, people.task, where, spec, Run(3))[0]
        for where, spec in (
            (scene, "relearn_split:5:2:1"),
            (other, "relearn_split:5:2:1"),
            (scene, "relearn_split:5:2:0"),
        )
    )
    assert state_digest(first) == state_digest(second) != state_digest(third)


def test_a_short_attack_is_the_beginning_of_a_long_one(people, tmp_path):
    run = Run(3, folder=tmp_path, events=tmp_path / "events.jsonl")
    for spec in ("relearn:3:0.5", "relearn:7:0.5"):
        treat(people.after, people.task, people.scene(), spec, run)
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    losses = [line["attack"] for line in lines if line["event"] == "step"]
    assert len(losses) == 3 + 7
    assert losses[:3] == losses[3:6]
    # Nothing stays on disk: it would be weights that know the forget set.
    assert not list(tmp_path.rglob("*.safetensors"))


def test_an_attack_that_diverges_tries_three_learning_rates(people):
    with pytest.raises(NotApplicable, match=r"diverged at the learning rates 1e\+30, .*, 1e\+29"):
        treat(people.after, people.task, people.scene(), "relearn:4:0.5:1e30", Run(3))


def test_a_failed_attack_leaves_nothing_on_disk(people, monkeypatch, tmp_path):
    import expunge.audit.relearning as module
    from expunge.core.errors import NumericalError

    folders = []

    def failing(model, task, streams, terms, schedule, run, **options):
        run.folder.mkdir(parents=True)
        folders.append(run.folder)
        raise NumericalError("lost")

    monkeypatch.setattr(module, "fit", failing)
    for seed in (3, 4):
        run = Run(seed, folder=tmp_path)
        with pytest.raises(NotApplicable, match="diverged"):
            treat(people.after, people.task, people.scene(), "relearn:2:0.5", run)
    assert not list(tmp_path.iterdir())
    # Attacks of two seeds never take up each other's checkpoints.
    assert len(set(folders)) == 6


def test_a_slower_attack_starts_from_the_model_given(people, monkeypatch):
    import expunge.audit.relearning as module
    from expunge.core.errors import NumericalError

    tried = []
    fit = module.fit

    def failing(model, task, streams, terms, schedule, run, **options):
        tried.append((schedule.lr, state_digest(model)))
        history = fit(model, task, streams, terms, schedule, run, **options)
        if len(tried) < 3:
            raise NumericalError("lost")
        return history

    monkeypatch.setattr(module, "fit", failing)
    treat(people.after, people.task, people.scene(), "relearn:2:0.5:0.003", Run(3))
    assert [lr for lr, _ in tried] == pytest.approx([3e-3, 1e-3, 3e-4])
    assert {digest for _, digest in tried} == {state_digest(people.after)}


def test_composites_are_attacked_part_by_part(people):
    composite = LogitDifference(people.before, people.after, alpha=1.0)
    with pytest.raises(NotApplicable, match="part by part"):
        treat(composite, people.task, people.scene(), "relearn:2:0.5", Run())
    readings = [Reading("forget"), Reading("forget", treatment="relearn:2:0.5")]
    subject = collect(
        composite, people.task, people.dataset, people.sets, readings, Run(), role="after"
    )
    assert list(subject.absent) == readings[1:]


def test_gpt2_can_be_attacked(people):
    model = attack_worlds.tiny_gpt2(people.task.tokenizer)
    attacked, _ = treat(model, people.task, people.scene(), "benign:retain:2", Run(3))
    changed = [
        name
        for (name, old), new in zip(model.named_parameters(), attacked.parameters(), strict=True)
        if not torch.equal(old, new)
    ]
    assert "transformer.h.0.attn.c_attn.weight" in changed


def test_there_must_be_something_to_learn_and_to_score(people):
    alone = type(people.scene())(people.dataset, Sets(people.sets.forget[:1]), 3)
    for spec, why in (
        ("relearn:2:0.5", "one forget record"),
        ("relearn_split:2:2:0", "fewer than 2"),
        ("benign:retain:2", "no retain records"),
        ("benign:holdout:2", "no holdout records"),
    ):
        with pytest.raises(NotApplicable, match=why):
            treat(people.after, people.task, alone, spec, Run(3))


def test_fewer_records_than_a_batch_are_learned_too(people):
    few = type(people.scene())(people.dataset, Sets(people.sets.forget[:3]), 3)
    attacked, _ = treat(people.after, people.task, few, "relearn:2:0.5", Run(3))
    assert state_digest(attacked) != state_digest(people.after)


def test_draws_and_parts_cover_what_they_should():
    assert seen_ids(IDS, 0.5, 7) == attacked_ids(IDS, 0.5, 7)
    draws = {seen_ids(IDS, 0.5, 7, draw) for draw in range(4)}
    assert len(draws) == 4
    assert {len(draw) for draw in draws} == {12}
    parts = split_ids(IDS, 3, 7)
    assert sorted(len(part) for part in parts) == [7, 8, 8]
    assert sorted(i for part in parts for i in part) == sorted(IDS)
    assert parts != split_ids(IDS, 3, 8)


def test_several_draws_score_more_records(people):
    settings = {"steps": [1], "draws": 3, "benign": []}
    findings = people.audit("relearn", settings)
    assert of(findings, "score_steps_1").n > 25
    assert not any(f.metric.startswith("excess_benign") for f in findings)


def test_a_bound_stays_open_where_the_data_lack_benign_records(people):
    settings = {"steps": [1], "benign": ["holdout"], "max_excess": 0.1}
    found = of(people.audit("relearn", settings), "excess_benign")
    assert (found.value, found.threshold, found.verdict) == (None, 0.1, "inconclusive")
    assert found.note == "no attack can be made with these data"


def test_the_readings_name_every_attack():
    info = audits.get("relearn")
    records = Records(("a", "b"), {"x": np.zeros((2, 3)), "y": np.array([0, 1])})
    held = Records(("c",), {"x": np.zeros((1, 3)), "y": np.array([0])})
    config = parse_config(info, {"steps": [9, 1, 9], "splits": 2, "benign": ["retain", "holdout"]})
    specs = [r.treatment for r in info.reads(config, Dataset("classifier", records, held))]
    assert specs == [
        "",
        "",
        "relearn_time:accuracy:200:5:0.5:0.001:64",
        "relearn:1:0.5:0.0001:0",
        "relearn:9:0.5:0.0001:0",
        "relearn_split:50:2:0:0.0001",
        "relearn_split:50:2:1:0.0001",
        "benign:retain:50:0.0001",
        "benign:holdout:50:0.0001",
    ]
    without = [r.treatment for r in info.reads(config, Dataset("classifier", records))]
    assert without == specs[:-1]
    with pytest.raises(ConfigError, match="'forget'"):
        list(info.reads(parse_config(info, {"benign": ["forget"]}), Dataset("classifier", records)))
    for wrong in ({"steps": []}, {"steps": [0]}, {"share": 1.0}, {"splits": 1}, {"draws": 0}):
        with pytest.raises(ConfigError):
            parse_config(info, wrong)


@pytest.mark.parametrize("spec", ["relearn:5:0.5:0.001", "relearn_time:error:4:2:0.5:0.001:8"])
def test_equal_forget_records_cannot_be_learned_and_scored(people, spec):
    train = people.dataset.train
    same = train.replace(question=["who?"] * len(train), answer=["Bo"] * len(train))
    scene = type(people.scene())(Dataset("causal_lm", same), people.sets, 3)
    with pytest.raises(NotApplicable, match="all 50 forget records are one group"):
        treat(people.after, people.task, scene, spec, Run(3))
