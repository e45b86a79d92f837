"""Pages from templates: everything escaped, control and reordering characters made visible."""

from __future__ import annotations

import functools
import importlib.util
from typing import TYPE_CHECKING, Any

from expunge.core.errors import ConfigError
from expunge.report import wording
from expunge.report.comparison import remarks

if TYPE_CHECKING:
    from jinja2 import Environment


def require_libraries() -> None:
    """Check that what pages are made with is installed.

    Raises:
        ConfigError: It is not; the message has the command that installs it.
    """
    missing = [name for name in ("jinja2", "matplotlib") if not importlib.util.find_spec(name)]
    if missing:
        raise ConfigError(
            f"a report needs {' and '.join(missing)}; install with: pip install 'expunge[report]'"
        )


def render(template: str, **values: Any) -> str:
    """Fill a template of this package.

    Text is escaped and cleaned; only markup made by Expunge itself (plots) passes as it is.

    Args:
        template: File name in ``templates``.
        values: What the template names.
    """
    return _environment().get_template(template).render(**values)


@functools.cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    def finalize(value: Any) -> Any:
        return value if isinstance(value, Markup) else wording.clean(value)

    environment = Environment(
        loader=PackageLoader("expunge.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        number=wording.number,
        numbers=wording.numbers,
        interval=wording.interval,
        duration=wording.duration,
        given=wording.given,
        asked=wording.asked,
        remarks=remarks,
        set_words=wording.set_words,
        evidence_words=wording.evidence_words,
        verdict_words=wording.verdict_words,
        subject_words=wording.subject_words,
    )
    return environment
