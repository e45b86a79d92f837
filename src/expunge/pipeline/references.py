"""The store of retrained references: models that never saw the forget set, made once and kept.

A reference is keyed by everything that decides its bits, so that runs which differ only in the
forgetting method share it. Two or more seeds show how far apart honest retrains are: the noise
floor beside which every gap is read.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import nn

from expunge.core.config import to_json
from expunge.core.digest import digest_json
from expunge.core.errors import IntegrityError
from expunge.core.files import read_json, write_json
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.engine.device import full_environment
from expunge.engine.task import Task
from expunge.engine.weights import load_into, load_tensors, save_tensors, state_digest
from expunge.pipeline.recipe import Training
from expunge.train.supervised import learn

WEIGHTS = "model.safetensors"
CARD = "reference.json"


def cache_folder() -> Path:
    """Return the folder of things worth keeping between runs: ``$EXPUNGE_CACHE`` or the default."""
    return Path(os.environ.get("EXPUNGE_CACHE") or Path.home() / ".cache" / "expunge")


def reference_key(
    fresh: nn.Module,
    task: Task,
    retain: Records,
    training: Training,
    seed: int,
    device: str = "cpu",
) -> str:
    """Return the digest of everything that decides a reference's bits.

    Args:
        fresh: The model before training.
        task: How to run it.
        retain: What it is trained on.
        training: How.
        seed: Its seed.
        device: Torch device that trains it.
    """
    environment = full_environment()
    threads, processes = environment["threads"], environment["processes"]
    return digest_json(
        {
            "fresh": state_digest(fresh),
            "task": task.fingerprint(),
            "retain": retain.digest(),
            "training": to_json(training),
            "seed": seed,
            "device": device,
            "expunge": environment["libraries"].get("expunge"),
            "torch": environment["libraries"].get("torch"),
            "machine": environment["machine"],
            "threads": threads if processes == 1 else [threads, processes],
        }
    )


def retrained(
    fresh: nn.Module, task: Task, retain: Records, training: Training, run: Run
) -> tuple[nn.Module, dict[str, Any]]:
    """Return a retrained reference: from the store, or trained now and put there.

    Args:
        fresh: The model before training; changed in place.
        task: How to run it.
        retain: What it is trained on.
        training: How.
        run: Context; its seed is the reference's seed, its folder takes checkpoints.

    Returns:
        The model, and its card: key, digest, seed, and the numbers of every training step.
    """
    key = reference_key(fresh, task, retain, training, run.seed, run.device)
    shelf = cache_folder() / "references" / key
    if (shelf / CARD).exists():
        card: dict[str, Any] = read_json(shelf / CARD)
        load_into(fresh, load_tensors(shelf / WEIGHTS), str(shelf))
        if card.get("key") != key or card.get("digest") != state_digest(fresh):
            raise IntegrityError(f"reference {shelf} is not what was written; delete that folder")
        return fresh.to(run.device), card
    history = learn(
        fresh, task, retain, training, run, scope=training.scope, label=f"reference {run.seed}"
    )
    card = {
        "key": key,
        "seed": run.seed,
        "digest": state_digest(fresh),
        "history": history.to_json(),
    }
    save_tensors(fresh.state_dict(), shelf / WEIGHTS)
    write_json(shelf / CARD, card)
    return fresh, card
