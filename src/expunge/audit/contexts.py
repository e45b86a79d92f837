"""Views whose prompts tell facts first: the forgotten one, others, wrong ones, or examples."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Iterator
from typing import Literal

import numpy as np

from expunge.audit.prompts import continued, filled, language, question_columns
from expunge.audit.readings import PARAPHRASE, PERTURBED, num_perturbed, other_answers
from expunge.audit.views import Scene, views
from expunge.core.errors import ConfigError, DataError, near_matches
from expunge.core.records import Records
from expunge.core.sets import sample_ids
from expunge.core.streams import stream
from expunge.data.rephrasers.typos import character_noise
from expunge.engine.task import Task
from expunge.engine.tasks.causal_lm import CausalLM

Kind = Literal["statement", "demo", "irrelevant", "wrong", "axiom", "disguised"]
KINDS: tuple[Kind, ...] = ("statement", "demo", "irrelevant", "wrong", "axiom", "disguised")

DISGUISE = 3
"""In what is disguised every letter of this number is a slip, which is one in every word."""

_POOL = 1000  # retained records to draw from
_NEAREST = 200  # of which so many are looked at for one of the same length


@views.register("context")
def context(task: Task, records: Records, scene: Scene, parameters: str) -> tuple[Task, Records]:
    """Tell facts above the prompt: ``context:statement:5``; see ``in_context`` for the kinds.

    Records are left out that have no such context, because they have nothing to tell or there are
    too few retained records to draw from, and those that would no longer fit into what the model
    reads.

    Raises:
        ConfigError: There is no such kind, or k is no whole number of at least 1.
    """
    kind, k, inner = _parsed("context", parameters)
    library = _Library(task, scene)
    owners = list(range(len(records)))
    texts = library.contexts(kind, k, records, records, owners)
    if kind == "disguised":
        task, slipped = views.get("noise")(task, records, scene, str(DISGUISE))
        records = slipped if len(slipped) else records  # a document has no question to slip in
    return _told(task, records, scene, inner, texts)


@views.register("borrowed_context")
def borrowed_context(
    task: Task, records: Records, scene: Scene, parameters: str
) -> tuple[Task, Records]:
    """Tell what ``context`` tells of a forget record, drawn for each of other records.

    Raises:
        ConfigError: As for ``context``.
    """
    kind, k, inner = _parsed("borrowed_context", parameters)
    library = _Library(task, scene)
    forget = scene.records("forget")
    able = [row for row in range(len(forget)) if library.own(kind, forget, row)]
    if not able:
        return continued(task, records.take([]), scene, inner)
    owners = [
        able[int(stream(scene.seed, "context-owner", record_id).integers(len(able)))]
        for record_id in records.ids
    ]
    return _told(task, records, scene, inner, library.contexts(kind, k, records, forget, owners))


def _parsed(view: str, parameters: str) -> tuple[Kind, int, str]:
    kind, _, rest = parameters.partition(":")
    k, _, inner = rest.partition(":")
    if kind not in KINDS:
        raise ConfigError(f"{view}:{kind}: no such kind of context; {near_matches(kind, KINDS)}")
    if not k.isdecimal() or int(k) < 1:
        raise ConfigError(f"{view}:{kind}: k = {k!r} must be a whole number of at least 1")
    return kind, int(k), inner


def _told(
    task: Task, records: Records, scene: Scene, inner: str, contexts: list[str | None]
) -> tuple[Task, Records]:
    """Return the records that have a context, and the task that puts it above the prompt."""
    rows = [row for row, text in enumerate(contexts) if text is not None]
    name = free_column(records, "context")
    plain = language(task)
    above = dataclasses.replace(
        plain.template, prompt=f"{{{name}}}\n{plain.template.prompt}", max_length=sys.maxsize
    )
    # Without a limit nothing is cut; what is too long for the model is left out.
    told = CausalLM(plain.tokenizer, above, plain.refusals, None, plain.continued)
    seen = records.take(rows).replace(**{name: [contexts[row] for row in rows]})
    return continued(told, fitting(told, seen, scene, plain.context or sys.maxsize), scene, inner)


def free_column(records: Records, name: str) -> str:
    """Return a name like this one that no column has: the data's own may stand in the prompt."""
    while name in records:
        name += "_"
    return name


def fitting(told: CausalLM, records: Records, scene: Scene, limit: int) -> Records:
    """Return the records that fit into what the model reads with every answer, true or wrong.

    Args:
        told: A task that cuts nothing.
        records: The records as it reads them.
        scene: The data.
        limit: Most tokens that the model reads.
    """
    lengths = told.lengths(records)
    wrong = [f"{PERTURBED}{place}" for place in range(num_perturbed(records))]
    more = np.zeros(len(records), dtype=np.int64)  # a text has no more tokens than bytes
    for view in wrong:
        texts = other_answers(records, view)
        more = np.maximum(more, [len((text or "").encode()) for text in texts])
    near = records.take(np.flatnonzero(np.asarray(lengths) + more > limit))
    left_out = set()
    for view in ("", *wrong) if len(near) else ():
        asked, seen = continued(told, near, scene, view)
        for record_id, length in zip(seen.ids, asked.lengths(seen), strict=True):
            if length > limit:
                left_out.add(record_id)
    return records.select([record_id for record_id in records.ids if record_id not in left_out])


class _Library:
    """Facts to put above prompts: of the retained records, and of the record itself.

    A fact is question and answer in one line, so that it can be understood alone; the question in
    the data's second wording where there is one.

    Args:
        task: Its template tells which columns are question and answer.
        scene: The data.
    """

    def __init__(self, task: Task, scene: Scene) -> None:
        self.task, self.seed = language(task), scene.seed
        self.columns = question_columns(task)
        retain = scene.records("retain")
        if len(retain) > _POOL:
            retain = retain.select(sample_ids(retain.ids, _POOL, scene.seed, "context-pool"))
        self.ids = retain.ids
        rows = range(len(retain))
        self.facts = [self._fact(retain, row, self._answer(retain, row)) for row in rows]
        self.lengths = np.array([len(fact) for fact in self.facts])
        template = self.task.template
        self.demos = [filled(template.prompt + template.answer, retain, row) for row in rows]
        self.keys = [self._keys(retain, row) for row in rows]

    def own(self, kind: Kind, records: Records, row: int) -> list[str]:
        """Return the texts of a record itself that a kind of context holds; none: it has none.

        ``demo`` and ``irrelevant`` hold nothing of it; they return what it is to be told from.
        """
        if kind == "axiom":
            return _axioms(records, row)
        if kind == "wrong":
            wrong = other_answers(records, f"{PERTURBED}0")[row]
            return [] if wrong is None else [self._fact(records, row, wrong)]
        paraphrase = other_answers(records, PARAPHRASE)[row]
        answer = self._answer(records, row) if paraphrase is None else paraphrase
        fact = self._fact(records, row, answer)
        return [character_noise(fact, DISGUISE, self.seed) if kind == "disguised" else fact]

    def contexts(
        self, kind: Kind, k: int, queries: Records, owners: Records, rows: list[int]
    ) -> list[str | None]:
        """Return one context per query, ``None`` where there is none.

        Its owner has nothing to tell then, or too few retained records differ from the query.

        Args:
            kind: Kind of context.
            k: How many facts it holds.
            queries: The records that are asked.
            owners: Records that the facts are about.
            rows: Which of them, for each query.
        """
        return [
            self._context(kind, k, queries, row, owners, owner) for row, owner in enumerate(rows)
        ]

    def _context(
        self, kind: Kind, k: int, queries: Records, row: int, owners: Records, owner: int
    ) -> str | None:
        own = self.own(kind, owners, owner)[:k]
        if not own:
            return None
        needed = k if kind in ("demo", "irrelevant") else k - len(own)
        taken = self._keys(queries, row) | self._keys(owners, owner)
        reserve = _NEAREST if kind == "irrelevant" else 0
        order = list(itertools.islice(self._order(queries.ids[row], taken), needed + reserve))
        if len(order) < needed:
            return None
        if kind == "demo":
            return "\n".join(self.demos[place] for place in order[:k])
        if kind == "irrelevant":  # what the statement tells, with a fact as long in its place
            rest = order[k - 1 :]
            nearest = int(np.abs(self.lengths[rest] - len(own[0])).argmin())
            own = [self.facts[rest[nearest]]]
        others = [self.facts[place] for place in order[: k - len(own)]]
        at = int(stream(self.seed, "context-place", k, queries.ids[row]).integers(len(others) + 1))
        return "\n".join([*others[:at], *own, *others[at:]])

    def _order(self, query: str, taken: set[str]) -> Iterator[int]:
        """Yield the retained records that share no key with a query, in its own random order."""
        order = stream(self.seed, "context", query).permutation(len(self.ids))
        return (place for place in order.tolist() if taken.isdisjoint(self.keys[place]))

    def _keys(self, records: Records, row: int) -> set[str]:
        """Return what two records may not share: their id and their question, or their text."""
        text = filled(self.task.template.prompt, records, row) if self.columns else ""
        text = text or self._answer(records, row)
        return {f"id {records.ids[row]}", f"text {' '.join(text.casefold().split())}"}

    def _answer(self, records: Records, row: int) -> str:
        return filled(self.task.template.answer, records, row).strip()

    def _fact(self, records: Records, row: int, answer: str) -> str:
        asked = [str(records[name][row]) for name in self.columns]
        if self.columns == ("question",) and "paraphrased_question" in records:
            asked = [records["paraphrased_question"][row] or asked[0]]
        return " ".join([*asked, answer])


def _axioms(records: Records, row: int) -> list[str]:
    """Return the texts from which a record's fact follows.

    Raises:
        DataError: They are no list.
    """
    found = records["axioms"][row] if "axioms" in records else None
    if isinstance(found, str):
        raise DataError(f"record {records.ids[row]}: axioms = {found!r} must be a list of texts")
    return [] if found is None else [str(text) for text in found]
