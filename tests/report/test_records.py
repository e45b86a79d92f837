import base64
import hashlib
import re

import numpy as np
import pytest

from expunge.core.files import read_json, write_json
from expunge.report.facts import read_facts
from expunge.report.losses import Scored
from expunge.report.records import MAX_FORGET, MAX_OTHER, rows_of
from expunge.report.report import write_report


def written(folder):
    write_report(folder)
    return (folder / "records.html").read_text(encoding="utf-8")


def cells(text):
    """Return the text of each row of the table, one list of cells per row."""
    body = re.search(r"<tbody>(.*)</tbody>", text, re.DOTALL)[1]
    return [re.findall(r"<t[dh][^>]*>([^<]*)</t[dh]>", row) for row in body.split("</tr>")[:-1]]


def scored(**losses):
    return Scored(
        tuple(losses), np.array(list(losses.values())), np.array([v < 1 for v in losses.values()])
    )


def test_a_row_holds_the_numbers_of_its_record_by_id():
    subjects = {
        "before": {"forget": scored(b=0.5, a=0.25)},
        "after": {"forget": scored(a=2.0, b=3.0, c=0.5), "holdout": scored(h=2.5, i=4.0)},
        "reference-0": {"forget": scored(b=4.0, a=1.0)},
        "reference-1": {"forget": scored(a=2.0, b=5.0)},
    }
    rows, shown = rows_of(subjects)
    assert [row.id for row in rows] == ["a", "b", "c", "h", "i"]
    assert shown == {"forget": (3, 3), "holdout": (2, 2)}
    a, b, c = rows[:3]
    assert (a.before, a.after, a.change, a.retrained) == (0.25, 2.0, 1.75, 1.5)
    assert (b.before, b.after, b.change, b.retrained) == (0.5, 3.0, 2.5, 4.5)
    assert (a.exact_before, a.exact_after, a.membership, b.membership) == (True, False, 1.0, 0.5)
    assert (c.before, c.change, c.retrained, c.exact_before) == (None, None, None, None)


def test_forgotten_records_come_first_and_many_are_cut_short():
    many = scored(**{f"r{i}": 1.0 for i in range(MAX_FORGET + 3)})
    rows, shown = rows_of({"after": {"retain": many, "probe": many, "forget": many}})
    assert list(shown) == ["forget", "retain", "probe"]
    assert shown["forget"] == (MAX_FORGET, MAX_FORGET + 3)
    assert shown["retain"] == (MAX_OTHER, MAX_FORGET + 3)
    assert len(rows) == MAX_FORGET + 2 * MAX_OTHER


def test_the_page_says_how_many_records_it_shows(language_run, write_scores):
    rows = [(f"keep-{i}", 1, 1.0, [0]) for i in range(MAX_OTHER + 1)]
    for subject in read_facts(language_run).models:
        readings = [({"record_set": "retain"}, rows), ({"record_set": "forget"}, rows[:2])]
        write_scores(language_run / "scores" / f"{subject}.parquet", readings)
    words = " ".join(written(language_run).split())
    assert f"Shown are 2 of 2 forgotten records, {MAX_OTHER} of 501 retained records;" in words


def test_numbers_of_the_table_are_those_of_the_scores(language_run):
    facts = read_facts(language_run)
    rows = cells(written(language_run))
    assert len(rows) == sum(facts.plan.data.counts.values())
    assert [row[0] for row in rows] == ["forget"] * 15 + ["retain"] * 45 + ["holdout"] * 20
    assert {len(row) for row in rows} == {9}
    assert {cell for row in rows for cell in row[6:8]} == {"yes", "no"}
    for row in rows:
        before, after, change = (float(row[i].replace("\u2212", "-")) for i in (2, 3, 5))
        assert change == pytest.approx(after - before, abs=0.011)


def test_columns_without_numbers_are_left_out(classifier_run, write_scores):
    models = read_json(classifier_run / "models.json")
    write_json(classifier_run / "models.json", {n: models[n] for n in ("before", "after")})
    for subject in ("before", "after"):
        readings = [({"record_set": "forget"}, [("a", 1, 1.0, [0])])]
        write_scores(classifier_run / "scores" / f"{subject}.parquet", readings)
    text = written(classifier_run)
    heads = re.findall(r'<th scope="col"[^>]*>([^<]*)</th>', text)
    assert heads == [
        "Set", "Id", "Loss before", "Loss after", "Change", "Right before", "Right after",
    ]  # fmt: skip
    assert cells(text) == [["forget", "a", "1.000", "1.000", "0", "yes", "yes"]]
    assert "Membership:" not in text


def test_the_only_script_is_the_one_that_the_policy_names(run_folder, page_of):
    text = written(run_folder)
    page = page_of(text)
    (policy,) = [
        a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"
    ]
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:;")
    assert re.findall(r"script-src ([^;]*)", policy) == [f"'sha256-{digest}'"]
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|eval|Function|document\.write", script
    )
    assert not re.search(r"fetch|XMLHttp|import|WebSocket|https?:|src\b|href", script)
    assert not re.search(r"@import|url\((?!#)|http://|https://", text)
    assert [a["href"] for a in page.all("a")] == ["report.html"]
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"img", "iframe", "object", "embed", "form", "base"}


def test_without_its_script_the_page_is_a_plain_table(run_folder, page_of):
    page = page_of(written(run_folder))
    (controls,) = [a for a in page.all("div") if a.get("id") == "controls"]
    assert "hidden" in controls
    assert not page.all("button")
    assert all("hidden" not in attrs for attrs in page.all("tr"))
    assert all(attrs.get("scope") for attrs in page.all("th"))


def test_the_report_runs_no_script_and_links_the_page(run_folder):
    text = write_report(run_folder).read_text(encoding="utf-8")
    assert "<script" not in text
    assert "script-src" not in text
    assert '<a href="records.html">' in text


def test_the_same_files_give_the_same_bytes(run_folder):
    first = written(run_folder)
    (run_folder / "records.html").unlink()
    assert written(run_folder) == first
    assert str(run_folder.parent) not in first


def test_a_run_that_scored_nothing_has_no_page_and_loses_an_old_one(language_run):
    written(language_run)
    for path in (language_run / "scores").iterdir():
        path.unlink()
    (language_run / "scores").rmdir()
    text = write_report(language_run).read_text(encoding="utf-8")
    assert "records.html" not in text
    assert not (language_run / "records.html").exists()


def test_ids_and_names_stay_text(language_run, payload, page_of, write_scores, check_page):
    rows = [(f"{payload}{i}", 2, 1.0 + i, [0, i]) for i in range(4)]
    for subject in read_facts(language_run).models:
        readings = [({"record_set": s}, rows) for s in ("forget", "holdout", payload)]
        write_scores(language_run / "scores" / f"{subject}.parquet", readings)
    plan = read_json(language_run / "plan.json")
    write_json(language_run / "plan.json", {**plan, "name": payload})
    text = written(language_run)
    start, script, end = re.split(r"(<script>.*?</script>)", text, flags=re.DOTALL)
    check_page(start + end)
    assert payload not in script
    assert len(page_of(text).all("tr")) == 1 + 3 * len(rows)
