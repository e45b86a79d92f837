"""Country facts: what NPO and gradient difference leave of forgotten, kept and unseen facts.

Training and forgetting are those of ``recipes/country_facts.yaml``; every method takes its
schedule, so that learning rate and steps are the same for all. ``held`` facts were learned by the
model and are shown to no method. The collapse guard is off: it would stop gradient difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from output import parser, report
from torch import nn

import expunge
from expunge.audit.scores import score
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.data.dataset import Dataset
from expunge.data.source import load_source
from expunge.engine.task import Task
from expunge.forget.method import Given, apply
from expunge.models.source import Loaded, load_model_source
from expunge.pipeline.recipe import Training, read_recipe, split_part
from expunge.pipeline.request import resolve
from expunge.train.supervised import learn

RECIPE = Path(__file__).parents[1] / "recipes" / "country_facts.yaml"
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "grad_diff": ("grad_diff", {}),
    "npo, beta 0.1": ("npo", {"beta": 0.1}),
    "npo, beta 1": ("npo", {"beta": 1.0}),
}
SETS = ("forget", "retain", "held")


def main() -> None:
    """Train, retrain, forget by each method, and measure exact match."""
    made = parser("Exact match on country facts before and after forgetting.")
    made.add_argument("--seeds", type=int, default=1, help="runs of each method")
    options = made.parse_args()
    torch.set_num_threads(options.threads)
    recipe = read_recipe(RECIPE)
    assert recipe.train is not None
    dataset = load_source("country_facts", {}, recipe.seed)
    sets = resolve(recipe.request, dataset, recipe.seed)
    train = dataset.train
    gone = set(sets.forget)
    kept = train.select(i for i in train.ids if i not in gone)
    records = dict(zip(SETS, map(train.select, (sets.forget, sets.retain, sets.test)), strict=True))
    full = _trained(dataset, train, recipe.train, seed=0)
    retrained = _trained(dataset, kept, recipe.train, seed=1)
    _, settings = split_part(recipe.forget or "npo", "forget")
    given = Given(full.task, records["forget"], records["retain"], guard=None)
    models: dict[str, list[nn.Module]] = {"full": [full.model], "retrained": [retrained.model]}
    for label, (name, own) in METHODS.items():
        chosen = {**own, "schedule": settings["schedule"]}
        models[label] = [
            apply(name, full.model, given, Run(seed), chosen).model for seed in range(options.seeds)
        ]
    numbers = {
        label: {
            **{
                name: [exact_match(model, full.task, part) for model in group]
                for name, part in records.items()
            },
            "forget_nll": [loss(model, full.task, records["forget"]) for model in group],
        }
        for label, group in models.items()
    }
    after = models["npo, beta 1"][0]
    findings = expunge.audit(
        after,
        dataset,
        sets,
        before=full.model,
        references=[retrained.model],
        audits=[{"name": "tofu", "utility_sets": ["retain", "test"], "max_new_tokens": 0}],
        tokenizer=full.tokenizer,
        template=full.task.template,  # type: ignore[attr-defined]
        quiet=True,
    )
    quality = {f.subject: f.value for f in findings if f.metric == "forget_quality_log10"}
    rows = [
        {"model": label, **{name: _cell(values) for name, values in found.items()}}
        for label, found in numbers.items()
    ]
    title = "Exact match; negative log-likelihood of forgotten answers in nats per token"
    report(title, rows, {**numbers, "forget_quality_log10": quality}, options.json)
    print(
        f"log10 of forget quality: {quality['before']:.1f} before, {quality['after']:.1f} after "
        "npo with beta 1"
    )


def exact_match(model: nn.Module, task: Task, records: Records) -> float:
    """Return the share of answers whose every token is the model's first choice."""
    scores = score(model, task, records, Run())
    return float(np.logical_and.reduceat(scores.greedy_N, scores.offsets[:-1]).mean())


def loss(model: nn.Module, task: Task, records: Records) -> float:
    """Return the mean negative log-likelihood per answer token, in nats."""
    return float(-score(model, task, records, Run()).logprob_N.mean())


def _trained(dataset: Dataset, records: Records, training: Training, seed: int) -> Loaded:
    loaded = load_model_source("tiny_gpt", {}, dataset, seed)
    learn(loaded.model, loaded.task, records, training, Run(seed), scope=training.scope)
    return loaded


def _cell(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.3f}" if low == high else f"{low:.3f} to {high:.3f}"


if __name__ == "__main__":
    main()
