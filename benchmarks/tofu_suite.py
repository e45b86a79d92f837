"""The whole TOFU suite with generation: our one pass against a pass for every metric.

``suite`` is what an audit does: the answers of a question share its prompt, which is read once;
batches are sorted; logits exist at answer positions only; rows leave the generation when their
answer ends; every metric is read off the kept numbers. ``public way`` does what public suites do:
each metric runs the model again over padded batches in their given order with logits at every
position, each wrong answer is a batch of its own, and a batch of generations ends with its slowest
row (``transformers.generate``).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
from audit_pass import Answer, _padded
from output import parser, report
from small_llama import TEMPLATE, records_of, small_llama
from timing import alternate, median_ratio
from torch import nn

from expunge.audit.collecting import collect
from expunge.audit.measures import rouge_l_recall
from expunge.audit.readings import PARAPHRASE, PERTURBED, Reading, num_perturbed
from expunge.audit.views import Scene, see
from expunge.core.config import to_json
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.core.sets import Sets
from expunge.data.dataset import Dataset
from expunge.engine.schedule import Schedule
from expunge.engine.tasks.causal_lm import CausalLM
from expunge.models.source import load_model_source
from expunge.train.supervised import learn

BATCH = 32
NEW_TOKENS = 200
ATTACKED = ("forget", "holdout")
# Each of these is a pass of its own in the public way, over both attacked sets.
ATTACKS = ("min_k", "min_k_plus_plus", "loss again", "zlib")
MEMORIZED = ("exact_memorization", "extraction")

Found = dict[str, np.ndarray]


def readings_of(dataset: Dataset) -> list[Reading]:
    """Return what the suite reads: every answer of every set, with generation for true ones."""
    wanted = []
    for name in ("forget", "retain", "real_authors", "world_facts"):
        general = name in dataset.probes
        records = dataset.probes[name] if general else dataset.train
        views = [f"{PERTURBED}{place}" for place in range(num_perturbed(records))]
        views += [] if general else [PARAPHRASE]
        wanted += [
            Reading(name, max_new_tokens=NEW_TOKENS, measures=("rouge_l",)),
            *(Reading(name, v) for v in views),
        ]
    return [*wanted, Reading("holdout")]


def suite(model: nn.Module, task: CausalLM, dataset: Dataset, sets: Sets) -> Found:
    """Return what our audits read: losses of every answer, attacks on true ones, ROUGE."""
    wanted = readings_of(dataset)
    subject = collect(model, task, dataset, sets, wanted, Run(), role="after", batch_size=BATCH)
    found: Found = {}
    for reading, scores in subject.scores.items():
        name = f"{reading.record_set} {reading.view}"
        found[f"{name} loss"] = scores.loss_R
        if scores.rouge_R is not None:
            found[f"{name} rouge"] = scores.rouge_R
        if name.removesuffix(" answer") in ATTACKED:
            ranges = list(zip(scores.offsets, scores.offsets[1:], strict=False))
            columns = (scores.logprob_N, scores.rank_N, scores.mean_N, scores.variance_N)
            answers = [Answer(*(values[a:b] for values in columns)) for a, b in ranges]
            found |= _attacked(reading.record_set, dict.fromkeys(ATTACKS, answers))
        if name == "forget answer":
            found |= _memorized(dict.fromkeys(MEMORIZED, answers))
    return found


def public_way(model: nn.Module, task: CausalLM, dataset: Dataset, sets: Sets) -> Found:
    """Return the same numbers, each from a padded pass of its own."""
    scene, found = Scene(dataset, sets), {}
    for reading in readings_of(dataset):
        records = see(task, scene, reading)[1]
        name = f"{reading.record_set} {reading.view}"

        def passes(names: tuple[str, ...], records: Records = records) -> dict[str, list[Answer]]:
            return {what: _padded(model, task, records, described=what) for what in names}

        found[f"{name} loss"] = np.array([-a.logprob.mean() for a in passes(("loss",))["loss"]])
        if reading.max_new_tokens:
            texts = _generated(model, task, records)
            found[f"{name} rouge"] = rouge_l_recall(texts, task.answers(records))
        if name.removesuffix(" answer") in ATTACKED:
            found |= _attacked(reading.record_set, passes(ATTACKS))
        if name == "forget answer":
            found |= _memorized(passes(MEMORIZED))
    return found


def _attacked(name: str, passes: dict[str, list[Answer]]) -> Found:
    """Return the scores of attacks, each from the answers of its own pass."""
    return {
        f"{name} min_k": np.array([_lowest(a.logprob) for a in passes["min_k"]]),
        f"{name} min_k_pp": np.array(
            [_lowest((a.logprob - a.mean) / np.sqrt(a.variance)) for a in passes["min_k_plus_plus"]]
        ),
        f"{name} attack": np.array([a.logprob.mean() for a in passes["loss again"]]),
        f"{name} zlib": np.array([a.logprob.sum() for a in passes["zlib"]]),
    }


def _memorized(passes: dict[str, list[Answer]]) -> Found:
    return {
        "exact": np.array([(a.rank == 0).mean() for a in passes["exact_memorization"]]),
        "extraction": np.array([_tail(a.rank == 0) for a in passes["extraction"]]),
    }


def _tail(hits: np.ndarray) -> float:
    """Return the share of the answer that follows its last miss."""
    misses = np.flatnonzero(~hits)
    return 1.0 if not len(misses) else (len(hits) - 1 - misses[-1]) / len(hits)


def _lowest(values: np.ndarray) -> float:
    return float(np.sort(values)[: max(1, int(0.4 * len(values)))].mean())


@torch.no_grad()
def _generated(model: nn.Module, task: CausalLM, records: Records) -> list[str]:
    """Return greedy answers of batches in their given order, padded on the left."""
    encoded, texts, end = task.encoded(records), [], task.tokenizer.eos_token_id
    for at in range(0, len(encoded), BATCH):
        prompts = [tokens[:start] for tokens, start in encoded[at : at + BATCH]]
        longest = max(map(len, prompts))
        ids = torch.tensor([[end] * (longest - len(p)) + p for p in prompts])
        seen = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        written = model.generate(
            input_ids=ids,
            attention_mask=seen,
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            num_beams=1,
            eos_token_id=end,
            pad_token_id=end,
        )
        new = task.tokenizer.batch_decode(written[:, longest:], skip_special_tokens=True)
        texts += [text.strip() for text in new]
    return texts


def _model(dataset: Dataset, *, smollm2: bool, epochs: int) -> tuple[nn.Module, CausalLM]:
    """Return SmolLM2 as it comes, or a small Llama that learned the training records."""
    if smollm2:
        loaded = load_model_source("smollm2", {"template": to_json(TEMPLATE)}, dataset, seed=0)
        return loaded.model, CausalLM(loaded.tokenizer, TEMPLATE)
    model, task = small_llama(dataset)
    task = task.with_template(TEMPLATE)
    schedule = Schedule(epochs=epochs, batch_size=16, lr=1e-3, warmup_epochs=0.2, decay="linear")
    learn(model, task, dataset.train, schedule, Run())  # so that answers end
    return model, task


def main() -> None:
    """Time both ways and check that they find the same numbers."""
    made = parser("Audit time of the whole TOFU suite, with generation.")
    made.add_argument("--rounds", type=int, default=3, help="timed turns of each arm")
    made.add_argument("--tofu", type=Path, help="folder with TOFU's original files")
    made.add_argument("--records", type=int, default=64, help="records of each set")
    made.add_argument("--epochs", type=int, default=25, help="of training; 25 learn by heart")
    made.add_argument("--smollm2", action="store_true", help="SmolLM2-135M, not trained further")
    options = made.parse_args()
    torch.set_num_threads(options.threads)
    dataset, forget, retain = records_of(options.tofu, options.records, options.records)
    probes = {
        name: records.take(range(min(len(records), options.records // 2)))
        for name, records in dataset.probes.items()
    }
    known = {*forget.ids, *retain.ids}
    strangers = [i for i in dataset.train.ids if i not in known][: options.records]
    dataset = dataclasses.replace(
        dataset,
        probes=probes,
        train=dataset.train.select([*forget.ids, *retain.ids]),
        holdout=dataset.train.select(strangers),
        splits={},
    )
    sets = Sets(forget=forget.ids, retain=retain.ids, holdout=tuple(strangers))
    model, task = _model(dataset, smollm2=options.smollm2, epochs=options.epochs)
    model.eval()
    ways = {"suite": suite, "public way": public_way}
    arms = {name: lambda way=way: way(model, task, dataset, sets) for name, way in ways.items()}
    first, timings = alternate(arms, options.rounds)
    for name, expected in first["public way"].items():
        # Thirty layers of float32 round more than five.
        tolerance = 1e-4 if name.endswith("pp") else 1e-5 if options.smollm2 else 1e-6
        np.testing.assert_allclose(
            first["suite"][name], expected, tolerance, 2 * tolerance, err_msg=name
        )
    ratios = {name: median_ratio(timing, timings["suite"]) for name, timing in timings.items()}
    count = sum(len(see(task, Scene(dataset, sets), r)[1]) for r in readings_of(dataset))
    rows = [
        {
            "arm": name,
            "seconds": f"{timing.median_wall:.2f}",
            "cpu seconds": f"{timing.median_cpu:.2f}",
            "times the suite (wall)": f"{ratios[name][0]:.2f}",
            "times the suite (cpu)": f"{ratios[name][1]:.2f}",
        }
        for name, timing in timings.items()
    ]
    numbers = {
        "sequences": count,
        "seconds": {name: dataclasses.asdict(timing) for name, timing in timings.items()},
        "ratios": ratios,
    }
    report(f"TOFU suite: {count} scored sequences", rows, numbers, options.json)
    exact = "1e-5" if options.smollm2 else "1e-6"
    print(f"{len(first['suite'])} columns of values agree to {exact} (Min-K%++ to 1e-4)")


if __name__ == "__main__":
    main()
