"""Any causal language model of transformers, from a folder or the hub."""

from __future__ import annotations

from expunge.core.config import config
from expunge.data.dataset import Dataset
from expunge.engine.tasks.causal_lm import Template
from expunge.models.language import Dtype, causal_lm_task, read_language_model
from expunge.models.source import Loaded, model_source


@config
class TransformersConfig:
    """Settings of a transformers model."""

    path: str
    """Folder that ``save_pretrained`` wrote, or a name on the hub such as ``owner/model``."""
    dtype: Dtype = "float32"
    """Type of the weights in memory."""
    template: Template | None = None
    """How records become text; when absent, question and answer, or plain text."""


@model_source("transformers", title="language model in a folder or on the hub", kinds={"causal_lm"})
def transformers(config: TransformersConfig, dataset: Dataset, seed: int) -> Loaded:
    """Return the model and its tokenizer; weights from safetensors only, no foreign code."""
    del seed
    model, tokenizer = read_language_model(config.path, config.dtype)
    task = causal_lm_task(model, tokenizer, dataset, config.template)
    return Loaded(model, task, tokenizer, pretrained=True)
