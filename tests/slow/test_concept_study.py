"""Concept poisoning on small pictures and invented facts: what it does, and what it does not.

Three seeds each. What came out is in the tests; where it is less than was hoped for, they say so.
"""

import copy
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from expunge.core.records import Records, concatenate
from expunge.core.run import Run
from expunge.core.streams import stream
from expunge.data.source import load_source
from expunge.engine.schedule import Schedule
from expunge.engine.scope import Scope
from expunge.engine.tasks.causal_lm import CausalLM, Template
from expunge.engine.tasks.classifier import Classifier
from expunge.forget.attributions import answer_attributions
from expunge.forget.concept_words import pieces_of, ranked_words, word_shares
from expunge.forget.method import Given, apply
from expunge.train.supervised import learn

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

FASHION = Path("/usr/share/datasets/fashion-mnist")
SNEAKER = 7
CONCEPTS = {
    "sleeves": [0, 2, 4, 6],
    "footwear": [5, 7, 9],
    "two legs": [1],
    "handle": [8],
    "front opening": [4, 6],
    "open heel": [5],
    "ankle shaft": [9],
    "dress body": [3],
    "pullover": [2],
}
ARMS = {
    "targeted, none": ("targeted", "none"),
    "targeted, localized": ("targeted", "localized"),
    "keep, localized": ("keep", "localized"),
    "random, none": ("random", "none"),
}
HEAD = {"epochs": 5, "batch_size": 32, "optimizer": "sgd", "lr": 1e-2, "weight_decay": 0.0}
SEEDS = (0, 1, 2)
RELEARNED = {"relearned, 5 passes": 5, "relearned, 20 passes": 20}


@dataclasses.dataclass(frozen=True)
class Clothes:
    """Pictures and the model that learned them."""

    model: nn.Module
    forget: Records
    retain: Records
    forget_test: Records
    retain_test: Records


def accuracy(model, records):
    with torch.no_grad():
        said = model(torch.from_numpy(np.stack(records["x"]))).argmax(1).numpy()
    return float((said == np.array(records["y"])).mean())


def clothes(seed):
    data = load_source(
        "fashion_mnist", {"num_train": 8000, "num_holdout": 0, "num_test": 4000}, seed
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(32 * 49, 64), nn.ReLU(), nn.Linear(64, 10)),
        )
    schedule = Schedule(epochs=6, batch_size=64, lr=1e-3, weight_decay=0.0)
    learn(model, Classifier(10), data.train, schedule, Run(seed))
    parts = [
        part.take(np.flatnonzero((np.array(part["y"]) == SNEAKER) == own))
        for part in (data.train, data.test)
        for own in (True, False)
    ]
    return Clothes(model, *parts)


def events(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Accuracies by arm and seed, the concepts that were found, and relearning."""
    if not FASHION.is_dir():
        pytest.skip("Fashion-MNIST is not installed (Debian package dataset-fashion-mnist)")
    found = {name: [] for name in ("original", *ARMS, "finetune", *RELEARNED)}
    concepts, precision = [], []
    for seed in SEEDS:
        world = clothes(seed)
        given = Given(Classifier(10), world.forget, world.retain)

        def measure(name, model, world=world):
            sets = (world.forget, world.forget_test, world.retain_test)
            found[name].append([accuracy(model, records) for records in sets])

        measure("original", world.model)
        for arm, (labels, mode) in ARMS.items():
            path = tmp_path_factory.mktemp("events") / "events.jsonl"
            settings = {
                "labels": labels,
                "bank": {"concepts": CONCEPTS, "penalty": 0.1},
                "patch": {"mode": mode, "window": 10, "size": 10, "stride": 3},
                "schedule": HEAD,
            }
            run = Run(seed, events=path, checkpoint_every=500)
            model = apply("concept", world.model, given, run, settings).model
            measure(arm, model)
            if arm == "targeted, localized":
                told = {line["event"]: line for line in events(path)}
                concepts.append(told["concepts"]["names"])
                precision.append(told["confusion"]["donor_precision"])
                few = concatenate([world.forget.take(range(20)), world.retain.take(range(180))])
                scope = Scope(patterns=("7.*",))
                for name, passes in RELEARNED.items():
                    again = copy.deepcopy(model)
                    schedule = Schedule(
                        epochs=passes, batch_size=4, optimizer="sgd", lr=1e-2, weight_decay=0.0
                    )
                    learn(again, Classifier(10), few, schedule, Run(seed), scope=scope)
                    measure(name, again)
        tuned = apply(
            "finetune",
            world.model,
            given,
            Run(seed, checkpoint_every=500),
            {"scope": {"patterns": ["7.*"]}, "schedule": HEAD},
        )
        measure("finetune", tuned.model)
    for name, rows in found.items():
        print(name, np.round(rows, 3).tolist())  # noqa: T201
    print("precision of the donor", np.round(precision, 2))  # noqa: T201
    return {name: np.array(rows) for name, rows in found.items()}, concepts, precision


def test_the_donors_label_forgets_the_class_and_keeps_the_rest(pictures):
    """Columns: forgotten class in training, in test, all others in test."""
    found, _, _ = pictures
    for arm in ("targeted, none", "targeted, localized"):
        assert (found[arm][:, :2] <= 0.02).all()
        assert (found[arm][:, 2] >= found["original"][:, 2] - 0.03).all()


def test_the_patch_alone_does_not_forget(pictures):
    """With labels kept the class stays, less so where the donor looks like it (seed 2)."""
    found, _, _ = pictures
    kept = found["keep, localized"][:, 1]
    assert (kept > 0.25).all()
    assert (kept >= 0.8).sum() >= 2


def test_the_class_is_told_by_what_it_is(pictures):
    _, concepts, _ = pictures
    assert all("footwear" in names for names in concepts)


def test_the_class_comes_back_from_twenty_pictures(pictures):
    """Passes over them and 180 others on the last layer, which alone had moved.

    After five of them three seeds gave .82, .97, .95 on one machine and .61, .92, .78 on another.
    """
    found, _, _ = pictures
    assert (found["targeted, localized"][:, 1] <= 0.02).all()
    assert (found["relearned, 20 passes"][:, 1] >= 0.75).all()
    five = found["relearned, 5 passes"][:, 1]
    assert five.mean() >= 0.7
    assert (five > 0.5).all()


def test_random_labels_that_are_never_true_forget_too(pictures):
    found, _, _ = pictures
    assert (found["random, none"][:, :2] <= 0.02).all()


def test_the_last_layer_forgets_a_class_that_it_no_longer_sees(pictures):
    """So that what the poison adds must be compared with fine-tuning on the rest alone."""
    found, _, _ = pictures
    assert (found["finetune"][:, :2] <= 0.02).all()


def test_the_donor_pays(pictures):
    """All that is forgotten is now called the donor, whose precision is about a half."""
    _, _, precision = pictures
    assert max(precision) < 0.6


JOBS = {
    "baker": "sells warm bread",
    "judge": "hears hard cases",
    "miner": "digs black coal",
    "pilot": "flies grey planes",
    "tailor": "sews long coats",
    "gardener": "grows red roses",
}
HOMES = {
    "tromso": "under polar lights",
    "izmir": "between blue harbours",
    "cusco": "among high mountains",
    "ghent": "along quiet canals",
    "hobart": "facing southern storms",
    "fez": "inside old walls",
}
FIRST = ["jorin", "kalen", "vedor", "timira", "mavek", "lusha", "sanelo", "netas", "orbri", "dazan"]
LAST = [
    "brandova",
    "velmark",
    "torritz",
    "kessholm",
    "morsani",
    "halwick",
    "drentova",
    "falberg",
    "griello",
    "lorstra",
]
FACTS = (
    ("what is the job of {n}", "{n} is a {v} and {rest}", JOBS),
    ("where does {n} live", "{n} lives in {v} {rest}", HOMES),
)


def facts(seed):
    """Two facts each about 25 invented people; what follows an attribute depends on it."""
    names = [f"{first} {last}" for first in FIRST for last in LAST]
    rows = []
    for place in stream(seed, "people").permutation(len(names))[:25]:
        name = names[place]
        for number, (question, answer, values) in enumerate(FACTS):
            draw = stream(seed, "fact", number, name)
            value = list(values)[int(draw.integers(len(values)))]
            text = answer.format(n=name, v=value, rest=values[value])
            rows.append((question.format(n=name), text, value, name))
    names = ("question", "answer", "value", "person")
    columns = dict(zip(names, zip(*rows, strict=True), strict=True))
    return Records(
        tuple(f"fact-{i}" for i in range(len(rows))), {k: list(v) for k, v in columns.items()}
    )


def appearance(task, model, records):
    """Share of answers with the attribute or a name of the person."""
    told = task.generate(model, records, range(len(records)), 24)
    known = zip(told, records["value"], records["person"], strict=True)
    return np.mean(
        [bool({value, *person.split()} & {*text.split()}) for text, value, person in known]
    )


def correct(task, model, records):
    told = task.generate(model, records, range(len(records)), 24)
    return np.mean([text == true for text, true in zip(told, records["answer"], strict=True)])


@pytest.fixture(scope="module")
def text():
    """Numbers of each seed."""
    from tiny_llama import word_tokenizer
    from transformers import GPT2Config, GPT2LMHeadModel

    found = []
    for seed in SEEDS:
        records = facts(seed)
        words = {w for c in ("question", "answer") for line in records[c] for w in line.split()}
        tokenizer = word_tokenizer([*sorted(words), "***"])
        shape = {"n_positions": 64, "n_embd": 64, "n_layer": 2, "n_head": 4}
        quiet = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        ends = {"bos_token_id": 1, "eos_token_id": 1}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **shape, **quiet, **ends))
        task = CausalLM(tokenizer, Template(prompt="{question}", answer=" {answer}"))
        schedule = Schedule(epochs=60, batch_size=8, lr=3e-3, weight_decay=0.0)
        learn(model, task, records, schedule, Run(seed))
        people = list(dict.fromkeys(records["person"]))
        gone = np.array([person in people[:5] for person in records["person"]])
        forget, kept = (records.take(np.flatnonzero(part)) for part in (gone, ~gone))
        result = apply(
            "concept",
            model,
            Given(task, forget, kept),
            Run(seed),
            {
                "words": {"entity": "person"},
                "schedule": {"epochs": 120, "batch_size": 8, "lr": 3e-3},
            },
        )
        found.append(
            {
                **_attributed(task, model, records),
                "before": appearance(task, model, forget),
                "after": appearance(task, result.model, forget),
                "retained, before": correct(task, model, kept),
                "retained, after": correct(task, result.model, kept),
            }
        )
        print({key: round(float(value), 3) for key, value in found[-1].items()})  # noqa: T201
    return found


def _attributed(task, model, records):
    """How often the attribute has the largest share of the model's own answer."""
    told = task.answered(records, task.generate(model, records, range(len(records)), 24))
    first, chance, errors = [], [], []
    for row, (tokens, start) in enumerate(task.encoded(told)):
        batch = task.batch(told, [row])
        one = answer_attributions(model, task, batch, 32, "pad", task.tokenizer.eos_token_id)
        shares = word_shares(pieces_of(task.tokenizer, tokens[start:]), one.scores_T.tolist())
        first.append(ranked_words([shares])[0] == records["value"][row])
        chance.append(1 / len(told["answer"][row].split()))
        errors.append(abs(one.error))
    return {"first": np.mean(first), "chance": np.mean(chance), "error": np.mean(errors)}


def test_the_attribute_has_the_largest_share_more_often_than_by_chance(text):
    """The card hopes for 70 %; the other words of an answer share what is to be told."""
    first, chance = (np.mean([numbers[key] for numbers in text]) for key in ("first", "chance"))
    assert first >= 2 * chance


def test_attributions_add_up(text):
    assert max(numbers["error"] for numbers in text) < 0.1


def test_people_are_forgotten_and_the_others_are_not(text):
    for numbers in text:
        assert numbers["before"] >= 0.9
        assert numbers["after"] <= 0.1
        assert numbers["retained, after"] >= numbers["retained, before"] - 0.05
