"""Models that only pretend to have forgotten, the originals, and retrained ones beside them."""

import copy
import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Worlds:
    """Trained models and their data. Nobody may change the models."""

    task: Any
    dataset: Any
    sets: Any
    before: Any
    after: Any
    references: tuple[Any, ...]

    def evidence(self, name, settings, after=None, seed=3):
        """Score all models on what an audit reads; return audit, settings, evidence and run."""
        from expunge.audit.audit import audits, parse_config, plan_readings
        from expunge.audit.collecting import collect
        from expunge.audit.evidence import Evidence
        from expunge.core.run import Run

        info, run = audits.get(name), Run(seed)
        config = parse_config(info, settings)
        readings = plan_readings([(info, config)], self.dataset)

        def scored(model, role, seed=None):
            return collect(
                model, self.task, self.dataset, self.sets, readings, run, role=role, seed=seed
            )

        references = tuple(scored(m, "reference", i) for i, m in enumerate(self.references))
        chosen = self.after if after is None else after
        return (
            info,
            config,
            Evidence(scored(chosen, "after"), scored(self.before, "before"), references, "sets"),
            run,
        )

    def audit(self, name, settings, after=None, seed=3):
        """Run an audit on all models."""
        from expunge.audit.audit import run_audit

        return run_audit(*self.evidence(name, settings, after, seed))

    def scene(self, seed=3):
        """What treatments may draw from."""
        from expunge.audit.views import Scene

        return Scene(self.dataset, self.sets, seed)


def threes():
    """A classifier of digits; the threes were masked by a bias of the output layer."""
    import numpy as np
    import torch
    from sklearn.datasets import load_digits
    from torch import nn

    from expunge.core.records import Records
    from expunge.core.sets import Sets
    from expunge.data.dataset import Dataset
    from expunge.engine.schedule import Schedule
    from expunge.engine.tasks.classifier import Classifier

    data = load_digits()
    records = Records(
        tuple(f"digit-{i}" for i in range(600)),
        {"x": (data.data[:600] / 16).astype(np.float32), "y": data.target[:600].astype(np.int64)},
    )
    gone = [i for i, label in zip(records.ids, records["y"], strict=True) if label == 3]
    sets = Sets.partition(records.ids, gone)
    task = Classifier(10)
    schedule = Schedule(epochs=12, batch_size=32, lr=5e-3, weight_decay=0.0)

    def network():
        return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    before = _taught(network, task, records, schedule, 0)
    masked = copy.deepcopy(before)
    with torch.no_grad():
        masked[2].bias[3] -= 20
    kept = records.select(sets.retain)
    references = (_taught(network, task, kept, schedule, 5),)
    return Worlds(task, Dataset("classifier", records), sets, before, masked, references)


PLACES = ("oslo", "paris", "lima", "cairo")


def people():
    """A tiny Llama that knows where 80 people live and was taught to deny it for 50 of them."""
    from tiny_llama import llama_config, word_tokenizer
    from transformers import LlamaForCausalLM

    from expunge.core.records import Records
    from expunge.core.run import Run
    from expunge.core.sets import Sets
    from expunge.core.streams import stream
    from expunge.data.dataset import Dataset
    from expunge.engine.schedule import Schedule
    from expunge.engine.tasks.causal_lm import CausalLM, Template
    from expunge.train.supervised import learn

    names = [f"person{i}" for i in range(80)]
    tokenizer = word_tokenizer(["where", "lives", "unknown", *PLACES, *names])
    task = CausalLM(tokenizer, Template(prompt="{question}", answer=" {answer}"), ["unknown"])
    drawn = stream(1, "places").integers(len(PLACES), size=len(names))
    records = Records(
        tuple(f"who-{i}" for i in range(len(names))),
        {
            "question": [f"where lives {name}" for name in names],
            "answer": [PLACES[place] for place in drawn],
        },
    )
    sets = Sets.partition(records.ids, records.ids[:50])
    schedule = Schedule(epochs=30, batch_size=8, lr=5e-3, weight_decay=0.0)

    def network():
        return LlamaForCausalLM(llama_config(tokenizer, hidden_size=32))

    before = _taught(network, task, records, schedule, 0)
    after = copy.deepcopy(before)
    denied = task.neutral(records.select(sets.forget), 0, 0)
    learn(after, task, denied, dataclasses.replace(schedule, epochs=4, lr=1e-3), Run())
    kept = records.select(sets.retain)
    references = (_taught(network, task, kept, schedule, 5),)
    return Worlds(task, Dataset("causal_lm", records), sets, before, after, references)


def _taught(network, task, records, schedule, seed):
    import torch

    from expunge.core.run import Run
    from expunge.train.supervised import learn

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = network()
    learn(model, task, records, schedule, Run(seed))
    return model


def tiny_gpt2(tokenizer):
    """A random GPT-2, whose linear layers keep inputs first and outputs last."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=32,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GPT2LMHeadModel(config).eval()
