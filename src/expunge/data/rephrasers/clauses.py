"""Direct and indirect questions: ``What is the sun?`` and ``what the sun is``.

Only forms whose subject is plain to see are turned; every other question gives ``None``.
"""

from __future__ import annotations

import re

_NAME = r"[A-Z][\w’'.-]*(?: (?:[A-Z][\w’'.-]*|de|van|von|der|la|bin|al))*(?<!['’]s)(?<!['’])(?<!\.)"
_ASKED = r"how|when|where|why|(?:which|what)(?: [a-z-]+){1,3}?"
_PARTICIPLE = (
    r"[a-z]+ed|been|begun|become|brought|built|done|drawn|found|given|gone|held|kept|known|led|lost|"
    r"made|met|seen|shown|sold|spent|spoken|taken|taught|told|won|written|yet|ever|always|also|never"
)
_AFTER_BE = (
    r"(?:[a-z]+ed|[a-z]+ing|born|known|written|an?|the|in|from|currently|still|also|most|best|"
    r"famous)"
)
_INVERTED = re.compile(
    rf"(?:({_ASKED}) )?(?:(has|have|had) ({_NAME}) ((?:{_PARTICIPLE})\b.*)"
    rf"|(is|are|was|were) ({_NAME}) ({_AFTER_BE}\b.*))"
)
_STRAIGHT = re.compile(
    rf"(?:whether|({_ASKED})) ({_NAME}) (?:(has|have|had) ((?:{_PARTICIPLE})\b.*)"
    rf"|(is|are|was|were) ({_AFTER_BE}\b.*))"
)
_BEING = re.compile(r"(what|who) (is|are|was|were) (.+)")
_BEEN = re.compile(r"(what|who) (.+) (is|are|was|were)")
_DOING = re.compile(
    r"(?:who|what) (?:wrote|penned|painted|invented|discovered|composed|founded|directed|designed|"
    r"won|inspired|motivated|prompted|influenced|shaped|caused|led|makes|made|sets|distinguishes|"
    r"drives|drove|happened|characterizes|characterises|encouraged|created|played|sang|ruled|built)\b.*"
)
_OUTSIDE = (
    "about after as at before by for from in into like on than that to under with who whom whose "
    "which what where when why how and or but if not no born known made done seen written it he "
    "she they him her them you i we this these those there being doing"
)
_NO_PART = frozenset(_OUTSIDE.split())
_LONGEST = 7


def as_clause(question: str) -> str | None:
    """Turn a question without its mark, such as ``What is the sun``, into ``what the sun is``."""
    text = question[:1].lower() + question[1:]
    if (found := _BEING.fullmatch(text)) and _is_thing(found[3]):
        return f"{found[1]} {found[3]} {found[2]}"
    if _DOING.fullmatch(text):
        return text
    if found := _INVERTED.fullmatch(text):
        asked, *parts = found.groups()
        auxiliary, name, rest = parts[:3] if parts[0] else parts[3:]
        return f"{asked or 'whether'} {name} {auxiliary} {rest}"
    return None


def as_question(clause: str) -> str | None:
    """Turn an indirect question into a direct one without its mark; undoes ``as_clause``."""
    text = None
    if (found := _BEEN.fullmatch(clause)) and _is_thing(found[2]):
        text = f"{found[1]} {found[3]} {found[2]}"
    elif _DOING.fullmatch(clause):
        text = clause
    elif found := _STRAIGHT.fullmatch(clause):
        asked, name, *parts = found.groups()
        auxiliary, rest = parts[:2] if parts[0] else parts[2:]
        text = " ".join(part for part in (asked, auxiliary, name, rest) if part)
    return text and text[0].upper() + text[1:]


def _is_thing(phrase: str) -> bool:
    """Say whether a phrase is surely one noun phrase: ``the moon of Mars``, ``Ada's parents``."""
    words = phrase.split(" ")
    plain = all(re.fullmatch(r"[\w’'-]+", word) for word in words)
    if not plain or len(words) > _LONGEST or words[-1].lower() in ("of", "a", "an", "the"):
        return False
    low = [word for word in words if word[0].islower()]
    if any(word in _NO_PART or word.endswith(("ing", "ed")) for word in low):
        return False
    if words[0] in ("a", "an", "the"):
        return len(words) > 1 and words[1] != "of"
    inside = ("of", "the", "de", "van", "von", "der", "la", "bin", "al")
    owner = [place for place, word in enumerate(words) if word.endswith(("'s", "’s"))]
    name = words[: owner[0] + 1] if owner else words
    rest = words[len(name) :]
    named = name[0][0].isupper() and all(w[0].isupper() or w in inside for w in name)
    return named and (not owner or 1 <= len(rest) <= 3)
