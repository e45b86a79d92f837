"""WAGLE: known scores and masks, and a mask that serves every objective."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

from expunge.core.config import parse
from expunge.core.errors import ConfigError, NumericalError
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.engine.masks.attribution import scores
from expunge.engine.masks.mask import Mask, make_mask, top_entries
from expunge.engine.scope import scoped
from expunge.engine.weights import state_digest
from expunge.forget.method import Given, apply, methods
from expunge.forget.wagle import WagleConfig

THETA = {"w": [[1, -2], [0.5, 0]], "b": [0.1, -0.3]}
FORGET = {"w": [[0.2, 0.1], [-0.4, 1]], "b": [0.5, 0]}
RETAIN = {"w": [[0.05, -0.1], [0.2, 0.3]], "b": [0, 0.4]}
GOLDEN = {
    0.1: ([[0.1, 0.1], [0.6, 3.0]], [0.05, 0]),
    1.0: ([[0.19, 0.19], [0.12, 0.30]], [0.05, 0]),
    float("inf"): ([[0.2, 0.2], [0.2, 0]], [0.05, 0]),
    1e-6: ([[9999.8, 9999.8], [79999.8, 300000]], [0.05, 0]),
}


def attributed(curvature, dtype=torch.float64):
    parts = (
        {name: torch.tensor(values, dtype=dtype) for name, values in part.items()}
        for part in (THETA, FORGET, RETAIN)
    )
    theta, forget, retain = parts
    return {name: scores(theta[name], forget[name], retain[name], curvature) for name in theta}


@pytest.mark.parametrize("curvature", GOLDEN)
def test_golden_scores(curvature):
    found = attributed(curvature)
    w, b = GOLDEN[curvature]
    np.testing.assert_allclose(found["w"].numpy(), w, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found["b"].numpy(), b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("curvature", "fraction", "w"),
    [
        (1.0, 0.5, [[1, 1], [0, 1]]),
        (1.0, 0.8, [[1, 1], [1, 1]]),
        (0.1, 0.34, [[0, 0], [1, 1]]),
    ],
)
def test_golden_masks(curvature, fraction, w):
    """By the released routine from scores to a mask; none of them moves the biases."""
    mask = top_entries(attributed(curvature), fraction)
    assert mask.tensors["w"].int().tolist() == w
    assert mask.tensors["b"].int().tolist() == [0, 0]


def test_a_tie_goes_to_the_lower_index():
    """Two scores of 0.1 tie in real arithmetic; the card keeps the first one."""
    tied = {name: s.round(decimals=9) for name, s in attributed(0.1).items()}
    mask = top_entries(tied, 0.5)
    assert mask.tensors["w"].int().tolist() == [[1, 0], [1, 1]]


def test_the_relative_sign_of_weight_and_retain_gradient_matters():
    one = scores(torch.tensor(1.0), torch.tensor(1.0), torch.tensor(0.5), 1.0)
    other = scores(torch.tensor(-1.0), torch.tensor(1.0), torch.tensor(0.5), 1.0)
    swapped = scores(torch.tensor(1.0), torch.tensor(-1.0), torch.tensor(0.5), 1.0)
    assert (one.item(), other.item(), swapped.item()) == (0.5, 1.5, 0.5)


def test_two_masked_steps_equal_numpy(linear):
    """NPO at its reference is ascent; the mask is that of the formula, computed by hand."""
    curvature, lr = 0.05, 0.1
    fw, fb = linear.gradient(linear.x, linear.y)
    rw, rb = linear.gradient(linear.kept_x, linear.kept_y)
    sizes = np.concatenate(
        [
            np.abs((linear.w - rw / curvature) * fw).ravel(),
            np.abs((linear.b - rb / curvature) * fb),
        ]
    )
    keep = np.zeros(16, dtype=bool)
    keep[np.argsort(-sizes, kind="stable")[:6]] = True
    mw, mb = keep[:12].reshape(4, 3), keep[12:]
    mask = {"by": "attribution", "fraction": 0.4, "curvature": curvature}
    w, b = linear.apply("wagle", {"scope": {"mask": mask}, "alpha": 0.5, "beta": 2.0}, lr=lr)
    np.testing.assert_allclose(w, linear.w + lr * mw * (fw - 0.5 * rw), atol=1e-14)
    np.testing.assert_allclose(b, linear.b + lr * mb * (fb - 0.5 * rb), atol=1e-14)
    np.testing.assert_array_equal(w[~mw], linear.w[~mw])
    np.testing.assert_array_equal(b[~mb], linear.b[~mb])


def run(world, name, **settings):
    given = Given(world.task, world.forget, world.retain)
    return apply(name, world.model, given, Run(), settings).model


@pytest.mark.parametrize("world", ["digits_world", "questions_world"])
def test_every_weight_is_npo_exactly(world, request):
    world = request.getfixturevalue(world)
    schedule = {"epochs": 3, "lr": 1e-3, "weight_decay": 0.1}
    whole = {"mask": {"by": "attribution", "fraction": 1.0}}
    masked = run(world, "wagle", schedule=schedule, scope=whole)
    plain = run(world, "npo", schedule=schedule)
    assert state_digest(masked) == state_digest(plain) != state_digest(world.model)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_masked_out_weights_keep_their_bits_under_weight_decay(questions_world, optimizer):
    """The release applies its mask before AdamW, so that frozen weights shrink by lr wd a step."""
    world = questions_world
    settings = {"by": "attribution", "fraction": 0.1}
    schedule = {
        "epochs": 5,
        "lr": 3e-3,
        "weight_decay": 0.1,
        "optimizer": optimizer,
        "clip_norm": 1.0,
    }
    model = run(world, "wagle", scope={"mask": settings}, schedule=schedule)
    sources = {"forget": world.forget, "retain": world.retain}
    mask = make_mask(Mask(**settings), world.model, world.task, sources, Run())
    before, moved = world.model.state_dict(), 0
    for name, new in model.state_dict().items():
        still = ~mask.tensors[name]
        assert torch.equal(new[still], before[name][still]), name
        moved += int((new != before[name]).sum())
    total = sum(value.numel() for value in before.values())
    assert 0.09 * total < moved <= 0.1 * total


# Their last layers are drawn anew, or are another model's: a mask has nothing to hold in place.
MASKLESS = {"euk"}


def masked_methods():
    """Every method for language models that has a scope and changes the weights."""
    return [
        info.name
        for info in methods
        if "causal_lm" in info.kinds
        and hasattr(info.config(), "scope")
        and info.evidence == "weights-suppressed"
        and info.name not in MASKLESS
    ]


@pytest.mark.parametrize("name", masked_methods())
def test_the_mask_serves_every_objective(questions_world, name):
    """A setting of ``scope``, no class of its own; it brings its own need of retain records."""
    world = questions_world
    mask = {"by": "attribution", "fraction": 0.2}
    settings = {"scope": {"mask": mask}, "schedule": {"epochs": 2, "lr": 1e-3, "weight_decay": 0.1}}
    info = methods.get(name)
    assert "retain" in info.needs(parse(info.config, settings, name))
    given = Given(world.task, world.forget, world.retain, fresh=world.fresh)
    model = apply(name, world.model, given, Run(), settings).model
    start = world.fresh() if "fresh" in info.needs(info.config()) else world.model
    before, after = start.state_dict(), model.state_dict()
    # The share is one of the weights in scope: of the last layers, where a method has no others.
    scope = dataclasses.replace(parse(info.config, settings, name).scope, mask=None)
    with scoped(copy.deepcopy(start), world.task, scope, {}, Run()) as selection:
        total = sum(parameter.numel() for parameter in selection.parameters.values())
    moved = sum(int((before[key] != after[key]).sum()) for key in before)
    assert (0.02 if name == "rmu" else 0.15) * total < moved <= 0.2 * total
    with pytest.raises(ConfigError, match="it needs retain records and there are none"):
        apply(name, world.model, dataclasses.replace(given, retain=None), Run(), settings)


@pytest.mark.parametrize("name", ["grad_ascent", "flat", "ceu"])
def test_retain_records_decide_the_mask_of_methods_that_do_not_read_them(questions_world, name):
    """Other retain records, another mask; an infinite curvature reads none of them."""
    world = questions_world
    schedule = {"epochs": 1, "lr": 1e-3}

    def digest(retain, curvature):
        mask = {"by": "attribution", "fraction": 0.2, "curvature": curvature}
        given = Given(world.task, world.forget, retain, guard=None)
        settings = {"scope": {"mask": mask}, "schedule": schedule}
        return state_digest(apply(name, world.model, given, Run(), settings).model)

    part = world.retain.take(range(4))
    assert digest(world.retain, 1e-6) != digest(part, 1e-6)
    assert digest(world.retain, "infinite") == digest(None, "infinite") != digest(part, 1e-6)


def test_refusal_methods_are_attributed_on_their_refusals(questions_world):
    """Those of the first epoch; the forgotten answers would choose other weights."""
    world = questions_world
    settings = {"by": "attribution", "fraction": 0.2}
    model = run(world, "idk", scope={"mask": settings}, schedule={"epochs": 2, "lr": 1e-3})
    before, after = world.model.state_dict(), model.state_dict()
    refused = world.task.neutral(world.forget, 0, 0)

    def outside(forget):
        sources = {"forget": forget, "retain": world.retain}
        mask = make_mask(Mask(**settings), world.model, world.task, sources, Run())
        return sum(int((before[n] != after[n])[~mask.tensors[n]].sum()) for n in before)

    assert outside(refused) == 0
    assert outside(world.forget) > 100


def test_a_forget_set_without_gradient_is_refused(linear):
    """Known to the last bit, its gradient is zero everywhere and a mask would be arbitrary."""
    sharp = linear.model(w=linear.w * 1e6, b=linear.b * 1e6)
    labels = np.argmax(linear.x @ linear.w.T + linear.b, axis=1)
    linear.forget = Records(linear.forget.ids, {"x": linear.x, "y": labels})
    with pytest.raises(
        NumericalError, match=r"no forget signal: the gradient .* is zero everywhere"
    ):
        linear.apply("wagle", model=sharp)


@pytest.mark.parametrize("bad", [0, -1.0, float("nan"), float("inf"), "some"])
def test_the_curvature_is_a_positive_number_or_a_word(bad):
    with pytest.raises(ConfigError, match=r"curvature|must be a finite number"):
        parse(WagleConfig, {"scope": {"mask": {"curvature": bad}}}, "wagle")
    for good in ("auto", "infinite", 0.5):
        mask = parse(WagleConfig, {"scope": {"mask": {"curvature": good}}}, "wagle").scope.mask
        assert dataclasses.replace(mask, curvature=1e-6) == WagleConfig().scope.mask


@pytest.mark.parametrize("fraction", [0, 1.5])
def test_the_share_is_within_zero_and_one(fraction):
    with pytest.raises(ConfigError, match=r"fraction = "):
        parse(WagleConfig, {"scope": {"mask": {"fraction": fraction}}}, "wagle")


def test_retain_records_are_needed_whatever_the_term():
    info = methods.get("wagle")
    assert "retain" in info.needs(WagleConfig())
    assert "reference_model" in info.needs(WagleConfig(retain="kl"))


def test_npo_under_any_mask_is_the_same_as_wagle(questions_world):
    """WAGLE is no objective of its own."""
    world = questions_world
    scope = {"mask": {"by": "attribution", "fraction": 0.3, "curvature": "auto"}}
    schedule = {"epochs": 2, "lr": 1e-3}
    pair = [run(world, name, scope=scope, schedule=schedule) for name in ("wagle", "npo")]
    assert state_digest(pair[0]) == state_digest(pair[1])
