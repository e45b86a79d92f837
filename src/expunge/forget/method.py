"""What a method is, what it may see, and the one way to call it.

A method is a function with the registering decorator and a frozen settings class. It is composed of
an objective (terms over forget and retain records), a scope (which weights may move) and a schedule
(the loop's settings), and sees only what it declares to need.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any, Generic, Literal, TypeVar

from torch import nn

from expunge.core.config import parse, to_json
from expunge.core.digest import digest_json
from expunge.core.errors import DataError, Problems, UnsupportedModelError, listing
from expunge.core.registry import Registry
from expunge.core.run import Run
from expunge.data.neutral import Neutral, neutral_answers
from expunge.engine.device import forked_random, require_device
from expunge.engine.loop import History
from expunge.engine.weights import require_finite
from expunge.forget.sight import Given, Need, Sight, UndeclaredNeed

# A method's file finds all it needs here.
__all__ = [
    "Evidence",
    "Forgotten",
    "Given",
    "Guarantee",
    "Maturity",
    "MethodInfo",
    "Need",
    "Sight",
    "UndeclaredNeed",
    "apply",
    "check_needs",
    "method",
    "methods",
    "own_answers",
    "parse_config",
]

Guarantee = Literal["none", "exact"]
Evidence = Literal["erased-exact", "weights-suppressed", "output-suppressed"]
Maturity = Literal["stable", "experimental"]

C = TypeVar("C")


Function = Callable[[nn.Module, Sight, Any], nn.Module]
Check = Callable[[nn.Module, Given, Any], None]


@dataclasses.dataclass(frozen=True)
class MethodInfo(Generic[C]):
    """A registered method.

    Attributes:
        name: Registered name.
        title: First line of the docstring.
        kinds: Kinds of task it works on.
        guarantee: ``"exact"`` when the result never depended on the forget records.
        evidence: What the new model is evidence of: the records never entered it, its weights were
            changed until audits pass, or its weights are as before and only its output differs.
        maturity: ``"experimental"`` is said in reports and certificates.
        source: The paper.
        config: Settings class.
        function: The method.
        needs: Yields what it needs under given settings.
        doc: Full docstring.
        check: Refuses settings that do not fit the model or the records, before any work.
        continues: Kind of composite that it can be given; all others are refused.
    """

    name: str
    title: str
    kinds: frozenset[str]
    guarantee: Guarantee
    evidence: Evidence
    maturity: Maturity
    source: str
    config: type[C]
    function: Function
    needs: Callable[[C], frozenset[Need]]
    doc: str
    check: Check | None = None
    continues: str = ""


methods: Registry[MethodInfo[Any]] = Registry("methods", "expunge.forget")


def method(
    name: str,
    *,
    kinds: set[str],
    needs: set[Need] | Callable[[Any], set[Need]],
    source: str,
    guarantee: Guarantee = "none",
    evidence: Evidence = "weights-suppressed",
    maturity: Maturity = "stable",
    check: Check | None = None,
    continues: str = "",
) -> Callable[[Function], Function]:
    """Register a function as a method.

    The function takes the model (changed in place or replaced), what it may see (``Sight``) and its
    settings, whose class is read from the annotation of the third argument.

    Args:
        name: Registered name, lower case with underscores.
        kinds: Kinds of task it works on.
        needs: What it must be given; a function of the settings where they decide. What the mask of
            a scope reads is added to it.
        source: The paper.
        guarantee: ``"exact"`` when the result never depended on the forget records.
        evidence: ``"output-suppressed"`` when the weights are as before; ignored when exact.
        maturity: ``"experimental"`` for what is not yet proven.
        check: Called with model, what is given and settings before any work; raises where they do
            not fit.
        continues: Kind of composite that the method can be given; it is given no other.
    """

    def file(function: Function) -> Function:
        *_, config = inspect.signature(function).parameters
        doc = inspect.getdoc(function) or ""
        methods.register(name)(
            MethodInfo(
                name=name,
                title=doc.partition("\n")[0],
                kinds=frozenset(kinds),
                guarantee=guarantee,
                evidence="erased-exact" if guarantee == "exact" else evidence,
                maturity=maturity,
                source=source,
                config=typing.get_type_hints(function)[config],
                function=function,
                needs=lambda c: _with_mask(needs(c) if callable(needs) else needs, guarantee, c),
                doc=doc,
                check=check,
                continues=continues,
            )
        )
        return function

    return file


@dataclasses.dataclass(frozen=True)
class Forgotten:
    """The result of a method.

    Attributes:
        model: The new model.
        history: Numbers of every step.
        method: The method.
        config: Its settings.
    """

    model: nn.Module
    history: History
    method: MethodInfo[Any]
    config: Any


def parse_config(info: MethodInfo[Any], settings: Mapping[str, Any] | None) -> Any:
    """Build a method's settings from plain data; see ``core.config.parse``."""
    return parse(info.config, settings or {}, f"forget ({info.name})")


def check_needs(
    info: MethodInfo[Any], config: Any, given: Given, model: nn.Module | None = None
) -> None:
    """Check before any work that a method can run on what there is.

    Args:
        info: The method.
        config: Its settings.
        given: What the caller can offer.
        model: The model, or one of the same architecture, where it is at hand already.

    Raises:
        ConfigError: It cannot; the message lists every reason and proposes methods that can. Or a
            setting does not fit the model or the records.
        StorageError: A file that the settings name cannot be read.
        UnsupportedModelError: The model is a composite, and the method does not go on from it.
        DataError: The forget set is empty, or shares records with the retain set.
    """
    if not len(given.forget):
        raise DataError("the forget set is empty; name at least one record to forget")
    if given.retain is not None:
        shared = set(given.forget.ids) & set(given.retain.ids)
        if shared:
            raise DataError(
                f"forget set and retain set share {len(shared)} record ids "
                f"({listing(sorted(shared))}); drop them from one of the two"
            )
    missing = _missing(info, config, given)
    if missing:
        able = [
            other.name
            for other in methods
            if other.name != info.name and not _missing(other, other.config(), given)
        ]
        problems = Problems(f"method {info.name!r} cannot run here")
        for reason in missing:
            problems.add(reason)
        problems.add("methods that can: " + (listing(able, 12) or "none"))
        problems.raise_if_any()
    if isinstance(answers := getattr(config, "answers", None), Neutral):
        neutral_answers(answers, 0)
    if model is None:
        return
    if hasattr(model, "parts") and getattr(model, "kind", "") != info.continues:
        raise UnsupportedModelError(
            f"method {info.name!r} takes a plain model, not the composite {model.kind!r}, whose "
            "weights must stay as they are; give its target (the folder `target` in it)"
        )
    if info.check is not None:
        info.check(model, given, config)


def own_answers(config: Any, seed: int) -> tuple[str, ...]:
    """Return the neutral answers that a file of the settings holds now; none without a file.

    They decide a result as settings do, so they belong into the keys of steps and checkpoints.

    Args:
        config: Settings of a method.
        seed: The run's seed.
    """
    answers = getattr(config, "answers", None)
    if not isinstance(answers, Neutral) or answers.file is None:
        return ()
    return neutral_answers(answers, seed)


def apply(
    name: str,
    model: nn.Module,
    given: Given,
    run: Run,
    settings: Mapping[str, Any] | None = None,
    *,
    in_place: bool = False,
) -> Forgotten:
    """Run a method and return the new model.

    Needs are checked before any work. The input model stays untouched, on error too, unless
    ``in_place``; global random state is restored.

    Args:
        name: Registered name.
        model: The trained model.
        given: Records and whatever else the caller can offer.
        run: Context.
        settings: The method's settings as plain data; its defaults when absent.
        in_place: Give the model away and save the memory of a copy.

    Raises:
        ConfigError: A setting is wrong, or the method cannot run on what is given.
        DataError: The forget set is empty or overlaps the retain set.
        NumericalError: Weights, loss or gradient are not finite.
        Interrupted: Cancelled, or the budget is spent; call again with the same run to resume.
    """
    info = methods.get(name)
    config = parse_config(info, settings)
    check_needs(info, config, given, model)
    require_device(run.device)
    require_finite(model.state_dict(), "the model to unlearn")
    work = model if in_place else copy.deepcopy(model)
    identity = digest_json([info.name, to_json(config), *own_answers(config, run.seed)])[:8]
    context = run.child(f"{info.name}-{identity}")
    with forked_random(run.device):
        sight = Sight(given, info.needs(config), work, context)
        result = info.function(work, sight, config)
    require_finite(result.state_dict(), f"the model after {info.name!r}")
    history = dataclasses.replace(sight.history, notes=sight.notes)
    return Forgotten(result, history, info, config)


def _with_mask(needs: set[Need], guarantee: Guarantee, config: Any) -> frozenset[Need]:
    """Add what the mask in a method's settings reads; an exact method stays away from it."""
    mask = getattr(getattr(config, "scope", None), "mask", None)
    reads: set[Need] = set(mask.reads) if mask is not None and guarantee != "exact" else set()
    return frozenset(needs | reads | ({"labels"} if reads else set()))


def _missing(info: MethodInfo[Any], config: Any, given: Given) -> list[str]:
    needs = info.needs(config)
    missing = []
    if given.task.kind not in info.kinds:
        missing.append(f"it works on {sorted(info.kinds)}, the model is a {given.task.kind!r}")
    if "retain" in needs and (given.retain is None or not len(given.retain)):
        missing.append("it needs retain records and there are none; give some of what must stay")
    if "fresh" in needs and given.fresh is None:
        missing.append(
            "it needs the model from before training; give `fresh`, or a recipe with `train`"
        )
    return missing
