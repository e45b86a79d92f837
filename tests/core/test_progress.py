import sys
import time

import pytest

from expunge.core.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets by hand."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_every_ten_seconds_and_one_at_the_end(clock, capsys):
    bar = Progress("training", 100)
    for _ in range(30):
        clock[0] += 1.0
        bar.advance(2, note="loss 0.5")
    clock[0] += 1.0
    bar.advance(10)
    bar.close()
    assert capsys.readouterr().err.splitlines() == [
        "training: 20/100  10 s, eta 40 s  loss 0.5",
        "training: 40/100  20 s, eta 30 s  loss 0.5",
        "training: 60/100  30 s, eta 20 s  loss 0.5",
        "training: 70/100  31 s, eta 13 s  loss 0.5",
    ]


def test_eta_of_a_resumed_run_counts_its_own_work_only(clock, capsys):
    bar = Progress("training", 100, done=50)
    clock[0] += 10.0
    bar.advance(10)
    assert capsys.readouterr().err == "training: 60/100  10 s, eta 40 s\n"


def test_quiet_says_nothing(clock, capsys):
    bar = Progress("training", 2, quiet=True)
    clock[0] += 60.0
    bar.advance(2)
    bar.close()
    assert capsys.readouterr() == ("", "")


def test_no_line_when_nothing_was_done(capsys):
    Progress("training", 2, done=1).close()
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    bar = Progress("train [1]", 8)
    bar.advance(8, note="loss 0.5")
    bar.close()
    shown = capsys.readouterr().err
    assert "train [1]" in shown
    assert "8/8" in shown
    assert "loss 0.5" in shown
