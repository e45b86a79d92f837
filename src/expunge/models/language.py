"""Language models of transformers: read from a folder or the hub, checked before use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import nn

from expunge.core.errors import DataError, IntegrityError, StorageError, listing
from expunge.data.dataset import Dataset
from expunge.engine.tasks.causal_lm import REFUSALS, CausalLM, Template, context_length
from expunge.engine.weights import require_finite

Dtype = Literal["float32", "bfloat16", "float16"]

# Where a tokenizer was read from; saved with it, equal tokenizers would differ in their bytes.
_PLACE_OF_TOKENIZER = ("is_local", "local_files_only")
COMPOSITE = "composite.json"  # as in engine.composites, which is imported only where it is needed
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def read_language_model(name: str, dtype: Dtype = "float32") -> tuple[nn.Module, Any]:
    """Load a causal language model and its tokenizer with transformers.

    Weights are read from safetensors only, and no code of the model's author is run.

    Args:
        name: A folder, or a name on the hub such as ``"owner/model"``.
        dtype: Type of the weights in memory.

    Returns:
        The model in evaluation mode, and its tokenizer.

    Raises:
        StorageError: There is no such folder or name, or a file is missing.
        IntegrityError: The weights are pickled or truncated.
        DataError: The weights do not fit the architecture.
        NumericalError: A weight is NaN or infinite.
    """
    if _means_folder(name):
        if (Path(name) / COMPOSITE).is_file():
            return _read_composite(Path(name), dtype)
        _check_folder(Path(name))
    return _read_model(name, dtype), _read_tokenizer(name)


def _read_tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    with _telling_of(name), quiet():
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    for key in _PLACE_OF_TOKENIZER:
        tokenizer.init_kwargs.pop(key, None)
    return tokenizer


def _read_model(name: str, dtype: Dtype) -> nn.Module:
    from transformers import AutoModelForCausalLM

    with _telling_of(name), quiet():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=getattr(torch, dtype),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, all at once
        )
    model: nn.Module
    model, info = loaded
    wrong = sorted([*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])])
    if wrong:
        raise DataError(
            f"{name}: the weights do not fit config.json; {len(wrong)} tensors are missing or of "
            f"another shape ({listing(wrong, 3)})"
        )
    require_finite(model.state_dict(), name)
    return model.eval()


@contextmanager
def _telling_of(name: str) -> Iterator[None]:
    """Turn what transformers raises while loading into errors that say what to do."""
    try:
        yield
    except SafetensorError as error:
        raise IntegrityError(
            f"{name}: a weight file is not whole ({error}); get it again"
        ) from error
    except OSError as error:
        raise StorageError(f"cannot load the model {name!r}: {_first_line(error)}") from error
    except (ValueError, RuntimeError) as error:
        raise DataError(f"cannot load the model {name!r}: {_first_line(error)}") from error


def _read_composite(folder: Path, dtype: Dtype) -> tuple[nn.Module, Any]:
    from expunge.engine.composites.composite import assemble, part_names

    parts = {}
    for name in part_names(folder):
        _check_folder(folder / name)
        parts[name] = _read_model(str(folder / name), dtype)
    return assemble(folder, parts), _read_tokenizer(str(folder))


def write_language_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a model and its tokenizer so that transformers opens the folder.

    Raises:
        StorageError: The weights cannot be written.
    """
    try:
        with quiet():
            model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    except SafetensorError as error:
        raise StorageError(f"cannot write the weights of a model: {error}; free space") from error


def causal_lm_task(
    model: nn.Module, tokenizer: Any, dataset: Dataset, template: Template | None
) -> CausalLM:
    """Return the task of a language model on a data set.

    Args:
        model: The model; records that are longer than its context are cut.
        tokenizer: The model's tokenizer.
        dataset: Its columns decide the template, its facts may name refusals.
        template: How records become text; when absent, question and answer, or plain text.
    """
    if template is None and "text" in dataset.train and "question" not in dataset.train:
        template = Template(prompt="", answer="{text}")
    refusals = dataset.facts.get("refusals", REFUSALS)
    return CausalLM(tokenizer, template, refusals, context_length(model))


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from drawing progress bars and tables in the block; errors are raised."""
    from transformers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def _means_folder(name: str) -> bool:
    return Path(name).exists() or name.startswith(("/", ".", "~")) or name.count("/") > 1


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise StorageError(
            f"{folder} holds no config.json; name a folder that save_pretrained() wrote"
        )
    if any(folder.glob("*.safetensors")):
        return
    pickles = [path.name for path in sorted(folder.iterdir()) if path.suffix in _PICKLES]
    if pickles:
        raise IntegrityError(
            f"{folder} holds pickled weights ({listing(pickles)}); loading them could run code. "
            "Save the model with model.save_pretrained(folder), which writes safetensors"
        )
    raise StorageError(f"{folder} holds no .safetensors file with weights")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
