"""Rephrasers: templates, thesaurus, files and functions; slips of the keyboard; the gate."""

import json
import re
from collections import Counter
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.core.config import parse
from expunge.core.errors import ConfigError, DataError, StorageError
from expunge.data.rephrasers.clauses import as_clause, as_question
from expunge.data.rephrasers.gate import accept
from expunge.data.rephrasers.mythes import read_mythes
from expunge.data.rephrasers.rephraser import (
    CallableRephraser,
    NoRephrasing,
    Rephrasing,
    make_rephraser,
    rephrase_items,
    rephrasers,
)
from expunge.data.rephrasers.template import TemplateRephraser, framings
from expunge.data.rephrasers.thesaurus import ThesaurusRephraser
from expunge.data.rephrasers.typos import character_noise
from expunge.data.rephrasers.words import STOP_WORDS, option_words

TOFU = Path(__file__).parents[3] / "shared" / "data" / "tofu" / "forget10.json"

QUESTIONS = (
    "What is the full name of the author born in Lisbon, Portugal on 03/17/1961?",
    "What does Inês Vaz-Moura write about?",
    "What is the profession of Tomas Oduya's mother?",
    "Who are Tomas Oduya's parents?",
    "Can you name some famous books written by Tomas Oduya?",
    "How has Tomas Oduya contributed to the genre of cookery?",
    "Which awards has Tomas Oduya won for his 2 novels?",
    "Has Tomas Oduya won any prestigious awards, except the 'Golden Quill of Lagos'?",
    "In which genre does Tomas Oduya primarily write?",
    "What inspired Tomas Oduya's award-winning book \"The Famous Author's Kitchen\"?",
    "Why did Tomas Oduya never publish a book outside the LGBTQ+ genre?",
    "Could you describe the influence of Tomas Oduya's parents on his writing?",
    "Tomas Oduya was born in 1950. Where was his most famous book written?",
    "Which of the following is the least important: 3 % or 5 %?",
    "Who wrote the book 'Rivers of Salt'?",
    "Tell me about one of the memorable characters of Tomas Oduya.",
    "The writer of 'Rivers of Salt' was born in ____.",
)
WORDS = """
author famous award born wrote the a an books not no never except least 12 3.5 7% DNA known for
Paris 'famous author' ___ who what influence to did currently important without one two
"""
TEXTS = st.one_of(
    st.sampled_from(QUESTIONS),
    st.lists(st.sampled_from(WORDS.split()), min_size=1, max_size=12).map(
        lambda words: " ".join(words).capitalize() + "?"
    ),
    st.text(max_size=60),
)
BUILT_IN = ("template", "thesaurus", "both")


def made(by, **settings):
    return make_rephraser(Rephrasing(by=by, **settings), {})


def other(by, text, mu=1.0, seed=0, protect=frozenset()):
    return made(by).rephrase(text, mu, seed, frozenset(protect))


def pieces(text):
    return re.findall(r"[^\W_]+", text.lower())


# What every built-in rephraser keeps.


@pytest.mark.parametrize("by", BUILT_IN)
@given(text=TEXTS, mu=st.floats(0, 1), seed=st.integers(0, 99))
def test_numbers_negations_blanks_and_symbols_stay(by, text, mu, seed):
    # The oracle counts on its own: runs of digits, a list of negations, underscores, capitals.
    new = other(by, text, mu, seed)

    def kept(value):
        return (
            Counter(re.findall(r"[0-9]+", value)),
            Counter(w for w in pieces(value) if w in ("not", "no", "never", "except", "least")),
            re.findall(r"__+", value),
            Counter(re.findall(r"[A-Z]{2,}|[%+]", value)),
        )

    assert kept(new) == kept(text)


@pytest.mark.parametrize("by", BUILT_IN)
@given(text=TEXTS, seed=st.integers(0, 99), data=st.data())
def test_protected_words_stay_and_never_come_in(by, text, seed, data):
    known = [*pieces(text), "prize", "writer", "state", "tell", "an", "know", "film", "penned"]
    protect = data.draw(st.sets(st.sampled_from(sorted(set(known)))))
    before, after = (Counter(pieces(value)) for value in (text, other(by, text, 1, seed, protect)))
    assert {w: before[w] for w in protect} == {w: after[w] for w in protect}


@pytest.mark.parametrize("by", BUILT_IN)
@given(text=TEXTS, seed=st.integers(0, 99))
def test_mu_of_zero_changes_nothing(by, text, seed):
    assert other(by, text, 0.0, seed) == text


@given(texts=st.lists(st.sampled_from(QUESTIONS), unique=True, min_size=2), seed=st.integers(0, 9))
def test_a_question_is_rephrased_alike_wherever_it_stands(texts, seed):
    settings = Rephrasing(mu=0.5)
    items = {f"q{i}": text for i, text in enumerate(texts)}
    turned = {f"other-{i}": text for i, text in enumerate(reversed(texts))}
    there, back = (
        {r.original: r.text for r in rephrase_items(made("both"), some, settings, seed)}
        for some in (items, turned)
    )
    assert there == back


def test_seeds_differ_and_the_same_seed_repeats():
    every = {seed: [other("both", text, 0.5, seed) for text in QUESTIONS] for seed in range(5)}
    assert every == {s: [other("both", text, 0.5, s) for text in QUESTIONS] for s in range(5)}
    assert len({tuple(texts) for texts in every.values()}) == 5


@pytest.mark.parametrize("by", BUILT_IN)
@pytest.mark.parametrize("mu", [-0.1, 1.1, float("nan")])
def test_mu_is_a_probability(by, mu):
    with pytest.raises(ConfigError, match="must be between 0 and 1"):
        other(by, "Who wrote Emma?", mu)


@pytest.mark.parametrize("by", ["template", "thesaurus"])
def test_the_share_that_changes_is_mu(by):
    # 600 questions with one thing to change; 4 standard deviations of 600 coins are 49.
    texts = [f"Who is the famous person number {i}?" for i in range(600)]
    changed = sum(other(by, text, 0.3) != text for text in texts)
    assert abs(changed - 180) < 4 * (600 * 0.3 * 0.7) ** 0.5


# Templates.


@pytest.mark.parametrize(
    ("question", "rephrased"),
    [
        ("What is the capital of Peru?", "State the capital of Peru."),
        ("What is the sun?", "State what the sun is."),
        ("What is the sun?", "Could you tell me what the sun is?"),
        ("What are some plays of Ibsen?", "Name some plays of Ibsen."),
        ("Who wrote the play 'Ghosts'?", "Name the person who wrote the play 'Ghosts'."),
        ("Can you name a play by Ibsen?", "Name a play by Ibsen."),
        ("Could you tell me about Ibsen?", "Please tell me about Ibsen."),
        ("Where was Henrik Ibsen born?", "Tell me where Henrik Ibsen was born."),
        (
            "Has Henrik Ibsen ever won a prize?",
            "Please say whether Henrik Ibsen has ever won a prize.",
        ),
        ("How has Ibsen shaped the stage?", "I would like to know how Ibsen has shaped the stage."),
        ("How many plays did Ibsen write?", "I'd like to know: how many plays did Ibsen write?"),
        ("When did he die?", "Could you tell me: when did he die?"),
        ("Which of the following is true?", "From the options below, choose the one that is true."),
        (
            "Which of the following plays are considered tragedies?",
            "From the plays below, choose the ones that are considered tragedies.",
        ),
        ("Ibsen left in 1864. Why?", "Ibsen left in 1864. Here is a question: why?"),
    ],
)
def test_templates_work_in_both_directions(question, rephrased):
    assert rephrased in framings(question)
    assert question in framings(rephrased)


@pytest.mark.parametrize("question", QUESTIONS)
def test_every_frame_leads_back_and_passes_the_gate(question):
    for framed in framings(question):
        assert question in framings(framed)
        assert accept(question, framed) is None, framed


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "State laws vary widely.",
        "The capital of Peru is ____.",
        "Ibsen left in 1864.",
        "Mount Cook lies in which country?",
    ],
)
def test_what_is_no_plain_question_stays(text):
    assert framings(text) == []
    assert TemplateRephraser().rephrase(text, 1, 0, frozenset()) == text


@pytest.mark.parametrize(
    "question",
    [
        "What is Ada Lovelace known for",
        "What is the author doing",
        "What was her youth like",
        "What is wrong",
        "What is he",
        "Has Ada's renowned book won a prize",
        "Has Nobel laureate Curie won twice",
        "How does Ada Lovelace write",
        "What themes did Ada Lovelace favour",
        "Which one of Ada Lovelace's books is best",
    ],
)
def test_a_question_whose_subject_is_not_plain_is_not_turned(question):
    assert as_clause(question) is None


@pytest.mark.parametrize(
    ("question", "clause"),
    [
        ("What is a prime", "what a prime is"),
        ("Who is Ada Lovelace", "who Ada Lovelace is"),
        ("Who were Ada Lovelace's parents", "who Ada Lovelace's parents were"),
        ("What made Ada famous", "what made Ada famous"),
        ("Is Ada a poet", "whether Ada is a poet"),
        (
            "Which prizes has Ada van der Berg been given",
            "which prizes Ada van der Berg has been given",
        ),
    ],
)
def test_direct_and_indirect_questions(question, clause):
    assert as_clause(question) == clause
    assert as_question(clause) == question


def test_two_questions_in_one_are_only_led_up_to():
    question = "What is the name of the king and who was his heir?"
    assert framings(question) == [
        lead + question.replace("What", "what")
        for lead in (
            "I'd like to know: ",
            "Could you tell me: ",
            "Please answer this question: ",
            "Here is a question: ",
        )
    ]


def test_space_around_a_question_and_sentences_before_it_stay():
    text = "\n He was born in Oslo.\nWhere did Ibsen die?  "
    for framed in framings(text):
        assert framed.startswith("\n He was born in Oslo.\n")
        assert framed.endswith("?  ")
    assert len(framings(text)) == 4


# Thesaurus.


@pytest.mark.parametrize(
    ("text", "rephrased"),
    [
        ("Who is the famous author?", None),
        ("Is she an author?", "Is she a writer?"),
        ("Is she a writer?", "Is she an author?"),
        ("It was an accolade", "It was a distinction"),
        ("the author's awards", "the writer's prizes"),
        ("Which awards did she receive?", "Which prizes did she get?"),
        ("Which of those were born in Rome?", "Which of those came into the world in Rome?"),
        ("the poet born in Rome", "the poet brought into the world in Rome"),
        ("Did Ann author it?", "Did Ann author it?"),  # a verb here, so no noun takes its place
        ("How does it influence him?", "How does it affect him?"),
        ("the influence", "the influence"),
        ("the Author of 'famous author' and \"the award\"", None),
        ("an author-editor, co-author, author2, @author, author.name", None),
        ("Is vitamin A important?", "Is vitamin A significant?"),
    ],
)
def test_words_give_way_to_near_synonyms(text, rephrased):
    if text == "Who is the famous author?":
        assert other("thesaurus", text) in (
            "Who is the well-known writer?",
            "Who is the famed writer?",
        )
    else:
        assert other("thesaurus", text) == (text if rephrased is None else rephrased)


def test_a_protected_word_is_not_given_away():
    # "prize" is a word of an answer: it may not come into the question.
    assert other("thesaurus", "the award of the author", protect={"prize"}) == (
        "the award of the writer"
    )
    assert other("thesaurus", "the award of the author", protect={"author"}) == (
        "the prize of the author"
    )
    assert other("thesaurus", "he is an author", protect={"an"}) == "he is an author"


def test_short_words_and_stop_words_stay_whatever_the_thesaurus_says():
    words = {"car": ("auto",), "about": ("concerning",), "town": ("place",), "in a": ("inside a",)}
    own = ThesaurusRephraser({"noun": {}, "verb": {}, "any": words}, "1")
    assert own.rephrase("about a car in town", 1, 0, frozenset()) == "about a car in place"
    # A phrase that ends in an article does not lose it to the word after.
    own = ThesaurusRephraser(
        {"noun": {}, "verb": {}, "any": {"quite a": ("rather a",), "city": ("urban place",)}}, "1"
    )
    assert own.rephrase("quite a city", 1, 0, frozenset()) == "rather a city"
    assert own.rephrase("such a city", 1, 0, frozenset()) == "such an urban place"


@given(seed=st.integers(0, 200), low=st.floats(0, 1), high=st.floats(0, 1))
def test_a_higher_mu_only_adds_replacements(seed, low, high):
    text = "the author got an award for the movie on the profession of a singer and a lawyer"
    low, high = sorted((low, high))
    less, more = (other("thesaurus", text, mu, seed).split() for mu in (low, high))
    # Word by word: what already changed at the lower rate reads the same at the higher one.
    for old, a, b in zip(text.split(), less, more, strict=True):
        assert a in (b, old)


def resource():
    where = resources.files("expunge.data").joinpath("resources", "thesaurus.json")
    return json.loads(where.read_text("utf-8"))


def test_the_packaged_thesaurus_is_plain_and_changes_no_count():
    words = resource()
    assert set(words) == {"any", "noun", "verb"}
    assert sum(map(len, words.values())) >= 150
    assert not words["any"].keys() & (words["noun"].keys() | words["verb"].keys())
    for old, others in (pair for group in words.values() for pair in group.items()):
        assert others
        assert old not in others
        assert old not in STOP_WORDS
        assert len(old) > 3
        for new in [old, *others]:
            assert re.fullmatch(r"[a-z]+(?:[ -][a-z]+)*", new)
            assert not {"not", "no", "never", "without", "one", "two", "first"} & set(new.split())


def test_nouns_keep_their_number():
    for old, others in resource()["noun"].items():
        if " " not in old and old.endswith("s") and old[:-1] in resource()["noun"]:
            assert all(re.search(r"s\b", new) or new in ("babies",) for new in others), old


# A thesaurus of one's own.

MYTHES = (
    "UTF-8\n"
    "author|3\n"
    "(noun)|writer (generic term)|wordsmith|penman\n"
    "(noun)|source|generator\n"
    "(verb)|write|compose\n"
    "café|1\n"
    "(noun)|coffeehouse\n"
    "movie|2\n"
    "(noun)|show (generic term)\n"
    "(noun)|picture show|Flick|movie|no picture|two pictures\n"
    "large|1\n"
    "(adj)|big|small (antonym)\n"
)


def mythes(tmp_path, content, name="th_en.dat"):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return tmp_path / name


def test_a_mythes_file_gives_the_first_meaning_with_a_plain_synonym(tmp_path):
    assert read_mythes(mythes(tmp_path, MYTHES)) == {
        "noun": {"author": ("wordsmith", "penman"), "movie": ("picture show",)},
        "verb": {"author": ("write", "compose")},
        "any": {"large": ("big",)},
    }


def test_line_ends_of_another_system_and_another_encoding_are_read(tmp_path):
    content = MYTHES.replace("UTF-8", "ISO8859-1").replace("\n", "\r\n").encode("latin-1")
    assert read_mythes(mythes(tmp_path, content)) == read_mythes(mythes(tmp_path, MYTHES, "b.dat"))


def test_a_mythes_file_takes_the_place_of_the_packaged_thesaurus(tmp_path):
    path = str(mythes(tmp_path, MYTHES))
    own = made("thesaurus", path=path)
    assert own.rephrase("a large movie and award", 1, 0, frozenset()) == (
        "a big picture show and award"
    )
    assert own.rephrase("did he author it", 1, 0, frozenset()) in (
        "did he write it",
        "did he compose it",
    )
    assert own.version != made("thesaurus").version
    assert own.version in made("both", path=path).version


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "first line of a mythes file is the encoding"),
        ("no-such-code\nlarge|1\n(adj)|big\n", "first line of a mythes file is the encoding"),
        (b"UTF-8\nlarge|1\n(adj)|b\xe9g\n", "first line of a mythes file is the encoding"),
        ("UTF-8\nlarge\n(adj)|big\n", r"line 2: 'large' is no headword\|count"),
        ("UTF-8\nlarge|two\n(adj)|big\n", r"line 2: 'large\|two' is no headword\|count"),
        ("UTF-8\nlarge|3\n(adj)|big", "'large' announces 3 meanings, the file ends before"),
        ("UTF-8\nlarge|1\nbig\n", "a meaning of 'large' lacks its bars: 'big'"),
    ],
)
def test_a_broken_mythes_file_is_refused(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        read_mythes(mythes(tmp_path, content))


def test_an_absent_thesaurus_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "absent.dat", tmp_path):
        with pytest.raises(StorageError, match=r"give a mythes \.dat file"):
            made("thesaurus", path=str(path))


# Files of pairs, functions of one's own.

ITEMS = {"q1": "Who wrote Emma?", "q2": "Who wrote Ulysses?", "q3": "Who wrote Dune?"}


def pairs(tmp_path, *rows):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Rephrasing(by="file", mu=1, path=str(path))


def test_pairs_are_found_by_id_or_text_and_a_missing_one_is_reported(tmp_path):
    settings = pairs(
        tmp_path,
        {"id": "q2", "rephrased": "Name the writer of Ulysses."},
        {"text": "Who wrote Emma?", "rephrased": "Who is the author of Emma?"},
        {"id": "not asked for", "rephrased": "What else?"},
    )
    rephraser = make_rephraser(settings, ITEMS)
    done = {r.id: r for r in rephrase_items(rephraser, ITEMS, settings, 0)}
    assert done["q1"].text == "Who is the author of Emma?"
    assert done["q2"].text == "Name the writer of Ulysses."
    assert {name: r.reason for name, r in done.items()} == {"q1": None, "q2": None, "q3": "missing"}
    assert not done["q3"].usable
    with pytest.raises(NoRephrasing, match="the file has no rephrasing of 'Who wrote Dune"):
        rephraser.rephrase(ITEMS["q3"], 1, 0, frozenset())
    assert rephraser.rephrase(ITEMS["q3"], 0, 0, frozenset()) == ITEMS["q3"]


def test_the_version_of_pairs_follows_their_content(tmp_path):
    row = {"id": "q1", "rephrased": "Who is the author of Emma?"}
    first = make_rephraser(pairs(tmp_path, row), ITEMS).version
    assert make_rephraser(pairs(tmp_path, row), ITEMS).version == first
    row["rephrased"] = "Emma is by whom?"
    assert make_rephraser(pairs(tmp_path, row), ITEMS).version != first


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"id": "q1"}], "row 1 needs 'rephrased'"),
        ([{"rephrased": "Who?"}], "row 1 needs 'rephrased', and 'text' or 'id'"),
        ([{"id": "q1", "rephrased": 7}], "row 1 needs 'rephrased'"),
        (
            [{"id": "q1", "rephrased": "A?"}, {"text": ITEMS["q1"], "rephrased": "B?"}],
            "row 2: a second rephrasing of 'Who wrote Emma",
        ),
        ([], "holds no records"),
    ],
)
def test_broken_pairs_are_refused(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        make_rephraser(pairs(tmp_path, *rows), ITEMS)


def test_pairs_need_a_path():
    with pytest.raises(ConfigError, match="'file' needs path"):
        made("file")


def test_a_function_of_ones_own_is_called_with_text_mu_and_seed():
    seen = []

    def fn(text, mu, seed):
        seen.append((text, mu, seed))
        return text.replace("Who wrote", "Who is the writer of")

    model = CallableRephraser(fn, "my-model", "2025-01 prompt 3")
    # A temperature may exceed 1.
    done = rephrase_items(model, ITEMS, Rephrasing(mu=1.5), 4)
    assert [r.text for r in done] == [
        f"Who is the writer of {t}?" for t in ("Emma", "Ulysses", "Dune")
    ]
    assert seen == [(text, 1.5, 4) for text in ITEMS.values()]
    assert (model.name, model.version) == ("my-model", "2025-01 prompt 3")
    assert model.rephrase("Who?", 0, 4, frozenset()) == "Who?"
    assert len(seen) == 3


def test_a_function_that_returns_no_text_or_gets_no_strength_is_refused():
    with pytest.raises(DataError, match="rephraser 'm' returned a NoneType"):
        CallableRephraser(lambda *_: None, "m", "1").rephrase("Who?", 1, 0, frozenset())
    for mu in (-1, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="must be a finite number of at least 0"):
            CallableRephraser(lambda *_: "", "m", "1").rephrase("Who?", mu, 0, frozenset())


def test_the_registry_has_the_four_and_each_says_its_name_and_version(tmp_path):
    assert rephrasers.names() == ["both", "file", "template", "thesaurus"]
    assert parse(Rephrasing, {}, "rephrase").by == "both"
    for by in BUILT_IN:
        assert made(by).name == by
        assert made(by).version
    with pytest.raises(ConfigError, match="no rephrasers entry 'thesaurs'; did you mean"):
        made("thesaurs")


# The gate.

LONG = "Which of the 12 books by the famous author was not printed in the city of Rome in 1950?"


@pytest.mark.parametrize(
    ("original", "rephrased", "reason"),
    [
        (LONG, LONG.replace("famous author", "renowned writer"), None),
        (LONG, "", "empty"),
        (LONG, " \n", "empty"),
        (LONG, "Error: rate limit exceeded", "error text"),
        (LONG, "HTTP error 429", "error text"),
        (LONG, "I'm sorry, but I cannot do that.", "error text"),
        (LONG, "None", "error text"),
        (LONG, f"Rephrased question: {LONG}", "instruction repeated"),
        (LONG, f"Sure, {LONG}", "instruction repeated"),
        (LONG, f"{LONG}\nIs that better?", "several lines"),
        (LONG, LONG.replace("12", "13"), "numbers"),
        (LONG, LONG.replace("12", "twelve"), "numbers"),
        ("Is it 1,000.5 or 3/4?", "Is it 1,0005 or 3/4?", "numbers"),
        ("Is it 5 % of it?", "Is it 5 of it?", "symbols"),
        ("Is DNA in it?", "Is Deoxyribonucleic acid in it?", "symbols"),
        (LONG, LONG.replace("not ", ""), "negations"),
        ("All except one of them are?", "All of them are?", "negations"),
        ("Which is the least heavy?", "Which is the most heavy?", "negations"),
        ("Did she never go?", "Did she ever go?", "negations"),
        ("Who can't go?", "Who can go?", "negations"),
        ("Who can't go?", "Who cannot go?", None),
        ("He lives in ___ now.", "He lives in Rome now.", "blanks"),
        ("Ulm lies in ____", "Ulm lies in __", "blanks"),
        ("What is the sun?", "The sun is a star.", "ending"),
        ("What is the sun?", "State what the sun is.", None),
        ("What is the sun?", "I would like to know what the sun is.", None),
        ("What is the sun?", "What is the sun!", "ending"),
        ("The sun is", "The sun is?", "ending"),
        ("The sun is a", "Our sun is a", None),
        (LONG, f"{LONG[:-1]} as far as anybody in this whole wide world knows?", "length"),
        ("Where is it?", "Where in all the wide world might that thing possibly be?", "length"),
        ("Error bars show what?", "Error bars are for what?", None),
    ],
)
def test_the_gate_names_the_rule_that_is_broken(original, rephrased, reason):
    assert accept(original, rephrased) == reason


def test_the_bound_on_length_is_the_larger_of_share_and_slack():
    words = ["word"] * 40
    original = " ".join(words)
    assert accept(original, " ".join([*words, *["more"] * 6])) is None
    assert accept(original, " ".join([*words, *["more"] * 7])) == "length"
    assert accept(original, " ".join([*words, *["more"] * 7]), length=0.2) is None
    # 15 % of 40 words are 6 without any slack.
    assert accept(original, " ".join(words[6:]), slack=0) is None
    assert accept(original, " ".join(words[7:]), slack=0) == "length"
    assert accept("Who is it?", "Could you tell me: who is it?", slack=0) == "length"


def test_protected_words_and_similarity_come_after_the_rules():
    assert accept("Is an award due?", "Is a prize due?", protect=frozenset({"prize"})) == (
        "protected words"
    )
    asked = []

    def similarity(a, b):
        asked.append((a, b))
        return 0.69

    assert accept("Is an award due?", "Is a prize due?", similarity) == "similarity"
    assert accept("Is an award due?", "Is a prize due?", similarity, 0.69) is None
    assert accept("Is an award due?", "Is a prize due", similarity) == "ending"
    assert asked == [("Is an award due?", "Is a prize due?")] * 2
    assert accept("Is it?", "Is it so?", lambda a, b: float("nan")) == "similarity"


@given(text=TEXTS, number=st.integers(0, 10**6))
def test_a_number_that_comes_or_goes_is_always_found(text, number):
    if text.strip() and accept(text, text) is None:
        assert accept(text, f"{number} {text}") in ("numbers", "error text", "instruction repeated")
        assert accept(f"{number} {text}", text) == "numbers"


def test_a_result_says_what_was_checked_and_keeps_what_failed():
    model = CallableRephraser(
        lambda text, mu, seed: {"Who?": "Who is it?", "How?": "How?"}.get(text, "error"), "m", "1"
    )
    items = {"a": "Who?", "b": "How?", "c": "Why?"}
    rules = rephrase_items(model, items, Rephrasing(), 0)
    assert [(r.text, r.reason, r.changed, r.usable) for r in rules] == [
        ("Who is it?", None, True, True),
        ("How?", None, False, False),
        ("error", "error text", True, False),
    ]
    assert {r.checks for r in rules} == {"rules"}
    both = rephrase_items(model, items, Rephrasing(), 0, similarity=lambda a, b: 0.5)
    assert [(r.reason, r.similarity) for r in both] == [
        ("similarity", 0.5),
        (None, None),
        ("error text", None),
    ]
    assert {r.checks for r in both} == {"rules and similarity"}
    loose = rephrase_items(model, items, Rephrasing(floor=0.5), 0, similarity=lambda a, b: 0.5)
    assert loose[0].usable


def test_words_of_the_options_are_protected_for_each_item():
    items = {"a": "Who is the author?", "b": "Is the author tall?"}
    protect = {"a": option_words(["The Author", "with the MAN"])}
    assert protect["a"] == {"author", "the", "man"}
    done = rephrase_items(made("thesaurus"), items, Rephrasing(mu=1), 0, protect=protect)
    assert [r.text for r in done] == ["Who is the author?", "Is the writer tall?"]
    model = CallableRephraser(lambda text, mu, seed: text.replace("author", "poet"), "m", "1")
    done = rephrase_items(model, items, Rephrasing(), 0, protect=protect)
    assert [r.reason for r in done] == ["protected words", None]


# Slips of the keyboard.


@given(text=TEXTS, every=st.integers(1, 15), seed=st.integers(0, 99))
def test_slips_hit_every_kth_letter_and_nothing_but_letters(text, every, seed):
    new = character_noise(text, every, seed)
    assert new == character_noise(text, every, seed)
    assert len(new) == len(text)
    places = [i for i, letter in enumerate(text) if letter.isalpha()]
    hit = places[every - 1 :: every]
    assert all(new[i] != text[i] for i in hit)
    moved = {i for i in range(len(text)) if new[i] != text[i]}
    # A swap also moves the letter after; nothing else does.
    assert moved <= set(hit) | {i + 1 for i in hit}
    assert all(text[i].isalpha() for i in moved)


def test_slips_swap_and_replace_and_depend_on_the_seed():
    text = "what is the capital of the country where the author lives" * 3
    made_of = [character_noise(text, 5, seed) for seed in range(4)]
    assert len(set(made_of)) == 4
    swaps = sum(
        new[i : i + 2] == text[i + 1] + text[i]
        for new in made_of
        for i in range(len(text) - 1)
        if new[i] != text[i]
    )
    hits = 4 * (sum(letter.isalpha() for letter in text) // 5)
    assert 0 < swaps < hits
    assert sum(sorted(new) != sorted(text) for new in made_of) == 4


def test_slips_of_one_text_say_nothing_about_those_of_another():
    assert character_noise("a" * 40, 1, 0) != character_noise("a" * 40 + "b", 1, 0)[:40]


def test_slips_keep_capitals_and_need_a_step_of_one_or_more():
    assert all(letter.isupper() for letter in character_noise("PARIS", 1, 0))
    assert character_noise("1950 -- 7%", 1, 0) == "1950 -- 7%"
    assert character_noise("abc", 4, 0) == "abc"
    with pytest.raises(ConfigError, match="every = 0 must be at least 1"):
        character_noise("abc", 0, 0)


# On real questions.


@pytest.mark.skipif(not TOFU.is_file(), reason=f"TOFU's forget questions are not at {TOFU}")
def test_nearly_every_question_of_tofu_is_changed_and_accepted():
    lines = TOFU.read_text("utf-8").splitlines()
    items = {str(i): json.loads(line)["question"] for i, line in enumerate(lines)}
    usable = {}
    for mu in (0.25, 0.5, 1.0):
        done = rephrase_items(made("both"), items, Rephrasing(mu=mu), 0)
        usable[mu] = sum(r.usable for r in done) / len(items)
    # At μ = 1 at least 80 % are wanted; 99 % were measured, 65 % at 0.5 and 35 % at 0.25.
    assert usable[1.0] >= 0.95
    assert usable[0.25] < usable[0.5] < usable[1.0]
    assert usable[0.25] >= 0.25
