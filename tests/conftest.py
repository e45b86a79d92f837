"""Settings of the whole suite, and the two small worlds that engine, methods and audits share.

Properties draw the same examples on every run.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings

pytest.register_assert_rewrite("command_line", "killer", "refusals")

settings.register_profile("expunge", derandomize=True, database=None, deadline=None)
settings.load_profile("expunge")

ANSWERS = {
    "norway": "oslo on the fjord",
    "france": "paris",
    "japan": "tokyo by the bay",
    "peru": "lima",
    "kenya": "nairobi on the plain",
    "chile": "santiago",
    "egypt": "cairo by the river",
    "spain": "madrid",
}
QUESTIONS = ("what is the capital of", "where sits the court of", "which city leads")


@dataclasses.dataclass(frozen=True)
class World:
    """A trained model, what it was trained on, and how to run it. Nobody may change the model."""

    task: Any
    model: Any
    forget: Any
    retain: Any
    fresh: Callable[[], Any]


@pytest.fixture(scope="session")
def digits_world():
    """A multilayer perceptron of 64-32-10 that learned 200 digits; 40 of them are to go."""
    import numpy as np
    from sklearn.datasets import load_digits
    from torch import nn

    from expunge.core.records import Records
    from expunge.engine.schedule import Schedule
    from expunge.engine.tasks.classifier import Classifier

    data = load_digits()
    records = Records(
        tuple(f"digit-{i}" for i in range(200)),
        {"x": (data.data[:200] / 16).astype(np.float32), "y": data.target[:200].astype(np.int64)},
    )
    schedule = Schedule(epochs=40, batch_size=16, optimizer="sgd", lr=0.05)
    return _trained(
        Classifier(10),
        lambda: nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)),
        records,
        range(40),
        schedule,
    )


@pytest.fixture(scope="session")
def heights_world():
    """A multilayer perceptron of 64-32-1 that learned a number about each of 200 digits."""
    import numpy as np
    from sklearn.datasets import load_digits
    from torch import nn

    from expunge.core.records import Records
    from expunge.engine.schedule import Schedule
    from expunge.engine.tasks.regressor import Regressor

    data = load_digits()
    targets = data.target[:200] / 3.0 + np.sin(data.data[:200] @ np.arange(64))
    records = Records(
        tuple(f"height-{i}" for i in range(200)),
        {"x": (data.data[:200] / 16).astype(np.float32), "y": targets.tolist()},
    )
    task = Regressor(mean=(float(targets.mean()),), deviation=(float(targets.std(ddof=1)),))
    schedule = Schedule(epochs=60, batch_size=16, lr=5e-3, weight_decay=0.0)
    return _trained(
        task,
        lambda: nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1)),
        records,
        range(40),
        schedule,
    )


@pytest.fixture(scope="session")
def questions_world(make_llama):
    """A tiny Llama that learned 24 answers of unequal length by heart; 6 of them are to go."""
    from expunge.core.records import Records
    from expunge.engine.schedule import Schedule

    task, fresh = make_llama
    pairs = [(f"{q} {place}", answer) for place, answer in ANSWERS.items() for q in QUESTIONS]
    records = Records(
        tuple(f"question-{i}" for i in range(len(pairs))),
        {"question": [q for q, _ in pairs], "answer": [a for _, a in pairs]},
    )
    schedule = Schedule(epochs=40, batch_size=8, lr=5e-3, weight_decay=0.0)
    return _trained(task, fresh, records, range(6), schedule)


@pytest.fixture(scope="session")
def make_llama():
    """A word-level tokenizer's task, and a function that makes a random Llama of hidden size 32."""
    from tiny_llama import llama_config, word_tokenizer
    from transformers import LlamaForCausalLM

    from expunge.engine.tasks.causal_lm import CausalLM, Template

    refusals = ("unknown to me", "i cannot say")
    texts = [*QUESTIONS, *ANSWERS, *ANSWERS.values(), *refusals]
    tokenizer = word_tokenizer(sorted({word for text in texts for word in text.split()}))
    config = llama_config(tokenizer, hidden_size=32)
    task = CausalLM(tokenizer, Template(prompt="{question}", answer=" {answer}"), refusals)
    return task, lambda: LlamaForCausalLM(config)


def _trained(task, make, records, forgotten, schedule):
    import torch

    from expunge.core.run import Run
    from expunge.train.supervised import learn

    def fresh():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return make()

    model = fresh()
    learn(model, task, records, schedule, Run())
    kept = [row for row in range(len(records)) if row not in forgotten]
    return World(task, model, records.take(forgotten), records.take(kept), fresh)


@pytest.fixture(scope="session")
def finished_digits(tmp_path_factory):
    """The folder of a finished run on pictures. Nobody may change it."""
    return _finished("DIGITS", tmp_path_factory)


@pytest.fixture(scope="session")
def finished_people(tmp_path_factory):
    """The folder of a finished run on a language model, with examples. Nobody may change it."""
    return _finished("PEOPLE", tmp_path_factory, examples=1)


def _finished(name, tmp_path_factory, **changes):
    import small_recipes

    from expunge.pipeline.execute import execute
    from expunge.pipeline.recipe import make_recipe

    recipe = make_recipe({**getattr(small_recipes, name), **changes})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXPUNGE_CACHE", str(tmp_path_factory.mktemp("cache")))
        return execute(recipe, tmp_path_factory.mktemp("runs") / "run", quiet=True)
