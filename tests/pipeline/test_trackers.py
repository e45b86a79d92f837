import pytest

from expunge.core.errors import ConfigError
from expunge.core.run import Run
from expunge.pipeline.trackers import open_trackers


def test_losses_reach_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = Run(trackers=open_trackers(["tensorboard"], tmp_path))
    assert not list(tmp_path.iterdir())  # nothing is written before there is something to write
    for step in (1, 2):
        run.emit("step", step=step, loss=0.5 * step, loop="training")
    written = EventAccumulator(str(tmp_path / "tensorboard"))
    written.Reload()
    found = written.Scalars("step/loss")
    assert [(item.step, item.value) for item in found] == [(1, 0.5), (2, 1.0)]


def test_an_unknown_tracker_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no tracker 'tensorbord'; did you mean 'tensorboard'\?"):
        open_trackers(["tensorbord"], tmp_path)


def test_no_trackers(tmp_path):
    assert open_trackers([], tmp_path) == ()
