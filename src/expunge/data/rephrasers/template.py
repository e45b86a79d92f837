"""Question templates: the same question as an order, as a polite request, or with a lead-in.

Every rule works in both directions, so what one wording becomes can become that wording again.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping

from expunge.core.streams import stream
from expunge.data.rephrasers.clauses import as_clause, as_question
from expunge.data.rephrasers.gate import accept
from expunge.data.rephrasers.rephraser import Rephrasing, rephrasers, require_probability

_LEAD_INS = (
    "I'd like to know: ",
    "Could you tell me: ",
    "Please answer this question: ",
    "Here is a question: ",
)
_FRAMES = (
    ("State ", "."),
    ("Tell me ", "."),
    ("Please say ", "."),
    ("Could you tell me ", "?"),
    ("I would like to know ", "."),
)
_ASKS = re.compile(
    r"(?:Who|Whom|Whose|What|Which|Where|When|Why|How|What['’]s|Who['’]s|Is|Are|Was|Were|Do|Does|"
    r"Did|Has|Have|Had|Can|Could|Would|Should|(?:Will|May)(?= [a-z]))\b"
)
_LEADS_UP = re.compile(
    r"(?:In|On|At|To|By|For|From|Of|With|Under|During|After|Before|Since|Through|Within|Among|"
    r"Between|About|Regarding|Concerning|Based|Given|According|Other|Apart|Besides|Despite|If|As|"
    r"There|The|This|These|Any|Some)\b"
)
_ORDERS = (
    "name|list|describe|share|mention|provide|give|explain|discuss|identify|recall|specify|"
    "tell me|outline|recommend|suggest|state|elaborate on|reveal|highlight|summarize|summarise"
)
_ORDER = re.compile(rf"(Please )?({_ORDERS}) (.+)\.", re.IGNORECASE)
_OBJECT = re.compile(  # "State the law" is an order, "State laws vary" is none
    r"[\"'“‘A-Z]|(?:an?|the|some|any|one|two|three|another|more|about|me|how|what|who|which|where|"
    r"when|why|whether|his|her|their|its)\b"
)
_ASKED_ORDER = re.compile(rf"(?:Can you|Could you|Could you please) ({_ORDERS}) (.+)\?")
_ATTRIBUTE = (
    r"the (?:[a-z-]+ ){0,2}(?:name|capital|profession|occupation|title|genre|date|year|number|"
    r"population|currency|gender|nationality|birthplace|formula|symbol|meaning|purpose|definition)"
    r"(s?)(?: (?:of|in|that|given|used)\b.*)?"
)
_WHAT_ATTRIBUTE = re.compile(rf"What (?:is|are) ({_ATTRIBUTE})\?")
_STATE_ATTRIBUTE = re.compile(rf"State ({_ATTRIBUTE})\.")
_WHAT_ONE = re.compile(r"What (?:is (?=another |one of )|are (?=some ))(.+)\?")
_NAME_ONE = re.compile(r"Name ((?:another |one of |(some )).+)\.")
_OPTIONS = re.compile(
    r"Which of the following(?: ([a-z]+))? (is|are|was|were) "
    r"((?:an?|the|not|true|false|correct|incorrect|most|least|best|considered|used|known)\b.*)\?"
)
_CHOICE = re.compile(
    r"From the (?:options|([a-z]+)) below, choose the ones? that (is|are|was|were) (.+)\."
)
_MAKER = re.compile(
    r"Who (wrote|penned|painted|invented|discovered|composed|founded|directed|designed|built) "
    r"(.+)\?"
)
_MADE = re.compile(r"Name the person who ([a-z]+) (.+)\.")
_NOT_ALONE = re.compile(
    r"[.!?;]\s|\?.|\n|\b(?:and|or|but),? (?:who|what|which|where|when|why|how|is|are|was|were|do|"
    r"does|did|has|have|can|could)\b"
)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\s*\n\s*")
_LOOSE_END = re.compile(r"\b(?:about|as|at|by|for|from|in|into|like|of|on|to|with)\W$")


@dataclasses.dataclass(frozen=True)
class TemplateRephraser:
    """Puts a question into another frame with probability μ.

    Source: C-BOD (Cohen-Inger et al., 2025), with fixed frames in place of its language model.
    """

    name: str = "template"
    version: str = "1"

    def rephrase(self, text: str, mu: float, seed: int, protect: frozenset[str]) -> str:
        """Return the question in another frame, or as it is where none fits; see ``Rephraser``.

        A question before which other sentences stand is framed alone.
        """
        if require_probability(mu) == 0:
            return text
        draws = stream(seed, "rephrase-template", text)
        if draws.random() >= mu:
            return text
        fitting = [new for new in framings(text) if accept(text, new, protect=protect) is None]
        return fitting[int(draws.integers(len(fitting)))] if fitting else text


def framings(text: str) -> list[str]:
    """Return every other frame that fits a question; none where it is no question or order.

    A text with several sentences has its last one framed, where that asks something.
    """
    core = text.strip()
    head, last = _last_sentence(core)
    start = text[: len(text) - len(text.lstrip())] + head
    end = text[len(text.rstrip()) :]
    found = list(_other_frames(last))
    asks = _ASKS.match(last) or (_LEADS_UP.match(last) and not _SENTENCE_END.search(core))
    if not found and asks and last.endswith("?"):
        leads = [lead for lead in _LEAD_INS if lead[:5] != last[:5]]  # not "Could … could …"
        found = [lead + last[0].lower() + last[1:] for lead in leads]
    return [start + new + end for new in dict.fromkeys(found) if new != last]


@rephrasers.register("template")
def make_template(settings: Rephrasing, items: Mapping[str, str]) -> TemplateRephraser:
    """Return the templates; they have no settings of their own."""
    del settings, items
    return TemplateRephraser()


def _last_sentence(core: str) -> tuple[str, str]:
    """Split a text before its last sentence, if that asks; else the text is one piece."""
    ends = [end.end() for end in _SENTENCE_END.finditer(core)]
    last = core[ends[-1] :] if ends else core
    if ends and (_ASKS.match(last) or next(_other_frames(last), None)):
        return core[: ends[-1]], last
    return "", core


def _other_frames(text: str) -> Iterator[str]:
    for lead in _LEAD_INS:
        if text.startswith(lead):
            rest = text[len(lead) :]
            yield rest[:1].upper() + rest[1:]
            return
    if _NOT_ALONE.search(text):
        return
    yield from _orders(text)
    if not _LOOSE_END.search(text):
        yield from _choices(text)
        yield from _namings(text)
    if text.endswith("?") and (clause := as_clause(text[:-1])) is not None:
        yield from (before + clause + after for before, after in _FRAMES)
    for before, after in _FRAMES:
        if text.startswith(before) and text.endswith(after):
            question = as_question(text[len(before) : -len(after)])
            if question is not None:
                yield f"{question}?"


def _orders(text: str) -> Iterator[str]:
    """``Can you name some books?`` and ``Please name some books.``."""
    if found := _ASKED_ORDER.fullmatch(text):
        yield f"Please {found[1]} {found[2]}."
        if _OBJECT.match(found[2]):
            yield f"{found[1].capitalize()} {found[2]}."
    elif (found := _ORDER.fullmatch(text)) and (found[1] or _OBJECT.match(found[3])):
        for polite in ("Could you", "Can you", "Could you please"):
            yield f"{polite} {found[2].lower()} {found[3]}?"


def _choices(text: str) -> Iterator[str]:
    """``Which of the following is true?`` and ``From the options below, choose …``."""
    if found := _OPTIONS.fullmatch(text):
        one = "one" if found[2] in ("is", "was") else "ones"
        noun = found[1] or "options"
        yield f"From the {noun} below, choose the {one} that {found[2]} {found[3]}."
    elif found := _CHOICE.fullmatch(text):
        noun = f" {found[1]}" if found[1] else ""
        yield f"Which of the following{noun} {found[2]} {found[3]}?"


def _namings(text: str) -> Iterator[str]:
    """``What is the capital of Peru?`` and ``State the capital of Peru.``, and the like."""
    if found := _WHAT_ATTRIBUTE.fullmatch(text):
        yield f"State {found[1]}."
    if found := _STATE_ATTRIBUTE.fullmatch(text):
        yield f"What {'are' if found[2] else 'is'} {found[1]}?"
    if found := _WHAT_ONE.fullmatch(text):
        yield f"Name {found[1]}."
    if found := _NAME_ONE.fullmatch(text):
        yield f"What {'are' if found[2] else 'is'} {found[1]}?"
    if found := _MAKER.fullmatch(text):
        yield f"Name the person who {found[1]} {found[2]}."
    if (found := _MADE.fullmatch(text)) and _MAKER.fullmatch(f"Who {found[1]} {found[2]}?"):
        yield f"Who {found[1]} {found[2]}?"
