import numpy as np
import pytest
import torch

from expunge.audit.scores import score
from expunge.core.errors import ConfigError
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.data.arrays import from_arrays
from expunge.engine.losses import softened_divergence
from expunge.engine.tasks.open_set import OpenSet
from expunge.forget.method import Given, apply, methods
from expunge.models.heads import CosineHead
from expunge.models.source import load_model_source

# Card gs-lora, section 10: cos = (0.8, 0.1), s = 64, m = 0.35.
COSINES, SCALE, MARGIN = [0.8, 0.1], 64.0, 0.35


def head():
    layer = CosineHead(3, 2, SCALE)
    with torch.no_grad():
        for row, cosine in enumerate(COSINES):
            layer.weight[row] = 7.0 * torch.tensor([cosine, (1 - cosine**2) ** 0.5, 0.0])
    return layer


@pytest.mark.parametrize(
    ("label", "wanted", "loss"), [(0, [28.8, 6.4], 0.0), (1, [51.2, -16.0], 67.2)]
)
def test_likelihoods_in_train_mode_have_the_cards_values(label, wanted, loss) -> None:
    task = OpenSet(2, margin=SCALE * MARGIN)
    records = Records(("a",), {"x": np.array([[5.0, 0.0, 0.0]], np.float32), "y": [label]})
    found = task.predict(head().train(), task.batch(records, [0]))
    assert found.lowered_NV[0].tolist() == pytest.approx(wanted, abs=1e-4)
    assert found.logits_NV[0].tolist() == pytest.approx([51.2, 6.4], abs=1e-4)
    assert float(found.nll_B().detach()) == pytest.approx(loss, abs=1e-4)


def test_scores_know_no_margin_and_no_label() -> None:
    task = OpenSet(2, margin=SCALE * MARGIN)
    records = Records(("a",), {"x": np.array([[5.0, 0.0, 0.0]], np.float32), "y": [1]})
    found = task.predict(head().eval(), task.batch(records, [0]))
    assert found.logits_NV[0].tolist() == pytest.approx([51.2, 6.4], abs=1e-4)


def test_strangers_are_nobodys() -> None:
    logits = torch.tensor([[51.2, 6.4], [6.4, 9.0], [-3.0, 20.0]])
    assert OpenSet(2, margin=1.0).identify(logits, threshold=10.0).tolist() == [0, -1, 1]


def test_distances_between_models_read_no_label() -> None:
    """The same model is at distance 0 of itself, whatever the margin and the modes."""
    task = OpenSet(2, margin=SCALE * MARGIN)
    records = Records(("a",), {"x": np.array([[5.0, 0.0, 0.0]], np.float32), "y": [1]})
    batch, model = task.batch(records, [0]), head()
    teacher = task.predict(model.eval(), batch)
    student = task.predict(model.train(), batch)
    assert softened_divergence(teacher, student, 1.0).item() == pytest.approx(0, abs=1e-6)


CLASSIFYING = [info for info in methods if "classifier" in info.kinds and info.name != "concept"]
OPTIONS: dict[str, dict[str, object]] = {"ssd": {"alpha": 0.1, "force": True}}


@pytest.mark.parametrize("info", CLASSIFYING, ids=lambda info: info.name)
def test_every_method_for_classifiers_takes_a_cosine_head(info) -> None:
    """But concepts, which need pictures and a bank of them."""
    draw = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 24)
    x = (0.5 * np.eye(4)[labels] + 0.5 * draw.random((96, 4))).astype(np.float32)
    data = from_arrays(x, labels)
    loaded = load_model_source("mlp", {"head": {"kind": "cosine"}, "hidden": [8, 8]}, data, 0)
    forget, retain = data.train.take(range(24)), data.train.take(range(24, 96))
    given = Given(loaded.task, forget, retain, fresh=lambda: loaded.model, guard=None)
    short = {"schedule": {"epochs": 1}} if hasattr(info.config(), "schedule") else {}
    options = OPTIONS.get(info.name, short)
    result = apply(info.name, loaded.model, given, Run(), options)
    found = score(result.model, loaded.task, data.train, Run())
    assert np.isfinite(found.loss_R).all()
    assert not any("expanded" in key for key in result.model.state_dict())


def test_a_negative_margin_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"margin = -1.*at least 0"):
        OpenSet(2, margin=-1)


def test_models_with_a_cosine_head_bring_the_task() -> None:
    data = from_arrays(np.random.default_rng(0).normal(size=(12, 5)), [0, 1, 2] * 4)
    loaded = load_model_source("mlp", {"head": {"kind": "cosine", "margin": 0.5}}, data, 0)
    assert isinstance(loaded.task, OpenSet)
    assert loaded.task.margin == 8.0
    batch = loaded.task.batch(data.train, range(12))
    assert loaded.task.predict(loaded.model, batch).logits_NV.abs().max() <= 16.0 + 1e-4
