"""How numbers, durations, names and foreign text are written."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Mapping

from expunge.core.errors import listing
from expunge.core.finding import Interval, Verdict

MISSING = "n/a"
MAX_ITEMS = 12

# Characters that reorder the text around them; they could make a page say what is not in it.
_REORDERING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")

_SETS = {
    "": "whole model",
    "forget": "forgotten records",
    "retain": "retained records",
    "holdout": "held-out records",
    "test": "test records",
}
_VERDICTS: Mapping[Verdict, str] = {
    "pass": "met",
    "fail": "not met",
    "inconclusive": "inconclusive",
    "not_applicable": "no bound",
}
_EVIDENCE = {
    "erased-exact": "the records never entered the new model",
    "weights-suppressed": "weights were changed by an approximate method, judged by audits",
    "output-suppressed": "weights are as before and only the output differs; never the last word "
    "on an erasure",
    "unknown": "the model was changed elsewhere",
}
_REQUEST = {"identified": 1.0}  # what a request holds when nobody set it, beside empty settings
_KINDS = {"causal_lm": "language model"}


def clean(text: object) -> str:
    """Return text in which control and reordering characters are shown as their code points."""
    return "".join(_visible(character) for character in str(text))


def one_line(text: object) -> str:
    """Return cleaned text on a single line, white space collapsed."""
    return " ".join(clean(text).split())


def number(value: float | None, unit: str = "", *, signed: bool = False) -> str:
    """Write a number with as many digits as a reader can use.

    Args:
        value: The number.
        unit: Its unit.
        signed: Write the sign of positive numbers too.
    """
    if value is None:
        return MISSING
    text = _digits(value, unit, "+" if signed else "")
    return f"{text} {unit}" if unit else text


def interval(found: Interval | None, unit: str = "") -> str:
    """Write an interval as ``0.12 to 0.34``, as exactly as its number; empty without one."""
    if found is None:
        return ""
    return f"{_digits(found.low, unit)} to {_digits(found.high, unit)}"


def numbers(values: Iterable[float | None], unit: str = "") -> str:
    """Write numbers of one unit in a row, without the unit."""
    return ", ".join(MISSING if value is None else _digits(value, unit) for value in values)


def duration(seconds: float) -> str:
    """Write a duration in seconds, minutes or hours."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def given(settings: Mapping[str, object]) -> dict[str, str]:
    """Write settings, those that are not given left out."""
    written = {
        str(name).replace("_", " "): shortened(value)
        for name, value in settings.items()
        if value is not None
    }
    return {name: text for name, text in written.items() if text}


def asked(request: Mapping[str, object]) -> dict[str, str]:
    """Write the settings of a request that are not its defaults."""
    return given({name: value for name, value in request.items() if value != _REQUEST.get(name)})


def shortened(value: object) -> str:
    """Write a setting; of a long list the first few items and how many more there are."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {text}" for name, text in given(value).items())
    return listing(value, MAX_ITEMS) if isinstance(value, list | tuple) else str(value)


def verdict_words(verdict: Verdict) -> str:
    """Return a verdict in a reader's words."""
    return _VERDICTS[verdict]


def evidence_words(evidence: str) -> str:
    """Return the class of evidence, and what it means, in a reader's words."""
    return f"{evidence}: {_EVIDENCE[evidence]}" if evidence in _EVIDENCE else evidence


def count(amount: int, noun: str) -> str:
    """Write ``1 record`` or ``2 records``."""
    return f"{amount} {noun}" if amount == 1 else f"{amount} {noun}s"


def set_words(record_set: str) -> str:
    """Return a record set's name in a reader's words."""
    return _SETS.get(record_set, record_set.replace("_", " "))


def kind_words(kind: str) -> str:
    """Return a kind of model in a reader's words."""
    return _KINDS.get(kind, kind.replace("_", " "))


def subject_words(subject: str) -> str:
    """Return a model's name in a reader's words: ``reference-0`` is ``retrained 1``."""
    place = subject.removeprefix("reference-")
    return f"retrained {int(place) + 1}" if place != subject and place.isdecimal() else subject


def _digits(value: float, unit: str, sign: str = "") -> str:
    size = abs(value)
    if size == 0 or math.isinf(size):
        digits = "g"
    elif size < 1e-3 or size >= 1e5:
        digits = ".1e"
    elif unit in ("%", "points") or size >= 100:
        digits = ".1f"
    else:
        digits = ".3f" if size < 10 else ".2f"
    text = format(value, sign + digits)
    if float(text) == 0:
        return "0"
    return text.replace("-", "\u2212", 1) if value < 0 else text


def _visible(character: str) -> str:
    if character in "\n\t":
        return character
    if character in _REORDERING or unicodedata.category(character) in ("Cc", "Cs"):
        return f"[U+{ord(character):04X}]"
    return character
