"""A wrong input of the command line: exit code 2 and one message, nothing else."""

import signal
import sys


def refused(monkeypatch, capsys, *arguments: object) -> str:
    """Run ``expunge`` in this process, check how it refuses, and return its message."""
    from expunge.cli.main import main

    monkeypatch.setattr(sys, "argv", ["expunge", *map(str, arguments)])
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(signal, "signal", lambda *_: None)
        code = _exit_code(main)
    shown = capsys.readouterr()
    assert code == 2, (code, shown.err)
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert shown.err.count("error: ") == 1
    assert "Traceback" not in shown.err
    return shown.err


def _exit_code(main) -> object:
    try:
        main()
    except SystemExit as ended:
        return ended.code
    return 0
