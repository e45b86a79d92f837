"""``Arm``: one row of a comparison, a method with its settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Arm:
    """One row of the table.

    Attributes:
        label: Its name in the table.
        method: Registered name of the method.
        settings: What differs from the method's defaults on every fixture.
        on: What differs on one fixture only, by its name.
        own_scope: The method decides which weights move.
        only: The fixtures it is run on; all when empty.
        grid: Settings to choose among on records that no number of the table rests on; see
            ``Fixture.merit``.
    """

    label: str
    method: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    on: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    own_scope: bool = False
    only: tuple[str, ...] = ()
    grid: tuple[Mapping[str, Any], ...] = ()

    def settings_on(
        self, fixture: str, schedule: Mapping[str, Any], scope: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return the method's settings on a fixture.

        Args:
            fixture: Its name.
            schedule: The fixture's loop; single settings of the arm's own win.
            scope: The fixture's scope; ignored where the arm has one of its own.
        """
        own = {**self.settings, **self.on.get(fixture, {})}
        merged = dict(own)
        if schedule:
            merged["schedule"] = {**schedule, **own.get("schedule", {})}
        if scope and not self.own_scope:
            merged["scope"] = {**scope, **own.get("scope", {})}
        return merged
