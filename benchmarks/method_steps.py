"""Speed and memory of every method's training steps, one small job, each in a process of its own.

The unit is a step of plain training: the likelihood of the same records, all weights moving, under
the same loop. Tokens are those of records that the trained model reads with gradients, so that a
method that reads each record twice is not the faster for it. What a method does before its first
step (likelihoods of the reference, masks, invented answers, a gate) is told beside it.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from output import parser, report
from small_llama import TEMPLATE, records_of, small_llama
from timing import Clock, in_child, resident, watched
from torch import nn

from expunge.core.config import to_json
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.engine.schedule import Schedule
from expunge.engine.scope import Scope
from expunge.engine.task import Batch, Predictions
from expunge.engine.tasks.causal_lm import CausalLM
from expunge.forget.method import Given, apply, methods
from expunge.models.source import load_model_source
from expunge.train.supervised import learn

UNIT = "plain training"
NUM_FORGET, NUM_RETAIN, BATCH, EPOCHS = 16, 32, 8, 3
LAYERS = 8
KEYS = ("cpu", "wall", "before", "preparation", "peak")


class Counting(CausalLM):
    """The task, counting what is read with gradients."""

    read = 0

    def predict(self, model: nn.Module, batch: Batch) -> Predictions:
        """Count the tokens of the batch when gradients are on; see ``CausalLM.predict``."""
        if torch.is_grad_enabled():
            self.read += int(batch.inputs["attention_mask"].sum())
        return super().predict(model, batch)


class TokenClock(Clock):
    """A clock that notes the tokens of each step too."""

    def __init__(self, task: Counting) -> None:
        super().__init__()
        self.task = task
        self.tokens: list[int] = []
        self.first = 0.0

    def tick(self) -> None:
        """Note the end of a step."""
        if not self.ends:
            self.tokens.clear()
        super().tick()
        self.tokens.append(self.task.read)


def measured(name: str, options: argparse.Namespace) -> dict[str, float]:
    """Run one method; return tokens, seconds and MiB."""
    model, task, forget, retain = _job(options)
    clock = TokenClock(task)
    run = Run(trackers=(clock,))
    before = resident()
    started = time.process_time()
    if name == UNIT:
        schedule = Schedule(epochs=EPOCHS, batch_size=BATCH, lr=1e-5)
        scope = Scope(last_layers=LAYERS) if options.smollm2 else Scope()
        peak, _ = watched(lambda: learn(model, task, forget, schedule, run, scope=scope))
    else:
        given = Given(
            task, forget, retain, fresh=lambda: copy.deepcopy(model), kept=retain, guard=None
        )
        settings = _settings(name, options)
        peak, _ = watched(lambda: apply(name, model, given, run, settings, in_place=True))
    wall, cpu = clock.between()
    step = cpu / (len(clock.ends) - 1)
    return {
        "cpu": cpu / (clock.tokens[-1] - clock.tokens[0]),
        "wall": wall / (clock.tokens[-1] - clock.tokens[0]),
        "preparation": max(0.0, clock.ends[0][1] - started - step),
        "before": before,
        "peak": peak,
    }


def main() -> None:
    """Measure every method that works on language models."""
    options = _options()
    torch.set_num_threads(options.threads)
    if options.method:
        print(json.dumps(measured(options.method, options)))
        return
    names = [UNIT, *sorted(info.name for info in methods if "causal_lm" in info.kinds)]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    failures: dict[str, str] = {}
    for _ in range(options.rounds):
        for name in names:
            try:
                found[name].append(in_child(__file__, [*_passed_on(options), "--method", name]))
            except subprocess.CalledProcessError as error:
                said = (error.stderr.strip().splitlines() or ["no message"])[-1]
                failures[name] = f"exit status {error.returncode}: {said}"
    rows = [
        _row(name, _medians(turns), _medians(found[UNIT])) for name, turns in found.items() if turns
    ]
    _, _, forget, retain = _job(options)
    model = "SmolLM2-135M, last 8 layers" if options.smollm2 else "Llama of 5 M weights"
    title = (
        f"{model}; {len(forget)} records to forget, {len(retain)} to keep, batches of {BATCH}, "
        f"{EPOCHS} epochs, {options.rounds} rounds"
    )
    report(title, rows, {"turns": found, "failures": failures}, options.json)
    for name, message in failures.items():
        print(f"{name} failed: {message}")


def _row(name: str, own: Mapping[str, float], unit: Mapping[str, float]) -> dict[str, str]:
    return {
        "method": name,
        "tokens/cpu-s": f"{1 / own['cpu']:.0f}",
        "tokens/s": f"{1 / own['wall']:.0f}",
        "speed, plain training = 1": f"{unit['cpu'] / own['cpu']:.2f}",
        "cpu-s before the first step": f"{own['preparation']:.1f}",
        "peak MiB": f"{own['peak']:.0f}",
        "MiB over the loaded model": f"{own['peak'] - own['before']:.0f}",
    }


def _medians(turns: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(turn[key] for turn in turns) for key in KEYS}


def _settings(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the method's defaults with the job's schedule, and its layers where it has a scope."""
    settings: dict[str, Any] = {"schedule": {"epochs": EPOCHS, "batch_size": BATCH}}
    scope = getattr(methods.get(name).config(), "scope", None)
    # RMU moves the blocks below the steered one; an assistant with adapters has layers of its own.
    if options.smollm2 and name != "rmu" and scope is not None and scope.lora is None:
        settings["scope"] = {"last_layers": LAYERS}
    return settings


def _job(options: argparse.Namespace) -> tuple[nn.Module, Counting, Records, Records]:
    dataset, forget, retain = records_of(options.tofu, NUM_FORGET, NUM_RETAIN)
    if options.smollm2:
        loaded = load_model_source("smollm2", {"template": to_json(TEMPLATE)}, dataset, seed=0)
        model, tokenizer = loaded.model, loaded.tokenizer
    else:
        model, task = small_llama(dataset)
        tokenizer = task.tokenizer
    return model, Counting(tokenizer, TEMPLATE), forget, retain


def _options() -> argparse.Namespace:
    made = parser("Speed and memory of every method's training steps.")
    made.add_argument("--rounds", type=int, default=1, help="turns of each method")
    made.add_argument("--smollm2", action="store_true", help="SmolLM2-135M in place of 5 M weights")
    made.add_argument("--tofu", type=Path, help="folder with TOFU's original files")
    made.add_argument("--method", help="run one method once and print its numbers")
    return made.parse_args()


def _passed_on(options: argparse.Namespace) -> list[str]:
    return [
        *("--threads", str(options.threads)),
        *(["--tofu", str(options.tofu)] if options.tofu else []),
        *(["--smollm2"] if options.smollm2 else []),
    ]


if __name__ == "__main__":
    main()
