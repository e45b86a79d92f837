"""The command line itself: help without torch, usage errors, the summary of a run."""

import subprocess
import sys

import pytest
from refusals import refused
from small_recipes import DIGITS, write_recipe
from typer.testing import CliRunner

from expunge.cli.main import app

COMMANDS = {
    "run": {"--set", "--out", "--dry-run"},
    "forget": {"--model", "--forget", "--retain", "--method", "--seed", "--set", "--out"},
    "audit": {
        "--before",
        "--after",
        "--forget",
        "--retain",
        "--holdout",
        "--reference",
        "--audit",
        "--seed",
        "--set",
        "--out",
    },
    "bench": {"--set", "--out"},
    "report": set(),
    "purge": set(),
}
HEAVY = ("torch", "transformers", "scipy", "sklearn", "pyarrow", "matplotlib", "pandas")


def fresh_process(code):
    """Run code in a new interpreter and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["methods", "--help"]])
def test_help_imports_nothing_heavy(arguments):
    shown = fresh_process(
        "import sys\n"
        "from expunge.cli.main import main\n"
        f"sys.argv = ['expunge', *{arguments!r}]\n"
        "try:\n    main()\n"
        "except SystemExit as ended:\n    assert not ended.code, ended.code\n"
        f"print('loaded:', [name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    assert shown.startswith("Usage: expunge")
    assert shown.endswith("loaded: []\n")


def test_importing_the_package_is_cheap_and_its_names_come_when_asked_for():
    shown = fresh_process(
        "import sys, expunge\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])\n"
        "expunge.from_arrays, expunge.execute, expunge.Request\n"
        "print(callable(expunge.forget), callable(expunge.audit), 'torch' in sys.modules)\n"
    )
    assert shown.splitlines() == ["[]", "True True True"]


def test_an_error_keeps_its_lines_and_loses_its_control_characters(monkeypatch, capsys, tmp_path):
    """A message may name record ids, which come from whoever wrote the data."""
    from expunge.core.errors import DataError

    def run(*_):
        raise DataError("records: 2 problems\n  - \x1b[2Jone\n  - two\r\u202e\x9b")

    monkeypatch.setattr("expunge.pipeline.recipe.read_recipe", run)
    message = refused(monkeypatch, capsys, "run", tmp_path / "recipe.yaml")
    assert message == (
        "error: records: 2 problems\n  - [U+001B][2Jone\n  - two[U+000D][U+202E][U+009B]\n"
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_have_these_options_and_no_others(command):
    shown = CliRunner().invoke(app, [command, "--help"], terminal_width=200).stdout
    words = {word for word in shown.split() if word.startswith("--")}
    assert words - {"--help"} == COMMANDS[command]


@pytest.mark.parametrize(
    "arguments",
    [["nonsense"], ["run"], ["run", "r.yaml", "--nonsense"], ["forget", "--model", "m"]],
)
def test_wrong_usage_ends_with_code_2(arguments):
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    assert result.output.count("Error: ") == 1


def test_a_dry_run_shows_the_plan_and_writes_nothing(tmp_path):
    recipe = write_recipe(tmp_path / "recipe.yaml", DIGITS)
    arguments = ["run", str(recipe), "--out", str(tmp_path / "run"), "--dry-run"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert "108 forget, 969 retain" in result.stdout
    assert "nothing was changed" in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


def test_a_report_is_written_again_from_files(finished_digits, tmp_path):
    import shutil

    folder = shutil.copytree(finished_digits, tmp_path / "run")
    before = (folder / "report.html").read_bytes()
    (folder / "report.html").unlink()
    result = CliRunner().invoke(app, ["report", str(folder)], catch_exceptions=False)
    assert result.stdout.strip() == str(folder / "report.html")
    assert (folder / "report.html").read_bytes() == before


def test_a_torn_file_of_a_run_is_refused_by_report(finished_digits, tmp_path, monkeypatch, capsys):
    import shutil

    folder = shutil.copytree(finished_digits, tmp_path / "run")
    whole = (folder / "findings.json").read_bytes()
    (folder / "findings.json").write_bytes(whole[: len(whole) // 2])
    assert "findings.json is not valid JSON" in refused(monkeypatch, capsys, "report", folder)
