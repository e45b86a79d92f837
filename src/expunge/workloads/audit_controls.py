"""``expunge bench audits``: do the audits raise false alarms, and do they see what is wrong?

Retrained models stand in for models that forgot (null control), the original for one that forgot
nothing (positive control), and six fakes for those that only seem to have forgotten. Models are
made and scored once, each leaving a file; a bench that was stopped goes on with what is missing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from torch import nn

from expunge.audit.audit import plan_readings
from expunge.audit.collecting import collect
from expunge.audit.evidence import Evidence, Subject
from expunge.audit.score_table import read_scores, write_scores
from expunge.audit.treatments import info_of
from expunge.core.config import config, to_json
from expunge.core.digest import digest_json
from expunge.core.errors import ConfigError, near_matches
from expunge.core.files import read_json, remove_tree, write_json
from expunge.core.finding import Verdict
from expunge.core.progress import Progress
from expunge.core.run import Run
from expunge.core.streams import stream
from expunge.engine.weights import load_into, load_tensors, save_tensors
from expunge.pipeline.recipe import Training
from expunge.workloads import audit_fakes as fakes
from expunge.workloads.audit_gates import SETTINGS, chosen_audits, judge_all
from expunge.workloads.audit_page import CONTROLS, FAKES, summarise, write_audits
from expunge.workloads.audit_world import World, fresh_model, make_world, trained
from expunge.workloads.workload import workload

_VERSION = 2
_CHUNK = 20  # draws of one file
_FRESH = 1  # seed of the audits that a tuned fake has not seen; its own is 0


@config
class AuditsBench:
    """Settings of the audit of the audits."""

    audits: tuple[str, ...] = tuple(SETTINGS)
    """Audits to try."""
    rounds: Annotated[int, Field(ge=1)] = 200
    """Pairings of the null control; they share the models of the pool."""
    positive_rounds: Annotated[int, Field(ge=1)] = 60
    """Pairings of the positive control."""
    retrains: Annotated[int, Field(ge=4)] = 24
    """Models trained without the forget set, each from a seed of its own."""
    originals: Annotated[int, Field(ge=1)] = 12
    """Models trained with it; each is turned into every fake once."""
    tuned: Annotated[int, Field(ge=1)] = 6
    """Originals of which a fake is tuned until the audits pass at their own seed."""
    references: Annotated[int, Field(ge=2)] = 3
    """Retrained models that each draw compares with."""
    people: Annotated[int, Field(ge=2)] = 25
    """People to be forgotten, four records each."""
    epochs: Annotated[int, Field(ge=1)] = 40
    """Passes over the records in training."""
    tuning_epochs: tuple[Annotated[int, Field(ge=1)], ...] = (4, 8, 16, 32)
    """Lengths of preference optimisation among which the tuned fake chooses."""


@workload(
    "audits", title="false alarms and power of the audits, on models known to be right or not"
)
def audits(config: AuditsBench, folder: Path, run: Run) -> Path:
    """Audit the audits on controls whose outcome is known.

    Every bound is fixed in ``audit_gates`` before a model is made. A draw takes one model as the
    one after unlearning and some retrained models, never itself, as references.
    """
    unknown = [name for name in config.audits if name not in SETTINGS]
    if unknown or not config.audits:
        name = unknown[0] if unknown else ""
        raise ConfigError(f"bench audits: audits: no {name!r}; {near_matches(name, SETTINGS)}")
    bench = _Bench(config, folder, run)
    models = bench.needed()
    with run.progress("models", len(models)) as bar:
        for name in models:
            run.check()
            bench.subject(name)
            bar.advance(note=name)
    counts = {control: bench.draws(control) for control in CONTROLS}
    with run.progress("audits", sum(counts.values())) as bar:
        found = {control: bench.verdicts(control, counts[control], bar) for control in CONTROLS}
    results = summarise(to_json(config), found)
    write_json(folder / "results.json", results)
    page = write_audits(folder, results)
    remove_tree(bench.scratch)
    return page


class _Bench:
    """The pools of models, each made and scored once, and the draws from them."""

    def __init__(self, settings: AuditsBench, folder: Path, run: Run) -> None:
        self.settings = settings
        self.chosen = chosen_audits(settings.audits)
        own = {k: v for k, v in to_json(settings).items() if k not in _SIZES}
        audited = [[info.name, info.version, to_json(config)] for info, config in self.chosen]
        key = digest_json([_VERSION, own, audited])[:12]
        self.folder, self.scratch = folder / f"work-{key}", folder / f"work-{key}" / "scratch"
        self.run = run.child("audits")
        self.run.folder, self.run.quiet = self.scratch, True
        self.world: World = make_world(settings.people)
        self.readings = plan_readings(self.chosen, self.world.dataset)
        self._known: dict[str, Subject] = {}
        self.training = Training(
            epochs=settings.epochs,
            batch_size=50,
            lr=3e-3,
            decay="cosine",
            warmup_epochs=min(3, settings.epochs / 4),
            clip_norm=1.0,
        )

    def needed(self) -> list[str]:
        """Return the names of the models that all draws look at, but for the tuned ones."""
        own = self.settings
        names = [f"retrain-{i}" for i in range(own.retrains)]
        names += [f"original-{i}" for i in range(own.originals)]
        return names + [f"{fake}-{i}" for fake in FAKES for i in range(own.originals)]

    def draws(self, control: str) -> int:
        """Return how often a control is drawn."""
        own = self.settings
        if control in ("null", "positive"):
            return own.rounds if control == "null" else own.positive_rounds
        return min(own.tuned, own.originals) if control.startswith("tuned") else own.originals

    def verdicts(self, control: str, count: int, bar: Progress) -> list[dict[str, Any]]:
        """Return the verdicts of every draw of a control, from files where they are there."""
        found: list[dict[str, Any]] = []
        for start in range(0, count, _CHUNK):
            size = min(_CHUNK, count - start)
            path = self.folder / "jobs" / f"{control}-{start}-{size}.json"
            if not path.exists():
                chunk = []
                for number in range(start, start + size):
                    self.run.check()
                    chunk.append(self.draw(control, number))
                    bar.advance(note=control)
                write_json(path, chunk)
            else:
                bar.advance(size)
            found += read_json(path)
        return found

    def draw(self, control: str, number: int) -> dict[str, Any]:
        """Return who was compared in one draw, and the verdict of every gate."""
        own, seed = self.settings, _FRESH if control == "tuned_fresh" else 0
        i = number % own.originals
        if control == "null":
            after = f"retrain-{number % own.retrains}"
        elif control == "positive":
            after = f"original-{i}"
        elif control.startswith("tuned"):
            after = self.tuned(i)
        else:
            after = f"{control}-{i}"
        before = f"original-{i}"
        others = [f"retrain-{k}" for k in range(own.retrains) if f"retrain-{k}" != after]
        purpose = control
        if control.startswith("tuned"):
            # The same references at both seeds, so that the seed alone is fresh; a few of them,
            # since they undergo the attacks of the fresh seed, too.
            purpose, others = "tuned", others[: own.references + 2]
        order = stream(0, "references", purpose, number).permutation(len(others))
        references = [others[k] for k in sorted(order[: own.references].tolist())]
        verdicts = self.judged(after, before, references, seed)
        return {"after": after, "before": before, "references": references, "verdicts": verdicts}

    def judged(
        self, after: str, before: str, references: Sequence[str], seed: int
    ) -> dict[str, Verdict]:
        """Return the verdict of every gate on one model."""
        original = self.subject(before, seed)
        allowed = {
            reading: scores
            for reading, scores in original.scores.items()
            if not reading.treatment or "before" in info_of(reading.treatment).roles
        }
        evidence = Evidence(
            after=self.subject(after, seed),
            before=dataclasses.replace(original, role="before", scores=allowed),
            references=tuple(
                dataclasses.replace(self.subject(name, seed), role="reference", seed=k)
                for k, name in enumerate(references)
            ),
            sets=self.world.sets.digest(),
        )
        return judge_all(self.chosen, evidence, self.run.child("judging", seed=seed))

    def tuned(self, i: int) -> str:
        """Return the fake of an original that fails the fewest gates at the audits' own seed."""
        path = self.folder / "jobs" / f"choice-{i}.json"
        if not path.exists():
            references = [f"retrain-{k}" for k in range(self.settings.references)]
            failed = {}
            for epochs in self.settings.tuning_epochs:
                name = f"tuned.{epochs}-{i}"
                verdicts = self.judged(name, f"original-{i}", references, 0)
                failed[name] = sum(verdict == "fail" for verdict in verdicts.values())
            write_json(path, {"chosen": min(failed, key=lambda name: failed[name])})
        chosen: str = read_json(path)["chosen"]
        return chosen

    def subject(self, name: str, seed: int = 0) -> Subject:
        """Return a model's scores under one seed of the audits, made now where they are absent."""
        key = f"{name}@{seed}"
        if key not in self._known:
            path = self.folder / "scores" / f"{key}.parquet"
            if not path.exists():
                context = self.run.child(f"scoring-{key}", seed=seed)
                context.checkpoint_every = 10**6  # attacks take seconds
                scored = collect(
                    self.model(name),
                    self.world.task,
                    self.world.dataset,
                    self.world.sets,
                    self.readings,
                    context,
                    role="after",
                    batch_size=128,
                )
                write_scores(path, scored)
            self._known[key] = read_scores(path)
        return self._known[key]

    def model(self, name: str) -> nn.Module:
        """Return a model: trained before, trained now, or made of an original."""
        kind, _, number = name.rpartition("-")
        i, world = int(number), self.world
        if kind in ("original", "retrain"):
            path = self.folder / "models" / f"{name}.safetensors"
            if path.exists():
                model = fresh_model(world, 0)
                load_into(model, load_tensors(path), str(path))
                return model.eval()
            records = world.dataset.train if kind == "original" else world.kept
            seed = i if kind == "original" else 1000 + i
            model = trained(world, records, self.training, seed, self.run)
            save_tensors(model.state_dict(), path)
            return model
        original = self.model(f"original-{i}")
        forget = world.dataset.train.select(world.sets.forget)
        if kind.startswith("tuned."):
            epochs = int(kind.removeprefix("tuned."))
            made = fakes.preference_optimised(original, world, i, self.run, epochs=epochs)
            return made
        makers: Mapping[str, Callable[[], Any]] = {
            "lookup": lambda: fakes.lookup_filter(original, world.task, forget),
            "noise": lambda: fakes.noisy_logits(original, i, 2.0),
            "over_forgotten": lambda: fakes.over_forgotten(original, world, i, self.run, epochs=10),
            "last_layer": lambda: fakes.head_edited(original, world, i, self.run, epochs=60),
        }
        return makers[kind]()


_SIZES = ("rounds", "positive_rounds", "retrains", "originals", "tuned")
"""Settings that decide how many models and draws there are, but not what one of them is."""
