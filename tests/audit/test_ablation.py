"""Directions and weights that are cut out, against the paper card and plain computations."""

import dataclasses

import attack_worlds
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from expunge.audit.ablation import projected_out
from expunge.audit.audit import audits, parse_config
from expunge.audit.treatments import NotApplicable, attacked_ids, groups_of, treat
from expunge.core.run import Run
from expunge.core.sets import Sets, sample_ids
from expunge.data.dataset import Dataset
from expunge.engine.composites.logit_difference import LogitDifference
from expunge.engine.weights import state_digest

DIRECTION, PRUNING = "ablate_direction:0.5", "prune_difference:2:0.5"


@pytest.fixture(scope="module")
def people():
    return attack_worlds.people()


def of(findings, metric, subject="after"):
    return next(f for f in findings if f.metric == metric and f.subject == subject)


def looked_at(world):
    """What the attacks see under seed 3."""
    seen = attacked_ids(world.sets.forget, 0.5, 3)
    benign = sample_ids(world.sets.retain, len(seen), 3, "ablation-retain")
    return tuple(world.dataset.train.select(ids) for ids in (seen, benign))


def outputs(model, task, records, blocks):
    """Outputs of blocks at the target positions."""
    found, handles = {}, []
    for block in blocks:

        def keep(module, args, output, block=block):
            found[block] = output[0] if isinstance(output, tuple) else output

        handles.append(model.get_submodule(block).register_forward_hook(keep))
    batch = task.batch(records, range(len(records)))
    with torch.no_grad():
        task.predict(model.eval(), batch)
    for handle in handles:
        handle.remove()
    return {block: hidden[batch.positions] for block, hidden in found.items()}


def test_the_cards_ablation():
    found = projected_out(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 2.0]))
    assert found.tolist() == [3, 0]


@given(st.integers(0, 2**32 - 1))
def test_nothing_is_left_along_the_direction_and_the_rest_is_untouched(seed):
    rng = np.random.default_rng(seed)
    hidden, direction, other = rng.normal(size=(4, 6)), rng.normal(size=6), rng.normal(size=6)
    found = projected_out(torch.from_numpy(hidden), torch.from_numpy(direction)).numpy()
    np.testing.assert_allclose(found @ direction, 0, atol=1e-12)
    across = other - direction * (other @ direction) / (direction @ direction)
    np.testing.assert_allclose(found @ across, hidden @ across, atol=1e-12)


def test_no_direction_takes_nothing():
    hidden = torch.tensor([[1.0, 2.0]])
    assert torch.equal(projected_out(hidden, torch.zeros(2)), hidden)


def test_the_directions_are_those_of_the_model_as_it_is(people):
    for model in (people.after, attack_worlds.tiny_gpt2(people.task.tokenizer)):
        prefix = "model.layers" if model is people.after else "transformer.h"
        blocks = [f"{prefix}.0", f"{prefix}.1"]
        forget, retain = (outputs(model, people.task, r, blocks) for r in looked_at(people))
        treated, task = treat(model, people.task, people.scene(), DIRECTION, Run(3))
        everyone = people.dataset.train
        changed = outputs(treated, task, everyone, blocks)
        plain = outputs(model, task, everyone, blocks)
        for block in blocks:
            direction = forget[block].double().mean(0) - retain[block].double().mean(0)
            left = changed[block].double() @ (direction / direction.norm())
            assert left.abs().max() < 1e-5
            assert (plain[block] @ direction.float()).abs().max() > 1e-3


def test_weights_go_that_matter_to_forget_records_alone(people):
    model, task = people.after, people.task
    gradients = []
    for records in looked_at(people):
        batch = task.batch(records, range(len(records)))
        model.zero_grad()
        (-task.predict(model.eval(), batch).logprobs_N().mean()).backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters()})
    model.zero_grad(set_to_none=True)
    forget, retain = gradients
    scores = {
        name: ((p * forget[name]).abs() - (p * retain[name]).abs()).detach().flatten()
        for name, p in model.named_parameters()
        if p.ndim == 2 and "embed" not in name and "lm_head" not in name
    }
    flat = torch.cat(list(scores.values()))
    bar = flat.sort(descending=True).values[int(0.02 * len(flat)) - 1]
    treated, _ = treat(model, task, people.scene(), PRUNING, Run(3))
    zeros = 0
    for name, old in model.named_parameters():
        new = treated.get_parameter(name)
        gone = (new == 0) & (old != 0)
        assert torch.equal(new[~gone], old[~gone])
        zeros += int(gone.sum())
        if gone.any():
            # Batches add up in another order, so that the bar is not the same to the last bit.
            assert scores[name][gone.flatten()].min() >= bar - 1e-6
    assert zeros == int(0.02 * len(flat))


def test_treatments_leave_the_model_untouched(people):
    digest = state_digest(people.after)
    record = people.scene().records("forget").take([0])
    old = outputs(people.after, people.task, record, ["model.layers.1"])["model.layers.1"]
    for spec in (DIRECTION, PRUNING):
        treat(people.after, people.task, people.scene(), spec, Run(3))
    assert state_digest(people.after) == digest
    new = outputs(people.after, people.task, record, ["model.layers.1"])["model.layers.1"]
    assert torch.equal(old, new)


@pytest.mark.parametrize("size", [1, 5])
def test_scored_records_are_not_looked_at(people, size):
    """Nor, where the data name authors, another record of the same author."""
    forget = people.sets.forget
    place = {record_id: row for row, record_id in enumerate(forget)}
    train = people.dataset.train
    train = train.replace(author=[f"a{place.get(i, -1) // size}" for i in train.ids])
    people = dataclasses.replace(people, dataset=Dataset("causal_lm", train))
    seen = attacked_ids(forget, 0.5, 3, groups_of(train.select(forget)))
    scored = set(forget) - set(seen)
    assert {place[i] // size for i in scored}.isdisjoint({place[i] // size for i in seen})
    answers = [
        "unknown" if i in scored else a for i, a in zip(train.ids, train["answer"], strict=True)
    ]
    other = type(people.scene())(
        Dataset("causal_lm", train.replace(answer=answers)), people.sets, 3
    )
    record = people.scene().records("forget").take([0, 1])
    for spec in (DIRECTION, PRUNING):
        first, second = (
            outputs(
                treat(people.after, people.task, scene, spec, Run(3))[0],
                people.task,
                record,
                ["model.layers.1"],
            )["model.layers.1"]
            for scene in (people.scene(), other)
        )
        assert torch.equal(first, second)


def test_a_frozen_model_can_be_pruned(people):
    frozen = attack_worlds.tiny_gpt2(people.task.tokenizer).requires_grad_(False)
    treated, _ = treat(frozen, people.task, people.scene(), PRUNING, Run(3))
    assert state_digest(treated) != state_digest(frozen)


def test_what_cannot_be_attacked_is_told(people):
    composite = LogitDifference(people.before, people.after, alpha=1.0)
    alone = type(people.scene())(people.dataset, Sets(people.sets.forget), 3)
    for spec in (DIRECTION, PRUNING):
        with pytest.raises(NotApplicable, match="part by part"):
            treat(composite, people.task, people.scene(), spec, Run(3))
        with pytest.raises(NotApplicable, match="a retain record"):
            treat(people.after, people.task, alone, spec, Run(3))
    train = people.dataset.train
    same = train.replace(question=["who?"] * len(train), answer=["Bo"] * len(train))
    scene = type(people.scene())(Dataset("causal_lm", same), people.sets, 3)
    for spec in (DIRECTION, PRUNING):
        with pytest.raises(NotApplicable, match="all 50 forget records are one group"):
            treat(people.after, people.task, scene, spec, Run(3))
    with pytest.raises(NotApplicable, match="less than one weight"):
        treat(people.after, people.task, people.scene(), "prune_difference:0.0001:0.5", Run(3))


def test_each_attack_has_its_findings(people):
    findings = people.audit("ablation", {"pruned": [0.5, 2], "max_excess": 5.0})
    names = {f.metric for f in findings}
    assert names == {"excess"} | {
        f"{number}_{attack}"
        for number in ("score", "recovery", "excess")
        for attack in ("direction", "pruned_0_5_percent", "pruned_2_percent")
    }
    attacks = ("direction", "pruned_0_5_percent", "pruned_2_percent")
    strongest = max(of(findings, f"excess_{attack}").value for attack in attacks)
    found = of(findings, "excess")
    assert (found.value, found.n, found.verdict) == (strongest, 25, "inconclusive")
    again = people.audit("ablation", {"pruned": [0.5, 2], "max_excess": 5.0})
    assert [f.digest() for f in again] == [f.digest() for f in findings]


def test_the_readings_name_every_attack(people):
    info = audits.get("ablation")
    config = parse_config(info, {"pruned": [1], "share": 0.25})
    assert [r.treatment for r in info.reads(config, people.dataset)] == [
        "",
        "ablate_direction:0.25",
        "prune_difference:1.0:0.25",
    ]
    config = parse_config(info, {"directions": False, "pruned": []})
    assert [r.treatment for r in info.reads(config, people.dataset)] == [""]


def test_equal_forget_records_leave_no_attack_and_say_why(people):
    train = people.dataset.train
    forget = set(people.sets.forget)
    answers = ["Bo" if i in forget else a for i, a in zip(train.ids, train["answer"], strict=True)]
    questions = [
        "who?" if i in forget else q for i, q in zip(train.ids, train["question"], strict=True)
    ]
    equal = train.replace(question=questions, answer=answers)
    people = dataclasses.replace(people, dataset=Dataset("causal_lm", equal), references=())
    told = of(people.audit("ablation", {"pruned": [2]}), "score_direction")
    assert (told.value, told.verdict) == (None, "not_applicable")
    assert "scored on what it saw; name records that differ" in told.note


def test_the_excess_is_told_to_be_over_retrained_models():
    doc = " ".join(audits.get("ablation").doc.split())
    assert "the excess over the retrained references" in doc
