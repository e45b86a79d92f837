"""The autoencoder's loss against known values, its noise, and what fitting it does."""

import numpy as np
import pytest
import torch

from expunge.core.run import Run
from expunge.core.streams import stream
from expunge.engine.schedule import Schedule
from expunge.engine.vae import Noise, Vae, fit_vae, squared_distance_B, vae_loss_B

E = torch.tensor([[1.0, 2.0], [0.0, 1.0]])
REBUILT = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
SCHEDULE = Schedule(epochs=30, batch_size=16, lr=1e-2, weight_decay=0.0)


def vectors(count=64, width=12):
    """Points near a plane, inside 0..1."""
    draw = np.random.default_rng(0)
    plane = draw.normal(size=(count, 2)) @ draw.normal(size=(2, width))
    return torch.tensor(1 / (1 + np.exp(-plane)), dtype=torch.float32)


def test_golden_loss():
    """Card of LAF, section 10: 0.5 of rebuilding, and 0.025 of a divergence of 1.05685 / 2."""
    mean, deviation = torch.tensor([[0.5], [-0.5]]), torch.tensor([[1.0], [2.0]])
    loss_B = vae_loss_B(REBUILT, E, mean, deviation)
    assert float(loss_B.mean()) == pytest.approx(0.513211, abs=1e-6)
    assert squared_distance_B(REBUILT, E).tolist() == [1.0, 0.0]


def test_a_standard_normal_code_costs_nothing():
    loss_B = vae_loss_B(E, E, torch.zeros(2, 3), torch.ones(2, 3))
    torch.testing.assert_close(loss_B, torch.zeros(2), rtol=0, atol=1e-6)


def test_a_sigmoid_decoder_stays_inside_0_and_1_and_a_linear_one_does_not():
    torch.manual_seed(0)
    far = 100 * torch.randn(50, 6)
    inside = Vae(6, 2, "sigmoid")(far)[0]
    assert 0 <= float(inside.detach().min()) <= float(inside.detach().max()) <= 1
    assert float(Vae(6, 2, "linear")(far)[0].detach().min()) < 0


def test_without_noise_codes_are_their_means():
    torch.manual_seed(0)
    vae = Vae(2, 3, "linear")
    assert torch.equal(vae.misfit_B(E), vae.misfit_B(E, torch.zeros(2, 3)))
    assert not torch.equal(vae.misfit_B(E), vae.misfit_B(E, torch.ones(2, 3)))


def test_noise_is_a_function_of_epoch_and_record():
    ids = ["a", "b", "c"]
    noise = Noise(ids, 2, 4, 7, "codes")
    noise.begin([{}] * 5)  # the second epoch
    expected = stream(7, "codes", 1).standard_normal((3, 2), dtype="float32")
    np.testing.assert_array_equal(noise.of(["c", "a"], E), expected[[2, 0]])
    later = noise.of(["a"], E)
    noise.begin([{}] * 7)
    assert torch.equal(noise.of(["a"], E), later)
    assert noise.begin([{}] * 8) == 1.0
    assert not torch.equal(noise.of(["a"], E), later)
    noise.begin([])
    first = stream(7, "codes", 0).standard_normal((3, 2), dtype="float32")
    np.testing.assert_array_equal(noise.of(ids, E), first)


@pytest.mark.parametrize("decoder", ["sigmoid", "linear"])
def test_it_learns_what_it_is_fitted_to(decoder):
    e_ND = vectors()
    ids = [f"r{i}" for i in range(len(e_ND))]
    vae = fit_vae(ids, e_ND, 3, decoder, SCHEDULE, Run())
    spread = float((e_ND - e_ND.mean(0)).square().sum(1).mean())
    assert float(vae.misfit_B(e_ND).mean()) < spread / 2
    assert not vae.training
    assert not any(p.requires_grad for p in vae.parameters())


def test_the_same_seed_fits_the_same_bits():
    e_ND, ids = vectors(), [f"r{i}" for i in range(64)]
    schedule = Schedule(epochs=2, batch_size=16, lr=1e-2)
    one, two, other = (
        fit_vae(ids, e_ND, 3, "linear", schedule, Run(seed)).state_dict() for seed in (0, 0, 1)
    )
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)
