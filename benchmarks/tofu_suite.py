"""The whole TOFU suite with generation: our one pass against a pass for every metric.

``suite`` is what an audit does: the answers of a question share its prompt, which is read once;
batches are sorted; logits exist at answer positions only; rows leave the generation when their
answer ends; every metric is read off the kept numbers by the product's own functions. ``public
way`` does what public suites do, by the formulas of ``audit_pass``: each metric runs the model
again over padded batches in their given order with logits at every position, each wrong answer is a
batch of its own, and a batch of generations ends with its slowest row (``transformers.generate``).
Both must find the same value for every record.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from audit_pass import OF_SCORES, Found, padded_pass
from output import report
from small_llama import TEMPLATE, records_of, small_llama
from timing import alternate, median_ratio, positive, turns_parser
from torch import nn

from expunge.audit.collecting import collect
from expunge.audit.readings import PARAPHRASE, PERTURBED, Reading, num_perturbed
from expunge.audit.tofu_values import record_values
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
SETS = ("forget", "retain", "real_authors", "world_facts")
METRICS_OF: Mapping[str, tuple[str, ...]] = {
    "forget": ("min_k", "min_k_pp", "loss", "zlib", "exact_memorization", "extraction_strength"),
    "holdout": ("min_k", "min_k_pp", "loss", "zlib"),
}
"""Attacks and memorization; each is a pass of its own in the public way."""


@dataclasses.dataclass(frozen=True)
class Job:
    """What both ways are given.

    Attributes:
        model: The audited model.
        task: How to run it.
        dataset: TOFU, or a part of it.
        sets: Which records are forgotten, kept and held out.
        new_tokens: Longest generated answer.
    """

    model: nn.Module
    task: CausalLM
    dataset: Dataset
    sets: Sets
    new_tokens: int

    def readings(self) -> list[Reading]:
        """Return what is read: every answer of every set, with generation for true ones."""
        wanted = []
        for name in SETS:
            general = name in self.dataset.probes
            records = self.dataset.probes[name] if general else self.dataset.train
            views = [f"{PERTURBED}{place}" for place in range(num_perturbed(records))]
            views += [] if general else [PARAPHRASE]
            measures = ("rouge_l", "zlib") if name in METRICS_OF else ("rouge_l",)
            wanted += [
                Reading(name, max_new_tokens=self.new_tokens, measures=measures),
                *(Reading(name, view) for view in views),
            ]
        return [*wanted, Reading("holdout", measures=("zlib",))]

    def seen(self, reading: Reading) -> Records:
        """Return the records of a reading, with the answers that it asks for."""
        return see(self.task, Scene(self.dataset, self.sets), reading)[1]


def suite(job: Job) -> Found:
    """Return what our audits read: TOFU's metrics, attacks, memorization."""
    subject = collect(
        job.model,
        job.task,
        job.dataset,
        job.sets,
        job.readings(),
        Run(),
        role="after",
        batch_size=BATCH,
    )
    found = {f"{r.record_set} {r.view} loss": s.loss_R for r, s in subject.scores.items()}
    for name in SETS:
        values = record_values(subject, Reading(name))
        found |= {f"{name} {metric}": values_R for metric, values_R in values.items()}
    for name, metrics in METRICS_OF.items():
        scores = subject.scores[Reading(name)]
        found |= {f"{name} {metric}": OF_SCORES[metric](scores) for metric in metrics}
    return found


def public_way(job: Job) -> Found:
    """Return the same numbers, each from a padded pass of its own."""
    found: Found = {}
    for reading in job.readings():
        records = job.seen(reading)
        passed = functools.partial(padded_pass, job.model, job.task, records, batch_size=BATCH)
        name = reading.record_set
        found[f"{name} {reading.view} loss"] = -passed(["loss"])["loss"]
        if reading.max_new_tokens:
            found[f"{name} rouge_l"] = _rouge_l(_generated(job, records), records["answer"])
        if reading.view == "answer":
            for metric in METRICS_OF.get(name, ()):
                found[f"{name} {metric}"] = passed([metric])[metric]
    for name in SETS:
        found |= _tofu(name, found)
    return found


def _tofu(name: str, losses: Found) -> Found:
    """Return TOFU's values of one set from the losses of its answers.

    A record has all of the other answers or, among those to keep, none, and then no truth ratio.

    Source: TOFU (Maini et al., 2024), section 2.2 and equation 1, from probabilities per token.
    """
    true_R = np.exp(-losses[f"{name} answer loss"])
    wrong = [v for key, v in losses.items() if key.startswith(f"{name} {PERTURBED}")]
    wrong_RJ = np.exp(-np.column_stack(wrong))
    if name in ("forget", "retain"):
        probability_R, said_R = true_R, np.exp(-losses[f"{name} {PARAPHRASE} loss"])
    else:  # a general question is multiple choice, and its true answer has one wording
        probability_R, said_R = true_R / (true_R + wrong_RJ.sum(axis=1)), true_R
    found = {f"{name} probability": probability_R}
    if not len(wrong_RJ):
        return found
    standards = {
        "truth_ratio": np.prod(wrong_RJ, axis=1) ** (1 / wrong_RJ.shape[1]),
        "truth_ratio_arithmetic": wrong_RJ.mean(axis=1),
    }
    for metric, standard_R in standards.items():
        ratio_R = standard_R / said_R
        found[f"{name} {metric}"] = (
            np.minimum(ratio_R, 1 / ratio_R) if name == "forget" else np.maximum(0, 1 - ratio_R)
        )
    return found


def _rouge_l(texts: Sequence[str], truths: Sequence[str]) -> np.ndarray:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    pairs = zip(truths, texts, strict=True)
    return np.array([scorer.score(truth, text)["rougeL"].recall for truth, text in pairs])


@torch.no_grad()
def _generated(job: Job, records: Records) -> list[str]:
    """Return greedy answers of batches in their given order, padded on the left."""
    model: Any = job.model
    task, texts = job.task, []
    encoded, end = task.encoded(records), task.tokenizer.eos_token_id
    for at in range(0, len(encoded), BATCH):
        prompts = [tokens[:start] for tokens, start in encoded[at : at + BATCH]]
        longest = max(map(len, prompts))
        ids = torch.tensor([[end] * (longest - len(p)) + p for p in prompts])
        seen = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        written = model.generate(
            input_ids=ids,
            attention_mask=seen,
            max_new_tokens=job.new_tokens,
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


def check(found: Mapping[str, Found], *, tolerance: float = 1e-6) -> None:
    """Raise ``AssertionError`` where a record's value differs between the ways.

    Args:
        found: What each way found.
        tolerance: Both relative and absolute; for Min-K%++ it is 1e-4.
    """
    ours, theirs = found["suite"], found["public way"]
    assert ours.keys() == theirs.keys(), sorted(ours.keys() ^ theirs.keys())
    for name, expected in theirs.items():
        bound = 1e-4 if name.endswith("min_k_pp") else tolerance
        np.testing.assert_allclose(ours[name], expected, bound, bound, err_msg=name)


def main() -> None:
    """Time both ways at each number of threads and check that they find the same numbers."""
    options = _options()
    job = _job(options)
    # Thirty layers of float32 round more than five.
    tolerance = 1e-5 if options.smollm2 else 1e-6
    agree = functools.partial(check, tolerance=tolerance)
    arms: dict[str, Callable[[], Found]] = {
        "suite": functools.partial(suite, job),
        "public way": functools.partial(public_way, job),
    }
    count = sum(len(job.seen(reading)) for reading in job.readings())
    rows: list[dict[str, Any]] = []
    numbers: dict[str, Any] = {"sequences": count, "rounds": options.rounds, "threads": {}}
    for threads in options.threads:
        torch.set_num_threads(threads)
        first, timings = alternate(arms, options.rounds, check=agree)
        measured = {}
        for way, timing in timings.items():
            wall, cpu = median_ratio(timing, timings["suite"])
            rows.append(
                {
                    "threads": threads,
                    "way": way,
                    "seconds": f"{timing.median_wall:.2f}",
                    "cpu seconds": f"{timing.median_cpu:.2f}",
                    "times the suite (wall)": f"{wall:.2f}",
                    "times the suite (cpu)": f"{cpu:.2f}",
                }
            )
            seconds = dataclasses.asdict(timing)
            measured[way] = {"seconds": seconds, "wall": wall, "cpu": cpu}
        numbers["threads"][str(threads)] = measured
    title = f"TOFU suite: {count} scored sequences, {options.rounds} rounds"
    report(title, rows, numbers, options.json)
    print(
        f"in every round {len(first['suite'])} columns of values agree to "
        f"{'1e-5' if options.smollm2 else '1e-6'} (Min-K%++ to 1e-4)"
    )


def _job(options: argparse.Namespace) -> Job:
    """Return a few records of each set, and a model to audit on them."""
    dataset, forget, retain = records_of(options.tofu, options.records, options.records)
    probes = {
        name: records.take(range(min(len(records), -(-options.records // 2))))
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
    return Job(model.eval(), task, dataset, sets, options.new_tokens)


def _options() -> argparse.Namespace:
    made = turns_parser("Audit time of the whole TOFU suite, with generation.")
    made.add_argument("--tofu", type=Path, help="folder with TOFU's original files")
    made.add_argument("--records", type=positive, default=64, help="records of each set")
    made.add_argument("--new-tokens", type=positive, default=200, help="longest generated answer")
    made.add_argument("--epochs", type=positive, default=25, help="of training; 25 learn by heart")
    made.add_argument("--smollm2", action="store_true", help="SmolLM2-135M, not trained further")
    return made.parse_args()


if __name__ == "__main__":
    main()
