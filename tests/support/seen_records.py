"""What a model is asked when records are seen through a view."""

from expunge.audit.readings import Reading
from expunge.audit.views import Scene, see
from expunge.core.sets import Sets
from expunge.data.dataset import Dataset


def seen_through(view, records, task, seed=0):
    """Return task and records of a data set of forget records alone, under a view."""
    scene = Scene(Dataset("causal_lm", records), Sets(records.ids), seed)
    return see(task, scene, Reading("forget", view))


def prompts(seen):
    """Return the prompts of a task and its records."""
    task, records = seen
    return [prompt for prompt, _ in task._texts(records, range(len(records)))]
