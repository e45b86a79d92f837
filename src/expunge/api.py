"""The Python interface: ``expunge.forget`` and ``expunge.audit`` on models that live in memory."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from expunge.audit.audit import audits as registered
from expunge.audit.audit import parse_config, plan_readings, run_audit
from expunge.audit.collecting import collect, parts_of
from expunge.audit.evidence import Evidence, Subject
from expunge.audit.verdicts import judged_together
from expunge.core.errors import DataError, UnsupportedModelError
from expunge.core.finding import Finding
from expunge.core.run import Run
from expunge.core.sets import Sets
from expunge.data.dataset import Dataset
from expunge.engine.guard import GuardSettings
from expunge.engine.loop import History
from expunge.engine.task import Task, tasks
from expunge.engine.tasks.causal_lm import Template
from expunge.engine.weights import save_tensors
from expunge.engine.workers import workers
from expunge.forget.method import Given, apply
from expunge.models.language import causal_lm_task
from expunge.pipeline.recipe import Part, split_part
from expunge.pipeline.request import Request, resolve

DEFAULT_AUDITS: Mapping[str, tuple[Part, ...]] = {
    "classifier": ("unlearning_gap", "mia"),
    "causal_lm": ("tofu", "mia"),
    "regressor": ("unlearning_gap", "wasserstein", "mia"),
}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What ``forget`` returns.

    Attributes:
        model: The new model; the one given is untouched.
        sets: Which records were forgotten and retained; pass it to ``audit``.
        history: Numbers of every step, whether the collapse guard stopped the run, and the method's
            notes, each of which is a warning too.
        method: Registered name of the method.
        config: Its settings.
    """

    model: nn.Module
    sets: Sets
    history: History
    method: str
    config: Any

    def save(self, path: str | Path) -> Path:
        """Write the new weights to a safetensors file, atomically.

        Raises:
            UnsupportedModelError: The model is a composite, which is more than weights.
            StorageError: The file cannot be written.
        """
        if hasattr(self.model, "parts"):
            raise UnsupportedModelError(
                f"the model after {self.method!r} is a composite of several parts; write it with "
                "outcome.model.save_pretrained(folder), and the tokenizer beside it"
            )
        target = Path(path)
        save_tensors(self.model.state_dict(), target)
        return target


def forget(
    model: nn.Module,
    data: Dataset,
    forget: Iterable[int | str] | Request,
    *,
    method: str = "npo",
    settings: Mapping[str, Any] | None = None,
    tokenizer: Any = None,
    template: Template | None = None,
    fresh: Callable[[], nn.Module] | None = None,
    guard: GuardSettings | None = None,
    guarded: bool = True,
    seed: int = 0,
    device: str = "cpu",
    folder: str | Path | None = None,
    quiet: bool = False,
) -> Outcome:
    """Remove the influence of some records from a model.

    Args:
        model: A trained classifier, or a transformers causal language model; stays untouched.
        data: What it was trained on; see ``expunge.from_arrays`` and its sisters.
        forget: Row numbers or record ids of ``data.train``, or a ``Request``.
        method: Registered name; see ``expunge methods``.
        settings: The method's settings as plain data; the paper's defaults when absent.
        tokenizer: The tokenizer of a language model.
        template: How language records become text.
        fresh: Yields the untrained model, for ``retrain``.
        guard: Settings of the collapse guard.
        guarded: Watch retained records and stop before the model collapses.
        seed: Root of every random stream.
        device: Torch device.
        folder: Where checkpoints lie, so that a killed call can be repeated to go on.
        quiet: Show no progress.

    Raises:
        ConfigError: A setting is wrong, or the method cannot run on what is given.
        DataError: Nothing is to be forgotten, ids are unknown, or the data do not fit the model.
        NumericalError: Weights, a loss or a gradient are not finite.
    """
    request = forget if isinstance(forget, Request) else Request(ids=_ids(forget, data))
    sets = resolve(request, data, seed)
    retain = data.train.select(sets.retain)
    given = Given(
        task=_task(model, data, tokenizer, template),
        forget=data.train.select(sets.forget),
        retain=retain if len(retain) else None,
        fresh=fresh,
        guard=(guard or GuardSettings()) if guarded else None,
    )
    main = workers().main  # of processes that were launched together, one keeps checkpoints
    run = Run(
        seed,
        device=device,
        folder=Path(folder) if folder is not None and main else None,
        quiet=quiet or not main,
    )
    result = apply(method, model, given, run, settings)
    for note in result.history.notes:
        warnings.warn(note, stacklevel=2)
    return Outcome(result.model, sets, result.history, method, result.config)


def audit(
    after: nn.Module,
    data: Dataset,
    sets: Sets,
    *,
    before: nn.Module | None = None,
    references: Sequence[nn.Module] = (),
    audits: Sequence[Part] | None = None,
    tokenizer: Any = None,
    template: Template | None = None,
    seed: int = 0,
    device: str = "cpu",
    batch_size: int = 32,
    cache: str | Path | None = None,
    quiet: bool = False,
) -> list[Finding]:
    """Measure what is left of the forget set, and what broke.

    Args:
        after: The model after forgetting.
        data: The data.
        sets: Which records are forgotten, retained, held out, tested on.
        before: The model before forgetting.
        references: Models retrained without the forget set; two or more show the noise floor.
        audits: Registered names, or mappings of name and settings; those usual for this kind of
            data when absent.
        tokenizer: The tokenizer of a language model.
        template: How language records become text.
        seed: Root of every random stream.
        device: Torch device.
        batch_size: Records per forward pass.
        cache: Folder that keeps scores, so that a model is never scored twice on the same records.
        quiet: Show no progress.

    Returns:
        Findings: every number for the model before, after, each reference, and each part of a
        model whose weights were kept.

    Raises:
        ConfigError: An audit is unknown, its settings are wrong, or it does not fit the data.
        DataError: The data do not fit the models.
    """
    chosen = []
    for part in audits if audits is not None else DEFAULT_AUDITS[data.kind]:
        name, settings = split_part(part, "audits")
        info = registered.get(name)
        chosen.append((info, parse_config(info, settings)))
    readings = plan_readings(chosen, data)
    task = _task(after, data, tokenizer, template)
    run = Run(seed, device=device, quiet=quiet)

    def scored(model: nn.Module, role: Any, seed: int | None = None, part: str = "") -> Subject:
        return collect(
            model.to(device),
            task,
            data,
            sets,
            readings,
            run,
            role=role,
            seed=seed,
            part=part,
            batch_size=batch_size,
            cache=None if cache is None else Path(cache),
        )

    known = scored(before, "before") if before is not None else None
    parts = parts_of(after, known.model if known else "")
    evidence = Evidence(
        after=scored(after, "after"),
        before=known,
        references=tuple(scored(m, "reference", i) for i, m in enumerate(references)),
        sets=sets.digest(),
        parts=tuple(scored(model, "part", part=name) for name, model in parts.items()),
    )
    return judged_together(
        [finding for info, config in chosen for finding in run_audit(info, config, evidence, run)]
    )


def _ids(wanted: Iterable[int | str], data: Dataset) -> tuple[str, ...]:
    ids = []
    for item in wanted:
        if isinstance(item, str):
            ids.append(item)
            continue
        row = item.item() if hasattr(item, "item") else item  # numbers of numpy and torch
        if isinstance(row, bool) or not isinstance(row, int):
            raise DataError(
                f"forget: {item!r} is neither a row number nor a record id; give numbers such as "
                "[3, 17] (of a mask, its numpy.flatnonzero)"
            )
        if not 0 <= row < len(data.train):
            raise DataError(
                f"forget: row {row} does not exist; the training data have rows 0 to "
                f"{len(data.train) - 1}"
            )
        ids.append(data.train.ids[row])
    if not ids:
        raise DataError("the forget set is empty; name at least one record to forget")
    return tuple(ids)


def _task(model: nn.Module, data: Dataset, tokenizer: Any, template: Template | None) -> Task:
    if data.kind == "classifier":
        return tasks.get("classifier").make(data.facts["num_classes"])
    if data.kind == "regressor":
        facts = data.facts
        return tasks.get("regressor").make(
            facts["num_outputs"], mean=facts["target_mean"], deviation=facts["target_std"]
        )
    if tokenizer is None:
        raise DataError("a language model needs its tokenizer; pass tokenizer=...")
    return causal_lm_task(model, tokenizer, data, template)
