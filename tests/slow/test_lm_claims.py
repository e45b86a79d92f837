"""What the papers claim for language models, in the form in which it shows on country facts."""

import statistics

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def collapse(study):
    """Curves of one seed, measured every 30 steps."""
    return study("npo_collapse", "--seeds", "1", "--every", "30")


@pytest.fixture(scope="session")
def flat(study):
    """Six small requests under every arm."""
    return study("flat")


@pytest.fixture(scope="session")
def uld(study):
    """Assistants of one seed."""
    return study("uld", "--seeds", "1")


@pytest.fixture(scope="session")
def o3(study):
    """Four requests in sequence, one seed."""
    return study("o3", "--seeds", "1", "--world", "country_facts")


def test_ascent_drifts_on_and_npo_stands_still(collapse):
    ascent, npo = collapse["gradient ascent"], collapse["NPO, beta 1"]
    half = len(ascent["steps"]) // 2
    for curve in ("forget_loss", "held_loss"):
        assert ascent[curve][0][-1] > 1.2 * ascent[curve][0][half]
        assert npo[curve][0][-1] < 1.2 * npo[curve][0][half]
    assert npo["held_loss"][0][-1] < ascent["held_loss"][0][-1] / 5


def test_with_a_retain_term_npo_never_collapses_and_difference_does(collapse):
    assert collapse["gradient difference"]["collapse_step"][0] is not None
    assert collapse["NPO with retain term, beta 1"]["collapse_step"] == [None]
    assert collapse["NPO with retain term, beta 1"]["held"][0][-1] > 0.9


@pytest.mark.parametrize("divergence", ["kl", "js", "pearson", "tv"])
def test_flat_keeps_more_than_ascent_with_forget_data_only(flat, divergence):
    """The success criterion of the reproduction: by 0.08 on average, and on 4 of 6 requests."""
    ascent, own = flat["grad_ascent"]["retained"], flat[f"flat, {divergence}"]["retained"]
    assert statistics.fmean(own) >= statistics.fmean(ascent) + 0.08
    assert sum(a > b for a, b in zip(own, ascent, strict=True)) >= 4
    assert max(flat[f"flat, {divergence}"]["forgotten"]) <= 0.11


def test_flat_levels_off_where_ascent_goes_on(flat):
    growth = {arm: flat[arm]["long_forget_loss"] for arm in ("grad_ascent", "flat, kl", "flat, tv")}
    rises = {arm: late - early for arm, (early, late) in growth.items()}
    assert rises["flat, kl"] < 0.6 * rises["grad_ascent"]
    assert rises["flat, tv"] < 0.6 * rises["grad_ascent"]


def test_uld_forgets_more_the_more_it_subtracts_and_keeps_more_than_kl(uld):
    alphas = [uld[f"uld, 1 layer, 72 retained, alpha {a}"] for a in (0.5, 0.65, 0.8, 1.0)]
    losses = [told["forgotten loss"][0] for told in alphas]
    assert losses == sorted(losses)
    enough = next(told for told in alphas if told["forgotten"][0] <= 0.05)
    assert enough["held"][0] > uld["grad_diff, kl, 150 steps"]["held"][0] + 0.4


def test_the_assistant_is_a_concentrated_leak(uld):
    alone = uld["assistant alone, 1 layer, 72 retained"]
    assert alone["forgotten"][0] >= 0.95
    assert alone["held"][0] <= 0.05


def test_o3_keeps_what_difference_in_sequence_loses(o3):
    (own,), (difference,) = o3["o3"], o3["grad_diff"]
    assert difference[-1]["held"] < 0.05
    for after in range(4):
        assert own[after]["held"] > difference[after]["held"] + 0.15
        assert own[after]["held"] > own[after]["held_always_on"] + 0.05
