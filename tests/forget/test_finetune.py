"""Fine-tuning on what is retained: a plain numpy step."""

import numpy as np


def test_one_step_equals_numpy(linear):
    w, b = linear.apply("finetune", lr=0.1)
    gw, gb = linear.gradient(linear.kept_x, linear.kept_y)
    np.testing.assert_allclose(w, linear.w - 0.1 * gw, atol=1e-14)
    np.testing.assert_allclose(b, linear.b - 0.1 * gb, atol=1e-14)
