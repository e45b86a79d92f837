"""Words of an answer: golden shares, ranks, and what is masked."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.forget.concept_words import (
    masked,
    pieces_of,
    plain_word,
    ranked_words,
    word_shares,
)

SCORES = st.floats(-10, 10)


class Bytes:
    """A tokenizer whose tokens are the bytes of a text; 0 is special."""

    def decode(self, tokens, skip_special_tokens, clean_up_tokenization_spaces):
        assert skip_special_tokens
        assert not clean_up_tokenization_spaces
        return bytes(token for token in tokens if token).decode(errors="replace")


@pytest.mark.parametrize("mark", ["▁", "Ġ", " "])
def test_golden_words(mark):
    """Reference value 3 of the card."""
    pieces = [piece.replace("▁", mark) for piece in ("▁Jo", "hn", "▁wrote", "▁Dune", ".")]
    found = word_shares(pieces, [0.5, 0.3, -0.2, 1.0, 0.2])
    assert found == pytest.approx({"john": 0.4, "wrote": 0.0, "dune": 0.6})
    assert found["wrote"] == 0
    assert list(found) == ["john", "wrote", "dune"]


def test_a_mark_alone_begins_the_word_that_follows():
    assert word_shares(["a", "▁", "b"], [1.0, 1.0, 2.0]) == {"a": 0.25, "b": 0.75}


def test_repeated_words_are_summed_before_they_are_cut_off():
    found = word_shares([" Rome", " and", " rome", "'s", " end"], [3.0, 0.0, -2.0, 0.0, 1.0])
    assert found == {"rome": 0.5, "and": 0.0, "end": 0.5}


def test_punctuation_alone_is_no_word():
    assert word_shares([" yes", " .", " --"], [1.0, 5.0, 2.0]) == {"yes": 1.0}


@pytest.mark.parametrize("scores", [[math.nan, 1.0], [1.0, math.inf], [-1.0, 0.0]])
def test_answers_without_a_usable_score_are_skipped(scores):
    assert word_shares([" a", " b"], scores) == {}


@given(st.lists(st.tuples(st.sampled_from([" x", " y", "z", " .", ""]), SCORES), max_size=8))
def test_shares_are_not_negative_and_sum_to_one(rows):
    found = word_shares([piece for piece, _ in rows], [score for _, score in rows])
    assert all(share >= 0 for share in found.values())
    assert sum(found.values()) == pytest.approx(1.0) or not found


@pytest.mark.parametrize(
    ("word", "plain"),
    [
        ("Dune's", "dune"),
        ("“Émile’s”,", "émile"),
        ("(O'Neil)", "o'neil"),
        ("--", ""),
        ("X-ray.", "x-ray"),
    ],
)
def test_plain_words(word, plain):
    assert plain_word(word) == plain


def test_words_are_ranked_over_answers_of_equal_weight():
    answers = [{"a": 0.6, "b": 0.4}, {"b": 0.3, "c": 0.7}, {}, {"d": 0.6}]
    assert ranked_words(answers) == ["b", "c", "a", "d"]


def test_pieces_are_what_each_token_adds():
    text = "né à Rø"
    pieces = pieces_of(Bytes(), [*text.encode(), 0])
    assert "".join(pieces) == text
    assert pieces == ["n", "", "é", " ", "", "à", " ", "R", "", "ø", ""]


# --- masks ---


def test_foremost_words_are_masked_whole_and_in_any_case():
    text, places = masked("Anna met Ann; ANN left.", ["ann"], 5, "***")
    assert (text, places) == ("Anna met ***; *** left.", 2)


def test_only_so_many_words_that_stand_in_the_answer_count():
    ranked = ["mars", "dune", "wrote", "john"]
    assert masked("john wrote dune", ranked, 2, "***") == ("john *** ***", 2)


def test_stop_words_are_never_masked():
    assert masked("he was there", ["was", "he", "there"], 5, "***") == ("he was there", 0)


def test_the_longest_word_is_masked_first():
    """Otherwise `x` would tear `x-ray` apart."""
    assert masked("x-ray of x", ["x", "x-ray"], 5, "#") == ("# of #", 2)


def test_a_mask_is_text_and_no_pattern():
    assert masked("a dune", ["dune"], 1, r"\1") == (r"a \1", 1)


def test_what_remains_of_a_name_is_masked():
    text, places = masked("Jorin Velmark, or Jo Li", [], 5, "***", name="Jorin Velmark Li")
    assert (text, places) == ("*** ***, or Jo Li", 2)  # short parts stay


@given(st.text("ab cé'-.", max_size=20), st.lists(st.text("abcé", min_size=1, max_size=3)))
def test_no_chosen_word_is_left(answer, ranked):
    text, places = masked(answer, ranked, len(ranked), "***")
    again, left = masked(text, ranked, len(ranked), "***")
    assert left == 0
    assert again == text
    assert (places == 0) == (text == answer)
