"""The gate: rules that a rephrased question has to keep, whoever rephrased it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from expunge.data.rephrasers.words import blanks, lost_words, negations, numbers, symbols

Similarity = Callable[[str, str], float]
"""Says how near two texts are in meaning; 1 is the same."""

FLOOR = 0.7
LENGTH = 0.15
SLACK = 6

_ERROR = re.compile(
    r"\W*(?:(?:http |api |server |internal )?error\b|exception\b|traceback\b|rate limit|timed? ?out"
    r"\b|null$|none$|nan$|undefined$|(?:i['’]?m|i am) (?:sorry|unable)|sorry\b|i can(?:no|['’])?t\b"
    r"|as an ai\b)",
    re.IGNORECASE,
)
_INSTRUCTION = re.compile(
    r"\b(?:rephras|paraphras|reword|rewrit)\w*|\b(?:original|new|revised) (?:question|text|prompt)"
    r"|^\W*(?:sure|certainly|of course)\b[,!]",
    re.IGNORECASE,
)
_REQUEST = re.compile(
    r"(?:please )?(?:state|name|tell|say|give|list|describe|explain|identify|choose|select|share|"
    r"provide|mention|discuss|recall|specify|outline|recommend|suggest|"
    r"elaborate on|reveal|highlight|summari[sz]e|i(?:['’]d| would) like to know|"
    r"from the [\w ]+ below, (?:please )?choose)\b",
    re.IGNORECASE,
)


def accept(
    original: str,
    rephrased: str,
    similarity: Similarity | None = None,
    floor: float = FLOOR,
    *,
    length: float = LENGTH,
    slack: int = SLACK,
    protect: frozenset[str] = frozenset(),
) -> str | None:
    """Judge one rephrased question.

    The ending has to be of one kind: a request (a question, or an order such as ``State …``), a
    statement, an exclamation, or open (a text to be completed). A question may thus become an
    order and back, never a statement.

    Args:
        original: The question as the benchmark has it.
        rephrased: The other wording.
        similarity: Compares the meaning; without it only the rules apply.
        floor: The least similarity that passes.
        length: How far the number of words may differ, as a share of the original's.
        slack: Words that it may differ by in any case: a short question grows by more than a
            share when it is put as a polite one. 0 leaves the share alone.
        protect: Words that have to occur as often as before.

    Returns:
        ``None`` when it passes, else the first rule that it breaks: ``"empty"``,
        ``"error text"``, ``"instruction repeated"``, ``"several lines"``, ``"numbers"``,
        ``"symbols"``, ``"negations"``, ``"blanks"``, ``"ending"``, ``"length"``,
        ``"protected words"`` or ``"similarity"``.

    Source: C-BOD (Cohen-Inger et al., 2025), section 4.1.1 for the floor, and the rules that the
        rephrasing prompt of its code states.
    """
    reason = _broken_rule(original, rephrased, length, slack, protect)
    if reason is None and similarity is not None:
        return judge_similarity(similarity(original, rephrased), floor)
    return reason


def looks_failed(text: str) -> bool:
    """Say whether a text is an error or a refusal that a service returned in place of an answer."""
    return bool(_ERROR.match(text))


def judge_similarity(value: float, floor: float) -> str | None:
    """Return ``"similarity"`` where the value is below the floor or no number."""
    return "similarity" if math.isnan(value) or value < floor else None


def _broken_rule(
    original: str, rephrased: str, length: float, slack: int, protect: frozenset[str]
) -> str | None:
    if not rephrased.strip():
        return "empty"
    if looks_failed(rephrased) and not looks_failed(original):
        return "error text"
    if _INSTRUCTION.search(rephrased) and not _INSTRUCTION.search(original):
        return "instruction repeated"
    if len(rephrased.strip().splitlines()) > len(original.strip().splitlines()):
        return "several lines"
    for name, count in (("numbers", numbers), ("symbols", symbols), ("negations", negations)):
        if count(original) != count(rephrased):
            return name
    if blanks(original) != blanks(rephrased):
        return "blanks"
    if _ending(original) != _ending(rephrased):
        return "ending"
    before, after = len(original.split()), len(rephrased.split())
    if abs(after - before) > max(length * before, slack):
        return "length"
    return "protected words" if lost_words(original, rephrased, protect) else None


def _ending(text: str) -> str:
    """Return the kind of the last sentence: request, statement, exclamation or open."""
    core = text.strip().rstrip("\"'”’)")
    last = re.split(r"(?<=[.!?])\s+", core)[-1]
    if core.endswith("?"):
        return "request"
    if core.endswith("."):
        return "request" if _REQUEST.match(last) else "statement"
    return "exclamation" if core.endswith("!") else "open"
