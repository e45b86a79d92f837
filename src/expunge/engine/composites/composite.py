"""``Composite``: a language model of several parts whose target keeps its weights.

It scores, generates, is saved and loaded like any causal language model of transformers. Its parts
can be taken out again, so what it suppresses is still there: ``evidence`` says so.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel

from expunge.core.errors import IntegrityError
from expunge.core.files import read_json, write_json
from expunge.core.registry import Registry
from expunge.engine.weights import load_tensors, save_tensors

CARD = "composite.json"
EXTRA = "extra.safetensors"


class Composite(PreTrainedModel, GenerationMixin):
    """Base of all composites.

    A subclass registers itself in ``composites`` under its ``kind``, and says what it is made of.

    Args:
        target: The language model whose output is changed; its weights never are.
    """

    kind: ClassVar[str]
    evidence: ClassVar[str] = "output-suppressed"
    reads_prompt: ClassVar[bool] = False
    """Whether ``forward`` takes ``prompt_mask``, which tokens of a scored record were asked."""

    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
    supports_gradient_checkpointing = True

    def __init__(self, target: Any) -> None:
        super().__init__(copy.deepcopy(target.config))
        self.target = target
        self.generation_config = copy.deepcopy(target.generation_config)

    def parts(self) -> dict[str, Any]:
        """Return the language models it is made of, by name; ``target`` is the bare original."""
        return {"target": self.target}

    def settings(self) -> dict[str, Any]:
        """Return plain data that, with parts and extra tensors, make the same composite again."""
        raise NotImplementedError

    def extra_tensors(self) -> dict[str, Tensor]:
        """Return the tensors that belong to no part."""
        return {}

    @classmethod
    def assemble(
        cls,
        parts: Mapping[str, Any],
        settings: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
    ) -> Composite:
        """Make a composite of what ``parts``, ``settings`` and ``extra_tensors`` returned."""
        raise NotImplementedError

    def output_heads(self) -> list[nn.Module]:
        """Return the output head of every part that runs, so that it can skip prompt positions."""
        return [part.get_output_embeddings() for part in self.parts().values()]

    def get_input_embeddings(self) -> nn.Module:
        """Return the target's input embeddings."""
        found: nn.Module = self.target.get_input_embeddings()
        return found

    def get_output_embeddings(self) -> nn.Module:
        """Return the target's output head."""
        found: nn.Module = self.target.get_output_embeddings()
        return found

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | Path, **_: Any
    ) -> None:
        """Write every part as a transformers folder of its own, and what binds them together."""
        root = Path(save_directory)
        for name, part in self.parts().items():
            part.save_pretrained(root / name)
        tensors = self.extra_tensors()
        if tensors:
            save_tensors(tensors, root / EXTRA)
        card = {
            "kind": self.kind,
            "evidence": self.evidence,
            "parts": sorted(self.parts()),
            "extra": bool(tensors),
            "settings": self.settings(),
        }
        write_json(root / CARD, card)


composites: Registry[type[Composite]] = Registry("composites", "expunge.engine.composites")


def is_composite(folder: Path) -> bool:
    """Return whether a folder holds a composite."""
    return (folder / CARD).is_file()


def part_names(folder: Path) -> list[str]:
    """Return the names of the parts of a composite on disk.

    Raises:
        IntegrityError: Its card is not whole.
    """
    return [str(name) for name in _card(folder)["parts"]]


def assemble(folder: Path, parts: Mapping[str, Any]) -> Composite:
    """Make the composite that a folder describes, of parts that were read from it.

    Raises:
        ConfigError: There is no such kind of composite.
        IntegrityError: Its card or its extra tensors are not whole.
    """
    card = _card(folder)
    tensors = load_tensors(folder / EXTRA) if card["extra"] else {}
    return composites.get(card["kind"]).assemble(parts, card["settings"], tensors).eval()


def _card(folder: Path) -> dict[str, Any]:
    card = read_json(folder / CARD)
    if not isinstance(card, dict) or not {"kind", "parts", "extra", "settings"} <= card.keys():
        raise IntegrityError(f"{folder / CARD} is not what was written; save the model again")
    return card
