import itertools
import os
import re
import subprocess
import sys

import pytest

from expunge.core.errors import ConfigError
from expunge.core.files import read_json, write_json
from expunge.report.examples import write_examples
from expunge.report.report import summary_lines, write_report


def written(folder):
    return write_report(folder).read_text(encoding="utf-8")


def test_the_page_is_whole_small_and_loads_nothing(run_folder, page_of):
    text = written(run_folder)
    assert len(text.encode()) < 1_000_000
    page = page_of(text)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "img", "iframe", "object", "embed", "form", "base"}
    (policy,) = [
        a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:;")
    assert page.all("link") == [{"rel": "icon", "href": "data:,"}]
    loading = [v for _, a in page.elements for k, v in a.items() if k in ("src", "href")]
    assert {v for v in loading if not v.startswith("#")} == {"data:,", "records.html"}
    assert not re.search(r"@import|url\((?!#)|http://|https://", text)


def test_a_table_stands_behind_every_chart(run_folder, page_of):
    text = written(run_folder)
    assert text.count("<svg") == text.count("Table behind this chart") == 5
    page = page_of(text)
    assert all(a.get("aria-label") for a in page.all("svg"))
    assert all(a.get("scope") for a in page.all("th"))
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))


def test_what_a_reader_must_find(language_run, page_of):
    words = " ".join(" ".join(page_of(written(language_run)).text).split())
    for phrase in (
        "Every bound fixed beforehand was met",
        "by author , count 3",
        "Negative Preference Optimization (Zhang et al., COLM 2024)",
        "expunge run demo/recipe.yaml --out demo-again",
        "within noise",
        "0.837 to 1.023",
        "bound 0.050",
        "World facts",
        "Forget quality: only 15 records",
        "ab" * 32,
        "train-00014",
        "2 min 45 s",
        "torch",
    ):
        assert phrase in words, phrase


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ("{by: author, count: 3, identified: 1.0}", "Request by author , count 3 Forgotten"),
        ("{split: forget10, identified: 0.5}", "Request split forget10 , identified 0.5 Forgotten"),
        ("{ids: [], identified: 1.0}", "Request the split forget , by default Forgotten"),
    ],
)
def test_the_request_is_told_without_its_defaults(language_run, page_of, request_, words):
    (language_run / "recipe.yaml").write_text(f"name: demo\nrequest: {request_}\nguard: {{}}\n")
    assert words in " ".join(" ".join(page_of(written(language_run)).text).split())


def test_the_same_files_give_the_same_bytes(run_folder):
    first = written(run_folder)
    code = "import sys, pathlib; from expunge.report.report import write_report as w; "
    code += "w(pathlib.Path(sys.argv[1])); assert 'torch' not in sys.modules"
    other = {**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "LC_ALL": "C"}
    subprocess.run([sys.executable, "-c", code, str(run_folder)], check=True, env=other)
    assert (run_folder / "report.html").read_text(encoding="utf-8") == first


def test_the_report_names_no_path_of_this_machine(run_folder):
    assert str(run_folder.parent) not in written(run_folder)


def test_the_link_to_examples_exists_only_with_them(language_run, example_rows):
    assert "examples.html" not in written(language_run)
    write_examples(language_run, example_rows)
    assert '<a href="examples.html">' in written(language_run)


def test_a_run_without_audits_references_or_histories_has_a_report(language_run):
    for path in [*(language_run / "history").iterdir(), *(language_run / "scores").iterdir()]:
        path.unlink()
    (language_run / "scores").rmdir()
    write_json(language_run / "findings.json", [])
    models = read_json(language_run / "models.json")
    write_json(language_run / "models.json", {name: models[name] for name in ("before", "after")})
    text = written(language_run)
    assert "Not audited: nothing was measured" in text
    assert "<svg" not in text


def test_a_long_recipe_and_many_ids_do_not_swell_the_page(language_run):
    recipe = language_run / "recipe.yaml"
    ids = "\n".join(f"  - train-{i:06d}" for i in range(50_000))
    recipe.write_text(f"request:\n ids:\n{ids}\nguard: null\n")
    sets = read_json(language_run / "sets.json")
    sets["forget"] = [f"train-{i:06d}" for i in range(50_000)]
    write_json(language_run / "sets.json", sets)
    text = written(language_run)
    assert len(text) < 200_000
    assert "the rest is in recipe.yaml" in text
    assert "49900 more in sets.json" in text


def many_findings(folder, audits=("relearn", "quantize"), count=30):
    """Add numbers of further audits to a run; of each audit, one is an excess."""
    findings = read_json(folder / "findings.json")
    base = [f for f in findings if f["metric"] == "truth_ratio"]
    names = ["excess_recall", *(f"m{i}" for i in range(1, count))]
    more = [
        {**f, "audit": audit, "metric": name, "title": f"{name} of {audit}", "note": f"of {name}"}
        for audit in audits
        for name in names
        for f in base
    ]
    write_json(folder / "findings.json", findings + more)


def test_of_many_numbers_those_that_judge_stay_open_and_none_is_lost(language_run, page_of):
    many_findings(language_run)
    text = written(language_run)
    tables = text.partition("Forgetting against utility")[0]
    shown, _, rest = tables.partition("Further numbers, by audit")
    folds = dict(re.findall(r"<details><summary>(\w+): (\d+) more</summary>", rest))
    # The summary takes forget quality, utility, and AUC; of tofu it is these and a bound.
    assert folds == {"tofu": "6", "relearn": "29", "quantize": "29"}
    for name in ("excess_recall of relearn", "Forget quality (p-value", "Model utility as a share"):
        assert f'<th scope="row">{name}' in shown
    assert '<th scope="row">m7 of relearn' not in shown
    for name in ("m7 of relearn", "m29 of quantize", "Truth ratio"):
        assert rest.count(f'<th scope="row">{name}<') == 1
    assert "m7 of quantize: of m7" in rest  # a note stays with its number
    levels = [int(tag[1]) for tag, _ in page_of(text).elements if re.fullmatch(r"h[1-6]", tag)]
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))


def test_few_numbers_are_not_folded(language_run):
    many_findings(language_run, count=7)  # 24 in all
    assert "Further numbers" not in written(language_run)
    many_findings(language_run, audits=("paraphrase",), count=1)
    assert "Further numbers" in written(language_run)


def test_a_muse_audit_draws_its_radar_with_a_table(language_run, page_of):
    findings = read_json(language_run / "findings.json")
    base = [f for f in findings if f["metric"] == "truth_ratio"]
    more = [
        {**f, "audit": "muse", "metric": metric, "record_set": record_set}
        for metric, record_set in (
            ("verbatim", "forget"), ("knowledge", "forget"), ("utility", "retain"),
        )
        for f in base
    ]  # fmt: skip
    write_json(language_run / "findings.json", findings + more)
    text = written(language_run)
    assert text.count("<svg") == text.count("Table behind this chart") == 6
    words = " ".join(" ".join(page_of(text).text).split())
    assert "The outermost ring, 1, is what the retrained models reach" in words
    assert "No privacy leakage not measured" in words


def test_without_held_out_records_there_is_no_roc_curve(language_run, write_scores):
    assert "The loss attack" in written(language_run)
    for path in (language_run / "scores").iterdir():
        write_scores(path, [({"record_set": "forget"}, [("a", 1, 1.0, [0])])])
    assert "The loss attack" not in written(language_run)


def test_the_summary_of_a_language_model_in_ten_lines(language_run):
    lines = summary_lines(language_run)
    assert len(lines) == 10
    assert lines[0].startswith("forgotten ")
    assert "15 records of people, by npo from smollm2; 45 retained" in lines[0]
    assert lines[1].endswith("1.2e-07 -> 0.390 (retrained 0.990)")
    assert lines[4].startswith("Model utility ")
    assert lines[5].endswith("0.990 -> 0.560 (retrained 0.525)")
    assert lines[-1].endswith("report.html")


def test_the_summary_of_a_classifier(classifier_run):
    lines = summary_lines(classifier_run)
    assert [line.partition("  ")[0] for line in lines[1:5]] == [
        "Average gap to retraining",
        "Unlearning accuracy",
        "Retaining accuracy",
        "Test accuracy",
    ]
    assert lines[1].endswith("3.2 points -> 0.9 points (retrained 0.6 points)")


def test_the_summary_says_why_a_number_is_missing(language_run):
    findings = read_json(language_run / "findings.json")
    gone = {"value": None, "interval": None, "reference": None, "note": "no held-out records"}
    none = [{**f, **gone} if f["metric"] == "auc" else f for f in findings]
    write_json(language_run / "findings.json", none)
    assert summary_lines(language_run)[5].endswith("n/a: no held-out records")


def test_the_summary_shows_the_numbers_of_any_audit(language_run):
    findings = read_json(language_run / "findings.json")
    foreign = [{**f, "audit": "theirs", "metric": "score"} for f in findings[:4]]
    write_json(language_run / "findings.json", foreign)
    assert any("Probability of the true answer" in line for line in summary_lines(language_run))


@pytest.mark.parametrize("missing", ["before", "reference"])
def test_a_comparison_with_a_side_missing_is_drawn(language_run, missing):
    findings = read_json(language_run / "findings.json")
    kept = [
        {**f, "reference": None if missing == "reference" else f["reference"]}
        for f in findings
        if f["subject"] != missing
    ]
    write_json(language_run / "findings.json", kept)
    assert "n/a" in written(language_run)


def test_without_the_libraries_the_message_has_the_command(language_run, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"matplotlib; .* pip install 'expunge\[report"):
        write_report(language_run)
