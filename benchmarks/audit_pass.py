"""The likelihood, memorization and attack metrics of an audit, against one padded pass for each.

``one pass`` is what an audit runs: ``audit.scores.score`` and, on the numbers it keeps, the metric
functions of ``audit.mia_scores``, ``audit.memorization`` and ``audit.tofu_metrics``. ``pass per
metric`` is written here, by formulas of its own, as public suites work: for each metric it runs the
model again, over padded batches of records in their given order, with logits at every position.
``shared pass`` is between the two: padded and full as well, but run once for all metrics. The ways
share the model and the tokens, and nothing else; they must find the same value for every record.

Two attacks cost more than a pass over the model and stand in rows of their own, each with the whole
block: ``reference`` reads the records with a second model, and ``gradient norm`` needs a backward
pass for every record, in every way alike.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from output import report
from small_llama import invented_people, small_llama
from timing import alternate, median_ratio, positive, turns_parser
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from expunge.audit import mia_scores, tofu_metrics
from expunge.audit.measures import zlib_bytes
from expunge.audit.memorization import exact_memorization, extraction_strength
from expunge.audit.scores import Scores, score
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.engine.schedule import Schedule
from expunge.engine.tasks.causal_lm import CausalLM
from expunge.train.supervised import learn

BATCH = 16
SHARE = 0.4
"""Of the least likely tokens, for Min-K% and Min-K%++: the default of the ``mia`` audit."""
IGNORED = -100
TOLERANCE = {"min_k_pp": 1e-4}
"""Where it is not 1e-6; both relative and absolute."""

Found = dict[str, np.ndarray]
"""One value per record, by metric."""

OF_SCORES: Mapping[str, Callable[[Scores], np.ndarray]] = {
    "loss": mia_scores.loss,
    "probability": lambda scores: tofu_metrics.probability(scores.loss_R),
    "zlib": mia_scores.loss_per_byte,
    "min_k": functools.partial(mia_scores.min_k, k=SHARE),
    "min_k_pp": functools.partial(mia_scores.min_k_plus, k=SHARE),
    "exact_memorization": exact_memorization,
    "extraction_strength": extraction_strength,
}
"""The product's functions of the scores that it keeps."""


@dataclasses.dataclass(frozen=True)
class Job:
    """What every way is given.

    Attributes:
        model: The audited model.
        reference: A model that never saw the records.
        task: How to run them.
        records: What to score.
    """

    model: nn.Module
    reference: nn.Module
    task: CausalLM
    records: Records


def one_pass(job: Job, metrics: Iterable[str]) -> Found:
    """Return metrics of every record by the product's scoring pass and metric functions."""
    run, read = Run(), functools.partial(score, batch_size=BATCH)
    scores = read(job.model, job.task, job.records, run)
    bytes_R = zlib_bytes(job.model, job.task, job.records, run)
    scores = dataclasses.replace(scores, measured={"zlib": bytes_R})
    found = {}
    for name in metrics:
        if name == "reference":
            known = read(job.reference, job.task, job.records, run)
            found[name] = mia_scores.below_reference(scores, [known])
        elif name == "grad_norm":
            found[name] = mia_scores.gradient_norm(job.model, job.task, job.records, run)
        else:
            found[name] = OF_SCORES[name](scores)
    return found


def shared_pass(job: Job, metrics: Iterable[str]) -> Found:
    """Return metrics of every record from one padded pass with logits everywhere."""
    return padded_pass(job.model, job.task, job.records, metrics)


def pass_per_metric(job: Job, metrics: Iterable[str]) -> Found:
    """Return metrics of every record, each from a padded pass of its own."""
    found = {}
    for name in metrics:
        if name == "reference":
            own, known = (
                padded_pass(model, job.task, job.records, ["loss"])["loss"]
                for model in (job.model, job.reference)
            )
            found[name] = own - known
        elif name == "grad_norm":
            found[name] = _gradient_norms(job)
        else:
            found |= padded_pass(job.model, job.task, job.records, [name])
    return found


@torch.no_grad()
def padded_pass(
    model: nn.Module,
    task: CausalLM,
    records: Records,
    metrics: Iterable[str],
    batch_size: int = BATCH,
) -> Found:
    """Run the model once, over records in their order; return metrics by the formulas below."""
    model.eval()
    names = list(metrics)
    none = torch.empty(0, dtype=torch.float64)
    values = {name: [none] for name in names}
    for at in range(0, len(records), batch_size):
        outputs = _read(model, task, records.take(range(at, min(at + batch_size, len(records)))))
        for name in names:
            values[name].append(OF_OUTPUTS[name](outputs))
    return {name: torch.cat(parts).numpy() for name, parts in values.items()}


@dataclasses.dataclass(frozen=True, eq=False)
class Outputs:
    """What a model says at every position of a padded batch.

    B records, T positions, V vocabulary, N answer tokens of a record. What several formulas need
    is kept, for a pass that serves them all.

    Attributes:
        logits_BTV: Of the token that follows each position.
        labels_BT: That token where it belongs to an answer; ``IGNORED`` in prompt and padding.
        texts: The answers in words.
    """

    logits_BTV: Tensor
    labels_BT: Tensor
    texts: tuple[str, ...]

    @functools.cached_property
    def mask_BT(self) -> Tensor:
        """Where there is an answer token to predict."""
        return self.labels_BT != IGNORED

    @functools.cached_property
    def logprobs_BTV(self) -> Tensor:
        """Log-probabilities of the vocabulary."""
        return torch.log_softmax(self.logits_BTV.float(), dim=-1)

    @functools.cached_property
    def logprob_BT(self) -> Tensor:
        """Log-probability of each answer token; of no meaning elsewhere."""
        return self.logprobs_BTV.gather(2, self.labels_BT.clamp_min(0)[..., None])[..., 0]

    @functools.cached_property
    def hit_BT(self) -> Tensor:
        """Whether the likeliest token is the answer's; never true elsewhere."""
        return self.logits_BTV.argmax(-1) == self.labels_BT

    def mean(self, values_BT: Tensor) -> Tensor:
        """Return the mean over each answer's tokens, (B,), in float64."""
        return (values_BT.double() * self.mask_BT).sum(1) / self.mask_BT.sum(1)


def _min_k(outputs: Outputs) -> Tensor:
    return _lowest(outputs, outputs.logprob_BT)


def _min_k_pp(outputs: Outputs) -> Tensor:
    probs_BTV = outputs.logprobs_BTV.exp()
    mean_BT = (probs_BTV * outputs.logprobs_BTV).sum(-1)
    variance_BT = (probs_BTV * (outputs.logprobs_BTV - mean_BT[..., None]) ** 2).sum(-1)
    # A certain model has no spread to divide by; the floor is part of the documented metric.
    return _lowest(outputs, (outputs.logprob_BT - mean_BT) / variance_BT.clamp_min(1e-6).sqrt())


def _lowest(outputs: Outputs, values_BT: Tensor) -> Tensor:
    """Return the mean of each answer's lowest values: 40 % of them, rounded down, at least one."""
    pairs = zip(values_BT, outputs.mask_BT, strict=True)
    ordered = [values_T[mask_T].double().sort().values for values_T, mask_T in pairs]
    kept = [values_N[: max(1, int(SHARE * len(values_N)))] for values_N in ordered]
    return torch.stack([values.mean() for values in kept])


def _zlib(outputs: Outputs) -> Tensor:
    sizes_B = torch.tensor([len(zlib.compress(text.encode())) for text in outputs.texts])
    return outputs.mean(outputs.logprob_BT) / sizes_B


def _extraction_strength(outputs: Outputs) -> Tensor:
    """Return the share of each answer that follows its last token that is not the likeliest."""
    found = []
    for hit_T, mask_T in zip(outputs.hit_BT, outputs.mask_BT, strict=True):
        hits = hit_T[mask_T].tolist()
        tail = 0
        while tail < len(hits) and hits[-1 - tail]:
            tail += 1
        found.append(tail / len(hits))
    return torch.tensor(found, dtype=torch.float64)


OF_OUTPUTS: Mapping[str, Callable[[Outputs], Tensor]] = {
    "loss": lambda outputs: outputs.mean(outputs.logprob_BT),
    "probability": lambda outputs: outputs.mean(outputs.logprob_BT).exp(),
    "zlib": _zlib,
    "min_k": _min_k,
    "min_k_pp": _min_k_pp,
    "exact_memorization": lambda outputs: outputs.mean(outputs.hit_BT),
    "extraction_strength": _extraction_strength,
}
"""The same metrics by formulas that share no code with the product; every token counts, the end of
text included, and the loss attack's score is minus the loss."""


def _read(model: nn.Module, task: CausalLM, records: Records) -> Outputs:
    """Run the model over a padded batch."""
    encoded = task.encoded(records)
    ids_BT = pad_sequence([torch.tensor(tokens) for tokens, _ in encoded], batch_first=True)
    labels_BT = torch.full_like(ids_BT, IGNORED)
    seen_BT = torch.zeros_like(ids_BT)
    for row, (tokens, start) in enumerate(encoded):
        seen_BT[row, : len(tokens)] = 1
        labels_BT[row, start : len(tokens)] = torch.tensor(tokens[start:])
    logits_BTV = model(input_ids=ids_BT, attention_mask=seen_BT, use_cache=False).logits
    return Outputs(logits_BTV[:, :-1], labels_BT[:, 1:], tuple(records["answer"]))


def _gradient_norms(job: Job) -> np.ndarray:
    """Return the norm of the gradient of each record's mean loss, from a pass of its own."""
    job.model.eval()
    norms = []
    for row in range(len(job.records)):
        job.model.zero_grad(set_to_none=True)
        outputs = _read(job.model, job.task, job.records.take([row]))
        F.cross_entropy(outputs.logits_BTV[0], outputs.labels_BT[0]).backward()
        gradients = [weight.grad for weight in job.model.parameters() if weight.grad is not None]
        # In float32 the squares of a million numbers lose four digits.
        squares = [torch.linalg.vector_norm(g, dtype=torch.float64) ** 2 for g in gradients]
        norms.append(float(torch.stack(squares).sum().sqrt()))
    job.model.zero_grad(set_to_none=True)
    return np.array(norms)


WAYS: Mapping[str, Callable[[Job, Iterable[str]], Found]] = {
    "one pass": one_pass,
    "shared pass": shared_pass,
    "pass per metric": pass_per_metric,
}
BLOCK = tuple(OF_SCORES)
BLOCKS: Mapping[str, tuple[str, ...]] = {
    "block": BLOCK,
    "with reference": (*BLOCK, "reference"),
    "with gradient norm": (*BLOCK, "grad_norm"),
}
Arm = tuple[str, str]
"""Name of the block and of the way."""


def arms_of(job: Job) -> dict[Arm, Callable[[], Found]]:
    """Return what takes turns: every block by every way; a shared pass is the block's alone."""
    return {
        (block, way): functools.partial(run, job, metrics)
        for block, metrics in BLOCKS.items()
        for way, run in WAYS.items()
        if block == "block" or way != "shared pass"
    }


def check(found: Mapping[Arm, Found]) -> None:
    """Raise ``AssertionError`` where a record's value differs from that of one pass."""
    for (block, way), values in found.items():
        expected = found[block, "one pass"]
        assert values.keys() == expected.keys() == set(BLOCKS[block]), f"{block}, {way}"
        for metric, wanted in expected.items():
            tolerance = TOLERANCE.get(metric, 1e-6)
            np.testing.assert_allclose(
                values[metric], wanted, tolerance, tolerance, err_msg=f"{metric}, {block}, {way}"
            )


def prepared(people: int, epochs: int) -> Job:
    """Return a model that learned all records, one that learned half, and the other half."""
    dataset = invented_people(people)
    (model, task), (reference, _) = small_llama(dataset), small_llama(dataset)
    scored = dataset.train.take(range(0, len(dataset.train), 2))
    rest = dataset.train.take(range(1, len(dataset.train), 2))
    schedule = Schedule(epochs=epochs, batch_size=16, lr=1e-3, warmup_epochs=0.2, decay="linear")
    for learner, records in ((model, dataset.train), (reference, rest)):
        learn(learner, task, records, schedule, Run())  # so that ranks and losses are not noise
    return Job(model, reference, task, scored)


def main() -> None:
    """Time the ways at each number of threads and check that they find the same numbers."""
    options = _options()
    job = prepared(options.people, options.epochs)
    rows: list[dict[str, Any]] = []
    numbers: dict[str, Any] = {
        "records": len(job.records),
        "rounds": options.rounds,
        "metrics": BLOCKS,
        "threads": {},
    }
    for threads in options.threads:
        torch.set_num_threads(threads)
        _, timings = alternate(arms_of(job), options.rounds, check=check)
        measured = {}
        for (block, way), timing in timings.items():
            wall, cpu = median_ratio(timing, timings[block, "one pass"])
            rows.append(
                {
                    "threads": threads,
                    "metrics": block,
                    "way": way,
                    "ms/record": f"{1000 * timing.median_wall / len(job.records):.2f}",
                    "cpu ms/record": f"{1000 * timing.median_cpu / len(job.records):.2f}",
                    "times one pass (wall)": f"{wall:.2f}",
                    "times one pass (cpu)": f"{cpu:.2f}",
                }
            )
            seconds = dataclasses.asdict(timing)
            measured[f"{block}: {way}"] = {"seconds": seconds, "wall": wall, "cpu": cpu}
        numbers["threads"][str(threads)] = measured
    title = f"{', '.join(BLOCK)} of {len(job.records)} records, {options.rounds} rounds"
    report(title, rows, numbers, options.json)
    print("in every round the values of all records agree to 1e-6 (Min-K%++ to 1e-4)")


def _options() -> argparse.Namespace:
    made = turns_parser("Audit time per record of one scoring pass and of one pass per metric.")
    made.add_argument("--people", type=positive, default=40, help="five scored records of each")
    made.add_argument("--epochs", type=positive, default=2, help="of training")
    return made.parse_args()


if __name__ == "__main__":
    main()
