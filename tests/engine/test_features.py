"""Hidden states of a block at target positions, from a pass that ends there."""

import pytest
import torch
from torch import nn

from expunge.core.errors import UnsupportedModelError
from expunge.core.records import Records
from expunge.engine.blocks import block_names
from expunge.engine.features import features_ND
from expunge.engine.tasks.causal_lm import CausalLM, Template
from expunge.engine.tasks.classifier import Classifier


@pytest.fixture
def task(tokenizer):
    return CausalLM(tokenizer, Template(prompt="{question}", answer=" {answer}"))


@pytest.fixture
def batch(task, records):
    return task.batch(records, range(4))


def test_they_are_the_hidden_states_that_predict_targets(model, task, batch):
    with torch.no_grad():
        states = model(**batch.inputs, output_hidden_states=True).hidden_states
        first = features_ND(model, task, batch, block_names(model)[0])
    assert first.shape == (len(batch.targets_N), 16)
    torch.testing.assert_close(first, states[1][batch.positions], rtol=0, atol=1e-12)


def test_they_do_not_depend_on_the_batch(model, task, records):
    block = block_names(model)[1]
    with torch.no_grad():
        together = features_ND(model, task, task.batch(records, range(4)), block)
        alone = [features_ND(model, task, task.batch(records, [row]), block) for row in range(4)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-6)


def test_what_follows_the_block_is_never_run(model, task, batch):
    first, second = block_names(model)
    ran = []
    handles = [
        module.register_forward_pre_hook(lambda *_, name=name: ran.append(name))
        for name, module in (
            (first, model.get_submodule(first)),
            (second, model.get_submodule(second)),
            ("head", model.get_output_embeddings()),
        )
    ]
    features_ND(model, task, batch, first)
    assert ran == [first]
    for handle in handles:
        handle.remove()


def test_gradients_reach_the_block_and_what_is_before_it(model, task, batch):
    first, second = block_names(model)
    model.zero_grad(set_to_none=True)
    features_ND(model, task, batch, first).square().sum().backward()
    touched = {name for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    assert {n for n in touched if n.startswith(f"{first}.")} == {
        n for n, _ in model.named_parameters() if n.startswith(f"{first}.")
    }
    assert not {n for n in touched if n.startswith(f"{second}.")}
    assert any("embed" in n or "wte" in n for n in touched)


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_no_hook_is_left_behind(model, task, batch):
    block, before = block_names(model)[0], hooks(model)
    features_ND(model, task, batch, block)
    assert hooks(model) == before

    class Failing:
        def predict(self, model, batch):
            raise MemoryError("no room")

    with pytest.raises(MemoryError):
        features_ND(model, Failing(), batch, block)
    assert hooks(model) == before


def test_a_classifiers_layer_yields_one_row_per_record():
    """Pictures with channels become one long vector."""
    network = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(8, 3))
    records = Records(("a", "b"), {"x": torch.rand(2, 1, 3, 3).numpy(), "y": [0, 1]})
    task = Classifier(3)
    batch = task.batch(records, [0, 1])
    with torch.no_grad():
        hidden = features_ND(network, task, batch, "0")
        assert torch.equal(hidden, network[0](batch.inputs["x"]).flatten(1))
    assert hidden.shape == (2, 8)


class Branching(nn.Module):
    """One block that yields no tensor, and one that no pass ever runs."""

    def __init__(self):
        super().__init__()
        self.named = Named()
        self.idle = nn.Linear(2, 2)
        self.head = nn.Linear(2, 3)

    def forward(self, x):
        return self.head(self.named(x)["x"])


class Named(nn.Module):
    def forward(self, x):
        return {"x": x}


@pytest.mark.parametrize(
    ("block", "message"),
    [("named", "block 'named' yields dict, no tensor"), ("idle", "never runs block 'idle'")],
)
def test_a_block_without_states_is_refused(block, message):
    task = Classifier(3)
    batch = task.batch(Records(("a",), {"x": torch.rand(1, 2).numpy(), "y": [0]}), [0])
    model = Branching()
    with pytest.raises(UnsupportedModelError, match=message):
        features_ND(model, task, batch, block)
    assert hooks(model) == 0
