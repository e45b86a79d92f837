import numpy as np

from expunge.data.source import load_source


def test_the_table_is_the_published_one():
    data = load_source("cancer", {"num_holdout": 0, "num_test": 0}, 0)
    # UCI's description: 569 biopsies, 30 measurements, 357 benign and 212 malignant.
    assert data.facts == {
        "num_classes": 2, "input_shape": [30], "classes": ["malignant", "benign"]
    }  # fmt: skip
    assert np.bincount(data.train["y"]).tolist() == [212, 357]
    np.testing.assert_allclose(data.train["mean_radius"], data.train["x"][:, 0], rtol=1e-6)
    assert "worst_fractal_dimension" in data.train


def test_the_split_is_a_function_of_the_seed():
    data, again, other = (load_source("cancer", {}, seed) for seed in (0, 0, 1))
    assert (len(data.train), len(data.holdout), len(data.test)) == (349, 110, 110)
    assert data.digest() == again.digest() != other.digest()
