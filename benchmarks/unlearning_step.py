"""NPO with reference likelihoods scored once, against a second model that runs at every step.

Every arm goes through the same loop over the same batches. ``cached`` is the method as it is: one
scoring pass before the first step, logits at answer positions only. ``plain`` is the usual way: a
frozen copy of the model that runs at every step, and logits at every position. ``full logits`` is
between the two: likelihoods scored once, but logits at every position.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import json
from collections.abc import Callable

import numpy as np
import torch
from output import parser, report
from small_llama import invented_people, small_llama
from timing import ROUNDS, alternate, in_child, median_ratio, peak_mebibytes
from torch import Tensor, nn

from expunge.core.config import to_json
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.engine.loop import History, Stream, Term, fit
from expunge.engine.losses import npo as npo_loss
from expunge.engine.order import epoch_steps
from expunge.engine.reference import reference_nll
from expunge.engine.schedule import Schedule
from expunge.engine.scope import Scope
from expunge.engine.task import Batch, Task
from expunge.forget.method import Given, apply
from expunge.models.source import load_model_source

BETA = 0.1
ARMS = ("plain", "full logits", "cached")


@dataclasses.dataclass(frozen=True)
class Job:
    """What every arm has to do.

    Attributes:
        model: The model to unlearn; stays untouched.
        task: How to run it.
        forget: Records to forget.
        retain: Records to keep.
        schedule: Settings of the loop.
        scope: Which weights may move.
    """

    model: nn.Module
    task: Task
    forget: Records
    retain: Records
    schedule: Schedule
    scope: Scope

    @property
    def num_tokens(self) -> int:
        """Tokens that the trained model reads, prompts included, padding left out."""
        lengths = {
            "forget": np.array(self.task.lengths(self.forget)),
            "retain": np.array(self.task.lengths(self.retain)),
        }
        sizes = {name: len(values) for name, values in lengths.items()}
        batch = self.schedule.batch_size
        return sum(
            int(lengths[name][rows].sum())
            for epoch in range(self.schedule.epochs)
            for step in epoch_steps("paired", sizes, batch, Run().seed, epoch)
            for name, rows in step.items()
        )


def cached(job: Job) -> History:
    """Run the method as it is."""
    given = Given(task=job.task, forget=job.forget, retain=job.retain, guard=None)
    settings = {"beta": BETA, "schedule": to_json(job.schedule), "scope": to_json(job.scope)}
    return apply("npo", job.model, given, Run(), settings).history


def plain(job: Job) -> History:
    """Minimise the same objective with a frozen second model and logits at every position."""
    frozen = copy.deepcopy(job.model).requires_grad_(False).eval()

    @torch.no_grad()
    def reference(batch: Batch, nll_B: Tensor) -> Tensor:
        return full_nll(frozen, batch)

    return _with_full_logits(job, reference)


def full_logits(job: Job) -> History:
    """Minimise the same objective with likelihoods scored once and logits at every position."""
    scored = reference_nll(job.model, job.task, job.forget, Run())
    return _with_full_logits(job, lambda batch, nll_B: scored.of(batch.ids, nll_B))


def _with_full_logits(job: Job, reference: Callable[[Batch, Tensor], Tensor]) -> History:
    def forget_loss(model: nn.Module, batch: Batch) -> Tensor:
        nll_B = full_nll(model, batch)
        return npo_loss(nll_B, reference(batch, nll_B), BETA)

    streams = {"forget": Stream(job.forget), "retain": Stream(job.retain)}
    terms = [Term("forget", forget_loss), Term("retain", full_nll, per="target")]
    model = copy.deepcopy(job.model)
    return fit(model, job.task, streams, terms, job.schedule, Run(), scope=job.scope)


def full_nll(model: nn.Module, batch: Batch) -> Tensor:
    """Return each record's negative log-likelihood from logits at every position, shape (B,)."""
    logits_BTV = model(**batch.inputs, use_cache=False).logits[:, :-1]
    symbols_BT1 = batch.inputs["input_ids"][:, 1:, None]
    logprobs_BT = torch.log_softmax(logits_BTV.float(), dim=-1).gather(2, symbols_BT1)[..., 0]
    assert batch.positions is not None
    return -(logprobs_BT * batch.positions[:, :-1]).sum(1)


def main() -> None:
    """Time the arms, measure their memory, and check that they do the same."""
    options = _options()
    torch.set_num_threads(options.threads)
    job = _smollm2_job() if options.smollm2 else _small_job()
    ways = dict(zip(ARMS, (plain, full_logits, cached), strict=True))
    arms = {name: functools.partial(way, job) for name, way in ways.items()}
    if options.memory_of:
        before = peak_mebibytes()
        arms[options.memory_of]()
        print(json.dumps({"before": before, "peak": peak_mebibytes()}))
        return
    memory = {arm: in_child(__file__, [*_passed_on(options), "--memory-of", arm]) for arm in ARMS}
    first, timings = alternate(arms, options.rounds)
    difference = max(_largest_difference(first[arm], first["cached"]) for arm in ARMS)
    tokens = job.num_tokens
    numbers = {
        "tokens": tokens,
        "steps": len(first["cached"].steps),
        "largest_relative_difference": difference,
        "seconds": {arm: dataclasses.asdict(timing) for arm, timing in timings.items()},
        "mebibytes": memory,
    }
    rows = [
        {
            "arm": arm,
            "tokens/s": f"{tokens / timing.median_wall:.0f}",
            "tokens/cpu-s": f"{tokens / timing.median_cpu:.0f}",
            "peak MiB": f"{memory[arm]['peak']:.0f}",
            "MiB over the loaded model": f"{memory[arm]['peak'] - memory[arm]['before']:.0f}",
        }
        for arm, timing in timings.items()
    ]
    size = sum(parameter.numel() for parameter in job.model.parameters()) / 1e6
    title = f"NPO, {size:.1f} M weights, {numbers['steps']} steps, {tokens} tokens"
    report(title, rows, numbers, options.json)
    for arm in ("plain", "full logits"):
        wall, cpu = median_ratio(timings[arm], timings["cached"])
        print(f"cached is {wall:.2f} x as fast as {arm} (cpu {cpu:.2f} x)")
    print(f"losses and gradient norms agree to {difference:.1g} (relative)")


def _small_job() -> Job:
    dataset = invented_people(100)
    model, task = small_llama(dataset)
    schedule = Schedule(epochs=10, batch_size=8, lr=1e-5, warmup_epochs=1, decay="linear")
    return _job(model, task, dataset.train, 16, schedule, Scope())


def _smollm2_job() -> Job:
    dataset = invented_people(9)
    template = {"prompt": "Question: {question}\nAnswer:", "answer": " {answer}", "chat": False}
    loaded = load_model_source("smollm2", {"template": template}, dataset, seed=0)
    schedule = Schedule(epochs=4, batch_size=6, lr=1e-5)
    scope = Scope(last_layers=10)  # as in recipes/demo.yaml
    return _job(loaded.model, loaded.task, dataset.train, 6, schedule, scope)


def _job(
    model: nn.Module, task: Task, train: Records, num_forget: int, schedule: Schedule, scope: Scope
) -> Job:
    forget = train.take(range(len(train) - num_forget, len(train)))
    retain = train.take(range(len(train) - num_forget))
    return Job(model, task, forget, retain, schedule, scope)


def _largest_difference(one: History, other: History) -> float:
    """Check that two runs had the same numbers in every step; return by how much they differ."""
    names = ("forget", "retain", "grad_norm")
    a, b = (np.array([[step[name] for name in names] for step in h.steps]) for h in (one, other))
    np.testing.assert_allclose(a, b, rtol=1e-3)
    return float(np.max(np.abs(a - b) / np.abs(b)))


def _options() -> argparse.Namespace:
    made = parser("NPO steps with cached reference likelihoods and with a second model.")
    made.add_argument("--rounds", type=int, default=ROUNDS, help="timed turns of each arm")
    made.add_argument("--smollm2", action="store_true", help="SmolLM2-135M in place of 5 M weights")
    made.add_argument("--memory-of", choices=ARMS, help="run one arm once and print its memory")
    return made.parse_args()


def _passed_on(options: argparse.Namespace) -> list[str]:
    return ["--threads", str(options.threads), *(["--smollm2"] if options.smollm2 else [])]


if __name__ == "__main__":
    main()
