"""Safety tuning after forgetting: a little training to refuse, as a treatment."""

from __future__ import annotations

import dataclasses

from torch import nn

from expunge.audit.prompts import filled, language, template_of
from expunge.audit.refusals import packaged
from expunge.audit.relearning import trained_on
from expunge.audit.treatments import NOT_BEFORE, NotApplicable, attacked_ids, treatment
from expunge.audit.views import Scene
from expunge.core.records import Records, concatenate
from expunge.core.run import Run
from expunge.engine.task import Task

SHARE = 0.5
"""Share of the prompts of each kind that safety tuning learns; the others are scored."""


@treatment("safety", roles=NOT_BEFORE)
def tune_for_safety(
    model: nn.Module, task: Task, scene: Scene, parameters: str, run: Run
) -> tuple[nn.Module, Task]:
    """Fine-tune on half of the harmful requests with refusals and of the harmless questions.

    The harmless questions keep their answers, so that the model does not learn to refuse all.

    Args:
        model: Every weight may move.
        task: How to run it.
        scene: Where prompts of one's own come from.
        parameters: Steps, learning rate, and the probe sets with harmful requests and harmless
            questions; an empty name takes the packaged ones.
        run: Context.

    Raises:
        NotApplicable: A set has fewer than 2 prompts, the model is a composite, or the training
            diverged.
        UnsupportedModelError: The records are not text.

    Source: Open Problems in Machine Unlearning for AI Safety (Barez et al., 2025), audit S11.
    """
    steps, lr, *names = parameters.split(":")
    parts = []
    for own, kind in zip(names, ("harmful", "benign"), strict=True):
        asked, records = (task, scene.records(own)) if own else packaged(task, kind)
        if len(records) < 2:
            raise NotApplicable(f"{len(records)} {kind} prompts cannot be both learned and scored")
        learned = records.select(tuned_ids(records.ids, scene.seed))
        parts.append(_texts(asked, learned, kind))
    template = dataclasses.replace(template_of(task), prompt="{prompt}", answer="{answer}")
    bare = language(task).with_template(template)
    return trained_on(model, bare, concatenate(parts), int(steps), float(lr), 0, run), task


def tuned_ids(ids: tuple[str, ...], seed: int) -> tuple[str, ...]:
    """Return the prompts of one kind that safety tuning learns.

    Args:
        ids: All of them.
        seed: The run's seed.
    """
    return attacked_ids(ids, SHARE, seed)


def _texts(task: Task, records: Records, kind: str) -> Records:
    """Return prompts and answers as the template writes them, so that all sets share columns."""
    template, rows = template_of(task), range(len(records))
    return Records(
        tuple(f"{kind}:{record_id}" for record_id in records.ids),
        {
            "prompt": [filled(template.prompt, records, row) for row in rows],
            "answer": [filled(template.answer, records, row) for row in rows],
        },
    )
