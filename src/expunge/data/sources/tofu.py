"""TOFU: 4,000 questions about 200 invented authors, from its original files or the hub."""

from __future__ import annotations

from pathlib import Path

from expunge.core.config import config
from expunge.core.errors import DataError, StorageError
from expunge.core.records import Records
from expunge.data.dataset import Dataset, number_ids, require_columns
from expunge.data.source import source
from expunge.data.tables import Table, read_table

_QUESTIONS_PER_AUTHOR = 20
_PERCENTS = (1, 5, 10)
_EXTRAS = ("paraphrased_question", "paraphrased_answer", "perturbed_answer")
_PROBES = ("real_authors", "world_facts")


@config
class TofuConfig:
    """Settings of TOFU."""

    path: str = "locuslab/TOFU"
    """Folder with the original JSON-lines files (``full.json`` and so on), or a name on the hub."""


@source("tofu", title="TOFU, 4,000 questions on invented authors", kind="causal_lm")
def tofu(config: TofuConfig, seed: int) -> Dataset:
    """Return TOFU; splits ``forget01``, ``forget05`` and ``forget10`` are its last 1, 5 and 10 %.

    Paraphrases and wrong answers come from the ``_perturbed`` parts and are ``None`` for records
    that these do not cover. Column ``author`` numbers the authors. TOFU's own refusals are
    used where the folder holds ``idontknow.jsonl``.

    Source: P. Maini et al., TOFU: A Task of Fictitious Unlearning for LLMs (2024).
    """
    del seed
    full = _part(config.path, "full")
    rows = len(full["question"])
    place: dict[str, int] = {}
    for row, question in enumerate(full["question"]):
        place.setdefault(question, row)
    columns: Table = {name: [None] * rows for name in _EXTRAS}
    for part in ("retain_perturbed", "forget10_perturbed"):
        found = _part(config.path, part)
        for row, question in enumerate(found["question"]):
            if question not in place:
                raise DataError(f"{config.path}: question {row} of {part} is not in full")
            for name in _EXTRAS:
                columns[name][place[question]] = found[name][row]
    authors = [f"author-{row // _QUESTIONS_PER_AUTHOR:03d}" for row in range(rows)]
    train = Records(
        number_ids("tofu", rows),
        {"question": full["question"], "answer": full["answer"], **columns, "author": authors},
    )
    refusals = Path(config.path) / "idontknow.jsonl"
    facts = {"refusals": refusals.read_text("utf-8").splitlines()} if refusals.is_file() else {}
    return Dataset(
        "causal_lm",
        train,
        probes={name: _probe(config.path, name) for name in _PROBES},
        splits={f"forget{p:02d}": train.ids[rows - rows * p // 100 :] for p in _PERCENTS},
        facts=facts,
    )


def _probe(path: str, name: str) -> Records:
    table = _part(path, f"{name}_perturbed")
    ids = number_ids(name.replace("_", "-"), len(table["question"]))
    return Records(ids, {key: table[key] for key in ("question", "answer", "perturbed_answer")})


def _part(path: str, name: str) -> Table:
    folder = Path(path)
    table = read_table(folder / f"{name}.json") if folder.is_dir() else _hub_part(path, name)
    needed = ["question", "answer"]
    if name.endswith("_perturbed"):
        needed += ["perturbed_answer"] if name.startswith(_PROBES) else _EXTRAS
    rows = len(next(iter(table.values())))
    require_columns(Records(number_ids(name, rows), table), needed, f"{path}, part {name},")
    return table


def _hub_part(path: str, name: str) -> Table:
    from datasets import load_dataset

    try:
        table: Table = load_dataset(path, name, split="train").to_dict()
    except (OSError, ValueError) as error:
        raise StorageError(
            f"data.tofu.path = {path!r} is no folder here, and the hub does not give part {name!r} "
            f"({type(error).__name__}); download the files and name their folder"
        ) from error
    return table
