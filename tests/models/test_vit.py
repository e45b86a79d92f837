"""The small vision transformer: size, shape of its output, and what it refuses."""

import numpy as np
import pytest
import torch

from expunge.core.errors import ConfigError, DataError
from expunge.data.arrays import from_arrays
from expunge.engine.representation import represent, split
from expunge.engine.weights import state_digest
from expunge.models.source import Loaded, load_model_source
from expunge.models.store import load_saved, save_model

DRAW = np.random.default_rng(0)
PICTURES = from_arrays(DRAW.normal(size=(6, 1, 8, 8)), [0, 1, 2, 0, 1, 2])
SMALL = {"patch": 2, "dim": 8, "depth": 2, "heads": 2, "mlp": 12}


def make(settings=SMALL, data=PICTURES, seed=0) -> Loaded:
    return load_model_source("vit", settings, data, seed)


def parameters(dim, depth, mlp, tokens, pixels, classes):
    """Count by hand: embeddings, blocks, last norm, head."""
    embeddings = dim + (tokens + 1) * dim + pixels * dim + dim
    attention, feed_forward, norms = 4 * (dim * dim + dim), 2 * dim * mlp + mlp + dim, 4 * dim
    return (
        embeddings
        + depth * (attention + feed_forward + norms)
        + 2 * dim
        + (dim * classes + classes)
    )


def test_its_size_is_that_of_the_arithmetic() -> None:
    loaded = make()
    counted = sum(p.numel() for p in loaded.model.parameters())
    assert counted == parameters(dim=8, depth=2, mlp=12, tokens=16, pixels=4, classes=3)


def test_pictures_become_logits_and_weights_follow_the_seed_alone() -> None:
    torch.manual_seed(1)
    loaded = make()
    torch.manual_seed(2)
    assert state_digest(loaded.model) == state_digest(make().model)
    assert state_digest(loaded.model) != state_digest(make(seed=1).model)
    batch = loaded.task.batch(PICTURES.train, [0, 3])
    assert loaded.task.predict(loaded.model, batch).logits_NV.shape == (2, 3)
    assert not loaded.model.training


def test_every_pixel_and_its_place_matter() -> None:
    model = make().model
    x = torch.from_numpy(np.stack(PICTURES.train["x"][:1])).requires_grad_()
    model(x).sum().backward()
    assert bool((x.grad != 0).all())
    assert not torch.allclose(model(x), model(x.flip(-1)))


def test_oblong_pictures_of_several_channels_fit() -> None:
    data = from_arrays(DRAW.normal(size=(4, 3, 4, 6)), [0, 1, 0, 1])
    loaded = make(data=data)
    batch = loaded.task.batch(data.train, range(4))
    assert loaded.task.predict(loaded.model, batch).logits_NV.shape == (4, 2)


def test_the_head_reads_the_class_token() -> None:
    loaded = make()
    found = split(loaded.model)
    assert (found.head, found.width) == ("inner.classifier", 8)
    batch = loaded.task.batch(PICTURES.train, [0, 1])
    features_BD, predictions = represent(loaded.model, loaded.task, batch, found.head)
    again = loaded.model.get_submodule(found.head)(features_BD)
    torch.testing.assert_close(again, predictions.logits_NV)


def test_a_cosine_head_takes_the_place_of_the_linear_one() -> None:
    loaded = make({**SMALL, "head": {"kind": "cosine", "scale": 4.0, "margin": 0.0}})
    logits = loaded.model(torch.from_numpy(np.stack(PICTURES.train["x"])))
    assert logits.abs().max() <= 4.0 + 1e-5
    assert loaded.model.inner.classifier.bias is None


def test_it_is_written_and_read_back(tmp_path) -> None:
    loaded = make()
    save_model(loaded, tmp_path / "vit")
    assert state_digest(load_saved(tmp_path / "vit").model) == state_digest(loaded.model)


def test_what_does_not_fit_is_refused_with_a_remedy() -> None:
    with pytest.raises(ConfigError, match="heads = 3 does not divide dim = 8"):
        make({**SMALL, "heads": 3})
    with pytest.raises(DataError, match=r"shape \[1, 8, 8\] do not fit; patch = 3 .* that divides"):
        make({**SMALL, "patch": 3})
    with pytest.raises(DataError, match=r"inputs of shape \[2\] do not fit"):
        make(data=from_arrays([[1.0, 2.0], [0.0, 1.0]], [0, 1]))
