"""The gate of translations, and translating by any rephraser."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.data.rephrasers.gate import accept
from expunge.data.rephrasers.pairs import FileRephraser
from expunge.data.rephrasers.rephraser import CallableRephraser
from expunge.data.rephrasers.translation import CHECKS, accept_translation, translate_items

QUESTION = "Who did not win the race in 1994?"
GERMAN = "Wer hat das Rennen 1994 nicht gewonnen?"


def test_a_translation_passes_where_the_gate_of_rewordings_rejects_it():
    """Its words are other ones, negation included."""
    assert accept(QUESTION, GERMAN, slack=20) == "negations"
    assert accept_translation(QUESTION, GERMAN, frozenset()) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("  ", "empty"),
        ("Error: rate limit reached", "error text"),
        ("Who did not win the  race in 1994?", "unchanged"),
        ("Hier ist sie:\nWer hat das Rennen 1994 nicht gewonnen?", "several lines"),
        ("Wer hat das Rennen 1995 nicht gewonnen?", "numbers"),
        ("Wer hat das Rennen nicht gewonnen?", "numbers"),
        ("Wer hat das Rennen 1994 nicht gewonnen ____?", "blanks"),
        ("Wer, ausser Lopez, hat das Rennen 1994 nicht gewonnen?", "protected words"),
        ("1994年谁没有赢得比赛？", None),
        ("من لم يفز بالسباق عام ١٩٩٤؟", None),
    ],
)
def test_what_breaks_a_rule_is_named(text, reason):
    assert accept_translation(QUESTION, text, frozenset({"Lopez"})) == reason


def test_a_word_of_the_answer_may_stay_where_the_question_had_it():
    asked = "Is Lima the capital of Peru?"
    assert accept_translation(asked, "Lima est-elle la capitale ?", frozenset({"lima"})) is None


@given(text=st.text(min_size=1), protect=st.frozensets(st.text(max_size=5), max_size=3))
def test_no_text_is_a_translation_of_itself(text, protect):
    assert accept_translation(text, text, protect) in ("empty", "unchanged")


def test_every_question_is_kept_with_what_became_of_it():
    rephraser = FileRephraser({QUESTION: GERMAN, "b": "b"}, "1")
    items = {"q-0": QUESTION, "q-1": "b", "q-2": "who"}
    found = translate_items(rephraser, items, 0, protect={"q-0": frozenset({"Mauer"})})
    assert [one.reason for one in found] == [None, "unchanged", "missing"]
    assert [one.usable for one in found] == [True, False, False]
    assert [one.text for one in found] == [GERMAN, "b", "who"]
    assert {one.checks for one in found} == {CHECKS}
    lost = translate_items(rephraser, items, 0, protect={"q-0": frozenset({"rennen"})})
    assert lost[0].reason == "protected words"


def test_a_function_translates_at_full_strength():
    asked = []

    def translate(text, mu, seed):
        asked.append((mu, seed))
        return GERMAN

    found = translate_items(CallableRephraser(translate, "mine", "1"), {"q": QUESTION}, 7)
    assert found[0].usable
    assert asked == [(1.0, 7)]
