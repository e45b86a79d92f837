"""``Sight``: what one method sees during one call, and the only way by which it trains."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

from torch import nn

from expunge.core.errors import ExpungeError
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.data.neutral import Neutral, neutral_answers
from expunge.engine.guard import Guard, GuardSettings
from expunge.engine.loop import AfterStep, History, Stream, Term, fit
from expunge.engine.reference import ReferenceNLL, reference_nll
from expunge.engine.schedule import Schedule
from expunge.engine.scope import Scope
from expunge.engine.task import Task

Need = Literal["forget", "retain", "labels", "reference", "reference_model", "neutral", "fresh"]


class UndeclaredNeed(ExpungeError):
    """A method touched something that it does not declare to need; a defect of the method."""


class Composed(Protocol):
    """Settings of a method that runs the loop."""

    @property
    def scope(self) -> Scope:
        """Which weights may move."""

    @property
    def schedule(self) -> Schedule:
        """Settings of the loop."""


@dataclasses.dataclass(frozen=True)
class Given:
    """What the caller can offer to a method.

    Attributes:
        task: How to run the model.
        forget: Records to forget.
        retain: Records to keep; ``None`` when the caller has none.
        fresh: Yields the model as it was before it saw any of these records; for retraining.
        kept: Everything that the model was trained on but the forget set; for retraining. It may
            hold records beside ``retain`` (test facts that no other method sees); ``retain`` when
            absent.
        guard: Settings of the collapse guard; ``None`` turns it off.
    """

    task: Task
    forget: Records
    retain: Records | None = None
    fresh: Callable[[], nn.Module] | None = None
    kept: Records | None = None
    guard: GuardSettings | None = dataclasses.field(default_factory=GuardSettings)


class Sight:
    """What one method sees during one call: its declared needs, and nothing else.

    Args:
        given: What the caller offers.
        needs: What the method declares.
        model: The model being unlearned; references are taken from it before it changes.
        run: Context of the call.
    """

    def __init__(self, given: Given, needs: frozenset[Need], model: nn.Module, run: Run) -> None:
        self._given, self._needs, self._model = given, needs, model
        self.run = run
        self.task = given.task
        self.history = History([])
        self.notes: list[str] = []
        self._reference = (
            reference_nll(model, given.task, given.forget, run) if "reference" in needs else None
        )
        self._reference_model = _frozen(model) if "reference_model" in needs else None

    @property
    def forget(self) -> Records:
        """Records to forget."""
        self._declared("forget")
        return self._labelled(self._given.forget)

    @property
    def retain(self) -> Records:
        """Records to keep."""
        self._declared("retain")
        assert self._given.retain is not None  # checked before the call
        return self._labelled(self._given.retain)

    @property
    def reference(self) -> ReferenceNLL:
        """Likelihoods of the forget records under the model before unlearning."""
        self._declared("reference")
        assert self._reference is not None
        return self._reference

    @property
    def reference_model(self) -> nn.Module:
        """A frozen copy of the model before unlearning, for methods that need distributions."""
        self._declared("reference_model")
        assert self._reference_model is not None
        return self._reference_model

    @property
    def kept(self) -> Records:
        """Everything that the model was trained on but the forget set."""
        self._declared("fresh")
        return self.retain if self._given.kept is None else self._labelled(self._given.kept)

    def neutral(self, answers: Neutral | None = None) -> Stream:
        """Return the forget records with uninformative answers, drawn anew each epoch.

        The stream's own records are those of the first epoch; true answers are not in it.

        Args:
            answers: Which answers; those that the task has when absent.

        Raises:
            StorageError: A file of answers cannot be read.
            ConfigError: It holds none, or the task takes no answers of one's own.
        """
        self._declared("neutral")
        texts, seed = neutral_answers(answers or Neutral(), self.run.seed), self.run.seed

        def at_epoch(epoch: int) -> Records:
            return self.task.neutral(self._given.forget, seed, epoch, texts)

        return Stream(at_epoch(0), at_epoch)

    def reference_of(self, records: Records) -> ReferenceNLL:
        """Return the likelihoods of any records under the model before unlearning.

        To be called before the model changes.
        """
        self._declared("reference")
        return reference_nll(self._model, self.task, records, self.run)

    def fresh(self) -> nn.Module:
        """Return the model as it was before it saw any of the records."""
        self._declared("fresh")
        assert self._given.fresh is not None
        return copy.deepcopy(self._given.fresh())  # it may be the caller's only one

    def note(self, text: str) -> None:
        """Tell the user something, in the history and in what is made of it: summary and report.

        Args:
            text: One sentence.
        """
        self.notes.append(text)

    def fit(
        self,
        model: nn.Module,
        streams: Mapping[str, Stream],
        terms: Sequence[Term],
        config: Composed,
        *,
        guarded: bool = True,
        after: AfterStep | None = None,
        part: str = "",
    ) -> nn.Module:
        """Run the loop on an objective with the settings' scope and schedule.

        Args:
            model: Changed in place.
            streams: Records by name.
            terms: The objective.
            config: The method's settings.
            guarded: Watch retained records for collapse (not while training from scratch).
            after: Changes weights after each step; see ``engine.loop.fit``.
            part: Name of the loop, for methods that run several.
        """
        self.history = fit(
            model,
            self.task,
            streams,
            terms,
            config.schedule,
            self.run.child(part) if part else self.run,
            scope=config.scope,
            aside=self._aside(streams, config),
            guard=self._guard() if guarded else None,
            after=after,
            label=part or "forgetting",
        )
        return model

    def _aside(self, streams: Mapping[str, Stream], config: Composed) -> dict[str, Records]:
        """Return what only the mask of a scope reads; neutral answers stand in for forgotten."""
        mask = config.scope.mask
        reads = (mask.reads if mask is not None else frozenset()) & self._needs - streams.keys()
        if "neutral" in streams:
            reads -= {"forget"}
        return {role: getattr(self, role) for role in sorted(reads)}

    def _guard(self) -> Guard | None:
        settings, retain = self._given.guard, self._given.retain
        if settings is None or retain is None or not len(retain):
            return None
        return Guard.of(settings, retain, self.run.seed)

    def _labelled(self, records: Records) -> Records:
        column = getattr(self.task, "labels", None)
        if column is None or "labels" in self._needs:
            return records
        return records.replace(**{column: _Hidden(column, len(records))})

    def _declared(self, need: Need) -> None:
        if need not in self._needs:
            raise UndeclaredNeed(
                f"the method touched {need!r} but declares only {sorted(self._needs)}"
            )


def _frozen(model: nn.Module) -> nn.Module:
    copied = copy.deepcopy(model).requires_grad_(False)
    return copied.eval()


class _Hidden(Sequence[Any]):
    """Stands where labels would be, for methods that declare no need of them."""

    def __init__(self, column: str, length: int) -> None:
        self._column, self._length = column, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, row: Any) -> Any:
        raise UndeclaredNeed(
            f"the method read the labels ({self._column!r}) but does not declare 'labels'"
        )
