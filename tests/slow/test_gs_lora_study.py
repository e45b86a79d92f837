"""GS-LoRA on digits: classes go, few blocks change, and four requests leave the rest in place."""

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

BY_ADAPTERS = ("no lasso", "lasso 0.01", "lasso 0.2", "prototypes, lasso 0.05")


@pytest.fixture(scope="session")
def found(study):
    """Test accuracies of one seed."""
    return study("gs_lora")


@pytest.fixture(scope="session")
def arms(found):
    return found["arms"]


@pytest.mark.parametrize("arm", BY_ADAPTERS)
def test_what_is_forgotten_goes_and_what_is_retained_stays(arms, arm):
    for request in arms[arm]:
        assert request["forgotten"] < 5
        assert request["lost"] < 2


def test_a_strong_lasso_changes_fewer_blocks_at_nearly_the_same_harmonic_mean(arms):
    for free, sparse in zip(arms["no lasso"], arms["lasso 0.2"], strict=True):
        assert free["blocks"] == 4
        assert sparse["blocks"] < 4
        assert sparse["h"] > free["h"] - 4
        assert sparse["earlier"] <= 5


@pytest.mark.parametrize("lasso", ["lasso 0.01", "lasso 0.2"])
def test_four_requests_leave_retained_accuracy_within_two_points(arms, lasso):
    requests = arms[f"four requests, {lasso}"]
    assert len(requests) == 4
    for request in requests:
        assert request["forgotten"] < 5
        assert request["lost"] <= 2


@pytest.mark.parametrize("arm", BY_ADAPTERS)
def test_no_weight_beside_the_adapted_layers_changes(arms, arm):
    assert not any(request["outside"] for request in arms[arm])


def test_finetuning_and_ascent_are_no_match(arms):
    for baseline in ("finetune", "grad_ascent"):
        for own, other in zip(arms["lasso 0.01"], arms[baseline], strict=True):
            assert own["h"] > other["h"] + 10


def test_a_lasso_from_the_first_step_on_leaves_nothing_and_is_refused(found):
    assert all(found["collapsed without delay"])
