"""Models on disk: written whole, read back without running anything that the folder holds.

A language model becomes a transformers folder, any other model ``model.safetensors``. Beside it,
``architecture.json`` says what Expunge needs to rebuild model and task.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from expunge.core.config import parse, to_json
from expunge.core.errors import IntegrityError, UnsupportedModelError
from expunge.core.files import atomic_folder, read_json, write_json
from expunge.data.dataset import NOTHING, Dataset
from expunge.engine.tasks.causal_lm import CausalLM, Template, context_length
from expunge.engine.weights import WEIGHTS, load_into, load_tensors, save_tensors
from expunge.models.language import read_language_model, write_language_model
from expunge.models.source import Loaded, model_sources

ARCHITECTURE = "architecture.json"


def save_model(loaded: Loaded, folder: Path, lineage: Mapping[str, Any] | None = None) -> None:
    """Write a model; a folder of that name is replaced.

    A language model's folder opens with ``AutoModelForCausalLM.from_pretrained(folder)`` and
    ``AutoTokenizer.from_pretrained(folder)`` too.

    Args:
        loaded: The model and how it was made.
        folder: Where to.
        lineage: Notes on what the model was made from, such as digests; JSON values only.

    Raises:
        StorageError: The folder cannot be written.
    """
    record: dict[str, Any] = {
        "kind": loaded.task.kind,
        "source": loaded.source,
        "settings": dict(loaded.settings),
        "facts": dict(loaded.facts),
        "pretrained": loaded.pretrained,
        "lineage": dict(lineage or {}),
    }
    with atomic_folder(folder) as temporary:
        if isinstance(loaded.task, CausalLM):
            record["template"] = to_json(loaded.task.template)
            record["refusals"] = list(loaded.task.refusals)
            write_language_model(loaded.model, loaded.tokenizer, temporary)
        else:
            save_tensors(loaded.model.state_dict(), temporary / WEIGHTS)
        write_json(temporary / ARCHITECTURE, record)


def load_saved(folder: Path) -> Loaded:
    """Read back what ``save_model`` wrote.

    Raises:
        StorageError: A file is missing.
        IntegrityError: Weights are pickled or truncated, or ``architecture.json`` is not whole.
        NumericalError: A weight is NaN or infinite.
        UnsupportedModelError: The module was built in Python, by no registered source.
    """
    record = read_json(folder / ARCHITECTURE)
    try:
        return _rebuild(folder, record)
    except KeyError as error:
        raise IntegrityError(
            f"{folder / ARCHITECTURE} lacks {error}; save the model again with save_model()"
        ) from error


def _rebuild(folder: Path, record: Mapping[str, Any]) -> Loaded:
    source, settings, facts = record["source"], record["settings"], record["facts"]
    where = f"{folder / ARCHITECTURE}: settings"
    made: dict[str, Any] = {"source": source, "settings": settings, "facts": facts}
    made["pretrained"] = record["pretrained"]
    if record["kind"] == CausalLM.kind:
        model, tokenizer = read_language_model(str(folder), settings.get("dtype", "float32"))
        template = parse(Template, record["template"], where)
        task = CausalLM(tokenizer, template, record["refusals"], context_length(model))
        return Loaded(model, task, tokenizer, **made)
    if source is None:
        raise UnsupportedModelError(
            f"{folder} holds the weights of a module built in Python; build the module again and "
            "fill it with load_into(module, load_tensors(path), name) of expunge.engine.weights"
        )
    info = model_sources.get(source)
    empty = Dataset(record["kind"], NOTHING, facts=facts)
    built = info.fn(parse(info.config, settings, where), empty, 0)
    load_into(built.model, load_tensors(folder / WEIGHTS), str(folder))
    return Loaded(built.model.eval(), built.task, **made)
