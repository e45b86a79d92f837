"""``expunge audit import``, and that ``expunge audit`` without it is as before."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from refusals import refused
from typer.testing import CliRunner

from expunge.cli.main import app
from expunge.core.finding import Finding

LOGS = Path(__file__).parents[3] / "shared" / "data" / "tofu_logs"
FULL, RETAINED = LOGS / "phi_full.json", LOGS / "phi_retain90.json"
SETS = (
    "eval_log_forget.json",
    "eval_log.json",
    "eval_real_author_wo_options.json",
    "eval_real_world_wo_options.json",
)


def write(path, rows=range(4), shift=0.0):
    """Write a log in which every loss of forgotten rows is known."""
    table = {
        "avg_gt_loss": {str(row): 0.5 for row in rows},
        "avg_paraphrased_loss": {str(row): 1.0 for row in rows},
        "average_perturb_loss": {str(row): [1.0 + row + shift] * 2 for row in rows},
        "rougeL_recall": {str(row): 0.25 for row in rows},
    }
    path.write_text(json.dumps(dict.fromkeys(SETS, table)))
    return path


def interval_of_four_equal(value):
    """Clopper and Pearson allow four equal values a share u of others, at 0 or at 1."""
    unseen = 1 - 0.025**0.25
    return [f"{value - value * unseen:.4g}", "to", f"{value + (1 - value) * unseen:.4g}"]


ROUGE = interval_of_four_equal(0.25)


def told(*arguments):
    result = CliRunner().invoke(
        app, ["audit", "import", *map(str, arguments)], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    return result.stdout


def rows(shown):
    """Return the table's cells by metric and record set."""
    cells = (line.split() for line in shown.splitlines()[1:] if not line.startswith("note"))
    return {(cell[0], cell[1]): cell[2:] for cell in cells}


def test_a_log_alone_gives_a_table_and_says_what_it_lacks(tmp_path):
    shown = told(write(tmp_path / "log.json"))
    heads = shown.splitlines()[0].split()
    assert heads == ["metric", "records", "value", "n", "95%", "interval", "retrained"]
    table = rows(shown)
    assert table["rouge_l", "retain"] == ["0.25", "4", *ROUGE]
    assert table["probability", "forget"][:2] == ["0.6065", "4"]
    assert table["forget_quality", "forget"] == ["n/a", "4"]
    assert len(table) == 20
    assert shown.splitlines()[-1] == "note: no log of a retrained model to compare with"


def test_findings_are_written_as_a_run_writes_them(tmp_path):
    ours, theirs = write(tmp_path / "a.json"), write(tmp_path / "b.json", shift=9.0)
    out = tmp_path / "new" / "findings.json"
    shown = told(ours, "--retrained", theirs, "--out", out)
    findings = [Finding.from_json(one) for one in json.loads(out.read_text())]
    assert len(findings) == len(rows(shown)) == 20
    quality = next(one for one in findings if one.metric == "forget_quality")
    # Four ratios each, all of one below all of the other: 2 of C(8, 4) orders
    assert quality.value == pytest.approx(2 / 70)
    assert rows(shown)["forget_quality", "forget"] == ["0.02857", "4"]
    assert rows(shown)["rouge_l", "forget"] == ["0.25", "4", *ROUGE, "0.25"]
    first = out.read_bytes()
    assert told(ours, "--retrained", theirs, "--out", out) == shown
    assert out.read_bytes() == first


def test_other_rows_are_refused_unless_common_rows_are_asked_for(tmp_path, monkeypatch, capsys):
    ours, theirs = write(tmp_path / "a.json"), write(tmp_path / "b.json", range(1, 6))
    arguments = ["audit", "import", ours, "--retrained", theirs, "--out", tmp_path / "f.json"]
    message = refused(monkeypatch, capsys, *arguments)
    assert "1 (0) are only in the log and 2 (4, 5) are only in the retrained one" in message
    assert "--common-rows" in message
    assert not (tmp_path / "f.json").exists()
    shown = told(*arguments[2:], "--common-rows")
    assert rows(shown)["forget_quality", "forget"] == ["1", "3"]
    assert "note: on the 3 rows in both logs: " in shown


def test_bad_logs_end_with_code_2_and_one_message(tmp_path, monkeypatch, capsys):
    good, bad = write(tmp_path / "good.json"), tmp_path / "bad.json"
    assert "there is no file" in refused(monkeypatch, capsys, "audit", "import", bad)
    bad.write_text("[1]")
    assert "no TOFU evaluation log" in refused(monkeypatch, capsys, "audit", "import", bad)
    bad.write_text("{")
    said = refused(monkeypatch, capsys, "audit", "import", good, "--retrained", bad)
    assert "bad.json is not valid JSON" in said
    said = refused(monkeypatch, capsys, "audit", "import", good, "--common-rows")
    assert "common rows need a second log" in said


def test_notes_and_lines_are_cleaned(capsys):
    from expunge.cli.main import _say, _table

    note = "one\x1b[2J\nnote: two\x9b"
    found = Finding(
        audit="tofu", metric="m", title="t", subject="after", value=1.0, n=1, direction="none",
        note=note,
    )  # fmt: skip
    assert _table([found])[-1] == "note: one[U+001B][2J note: two[U+009B]"
    _say(["first\nsecond\x1b[31m"])
    assert capsys.readouterr().out == "first\nsecond[U+001B][31m\n"


def test_a_log_is_never_overwritten(tmp_path, monkeypatch, capsys):
    ours, theirs = write(tmp_path / "a.json"), write(tmp_path / "b.json")
    before = theirs.read_bytes()
    indirect = tmp_path / "." / "b.json"
    said = refused(
        monkeypatch, capsys, "audit", "import", ours, "--retrained", theirs, "--out", indirect
    )
    assert "is a log that is read" in said
    assert theirs.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "usage", "message"),
    [
        (["import"], "expunge audit import [OPTIONS]", "Missing argument"),
        (["import", "a", "b"], "expunge audit import [OPTIONS]", "unexpected extra argument"),
        (["import", "a", "--before", "m"], "expunge audit import [OPTIONS]", "No such option"),
        ([], "expunge audit [OPTIONS]", "Missing option '--before'"),
        (["--before", "m"], "expunge audit [OPTIONS]", "Missing option '--after'"),
        (["--before", "m", "import"], "expunge audit [OPTIONS]", "Missing option '--after'"),
        (["imports"], "expunge audit [OPTIONS]", "Missing option '--before'"),
        (["--common-rows"], "expunge audit [OPTIONS]", "No such option"),
    ],
)
def test_wrong_usage_names_the_command_it_is_about(arguments, usage, message):
    result = CliRunner().invoke(app, ["audit", *arguments], prog_name="expunge")
    assert result.exit_code == 2
    assert f"Usage: {usage}" in result.output
    assert message in result.output
    assert result.output.count("Error: ") == 1


def test_each_help_is_about_its_own_command():
    shown = CliRunner().invoke(app, ["audit", "--help"], prog_name="expunge").stdout
    assert shown.startswith("Usage: expunge audit [OPTIONS]\n")
    assert "expunge audit import LOG" in shown
    assert "--before" in shown
    shown = CliRunner().invoke(app, ["audit", "import", "--help"], prog_name="expunge").stdout
    assert shown.startswith("Usage: expunge audit import [OPTIONS]")
    words = {word for word in shown.split() if word.startswith("--")}
    assert words == {"--retrained", "--out", "--common-rows", "--help"}


def test_audit_without_import_makes_the_recipe_it_always_made(tmp_path, monkeypatch):
    import expunge.pipeline.execute
    import expunge.report.report

    taken = {}

    def execute(recipe, folder, watch):
        taken.update(recipe=recipe, folder=folder)
        return folder

    monkeypatch.setattr(expunge.pipeline.execute, "execute", execute)
    monkeypatch.setattr(expunge.report.report, "summary_lines", lambda folder: [f"in {folder}"])
    records = tmp_path / "forget.jsonl"
    records.write_text('{"question": "Who?", "answer": "Ann"}\n')
    arguments = ["--before", "import", "--after", "new", "--forget", str(records)]
    arguments += ["--reference", "r1", "--reference", "r2", "--audit", "mia", "--seed", "7"]
    result = CliRunner().invoke(
        app, ["audit", *arguments, "--out", str(tmp_path / "run")], catch_exceptions=False
    )
    assert result.exit_code == 0
    assert result.stdout == f"in {tmp_path / 'run'}\n"
    assert taken["folder"] == tmp_path / "run"
    assert taken["recipe"].seed == 7
    assert list(taken["recipe"].audits) == ["mia"]
    assert len(taken["recipe"].given_references) == 2


def test_importing_a_log_needs_no_torch(tmp_path):
    code = (
        "import sys\n"
        "from expunge.cli.main import app\n"
        f"app(['audit', 'import', {str(write(tmp_path / 'log.json'))!r}], standalone_mode=False)\n"
        "print('torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.splitlines()[-1] == "False"


@pytest.mark.skipif(
    not (FULL.is_file() and RETAINED.is_file()),
    reason=f"the two published logs of Phi-1.5 (repository locuslab/tofu) are not in {LOGS}",
)
def test_published_logs_print_the_published_figures():
    table = rows(told(FULL, "--retrained", RETAINED))
    # Official aggregator
    assert table["model_utility", "all"][0] == "0.5221"
    assert table["model_utility", "all"][-1] == "0.532"
    assert table["forget_quality", "forget"] == ["2.194e-16", "300"]
    assert table["forget_quality_distance", "forget"] == ["0.3467", "300"]
    assert table["probability", "forget"][0] == "0.9282"
    assert table["probability", "forget"][-1] == "0.1349"
