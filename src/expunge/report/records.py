"""``records.html``: the numbers of each record, without its text, to sort and to search."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
from importlib import resources
from pathlib import Path

import numpy as np

from expunge.core.files import remove_tree, write_text
from expunge.report.comparison import SET_ORDER
from expunge.report.facts import RECORDS, REPORT, Facts
from expunge.report.losses import Scored, ScoredSets
from expunge.report.rendering import render
from expunge.report.roc import membership

MAX_FORGET = 5000
"""Most forgotten records on the page."""
MAX_OTHER = 500
"""Most records of each other set."""

_SCRIPT = "records.js"


@dataclasses.dataclass(frozen=True)
class Row:
    """The numbers of one record.

    Attributes:
        record_set: Its set.
        id: Its id.
        before: Loss per target before forgetting, in nats.
        after: Loss after it.
        retrained: Mean loss of the retrained models.
        exact_before: Whether the model before it has every target as its first choice.
        exact_after: Whether the model after it has.
        membership: Share of held-out records with a higher loss, after forgetting.
    """

    record_set: str
    id: str
    before: float | None
    after: float
    retrained: float | None
    exact_before: bool | None
    exact_after: bool
    membership: float | None

    @property
    def change(self) -> float | None:
        """Loss after minus loss before."""
        return None if self.before is None else self.after - self.before


def write_records(folder: Path, facts: Facts, scored: ScoredSets) -> Path | None:
    """Write the page of records, or remove one that is out of date.

    Args:
        folder: The run folder.
        facts: Everything that the report says.
        scored: What every model says of the records.

    Returns:
        The page; ``None`` when the run scored no records.

    Raises:
        StorageError: The file cannot be written.
    """
    path = folder / RECORDS
    if not any(len(found.ids) for found in scored.get("after", {}).values()):
        remove_tree(path)
        return None
    script = resources.files("expunge.report").joinpath("templates", _SCRIPT).read_text("utf-8")
    rows, shown = rows_of(scored)
    page = render(
        "records.html",
        name=facts.plan.name,
        report=REPORT,
        rows=rows,
        shown=shown,
        language=facts.plan.model.kind == "causal_lm",
        references=len(facts.references),
        held_out=any(row.membership is not None for row in rows),
        script=_trusted(script),
        script_digest=script_digest(script),
    )
    write_text(path, page)
    return path


def script_digest(script: str) -> str:
    """Return what a page's policy must name for this script, and no other, to run."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def rows_of(scored: ScoredSets) -> tuple[list[Row], dict[str, tuple[int, int]]]:
    """Return the rows, and of each set how many records are shown and how many there are.

    Forgotten records come first, then retained, held-out, test records, and further sets.
    """
    after = scored["after"]
    names = [*SET_ORDER, *sorted(set(after) - set(SET_ORDER))]
    others = after["holdout"].loss_R if "holdout" in after else np.empty(0)
    rows, shown = [], {}
    for name in (name for name in names if name in after):
        most = MAX_FORGET if name == "forget" else MAX_OTHER
        found = _rows(name, most, scored, others)
        rows += found
        shown[name] = len(found), len(after[name].ids)
    return rows, shown


def _rows(name: str, most: int, scored: ScoredSets, nonmembers_S: np.ndarray) -> list[Row]:
    after = scored["after"][name]
    before = _by_id(scored, "before", name)
    references = [_by_id(scored, one, name) for one in scored if one.startswith("reference-")]
    member_R = membership(after.loss_R, nonmembers_S) if len(nonmembers_S) else None
    rows = []
    for place, record_id in enumerate(after.ids[:most]):
        old = before.get(record_id)
        retrained = [known[record_id][0] for known in references if record_id in known]
        rows.append(
            Row(
                record_set=name,
                id=record_id,
                before=old[0] if old else None,
                after=float(after.loss_R[place]),
                retrained=sum(retrained) / len(retrained) if retrained else None,
                exact_before=old[1] if old else None,
                exact_after=bool(after.exact_R[place]),
                membership=None if member_R is None else float(member_R[place]),
            )
        )
    return rows


def _by_id(scored: ScoredSets, subject: str, name: str) -> dict[str, tuple[float, bool]]:
    found: Scored | None = scored.get(subject, {}).get(name)
    if found is None:
        return {}
    pairs = zip(found.loss_R.tolist(), found.exact_R.tolist(), strict=True)
    return dict(zip(found.ids, pairs, strict=True))


def _trusted(script: str) -> object:
    from markupsafe import Markup

    return Markup(script)
