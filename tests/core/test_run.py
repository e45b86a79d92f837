import gc
import json
import threading
import time

import pytest

from expunge.core.errors import Interrupted
from expunge.core.files import read_json_lines
from expunge.core.run import Budget, Run
from expunge.core.streams import stream_seed


class Recorder:
    """A tracker that keeps what it was told."""

    def __init__(self):
        self.calls = []

    def log(self, values, step):
        self.calls.append((values, step))


def test_unlimited_run_never_stops():
    Run().check(steps=10**9)


def test_budget_of_steps():
    run = Run(budget=Budget(max_steps=3))
    run.check(steps=2)
    with pytest.raises(Interrupted, match="budget of 3 steps is spent"):
        run.check(steps=3)


def test_budget_of_seconds_counts_from_the_start_of_the_whole_run(monkeypatch):
    now = time.monotonic()
    run = Run(budget=Budget(max_seconds=60))
    monkeypatch.setattr(time, "monotonic", lambda: now + 59)
    run.check()
    monkeypatch.setattr(time, "monotonic", lambda: now + 61)
    part = run.child("part")
    for each in (run, part):
        with pytest.raises(Interrupted, match="budget of 60 seconds is spent"):
            each.check()


def test_cancel_from_another_thread_reaches_children_and_parents():
    run = Run()
    part = run.child("part").child("of a part")
    thread = threading.Thread(target=part.cancel)
    thread.start()
    thread.join()
    for each in (run, part):
        with pytest.raises(Interrupted, match="was cancelled"):
            each.check()


def test_child_inherits_everything_but_seed_and_folder(tmp_path):
    run = Run(
        5,
        device="meta",
        folder=tmp_path,
        events=tmp_path / "events",
        budget=Budget(max_steps=1),
        checkpoint_every=7,
        quiet=False,
        trackers=(Recorder(),),
    )
    part, other = run.child("part"), run.child("other", seed=6)
    assert (part.seed, other.seed) == (5, 6)
    assert (part.folder, other.folder) == (tmp_path / "part", tmp_path / "other")
    for name in ("device", "events", "budget", "checkpoint_every", "quiet", "trackers"):
        assert getattr(part, name) == getattr(run, name)


def test_temporary_folder_lives_as_long_as_anyone_uses_it():
    run = Run()
    folder, part = run.folder, run.child("part")
    assert folder.is_dir()
    del run
    gc.collect()
    assert part.folder.parent == folder
    assert folder.is_dir()
    del part
    gc.collect()
    assert not folder.exists()


def test_given_folder_stays(tmp_path):
    Run(folder=tmp_path)
    gc.collect()
    assert tmp_path.is_dir()


def test_events_are_lines_of_json_shared_with_children(tmp_path):
    run = Run(events=tmp_path / "events")
    run.emit("step", step=1, loss=0.5)
    run.child("part").emit("saved", ids=["a"])
    first, second = read_json_lines(tmp_path / "events")
    assert first.pop("seconds") <= second.pop("seconds")
    assert first == {"event": "step", "step": 1, "loss": 0.5}
    assert second == {"event": "saved", "ids": ["a"]}


def test_trackers_receive_the_numbers_of_events():
    recorder = Recorder()
    run = Run(trackers=(recorder,))
    run.emit("train", step=4, loss=0.5, name="text")
    run.emit("done", name="text")
    assert recorder.calls == [({"train/step": 4.0, "train/loss": 0.5}, 4)]


def test_stream_seeds_are_those_of_the_run_seed():
    assert Run(9).stream_seed("order", 2, "a") == stream_seed(9, "order", 2, "a")


def test_progress_counts_and_closes_on_error(capsys):
    run = Run(quiet=False)

    def fail():
        with run.progress("training", total=4, done=1) as bar:
            bar.advance(2)
            raise Interrupted("stop")

    with pytest.raises(Interrupted):
        fail()
    assert capsys.readouterr().err.startswith("training: 3/4")


def test_event_lines_are_strict_json(tmp_path):
    run = Run(events=tmp_path / "events")
    run.emit("note", text="é\u2028\n")
    lines = (tmp_path / "events").read_text().splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["é\u2028\n"]
