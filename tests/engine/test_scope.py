"""Which weights a scope lets move, on a perceptron and on a transformer."""

import copy

import pytest
import torch
from torch import nn

from expunge.core.errors import ConfigError
from expunge.core.run import Run
from expunge.engine.loop import Stream, fit
from expunge.engine.masks.mask import Mask
from expunge.engine.schedule import Schedule
from expunge.engine.scope import Lora, Scope, scoped
from expunge.engine.weights import state_digest
from expunge.train.supervised import likelihood

SCHEDULE = Schedule(epochs=2, batch_size=8, lr=1e-2, weight_decay=0.1)


def moved(world, scope, schedule=SCHEDULE):
    """Return the names of the tensors that a short training changed, and the trained model."""
    model = copy.deepcopy(world.model)
    before = copy.deepcopy(model.state_dict())
    terms = [likelihood(world.task, "forget", -1.0)]
    streams = {"forget": Stream(world.forget)}
    fit(model, world.task, streams, terms, schedule, Run(), scope=scope)
    after = model.state_dict()
    assert {n: (v.shape, v.dtype) for n, v in after.items()} == {
        n: (v.shape, v.dtype) for n, v in before.items()
    }
    return {name for name in after if not torch.equal(after[name], before[name])}, model


def names(world):
    return {name for name, _ in world.model.named_parameters()}


def test_everything_moves_by_default(digits_world):
    assert moved(digits_world, Scope())[0] == names(digits_world)


def test_last_layers_of_a_perceptron(digits_world):
    assert moved(digits_world, Scope(last_layers=1))[0] == {"2.weight", "2.bias"}
    assert moved(digits_world, Scope(last_layers=2))[0] == names(digits_world)


def test_last_layers_of_a_transformer_include_what_follows_the_blocks(questions_world):
    expected = {
        name
        for name in names(questions_world)
        if name.startswith(("model.layers.1.", "model.norm.", "lm_head."))
    }
    assert len(expected) == 11
    assert moved(questions_world, Scope(last_layers=1))[0] == expected


def test_more_layers_than_there_are(questions_world, digits_world):
    with pytest.raises(ConfigError, match=r"last_layers = 3 but the model has 2 layers"):
        moved(questions_world, Scope(last_layers=3))
    with pytest.raises(ConfigError, match=r"last_layers = 3 but the model has 2 layers"):
        moved(digits_world, Scope(last_layers=3))


def test_patterns(questions_world):
    changed, _ = moved(questions_world, Scope(patterns=("*.mlp.*", "*.norm.weight")))
    assert changed == {
        n for n in names(questions_world) if ".mlp." in n or n == "model.norm.weight"
    }


def test_patterns_that_match_nothing_name_what_there_is(digits_world):
    with pytest.raises(ConfigError, match=r"selects no parameter.*0\.weight, 0\.bias, 2\.weight"):
        moved(digits_world, Scope(patterns=("layers.*",)))


def test_patterns_and_layers_combine(questions_world):
    changed, _ = moved(questions_world, Scope(last_layers=1, patterns=("*.mlp.*",)))
    assert changed == {n for n in names(questions_world) if "layers.1.mlp." in n}


def test_merged_adapters_move_linear_layers_by_low_rank_updates_only(questions_world):
    before = questions_world.model.state_dict()
    changed, model = moved(questions_world, Scope(lora=Lora(rank=2)))
    linear = {n for n in names(questions_world) if "_proj." in n}
    assert changed == linear
    for name in linear:
        update = (model.state_dict()[name] - before[name]).double()
        sizes = torch.linalg.svdvals(update)
        assert float(sizes[2]) < 1e-4 * float(sizes[0])


def test_adapters_in_some_layers(questions_world, digits_world):
    changed, _ = moved(questions_world, Scope(lora=Lora(rank=2, targets=("*.q_proj", "*.v_proj"))))
    assert changed == {n for n in names(questions_world) if ".q_proj." in n or ".v_proj." in n}
    changed, _ = moved(questions_world, Scope(lora=Lora(rank=2), last_layers=1))
    assert changed == {n for n in names(questions_world) if "layers.1." in n and "_proj." in n}
    changed, _ = moved(digits_world, Scope(lora=Lora(rank=2), last_layers=1))
    assert changed == {"2.weight"}


def test_adapters_leave_no_trace(digits_world):
    _, model = moved(digits_world, Scope(lora=Lora(rank=2)))
    assert [type(m) for m in model.modules()] == [type(m) for m in digits_world.model.modules()]
    assert all(p.requires_grad for p in model.parameters())


def test_adapters_without_a_match_name_the_linear_layers(digits_world):
    with pytest.raises(ConfigError, match=r"matches no linear layer; the model has 0, 2"):
        moved(digits_world, Scope(lora=Lora(targets=("q_proj",))))


def test_adapters_start_from_the_run_and_change_nothing_before_training(digits_world):
    starts = []
    for seed in (0, 0, 1):
        model = copy.deepcopy(digits_world.model)
        run = Run(seed=seed)
        with scoped(model, digits_world.task, Scope(lora=Lora(rank=2)), {}, run) as selection:
            starts.append(selection.parameters["0.lora_A.default.weight"].detach().clone())
        assert state_digest(model) == state_digest(digits_world.model)
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


def test_a_mask_of_everything_is_no_mask(digits_world):
    _, masked = moved(digits_world, Scope(mask=Mask(by="saliency", fraction=1.0)))
    _, plain = moved(digits_world, Scope())
    assert state_digest(masked) == state_digest(plain)


def test_a_mask_covers_the_chosen_parameters_only(digits_world):
    before = digits_world.model.state_dict()
    _, model = moved(digits_world, Scope(patterns=("2.*",), mask=Mask(by="saliency", fraction=0.5)))
    after = model.state_dict()
    count = sum(int((after[n] != before[n]).sum()) for n in ("2.weight", "2.bias"))
    assert count == 165  # half of 32 * 10 + 10
    assert torch.equal(after["0.weight"], before["0.weight"])


def test_gradient_flags_come_back_also_on_error(digits_world):
    model = copy.deepcopy(digits_world.model)
    model[0].bias.requires_grad_(False)
    flags = {n: p.requires_grad for n, p in model.named_parameters()}
    with scoped(model, digits_world.task, Scope(last_layers=1), {}, Run()) as selection:
        assert set(selection.parameters) == {"2.weight", "2.bias"}
        assert [p.requires_grad for p in model.parameters()] == [False, False, True, True]
    assert {n: p.requires_grad for n, p in model.named_parameters()} == flags
    block = scoped(model, digits_world.task, Scope(last_layers=1), {}, Run())
    with pytest.raises(KeyError), block:
        raise KeyError
    assert {n: p.requires_grad for n, p in model.named_parameters()} == flags


def test_tied_weights_are_one_parameter():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Linear(3, 3, bias=False)
            self.head = nn.Linear(3, 3, bias=False)
            self.head.weight = self.embed.weight

    with scoped(Tied(), None, Scope(), {}, Run()) as selection:
        assert list(selection.parameters) == ["embed.weight"]
