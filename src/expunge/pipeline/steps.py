"""The steps of a run. Each is journaled, writes its files, and returns their digests."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

from expunge.audit.audit import run_audit
from expunge.audit.collecting import collect, parts_of
from expunge.audit.evidence import Evidence, Subject
from expunge.audit.generation import generate_answers
from expunge.audit.score_table import read_scores, write_scores
from expunge.audit.verdicts import judged_together
from expunge.core.config import to_json
from expunge.core.digest import digest_file, digest_json
from expunge.core.files import read_json, remove_tree, write_json
from expunge.core.finding import Finding
from expunge.core.finding import Subject as Role
from expunge.core.manifest import Manifest
from expunge.engine.weights import state_digest
from expunge.forget.method import apply
from expunge.models.source import Loaded
from expunge.models.store import save_model
from expunge.pipeline.references import cache_folder, retrained
from expunge.pipeline.reuse import audited, divided, joined, open_reuse, reads_test
from expunge.pipeline.work import Work
from expunge.train.supervised import learn

Outputs = dict[str, Any]
EXAMPLE_TOKENS = 48
_HELD = "held"
"""Folder of the scores that no report may show: those of a reused test set."""


def train(work: Work) -> Outputs:
    """Train the original model, or take it as it comes; score it."""
    training = work.recipe.train
    base = work.fresh(work.recipe.seed)
    if training is not None:
        records, run = work.dataset.train, work.run.child("train")
        history = learn(
            base.model, base.task, records, training, run, scope=training.scope, label="training"
        )
        _write_model(work, "before", base, {"trained_on": records.digest()})
        write_json(work.folder / "history" / "train.json", history.to_json())
    scores = _score(work, "before", base, "before")
    remove_tree(work.run.child("train").folder)
    written = _written(work, "models/before", "history/train.json", *_scores("before"))
    return {"model": state_digest(base.model), "scores": scores, "files": written}


def reference(work: Work, index: int) -> Outputs:
    """Retrain one reference without the forget set (or take it from the store); score it."""
    training = work.recipe.train
    assert training is not None  # a recipe without training has no references
    seed = work.recipe.seed + 1 + index
    loaded = work.fresh_without(seed)
    name = f"reference-{index}"
    run = work.run.child(name, seed=seed)
    model, card = retrained(loaded.model, loaded.task, work.kept, training, run)
    remove_tree(run.folder)
    write_json(work.folder / "history" / f"{name}.json", card["history"])
    found = dataclasses.replace(loaded, model=model)
    scores = _score(work, name, found, "reference", seed=seed)
    return {
        "model": card["digest"],
        "seed": seed,
        "key": card["key"],
        "scores": scores,
        "files": _written(work, f"history/{name}.json", *_scores(name)),
    }


def given_reference(work: Work, index: int, name: str) -> Outputs:
    """Take a reference that was retrained elsewhere; score it."""
    loaded = work.source(work.recipe.given_references[index], "given_references")
    scores = _score(work, name, loaded, "reference", seed=index)
    return {
        "model": state_digest(loaded.model),
        "seed": index,
        "scores": scores,
        "files": _written(work, *_scores(name)),
    }


def given_after(work: Work, before: str) -> Outputs:
    """Take a model that was changed elsewhere; score it."""
    assert work.recipe.after is not None
    loaded = work.source(work.recipe.after, "after")
    scores = _score(work, "after", loaded, "after")
    parts = _score_parts(work, loaded, before)
    return {
        "model": state_digest(loaded.model),
        "scores": scores,
        "parts": parts,
        "files": _written(work, *_scores("after", *map(_part_name, parts))),
    }


def forget(work: Work, before: str) -> Outputs:
    """Run the method on the original model; write and score the new one."""
    assert work.method is not None
    info, config = work.method
    loaded = work.before()
    run = work.run.child("forget")
    result = apply(info.name, loaded.model, work.given(loaded), run, to_json(config), in_place=True)
    new = dataclasses.replace(loaded, model=result.model)
    lineage = {"before": before, "method": info.name, "sets": work.sets.digest()}
    _write_model(work, "after", new, lineage)
    write_json(work.folder / "history" / "forget.json", result.history.to_json())
    scores = _score(work, "after", new, "after")
    parts = _score_parts(work, new, before)
    remove_tree(run.folder)
    stopped = result.history.stopped
    scored = _scores("after", *map(_part_name, parts))
    return {
        "model": state_digest(result.model),
        "scores": scores,
        "parts": parts,
        "files": _written(work, "models/after", "history/forget.json", *scored),
        "stopped": None if stopped is None else dataclasses.asdict(stopped),
    }


def audit(work: Work, num_references: int, parts: Sequence[str]) -> Outputs:
    """Compute every finding from the score tables."""
    if not work.chosen:
        return _write_findings(work, [])
    names = ["before", "after", *(f"reference-{i}" for i in range(num_references))]
    subjects = [_read_scores(work, name) for name in names]
    evidence = Evidence(
        after=subjects[1],
        before=subjects[0],
        references=tuple(subjects[2:]),
        sets=work.sets.digest(),
        parts=tuple(_read_scores(work, _part_name(part)) for part in parts),
    )
    asked = open_reuse(work.recipe, work.dataset, work.sets)
    found: list[Finding] = []
    for info, config in work.chosen:
        look = partial(run_audit, info, config, run=work.run.child(f"audit-{info.name}"))
        if asked is not None and reads_test(info, config, work.dataset):
            found += audited(look, evidence, asked)
        else:
            found += look(evidence)
    written = _write_findings(work, [finding.to_json() for finding in judged_together(found)])
    return written if asked is None else {**written, "ledger": asked.ledger.head}


def examples(work: Work, num_references: int) -> Outputs:
    """Write the page of answers before and after; the only file that holds text of records.

    It is not among the files that a resumed run insists on, since ``purge`` may remove it.
    """
    from expunge.report.examples import write_examples

    records = work.dataset.train.select(
        [*work.sets.forget[: work.recipe.examples], *work.sets.retain[: work.recipe.examples]]
    )
    models = {"before": work.before, "after": lambda: _after_again(work)}
    if num_references:
        models["reference"] = lambda: _reference_again(work)
    forgotten = set(work.sets.forget)
    rows = [
        {
            "id": record_id,
            "record_set": "forget" if record_id in forgotten else "retain",
            "question": records["question"][row],
            "truth": records["answer"][row],
        }
        for row, record_id in enumerate(records.ids)
    ]
    for name, load in models.items():
        loaded = load()
        answers = generate_answers(
            loaded.model,
            loaded.task,
            records,
            work.run,
            max_new_tokens=EXAMPLE_TOKENS,
            batch_size=work.recipe.machine.score_batch,
        )
        for row, answer in zip(rows, answers, strict=True):
            row[name] = answer
    write_examples(work.folder, rows)
    return {"examples": len(rows)}


def _after_again(work: Work) -> Loaded:
    if work.recipe.after is not None:
        return work.source(work.recipe.after, "after")
    return work.saved("after")


def _reference_again(work: Work) -> Loaded:
    if work.recipe.train is None or not work.recipe.references:
        return work.source(work.recipe.given_references[0], "given_references")
    seed = work.recipe.seed + 1
    loaded = work.fresh_without(seed)
    run = work.run.child("reference-0", seed=seed)
    model, _ = retrained(loaded.model, loaded.task, work.kept, work.recipe.train, run)
    remove_tree(run.folder)
    return dataclasses.replace(loaded, model=model)


def _write_model(work: Work, subject: str, loaded: Loaded, lineage: dict[str, Any]) -> None:
    folder = work.folder / "models" / subject
    save_model(loaded, folder)
    manifest = Manifest.of(folder, **lineage)
    write_json(work.folder / "models" / f"{subject}.manifest.json", manifest.to_json())


def _write_findings(work: Work, findings: list[dict[str, Any]]) -> Outputs:
    write_json(work.folder / "findings.json", findings)
    return {"findings": digest_json(findings), "files": _written(work, "findings.json")}


def _written(work: Work, *names: str) -> dict[str, str]:
    """Return relative path and digest of each file under these names; some steps lack some."""
    paths = [work.folder / name for name in names]
    files = [file for path in paths for file in (path, *sorted(path.rglob("*"))) if file.is_file()]
    return {file.relative_to(work.folder).as_posix(): digest_file(file) for file in files}


def _score_parts(work: Work, loaded: Loaded, before: str) -> list[str]:
    """Score the parts of a composite, each alone; return their names."""
    parts = parts_of(loaded.model, before)
    for name, model in parts.items():
        alone = dataclasses.replace(loaded, model=model)
        _score(work, _part_name(name), alone, "part", part=name)
    return list(parts)


def _part_name(part: str) -> str:
    return f"part-{part}"


def _scores_name(subject: str, folder: str = "scores") -> str:
    return f"{folder}/{subject}.parquet"


def _scores(*subjects: str) -> list[str]:
    """Return every file that may hold scores of these models."""
    return [_scores_name(one, folder) for one in subjects for folder in ("scores", _HELD)]


def _read_scores(work: Work, name: str) -> Subject:
    subject = read_scores(work.folder / _scores_name(name))
    if work.recipe.reuse is None:
        return subject
    return joined(subject, read_scores(work.folder / _scores_name(name, _HELD)))


def _score(
    work: Work, name: str, loaded: Loaded, role: Role, seed: int | None = None, part: str = ""
) -> str:
    path = work.folder / _scores_name(name)
    if not work.readings:
        return ""
    subject: Subject = collect(
        loaded.model.to(work.run.device),
        loaded.task,
        work.dataset,
        work.sets,
        work.readings,
        work.run,
        role=role,
        seed=seed,
        part=part,
        batch_size=work.recipe.machine.score_batch,
        cache=cache_folder() / "scores",
    )
    if work.recipe.reuse is not None:
        subject, held = divided(subject)
        write_scores(work.folder / _scores_name(name, _HELD), held)
    write_scores(path, subject)
    return digest_file(path)


def model_table(work: Work, outputs: dict[str, Outputs]) -> dict[str, Any]:
    """Return digest, place and lineage of every model of the run."""
    table = {}
    for subject, found in outputs.items():
        manifest = work.folder / "models" / f"{subject}.manifest.json"
        table[subject] = {
            "digest": found["model"],
            "path": f"models/{subject}" if manifest.exists() else None,
            "lineage": read_json(manifest)["lineage"] if manifest.exists() else {},
        }
    return table
