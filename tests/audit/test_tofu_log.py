"""Evaluation logs in TOFU's format: published figures, definitions written anew, and bad logs."""

import copy
import json
import math
import random
import statistics
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ks_2samp

import expunge.audit.tofu as suite
from expunge.audit import tofu_log
from expunge.audit.evidence import Evidence, Subject
from expunge.audit.readings import Reading
from expunge.audit.tofu_log import parse_tofu_log, read_tofu_log
from expunge.audit.tofu_log_findings import tofu_log_findings
from expunge.core.errors import ConfigError, DataError, StorageError
from expunge.core.finding import Finding
from expunge.core.run import Run

LOGS = Path(__file__).parents[3] / "shared" / "data" / "tofu_logs"
FULL, RETAINED = LOGS / "phi_full.json", LOGS / "phi_retain90.json"
needs_logs = pytest.mark.skipif(
    not (FULL.is_file() and RETAINED.is_file()),
    reason=f"the two published logs of Phi-1.5 (repository locuslab/tofu) are not in {LOGS}",
)

FILES = {
    "forget": "eval_log_forget.json",
    "retain": "eval_log.json",
    "real_authors": "eval_real_author_wo_options.json",
    "world_facts": "eval_real_world_wo_options.json",
}
FORGET, RETAIN = FILES["forget"], FILES["retain"]
FIELDS = ("avg_gt_loss", "avg_paraphrased_loss", "average_perturb_loss", "rougeL_recall")

# Official aggregator on the published logs: ROUGE-L, probability, truth ratio; model utility.
PUBLISHED = {
    FULL: {
        "real_authors": (0.4157, 0.3774, 0.4560),
        "world_facts": (0.7774, 0.4090, 0.4923),
        "retain": (0.9293, 0.9261, 0.4827),
        "forget": (0.9249, 0.9282, 0.4834),
        "utility": 0.5221,
    },
    RETAINED: {
        "real_authors": (0.4753, 0.3842, 0.4638),
        "world_facts": (0.7557, 0.4081, 0.4883),
        "retain": (0.9200, 0.9231, 0.4847),
        "forget": (0.4279, 0.1349, 0.6288),
        "utility": 0.5320,
    },
}


def table(gold, paraphrase, wrong, rouge=None, ids=None):
    """Return one record set of a log, in the order and under the ids given."""
    ids = range(len(gold)) if ids is None else ids
    columns = (gold, paraphrase, wrong, [0.5] * len(gold) if rouge is None else rouge)
    return {
        field: {str(row): item for row, item in zip(ids, column, strict=True)}
        for field, column in zip(FIELDS, columns, strict=True)
    }


def small(n=6, seed=0, ids=None):
    """Return a log of random losses with three wrong answers per row."""
    draws = random.Random(seed)

    def loss():
        return draws.randrange(1, 4096) / 1024  # a float32 too

    return {
        file: table(
            [loss() for _ in range(n)],
            [loss() for _ in range(n)],
            [[loss() for _ in range(3)] for _ in range(n)],
            [draws.randrange(0, 9) / 8 for _ in range(n)],
            ids if file == FORGET else None,
        )
        for file in FILES.values()
    }


def ask(log, file, questions):
    log[file]["generated_text"] = {str(i): [q, "said", "true"] for i, q in questions.items()}
    return log


def found(log, retrained=None, **settings):
    """Return findings by metric and record set."""
    logs = [parse_tofu_log(one, "log") for one in (log, retrained) if one is not None]
    return by_name(tofu_log_findings(*logs, **settings))


def by_name(findings):
    made = {(one.metric, one.record_set): one for one in findings}
    assert len(made) == len(findings)
    return made


def ratio_s(rows, row, mean):
    """Return S of one row from the definition: truth over the mean of lies."""
    lies = [math.exp(-loss) for loss in rows["average_perturb_loss"][row]]
    return math.exp(-rows["avg_paraphrased_loss"][row]) / mean(lies)


def defined(path, name):
    """Return a set's four numbers straight from the definitions, row by row."""
    rows = json.loads(path.read_text())[FILES[name]]
    numbers = {"probability": [], "rouge_l": [], "truth_ratio": [], "truth_ratio_arithmetic": []}
    for row, loss in rows["avg_gt_loss"].items():
        p = math.exp(-loss)
        if name in ("real_authors", "world_facts"):
            p /= p + sum(math.exp(-lie) for lie in rows["average_perturb_loss"][row])
        numbers["probability"].append(p)
        numbers["rouge_l"].append(rows["rougeL_recall"][row])
        for metric, mean in (
            ("truth_ratio", statistics.geometric_mean),
            ("truth_ratio_arithmetic", statistics.fmean),
        ):
            s = ratio_s(rows, row, mean)
            numbers[metric].append(min(s, 1 / s) if name == "forget" else max(0, 1 - 1 / s))
    return {metric: statistics.fmean(values) for metric, values in numbers.items()}


@needs_logs
@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_a_published_log_gives_the_published_figures(path):
    numbers = by_name(tofu_log_findings(read_tofu_log(path)))
    for name in FILES:
        for metric, figure in zip(
            ("rouge_l", "probability", "truth_ratio"), PUBLISHED[path][name], strict=True
        ):
            assert numbers[metric, name].value == pytest.approx(figure, abs=5e-5), (metric, name)
    assert numbers["model_utility", ""].value == pytest.approx(PUBLISHED[path]["utility"], abs=5e-5)


@needs_logs
def test_published_logs_give_the_published_forget_quality():
    numbers = by_name(tofu_log_findings(read_tofu_log(FULL), read_tofu_log(RETAINED)))
    assert numbers["forget_quality", "forget"].value == pytest.approx(2.194e-16, rel=3e-4)
    assert numbers["forget_quality_distance", "forget"].value == pytest.approx(0.34667, abs=5e-6)
    assert numbers["forget_quality", "forget"].n == 300


@needs_logs
@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_a_published_log_gives_what_the_definitions_say(path):
    numbers = by_name(tofu_log_findings(read_tofu_log(path)))
    nine = []
    for name in FILES:
        for metric, value in defined(path, name).items():
            assert numbers[metric, name].value == pytest.approx(value, abs=1e-6), (metric, name)
            if name != "forget" and metric != "truth_ratio_arithmetic":
                nine.append(value)
    assert len(nine) == 9
    utility = numbers["model_utility", ""]
    assert utility.value == pytest.approx(statistics.harmonic_mean(nine), abs=1e-6)
    assert utility.n == 517


@needs_logs
def test_forget_quality_of_published_logs_is_scipys_of_ratios_from_the_definition():
    sample = []
    for path in (FULL, RETAINED):
        rows = json.loads(path.read_text())[FORGET]
        sample.append([ratio_s(rows, row, statistics.geometric_mean) for row in rows[FIELDS[0]]])
    expected = ks_2samp(*sample)
    numbers = by_name(tofu_log_findings(read_tofu_log(FULL), read_tofu_log(RETAINED)))
    assert numbers["forget_quality", "forget"].value == pytest.approx(expected.pvalue, rel=1e-6)
    logarithm = numbers["forget_quality_log10", "forget"].value
    assert logarithm == pytest.approx(math.log10(expected.pvalue), abs=1e-6)
    distance = numbers["forget_quality_distance", "forget"].value
    assert distance == pytest.approx(expected.statistic, abs=1e-6)


@needs_logs
def test_the_retrained_number_stands_beside_each_published_one():
    own, other = read_tofu_log(FULL), read_tofu_log(RETAINED)
    together, alone = by_name(tofu_log_findings(own, other)), by_name(tofu_log_findings(other))
    for name, one in together.items():
        if name[0].startswith("forget_quality"):
            assert one.reference is None
            continue
        assert one.reference.values == (alone[name].value,)
        assert one.reference.gap == one.value - alone[name].value


def test_both_truth_ratios_of_known_losses():
    # Official aggregator, geometric; the paper's R, arithmetic
    log = small(2)
    for file in (FORGET, RETAIN):
        log[file] = table([1.0, 0.5], [1.0, 0.5], [[1.5, 2.0, 1.2], [0.4, 0.9, 0.7]])
    numbers = found(log)
    for name, metric, value in (
        ("forget", "truth_ratio", 0.70694770),
        ("retain", "truth_ratio", 0.29305230),
        ("forget", "truth_ratio_arithmetic", 0.73122710),
        ("retain", "truth_ratio_arithmetic", 0.26877290),
    ):
        assert numbers[metric, name].value == pytest.approx(value, abs=1e-8)


def test_general_questions_are_scored_as_multiple_choice():
    # Official code
    log, wrong = small(2), [[2.0, 1.5, 3.0], [0.1, 0.4, 1.0]]
    log[FILES["world_facts"]] = table([1.0, 0.2], [1.0, 0.2], wrong)
    log[RETAIN] = table([1.0, 0.2], [1.0, 0.2], wrong)
    numbers = found(log)
    assert numbers["probability", "world_facts"].value == pytest.approx(0.38522128, abs=1e-8)
    plain = (math.exp(-1) + math.exp(-0.2)) / 2
    assert numbers["probability", "retain"].value == pytest.approx(plain, abs=1e-12)


def test_utility_of_nine_known_numbers():
    # Harmonic mean by scipy; ROUGE, probability, truth ratio of each set are planted
    nine = {
        "retain": (0.9, 0.5, 0.4),
        "real_authors": (0.9, 0.4, 0.5),
        "world_facts": (0.99, 0.99, 0.45),
    }
    log = small(2)
    for name, (rouge, p, ratio) in nine.items():
        lie = 9.0
        odds = math.log(p / (1 - p))
        gold = -math.log(p) if name == "retain" else lie - math.log(2) - odds
        true = lie + math.log(1 - ratio)
        log[FILES[name]] = table([gold] * 2, [true] * 2, [[lie, lie]] * 2, [rouge] * 2)
    numbers = found(log)
    for name, values in nine.items():
        for metric, value in zip(("rouge_l", "probability", "truth_ratio"), values, strict=True):
            assert numbers[metric, name].value == pytest.approx(value, abs=1e-12)
    assert numbers["model_utility", ""].value == pytest.approx(0.58197257, abs=1e-8)


def test_one_number_of_zero_leaves_no_utility_and_the_note_says_which():
    log = small()
    log[FILES["world_facts"]]["rougeL_recall"] = dict.fromkeys(map(str, range(6)), 0)
    utility = found(log)["model_utility", ""]
    assert utility.value == 0
    assert "rouge_l of world_facts is 0" in utility.note
    assert found(small())["model_utility", ""].note == ""


@pytest.mark.parametrize(
    ("ours", "theirs", "distance", "p"),
    [
        # scipy 1.17.1, ks_2samp
        ([0.1, 0.2, 0.3, 0.4], [0.15, 0.25, 0.35, 0.9], 0.25, 1.0),
        ([i / 40 for i in range(40)], [i / 40 + 0.3 for i in range(40)], 0.325, 0.02860307),
        ([0.1, 0.2, 0.3], [0.1, 0.2, 0.3], 0.0, 1.0),
        ([i / 20 for i in range(20)], [i / 20 + 1 for i in range(20)], 1.0, 1.45e-11),
    ],
)
def test_forget_quality_of_known_ratios(ours, theirs, distance, p):
    logs = []
    for ratios in (ours, theirs):
        log = small()
        log[FORGET] = table([1.0] * len(ratios), [0.0] * len(ratios), [[x, x] for x in ratios])
        logs.append(log)
    numbers = found(*logs)
    assert numbers["forget_quality_distance", "forget"].value == pytest.approx(distance, abs=1e-12)
    assert numbers["forget_quality", "forget"].value == pytest.approx(p, rel=2e-3, abs=1e-13)
    assert "can pass this test" in numbers["forget_quality", "forget"].note


def test_without_a_retrained_log_there_is_no_forget_quality():
    numbers = found(small())
    for metric in ("forget_quality", "forget_quality_log10", "forget_quality_distance"):
        assert numbers[metric, "forget"].value is None
        assert "no log of a retrained model" in numbers[metric, "forget"].note
    with pytest.raises(ConfigError, match="common rows need a second log"):
        found(small(), common_rows=True)


def test_a_log_gives_the_findings_of_the_audit_on_the_same_losses(make_scores):
    logs = [small(8, seed) for seed in (0, 1)]
    config = suite.TofuConfig(max_utility_records=0)
    subjects = []
    for role, log in zip(("after", "reference"), logs, strict=True):
        scores = {}
        for name, file in FILES.items():
            losses = {field: np.array(list(log[file][field].values())) for field in FIELDS}
            rouge_R = losses["rougeL_recall"]
            scores[Reading(name)] = make_scores(-losses["avg_gt_loss"], rouge=rouge_R)
            told = make_scores(-losses["avg_paraphrased_loss"])
            scores[Reading(name, "paraphrase")] = told
            for place, column in enumerate(losses["average_perturb_loss"].T):
                scores[Reading(name, f"perturbed:{place}")] = make_scores(-column)
        subjects.append(Subject(role, role, scores))
    after, reference = subjects
    evidence = Evidence(
        after=after, before=None, references=(reference,), sets="", audit=suite.tofu.__name__
    )
    audited = by_name([f for f in suite.tofu(evidence, config, Run()) if f.subject == "after"])
    del audited["utility_kept", ""]  # needs a model before forgetting
    imported = found(*logs)
    assert imported.keys() == audited.keys()
    for name, one in imported.items():
        other = audited[name]
        same = ("audit", "title", "n", "direction", "unit", "verdict", "version", "note")
        assert [getattr(one, k) for k in same] == [getattr(other, k) for k in same], name
        assert one.value == pytest.approx(other.value, abs=1e-12), name
        assert (one.interval is None) == (other.interval is None), name
        if one.interval is not None:
            ends = (other.interval.low, other.interval.high)
            assert (one.interval.low, one.interval.high) == pytest.approx(ends, abs=1e-12), name
        if not name[0].startswith("forget_quality"):
            assert one.reference.values == pytest.approx(other.reference.values, abs=1e-12), name


def test_findings_survive_json_and_depend_on_the_seed_only():
    log = parse_tofu_log(small(), "log")
    findings = tofu_log_findings(log)
    assert [Finding.from_json(json.loads(json.dumps(f.to_json()))) for f in findings] == findings
    assert tofu_log_findings(log) == findings
    other = tofu_log_findings(log, seed=1)
    assert [f.value for f in other] == [f.value for f in findings]
    assert [f.interval for f in other] != [f.interval for f in findings]


@given(st.randoms(use_true_random=False), st.booleans())
def test_order_of_rows_and_type_of_row_ids_change_nothing(draws, as_integers):
    log = small(12)
    shuffled = {}
    for file, tables in log.items():
        shuffled[file] = {}
        for field, rows in tables.items():
            items = [(int(row) if as_integers else row, item) for row, item in rows.items()]
            draws.shuffle(items)
            shuffled[file][field] = dict(items)
    read, expected = parse_tofu_log(shuffled, "log").sets, parse_tofu_log(log, "log").sets
    for name in FILES:
        assert read[name].ids == expected[name].ids == tuple(range(12))
        for column in ("loss_R", "rouge_R", "paraphrase_R", "wrong_RJ"):
            np.testing.assert_array_equal(
                getattr(read[name], column), getattr(expected[name], column)
            )


@given(st.sampled_from(sorted(FILES.values())), st.sampled_from(FIELDS), st.integers(0, 5))
def test_a_row_missing_in_one_field_is_refused_and_named(file, field, row):
    log = small()
    del log[file][field][str(row)]
    with pytest.raises(DataError) as refusal:
        parse_tofu_log(log, "mine")
    assert f"mine: {file}: {field} lacks rows {row}, " in str(refusal.value)


def without(log, rows):
    """Return a copy of a log that lacks some forgotten rows in every field."""
    less = copy.deepcopy(log)
    for field in FIELDS:
        for row in rows:
            del less[FORGET][field][str(row)]
    return less


@given(st.sets(st.integers(0, 9), max_size=8))
def test_a_missing_item_never_shifts_anothers_value(gone):
    whole = small(10)
    read = parse_tofu_log(without(whole, gone), "log").sets["forget"]
    assert set(read.ids) == set(range(10)) - gone
    for place, row in enumerate(read.ids):
        one = {field: whole[FORGET][field][str(row)] for field in FIELDS}
        assert read.loss_R[place] == one["avg_gt_loss"]
        assert read.paraphrase_R[place] == one["avg_paraphrased_loss"]
        assert list(read.wrong_RJ[place]) == one["average_perturb_loss"]
        assert read.rouge_R[place] == one["rougeL_recall"]


@pytest.mark.parametrize("gone", [{0}, {4}, {9}, {0, 3, 5, 8}])
def test_common_rows_are_tested_as_if_no_log_had_others(gone):
    whole, retrained = small(10), small(10, seed=1)
    expected = found(without(whole, gone), without(retrained, gone))
    for ours, theirs in (
        (without(whole, gone), retrained),
        (whole, without(retrained, gone)),
    ):
        numbers = found(ours, theirs, common_rows=True)
        for metric in ("forget_quality", "forget_quality_log10", "forget_quality_distance"):
            one, other = numbers[metric, "forget"], expected[metric, "forget"]
            assert (one.value, one.n) == (other.value, 10 - len(gone))


def test_logs_of_other_rows_are_refused_unless_common_rows_are_asked_for():
    ours, theirs = small(6), small(6, seed=1, ids=range(2, 8))
    with pytest.raises(DataError) as refusal:
        found(ours, theirs)
    message = str(refusal.value)
    assert "of the forget rows 2 (0, 1) are only in the log" in message
    assert "2 (6, 7) are only in the retrained one" in message
    assert "test the 4 common ones (--common-rows)" in message
    numbers = found(ours, theirs, common_rows=True)
    quality = numbers["forget_quality", "forget"]
    rows = [theirs[FORGET], ours[FORGET]]
    sample = [
        [ratio_s(one, str(row), statistics.geometric_mean) for row in range(2, 6)] for one in rows
    ]
    assert quality.value == pytest.approx(ks_2samp(*sample).pvalue)
    assert quality.n == 4
    assert quality.note.startswith("on the 4 rows in both logs: of the forget rows 2 (0, 1) are")
    # A mean over other rows is no reference; those over the same rows are.
    assert numbers["probability", "forget"].reference is None
    assert "are only in the log" in numbers["probability", "forget"].note
    assert numbers["probability", "forget"].n == 6
    assert numbers["probability", "retain"].reference is not None
    assert numbers["model_utility", ""].reference is not None


def test_utility_has_no_reference_where_a_utility_set_has_other_rows():
    ours, theirs = small(), small(seed=1)
    for field in FIELDS:
        del theirs[RETAIN][field]["5"]
    numbers = found(ours, theirs)
    for name in (("probability", "retain"), ("model_utility", "")):
        assert numbers[name].reference is None
        assert "1 (5) are only in the log and none are only in the retr" in numbers[name].note
    assert numbers["probability", "world_facts"].reference is not None
    assert numbers["forget_quality", "forget"].value is not None


def test_fewer_than_two_common_rows_are_refused():
    ours, theirs = small(6), small(6, seed=1, ids=range(5, 11))
    for common_rows in (False, True):
        with pytest.raises(DataError, match="share 1 forgotten rows, and forget quality needs"):
            found(ours, theirs, common_rows=common_rows)


def test_other_questions_under_the_same_row_ids_are_refused_without_quoting_them():
    ours = ask(small(), FORGET, {0: "Who is Ann?", 1: "Who is Bo?"})
    theirs = ask(small(seed=1), FORGET, {0: "Who is Ann?", 1: "Who is Cy?"})
    for common_rows in (False, True):
        with pytest.raises(DataError, match=r"different questions .*: 1 rows \(1\)") as refusal:
            found(ours, theirs, common_rows=common_rows)
        assert "Who" not in str(refusal.value)
    same = ask(small(seed=1), FORGET, {0: "Who is Ann?"})
    assert found(ours, same)["forget_quality", "forget"].value is not None


def test_a_question_both_forgotten_and_retained_is_refused_without_quoting_it():
    log = ask(small(), FORGET, {0: "Who is Ann?", 1: "Who is Bo?"})
    log = ask(log, RETAIN, {4: "Who is Bo?", 5: "Who is Cy?"})
    with pytest.raises(DataError, match=r"1 questions are in .* \(row = row: 1 = 4\)") as refusal:
        parse_tofu_log(log, "log")
    assert "Who" not in str(refusal.value)


@pytest.mark.parametrize("quoted", [7, {"0": "text"}, {"0": []}, {"x": ["q"]}, {"0": [3]}])
def test_generated_text_that_quotes_no_question_is_left_alone(quoted):
    log = small()
    log[FORGET]["generated_text"] = quoted
    assert found(log) == found(small())


@pytest.mark.parametrize(
    ("field", "item", "message"),
    [
        ("avg_gt_loss", math.nan, "avg_gt_loss is NaN or infinite in rows 3;"),
        ("avg_gt_loss", math.inf, "avg_gt_loss is NaN or infinite in rows 3;"),
        ("avg_gt_loss", 10**400, "avg_gt_loss is NaN or infinite in rows 3;"),
        ("avg_gt_loss", -0.1, "avg_gt_loss is negative in rows 3;"),
        ("avg_gt_loss", "1.0", "avg_gt_loss is no number in rows 3;"),
        ("avg_gt_loss", True, "avg_gt_loss is no number in rows 3;"),
        ("avg_gt_loss", None, "avg_gt_loss is no number in rows 3;"),
        ("avg_paraphrased_loss", math.nan, "avg_paraphrased_loss is NaN or infinite in rows 3;"),
        ("avg_paraphrased_loss", -1, "avg_paraphrased_loss is negative in rows 3;"),
        ("average_perturb_loss", [], "average_perturb_loss is empty in rows 3;"),
        ("average_perturb_loss", 1.0, "average_perturb_loss is no list of wrong answers in rows"),
        ("average_perturb_loss", [1, math.nan], "holds a loss that is NaN or infinite in rows 3;"),
        ("average_perturb_loss", [1, -1], "holds a loss that is negative in rows 3;"),
        ("average_perturb_loss", [[1]], "holds a loss that is no number in rows 3;"),
        ("rougeL_recall", 1.5, "rougeL_recall is above 1 in rows 3;"),
        ("rougeL_recall", -0.5, "rougeL_recall is negative in rows 3;"),
        ("rougeL_recall", math.nan, "rougeL_recall is NaN or infinite in rows 3;"),
    ],
)
def test_a_value_that_cannot_be_is_named_with_its_row(field, item, message):
    log = small()
    log[RETAIN][field]["3"] = item
    with pytest.raises(DataError) as refusal:
        parse_tofu_log(log, "log")
    assert message in str(refusal.value)
    assert str(refusal.value).startswith(f"log: {RETAIN}: ")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("key", ["x", "", "-1", "+1", "03", " 3", "1_0", "3.0", "٣", "9" * 5000])
def test_keys_that_are_no_row_ids_are_refused(key):
    log = small()
    for field in FIELDS:
        log[FORGET][field][key] = log[FORGET][field]["3"]
    with pytest.raises(DataError, match="has keys that are no row ids") as refusal:
        parse_tofu_log(log, "log")
    assert len(str(refusal.value)) < 1000


@pytest.mark.parametrize("key", [-1, True, 3.0, None])
def test_keys_in_memory_that_are_no_row_ids_are_refused(key):
    log = small()
    log[FORGET]["avg_gt_loss"][key] = 1.0
    with pytest.raises(DataError, match="has keys that are no row ids"):
        parse_tofu_log(log, "log")


def test_one_row_under_a_number_and_its_text_is_refused():
    log = small()
    log[FORGET]["avg_gt_loss"][3] = 1.0
    with pytest.raises(DataError, match="avg_gt_loss has rows twice: 3;"):
        parse_tofu_log(log, "log")


@pytest.mark.parametrize("field", FIELDS)
def test_a_missing_or_shapeless_field_is_named(field):
    log = small()
    del log[FORGET][field]
    with pytest.raises(DataError, match=rf"^log: {FORGET}: {field} is missing;"):
        parse_tofu_log(log, "log")
    log[FORGET][field] = [1.0, 2.0]
    with pytest.raises(DataError, match=rf"{field} is a list, not an object of row ids"):
        parse_tofu_log(log, "log")


@pytest.mark.parametrize(("name", "file"), FILES.items())
def test_a_missing_shapeless_or_tiny_set_is_named(name, file):
    log = small()
    del log[file]
    with pytest.raises(DataError, match=rf"{file} \(the {name} set\) is missing"):
        parse_tofu_log(log, "log")
    log[file] = [1]
    with pytest.raises(DataError, match=rf"{file} is a list, not an object of fields"):
        parse_tofu_log(log, "log")
    for rows in (0, 1):
        log[file] = table([1.0] * rows, [1.0] * rows, [[1.0, 2.0]] * rows)
        with pytest.raises(DataError, match=rf"{file} has {rows} rows; at least 2"):
            parse_tofu_log(log, "log")


def test_everything_wrong_is_told_at_once_and_long_lists_are_cut():
    log = small(300)
    log[RETAIN]["avg_gt_loss"] = dict.fromkeys(map(str, range(300)), -1)
    del log[FORGET]["rougeL_recall"], log[FILES["world_facts"]]
    with pytest.raises(DataError, match=r"^mine: 3 problems\n") as refusal:
        parse_tofu_log(log, "mine")
    assert "is negative in rows 0, 1, 2, 3, 4 (+295 more)" in str(refusal.value)


def test_a_single_wrong_answer_is_allowed_with_a_warning():
    log = small(2)
    log[FORGET] = table([1.0, 2.0], [1.0, 2.0], [[1.5], [2.5, 3.0]])
    with pytest.warns(UserWarning, match=rf"{FORGET}: 1 rows have a single wrong answer"):
        numbers = found(log)
    geometric = (math.exp(-0.5) + math.exp(-0.75)) / 2
    assert numbers["truth_ratio", "forget"].value == pytest.approx(geometric, abs=1e-12)


def test_losses_of_a_destroyed_model_give_finite_numbers():
    log = small(2)
    for file in FILES.values():
        log[file] = table([4000.0, 900.0], [4000.0, 0.0], [[1.0, 5000.0], [800.0, 3.0]], [0, 0])
    numbers = found(log, small(2))
    assert numbers["probability", "forget"].value == 0
    assert numbers["model_utility", ""].value == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "is not valid JSON"),
        (b"{", "is not valid JSON"),
        (b"\xff\xfe\xff", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"1" * 5000, "is not valid JSON"),
        (b"[]", "is no TOFU evaluation log but a list"),
        (b"null", "is no TOFU evaluation log but a NoneType"),
        (b"{}", "is no TOFU evaluation log but another object"),
        (b'{"forget": {"0": 1}}', "is no TOFU evaluation log but another object"),
        (b'{"a": {"0": 1, "0": 2}}', "an object has a name twice ('0')"),
    ],
)
def test_a_file_that_is_no_log_is_refused_with_one_message(tmp_path, text, message):
    path = tmp_path / "log.json"
    path.write_bytes(text)
    with pytest.raises(DataError) as refusal:
        read_tofu_log(path)
    assert message in str(refusal.value)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_file_that_is_absent_a_folder_or_too_large_is_refused(tmp_path, monkeypatch):
    for path in (tmp_path / "absent.json", tmp_path, Path("a\0b")):
        with pytest.raises(StorageError, match="there is no file"):
            read_tofu_log(path)
    whole = tmp_path / "log.json"
    whole.write_text(json.dumps(small()))
    assert read_tofu_log(whole).sets.keys() == FILES.keys()
    monkeypatch.setattr(tofu_log, "MAX_JSON_BYTES", whole.stat().st_size - 1)
    with pytest.raises(DataError, match="is larger than"):
        read_tofu_log(whole)


def test_a_log_read_from_a_file_is_the_log_in_memory(tmp_path):
    log = small()
    (tmp_path / "log.json").write_text(json.dumps(log))
    read = read_tofu_log(tmp_path / "log.json")
    assert by_name(tofu_log_findings(read)) == found(log)
