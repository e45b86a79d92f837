"""One scoring pass for every likelihood metric, against one padded pass per metric.

``one pass`` is ``audit.scores.score``: batches sorted by length, logits at answer positions only,
and every metric from the numbers that are kept. ``pass per metric`` runs the model again for each
metric, over records in their given order, with logits at every position. ``shared pass`` is between
the two: padded and full as well, but run once for all metrics.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch
from output import parser, report
from small_llama import invented_people, small_llama
from timing import ROUNDS, alternate, median_ratio
from torch import Tensor, nn

from expunge.audit.scores import Scores, score
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.engine.schedule import Schedule
from expunge.engine.task import Batch, Task
from expunge.train.supervised import learn

BATCH = 16
SHARE = 0.2  # of the least likely tokens, for Min-K%
TOLERANCE = {"min_k_plus_plus": 1e-4}


@dataclasses.dataclass(frozen=True)
class Answer:
    """What one answer's metrics are made of, one value per token.

    Attributes:
        logprob: Log-probability of the token.
        rank: How many tokens the model holds more likely.
        mean: Mean log-probability under the model's own distribution.
        variance: Variance of the same.
    """

    logprob: np.ndarray
    rank: np.ndarray
    mean: np.ndarray
    variance: np.ndarray


def _lowest(values: np.ndarray) -> float:
    return float(np.sort(values)[: max(1, round(SHARE * len(values)))].mean())


METRICS: dict[str, Callable[[Answer], float]] = {
    "loss": lambda a: float(-a.logprob.mean()),
    "probability": lambda a: float(np.exp(a.logprob.mean())),
    "min_k": lambda a: _lowest(a.logprob),
    "min_k_plus_plus": lambda a: _lowest((a.logprob - a.mean) / np.sqrt(a.variance)),
    "exact_memorization": lambda a: float((a.rank == 0).mean()),
    "greedy_match": lambda a: float((a.rank == 0).all()),
    "extraction_top_10": lambda a: float((a.rank < 10).mean()),
}


def one_pass(model: nn.Module, task: Task, records: Records) -> dict[str, np.ndarray]:
    """Return every metric of every record from one scoring pass."""
    scores = score(model, task, records, Run(), batch_size=BATCH)
    return _metrics([_answer(scores, row) for row in range(len(records))], METRICS)


def shared_pass(model: nn.Module, task: Task, records: Records) -> dict[str, np.ndarray]:
    """Return every metric of every record from one padded pass with logits everywhere."""
    return _metrics(_padded(model, task, records), METRICS)


def pass_per_metric(model: nn.Module, task: Task, records: Records) -> dict[str, np.ndarray]:
    """Return every metric of every record, each from a padded pass of its own."""
    return {
        name: _metrics(_padded(model, task, records, described=name), {name: METRICS[name]})[name]
        for name in METRICS
    }


def _answer(scores: Scores, row: int) -> Answer:
    place = slice(scores.offsets[row], scores.offsets[row + 1])
    return Answer(
        scores.logprob_N[place],
        scores.rank_N[place],
        scores.mean_N[place],
        scores.variance_N[place],
    )


def _metrics(
    answers: Sequence[Answer], chosen: dict[str, Callable[[Answer], float]]
) -> dict[str, np.ndarray]:
    return {name: np.array([metric(a) for a in answers]) for name, metric in chosen.items()}


@torch.no_grad()
def _padded(
    model: nn.Module, task: Task, records: Records, described: str | None = None
) -> list[Answer]:
    """Score records in their order; of the numbers, only those that one metric needs, if named."""
    model.eval()
    answers = []
    for start in range(0, len(records), BATCH):
        batch = task.batch(records, range(start, min(start + BATCH, len(records))))
        answers += _describe(model, batch, described)
    return answers


def _describe(model: nn.Module, batch: Batch, described: str | None) -> list[Answer]:
    logits_BTV = model(**batch.inputs, use_cache=False).logits[:, :-1]
    logprobs_BTV = torch.log_softmax(logits_BTV.float(), dim=-1)
    symbols_BT1 = batch.inputs["input_ids"][:, 1:, None]
    target_BT1 = logprobs_BTV.gather(2, symbols_BT1)
    zeros_BT = torch.zeros_like(target_BT1[..., 0])
    rank_BT = mean_BT = variance_BT = zeros_BT
    if described is None or described.startswith(("exact", "greedy", "extraction")):
        rank_BT = (logprobs_BTV > target_BT1).sum(-1)
    if described in (None, "min_k_plus_plus"):
        probs_BTV = logprobs_BTV.exp()
        mean_BT = (probs_BTV * logprobs_BTV).sum(-1)
        variance_BT = (probs_BTV * (logprobs_BTV - mean_BT[..., None]) ** 2).sum(-1)
    assert batch.positions is not None
    parts: list[list[Tensor]] = [
        [values[row][mask] for row, mask in enumerate(batch.positions[:, :-1])]
        for values in (target_BT1[..., 0], rank_BT, mean_BT, variance_BT)
    ]
    return [Answer(*(values.numpy() for values in row)) for row in zip(*parts, strict=True)]


def main() -> None:
    """Time the three ways and check that they find the same numbers."""
    made = parser("Audit time per record of one scoring pass and of one pass per metric.")
    made.add_argument("--rounds", type=int, default=ROUNDS, help="timed turns of each arm")
    options = made.parse_args()
    torch.set_num_threads(options.threads)
    dataset = invented_people(40)
    model, task = small_llama(dataset)
    schedule = Schedule(epochs=2, batch_size=16, lr=1e-3, warmup_epochs=0.2, decay="linear")
    learn(model, task, dataset.train, schedule, Run())  # so that ranks and losses are not noise
    records = dataset.train.take(range(0, len(dataset.train), 2))
    ways = {"one pass": one_pass, "shared pass": shared_pass, "pass per metric": pass_per_metric}
    arms = {name: lambda way=way: way(model, task, records) for name, way in ways.items()}
    first, timings = alternate(arms, options.rounds)
    for name, found in first.items():
        for metric, expected in first["one pass"].items():
            tolerance = TOLERANCE.get(metric, 1e-6)
            np.testing.assert_allclose(
                found[metric], expected, tolerance, tolerance, err_msg=f"{metric}, {name}"
            )
    ratios = {name: median_ratio(timing, timings["one pass"]) for name, timing in timings.items()}
    rows = [
        {
            "arm": name,
            "ms/record": f"{1000 * timing.median_wall / len(records):.2f}",
            "cpu ms/record": f"{1000 * timing.median_cpu / len(records):.2f}",
            "times one pass (wall)": f"{ratios[name][0]:.2f}",
            "times one pass (cpu)": f"{ratios[name][1]:.2f}",
        }
        for name, timing in timings.items()
    ]
    numbers = {
        "records": len(records),
        "metrics": list(METRICS),
        "seconds": {name: dataclasses.asdict(timing) for name, timing in timings.items()},
        "ratios": ratios,
    }
    report(f"{len(METRICS)} metrics of {len(records)} records", rows, numbers, options.json)
    print("values agree to 1e-6 (Min-K%++ to 1e-4)")


if __name__ == "__main__":
    main()
