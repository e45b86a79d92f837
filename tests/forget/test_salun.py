"""SalUn: random labelling that moves the salient half only."""

import numpy as np
import torch

from expunge.core.run import Run
from expunge.engine.weights import state_digest
from expunge.forget.method import Given, apply
from expunge.forget.random_label import RandomLabelConfig
from expunge.forget.salun import SalUnConfig
from expunge.forget.salun_soft import SalUnSoftConfig


def test_two_masked_steps_equal_numpy(linear):
    lr, wrong = 0.1, np.array(linear.task.neutral(linear.forget, 0, 0)["y"])
    sw, sb = linear.gradient(linear.x, linear.y)  # saliency: gradient under the true labels
    sizes = np.concatenate([np.abs(sw).ravel(), np.abs(sb)])
    keep = np.zeros(16, dtype=bool)
    keep[np.argsort(-sizes, kind="stable")[:8]] = True
    mw, mb = keep[:12].reshape(4, 3), keep[12:]
    fw, fb = linear.gradient(linear.x, wrong)
    w, b = linear.w - lr * fw * mw, linear.b - lr * fb * mb
    rw, rb = linear.gradient(linear.kept_x, linear.kept_y, w=w, b=b)
    got_w, got_b = linear.apply("salun", lr=lr)
    np.testing.assert_allclose(got_w, w - lr * rw * mw, atol=1e-14)
    np.testing.assert_allclose(got_b, b - lr * rb * mb, atol=1e-14)
    np.testing.assert_array_equal(got_w[~mw], linear.w[~mw])
    np.testing.assert_array_equal(got_b[~mb], linear.b[~mb])


def test_frozen_half_keeps_its_bits_under_the_papers_momentum_and_decay(digits_world):
    world = digits_world
    result = apply("salun", world.model, Given(world.task, world.forget, world.retain), Run())
    assert result.history.stopped is None
    before, after = world.model.state_dict(), result.model.state_dict()
    total = sum(v.numel() for v in before.values())
    moved = sum(int((before[n] != after[n]).sum()) for n in before)
    assert 0.45 * total < moved <= total // 2
    assert not torch.equal(before["2.bias"], after["2.bias"])


def test_everything_salient_is_random_labelling_exactly(digits_world):
    world = digits_world
    given = Given(world.task, world.forget, world.retain)
    whole = {"scope": {"mask": {"by": "saliency", "fraction": 1.0}}}
    salun = apply("salun", world.model, given, Run(), whole)
    plain = apply("random_label", world.model, given, Run())
    assert state_digest(salun.model) == state_digest(plain.model)


def test_the_recommended_share_is_half():
    mask = SalUnConfig().scope.mask
    assert mask is not None
    assert (mask.by, mask.fraction) == ("saliency", 0.5)


def test_the_loop_is_that_of_random_labels():
    assert SalUnConfig().schedule == RandomLabelConfig().schedule
    assert SalUnSoftConfig().schedule == RandomLabelConfig().schedule
