"""Everything like these examples: the nearest training records, shown before they are forgotten.

What is alike is told by the model itself: a classifier's or regressor's representation just before
its last linear layer, a language model's mean hidden state over the answer after its middle block.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from expunge.core.errors import ConfigError
from expunge.core.files import remove_tree
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.core.sets import require_known
from expunge.data.dataset import Dataset
from expunge.data.example_records import read_examples
from expunge.data.similar import check_reach, cosine_distances, nearest_rows
from expunge.data.source import load_source
from expunge.engine.blocks import block_names
from expunge.engine.device import require_device
from expunge.engine.features import features_ND as block_features_ND
from expunge.engine.modes import evaluating
from expunge.engine.representation import represent, split
from expunge.models.source import Loaded, load_model_source
from expunge.pipeline.recipe import Recipe, split_part
from expunge.pipeline.references import retrained
from expunge.report.neighbours import write_neighbours
from expunge.report.rendering import require_libraries

DEFAULT_COUNT = 20
_TEXTS = ("question", "answer", "text")
_LEFT_OUT = {"x", *_TEXTS, "paraphrased_question", "paraphrased_answer", "perturbed_answer"}


def find_like(
    recipe: Recipe,
    folder: Path,
    *,
    ids: Sequence[str] = (),
    examples: Path | None = None,
    count: int | None = None,
    radius: float | None = None,
    quiet: bool = False,
) -> Path:
    """Write a page of the training records nearest to some examples, and a file of their ids.

    Nothing is forgotten. The model is that of the recipe before forgetting: as it comes, or trained
    as the recipe says and kept in the store of references.

    Args:
        recipe: Data, model and training; its request and method are not looked at.
        folder: Where to write.
        ids: Training records that are examples.
        examples: File of examples; see ``expunge.data.example_records``.
        count: How many records; 20 when neither count nor radius is given.
        radius: Largest cosine distance, in place of a count.
        quiet: Show no progress.

    Returns:
        The page.

    Raises:
        ConfigError: There are no examples, or count or radius is out of range.
        DataError: An id is unknown, or an example cannot be compared.
        UnsupportedModelError: The model has no representation.
        StorageError: A file cannot be read or written.
    """
    if bool(ids) == (examples is not None):
        raise ConfigError("give either ids of training records (--id) or a file (--examples)")
    if count is None and radius is None:
        count = DEFAULT_COUNT
    check_reach(count, radius)
    require_libraries()
    require_device(recipe.machine.device)
    name, settings = split_part(recipe.data, "data")
    dataset = load_source(name, settings, recipe.seed)
    require_known(ids, dataset.train.ids, "request like")
    given = None if examples is None else read_examples(examples, dataset)
    run = Run(
        recipe.seed,
        device=recipe.machine.device,
        folder=folder / "checkpoints",
        checkpoint_every=recipe.machine.checkpoint_every,
        quiet=quiet,
    )
    loaded = _trained(recipe, dataset, run)
    batch_size = recipe.machine.score_batch
    place = {record_id: row for row, record_id in enumerate(dataset.train.ids)}
    own = [place[record_id] for record_id in ids]
    features_ND = representations(loaded, dataset.train, run, batch_size)
    examples_QD = (
        features_ND[own] if given is None else representations(loaded, given, run, batch_size)
    )
    distances = cosine_distances(features_ND, examples_QD)
    found = nearest_rows(distances, set(own), count=count, radius=radius)
    rows = [_told(dataset, row, float(distances[row])) for row in [*own, *found]]
    remove_tree(run.folder)
    return write_neighbours(folder, rows, examples=len(own), measured=_measured(dataset.kind))


@torch.no_grad()
def representations(loaded: Loaded, records: Records, run: Run, batch_size: int) -> np.ndarray:
    """Return what a model makes of records: one row of features each.

    Args:
        loaded: The model.
        records: The records.
        run: Context.
        batch_size: Records per forward pass.

    Raises:
        UnsupportedModelError: The model has no representation.
    """
    model = loaded.model.to(run.device)
    language = loaded.task.kind == "causal_lm"
    blocks = block_names(model) if language else []
    place = blocks[len(blocks) // 2] if language else split(model).head
    found = []
    with evaluating(model), run.progress("looking", len(records)) as bar:
        for start in range(0, len(records), batch_size):
            run.check()
            rows = range(start, min(start + batch_size, len(records)))
            batch = loaded.task.batch(records, rows, targets=False).to(run.device)
            if language:
                hidden_ND = block_features_ND(model, loaded.task, batch, place).float()
                sums_BD = hidden_ND.new_zeros(len(batch), hidden_ND.shape[1])
                sums_BD.index_add_(0, batch.rows_N, hidden_ND)
                features_BD = sums_BD / batch.counts_B[:, None]
            else:
                features_BD, _ = represent(model, loaded.task, batch, place)
            found.append(features_BD.float().cpu().numpy())
            bar.advance(len(rows))
    return np.concatenate(found)


def _trained(recipe: Recipe, dataset: Dataset, run: Run) -> Loaded:
    """Return the model before forgetting; one that was trained before is taken from the store."""
    name, settings = split_part(recipe.model, "model")
    loaded = load_model_source(name, settings, dataset, recipe.seed)
    if recipe.train is not None:
        retrained(loaded.model, loaded.task, dataset.train, recipe.train, run.child("train"))
    return loaded


def _told(dataset: Dataset, row: int, distance: float) -> dict[str, Any]:
    """Return a training record as the page shows it."""
    train = dataset.train
    told: dict[str, Any] = {"id": train.ids[row], "distance": distance}
    values = {n: column[row] for n, column in train.columns.items() if n not in _LEFT_OUT}
    if "y" in values:
        values = {"y": _target(dataset, values["y"]), **values}
    if dataset.kind == "causal_lm":
        told["text"] = [train[name][row] for name in _TEXTS if name in train and train[name][row]]
        values = {name: v for name, v in values.items() if v is not None}
    else:
        x = np.asarray(train["x"][row])
        if _is_picture(x):
            told["picture"] = x
        elif len(values) == 1:  # nothing but the target names the record
            values |= {f"x{place}": v for place, v in enumerate(x.flatten().tolist())}
    return {**told, "values": values}


def _target(dataset: Dataset, target: Any) -> Any:
    if dataset.kind == "classifier":
        names = dataset.facts.get("classes")
        return names[int(target)] if names else int(target)
    return np.asarray(target).tolist()


def _is_picture(x: np.ndarray) -> bool:
    return x.ndim == 2 or (x.ndim == 3 and len(x) in (1, 3))


def _measured(kind: str) -> str:
    if kind == "causal_lm":
        return "the model's mean hidden state over the answer, after its middle block"
    return "what the model makes of them before its last layer"
