"""NPO as Expunge runs it, against the plain way: a second model, whole batches, every logit.

``plain`` is what a straightforward public implementation does, in a loop of its own: a frozen
second model in memory that runs at every step; batches in the order in which they were drawn,
padded to the longest record; logits at every position of prompt, answer and padding; both terms in
one graph; ``torch.optim.AdamW`` as it comes. ``whole batch`` is the method as the pipeline calls
it, under the default settings of the loop; ``parts`` is the same with ``micro_batch``. All arms see
the same records in the same steps and minimise the same objective, which is checked.

Every turn of an arm is a process of its own, so that its peak memory is its own; arms take turns.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from output import parser, report
from small_llama import TEMPLATE, records_of, small_llama
from timing import ROUNDS, Clock, in_child, profiled, resident, watched
from torch import Tensor, nn

from expunge.core.config import to_json
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.engine.losses import npo as npo_loss
from expunge.engine.order import Step, epoch_steps
from expunge.engine.schedule import Schedule
from expunge.engine.scope import Scope, scoped
from expunge.engine.task import Batch, Task
from expunge.forget.method import Given, apply
from expunge.models.source import load_model_source

BETA = 0.1
IGNORED = -100
NUM_RETAIN = 200
ARMS = ("plain", "whole batch", "parts")
TOLERANCE = 1e-3
KEYS = ("steps cpu", "steps wall", "call cpu", "call wall", "peak", "before")


@dataclasses.dataclass(frozen=True)
class Job:
    """What every arm has to do.

    Attributes:
        model: The model to unlearn.
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

    def steps(self) -> Iterator[Step]:
        """Yield the rows of every step, as the loop draws them."""
        sizes = {"forget": len(self.forget), "retain": len(self.retain)}
        for epoch in range(self.schedule.epochs):
            yield from epoch_steps("paired", sizes, self.schedule.batch_size, Run().seed, epoch)

    def tokens(self) -> np.ndarray:
        """Count what the trained model reads, step by step: tokens, and tokens with padding."""
        lengths = {
            "forget": np.array(self.task.lengths(self.forget)),
            "retain": np.array(self.task.lengths(self.retain)),
        }
        read = [[lengths[name][rows] for name, rows in step.items()] for step in self.steps()]
        return np.array(
            [(sum(x.sum() for x in xs), sum(x.max() * len(x) for x in xs)) for xs in read]
        )


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What an arm found.

    Attributes:
        steps: Forget loss, retain loss and gradient norm of every step.
        model: The model after the last step.
        clock: When the steps ended.
    """

    steps: np.ndarray
    model: nn.Module
    clock: Clock


def ours(job: Job, micro_batch: int | None = None) -> Outcome:
    """Run the method as the pipeline does, which gives the model away."""
    given = Given(task=job.task, forget=job.forget, retain=job.retain, guard=None)
    schedule = dataclasses.replace(job.schedule, micro_batch=micro_batch)
    settings = {"beta": BETA, "schedule": to_json(schedule), "scope": to_json(job.scope)}
    clock = Clock()
    result = apply("npo", job.model, given, Run(trackers=(clock,)), settings, in_place=True)
    names = ("forget", "retain", "grad_norm")
    steps = [[step[name] for name in names] for step in result.history.steps]
    return Outcome(np.array(steps), result.model, clock)


def plain(job: Job) -> Outcome:
    """Minimise the same objective in the plain way; the model is changed."""
    model, reference = job.model, copy.deepcopy(job.model).eval()
    sources = {"forget": job.forget, "retain": job.retain}
    steps, clock = [], Clock()
    with scoped(model, job.task, job.scope, sources, Run()) as selection:
        moving = list(selection.parameters.values())
        optimizer = torch.optim.AdamW(moving, lr=job.schedule.lr)
        model.train()
        for rows in job.steps():
            batches = {n: job.task.batch(r, rows[n].tolist()) for n, r in sources.items()}
            nll_B = every_nll(model, batches["forget"])
            with torch.no_grad():
                reference_B = every_nll(reference, batches["forget"])
            forget = npo_loss(nll_B, reference_B, BETA).mean()
            retain = every_nll(model, batches["retain"]).sum() / len(batches["retain"].targets_N)
            (forget + retain).backward()
            norm = torch.nn.utils.get_total_norm([p.grad for p in moving if p.grad is not None])
            optimizer.step()
            optimizer.zero_grad()
            steps.append([x.item() for x in (forget.detach(), retain.detach(), norm)])
            clock.tick()
    return Outcome(np.array(steps), model.eval(), clock)


def every_nll(model: nn.Module, batch: Batch) -> Tensor:
    """Return each record's negative log-likelihood from logits at every position, shape (B,)."""
    assert batch.positions is not None
    ids_BT = batch.inputs["input_ids"]
    labels_BT = torch.full_like(ids_BT, IGNORED)
    labels_BT[:, :-1] = torch.where(batch.positions[:, :-1], ids_BT[:, 1:], IGNORED)
    logits_BTV = model(**batch.inputs, use_cache=False).logits
    nll_BT = F.cross_entropy(
        logits_BTV.flatten(0, 1), labels_BT.flatten(), ignore_index=IGNORED, reduction="none"
    ).view_as(ids_BT)
    return nll_BT.sum(1)


def main() -> None:
    """Run the arms in turn, compare time and memory, and check that they do the same."""
    options = _options()
    torch.set_num_threads(options.threads)
    job = _job(options)
    if options.arm:
        print(json.dumps(_measured(job, options)))
        return
    if options.profile:
        shares = profiled(job.model, lambda: _run(options.profile, job, options))
        rows = [{"what": name, "share of time": f"{x:.1%}"} for name, x in shares.items()]
        report(f"{options.profile}: {_title(job)}", rows, shares, options.json)
        return
    with tempfile.TemporaryDirectory() as folder:
        turns = [{arm: _child(arm, options, folder) for arm in ARMS} for _ in range(options.rounds)]
        losses, updates = _agreement(job.model, turns[0], Path(folder))
    tokens = job.tokens()[:, 0]
    amounts = {"steps": int(tokens[1:].sum()), "call": int(tokens.sum())}
    medians = {
        arm: {key: statistics.median(turn[arm][key] for turn in turns) for key in KEYS}
        for arm in ARMS
    }
    rows = [
        {
            "arm": arm,
            **{
                f"tokens/{unit}, {name}": f"{amounts[name] / found[f'{name} {clock}']:.1f}"
                for name in amounts
                for clock, unit in (("cpu", "cpu-s"), ("wall", "s"))
            },
            "peak MiB": f"{found['peak']:.0f}",
            "MiB over the loaded model": f"{found['peak'] - found['before']:.0f}",
        }
        for arm, found in medians.items()
    ]
    numbers = {
        "tokens": amounts,
        "largest_relative_difference": losses,
        "relative_distance_of_updates": updates,
        "turns": turns,
    }
    report(_title(job), rows, numbers, options.json)
    for arm in ARMS[1:]:
        print(f"{arm}: {_against_plain(arm, turns)}")
    print(
        f"losses and gradient norms agree to {losses:.1g}, changes of the weights to {updates:.1g} "
        "(relative)"
    )


def _run(arm: str, job: Job, options: argparse.Namespace) -> Outcome:
    if arm == "plain":
        return plain(job)
    return ours(job, options.part if arm == "parts" else None)


def _measured(job: Job, options: argparse.Namespace) -> dict[str, Any]:
    """Run one arm; return its seconds, its memory and the numbers of its steps."""
    before = resident()
    wall, cpu = time.perf_counter(), time.process_time()
    peak, outcome = watched(lambda: _run(options.arm, job, options))
    found = {"call wall": time.perf_counter() - wall, "call cpu": time.process_time() - cpu}
    found["steps wall"], found["steps cpu"] = outcome.clock.between()
    if options.weights:
        np.save(options.weights, _flat(outcome.model).numpy())
    return {**found, "before": before, "peak": peak, "steps": outcome.steps.tolist()}


def _child(arm: str, options: argparse.Namespace, folder: str) -> dict[str, Any]:
    named = ("threads", "tofu", "forget", "epochs", "batch", "part", "last_layers", "dtype")
    given = {name: getattr(options, name) for name in named if getattr(options, name) is not None}
    words = [word for n, v in given.items() for word in (f"--{n.replace('_', '-')}", str(v))]
    if options.smollm2:
        words.append("--smollm2")
    return in_child(__file__, [*words, "--arm", arm, "--weights", str(Path(folder) / f"{arm}.npy")])


def _against_plain(arm: str, turns: Sequence[Mapping[str, Any]]) -> str:
    """Say how an arm compares; ratios are medians over turns, whose arms are neighbours in time."""

    def ratio(value: Callable[[Mapping[str, Any]], float], upside_down: bool = False) -> float:
        pairs = [(value(turn["plain"]), value(turn[arm])) for turn in turns]
        return statistics.median(b / a if upside_down else a / b for a, b in pairs)

    return (
        f"{ratio(lambda t: t['steps cpu']):.2f} x the tokens per processor second of plain "
        f"({ratio(lambda t: t['steps wall']):.2f} x per second; whole calls "
        f"{ratio(lambda t: t['call cpu']):.2f} x and {ratio(lambda t: t['call wall']):.2f} x), "
        f"{ratio(lambda t: t['peak'], True):.2f} x its peak memory "
        f"({ratio(lambda t: t['peak'] - t['before'], True):.2f} x over the loaded model)"
    )


def _title(job: Job) -> str:
    size = sum(parameter.numel() for parameter in job.model.parameters()) / 1e6
    tokens, padded = job.tokens().sum(0)
    batch = job.schedule.batch_size
    return (
        f"NPO, {size:.1f} M weights, {len(job.tokens())} steps of {batch} + {batch} records, "
        f"{tokens} tokens ({padded} with padding)"
    )


def _agreement(
    before: nn.Module, found: Mapping[str, Mapping[str, Any]], folder: Path
) -> tuple[float, float]:
    """Check that all arms did the same; return by how much they differ.

    Returns:
        The largest relative difference of a loss or gradient norm, and the largest distance
        between two models as a share of how far the plain one moved.
    """
    losses, updates = [], []
    goal = np.array(found["plain"]["steps"])
    start, wanted = _flat(before), torch.from_numpy(np.load(folder / "plain.npy"))
    for arm in ARMS[1:]:
        steps = np.array(found[arm]["steps"])
        np.testing.assert_allclose(steps, goal, rtol=TOLERANCE)
        losses.append(float(np.max(np.abs(steps / goal - 1))))
        weights = torch.from_numpy(np.load(folder / f"{arm}.npy"))
        updates.append(float((weights - wanted).norm() / (wanted - start).norm()))
    return max(losses), max(updates)


def _flat(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def _job(options: argparse.Namespace) -> Job:
    dataset, forget, retain = records_of(options.tofu, options.forget, NUM_RETAIN)
    if options.smollm2:
        loaded = load_model_source("smollm2", {"template": to_json(TEMPLATE)}, dataset, seed=0)
        model, task = loaded.model, loaded.task
    else:
        model, task = small_llama(dataset)
    return Job(
        model=model.to(getattr(torch, options.dtype)),
        task=task,
        forget=forget,
        retain=retain,
        schedule=Schedule(epochs=options.epochs, batch_size=options.batch, lr=1e-5),
        scope=Scope(last_layers=options.last_layers),
    )


def _options() -> argparse.Namespace:
    made = parser("NPO steps as Expunge runs them, and in the plain way.")
    made.add_argument("--rounds", type=int, default=ROUNDS, help="turns of each arm")
    made.add_argument("--smollm2", action="store_true", help="SmolLM2-135M in place of 5 M weights")
    made.add_argument("--tofu", type=Path, help="folder with TOFU's original files")
    made.add_argument("--forget", type=int, default=16, help="records to forget")
    made.add_argument("--epochs", type=int, default=5, help="passes over them")
    made.add_argument("--batch", type=int, default=8, help="records of each term in a step")
    made.add_argument("--part", type=int, default=4, help="records of a pass in the arm `parts`")
    made.add_argument("--last-layers", type=int, help="train these only; all weights when absent")
    made.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    made.add_argument("--arm", choices=ARMS, help="run one arm once and print its numbers")
    made.add_argument("--weights", type=Path, help="file for the weights that an arm ends with")
    made.add_argument("--profile", choices=ARMS, help="run one arm once and print where time goes")
    return made.parse_args()


if __name__ == "__main__":
    main()
