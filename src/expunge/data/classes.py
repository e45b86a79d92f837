"""Classes as people name them: by number, or by the name that the data give them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from expunge.core.errors import DataError, listing


def class_numbers(
    classes: Sequence[int | str], facts: Mapping[str, Any], where: str
) -> tuple[int, ...]:
    """Return the numbers of classes.

    Args:
        classes: Numbers from 0, or names.
        facts: Facts of the data set: ``num_classes`` and, where classes have names, ``classes``.
        where: The setting, for messages.

    Raises:
        DataError: There is no such class.
    """
    names = list(facts.get("classes", ()))
    known: dict[int | str, int] = {name: number for number, name in enumerate(names)}
    known |= {number: number for number in range(facts["num_classes"])}
    unknown = [value for value in classes if value not in known]
    if unknown:
        raise DataError(
            f"{where}: there is no class {listing(map(repr, unknown))}; the data have classes 0 to "
            f"{facts['num_classes'] - 1}" + (f", called {listing(names, 12)}" if names else "")
        )
    return tuple(known[value] for value in classes)
