"""A matplotlib figure as inline SVG: same bytes for same input, colours from the page's style.

The text of a figure stays text, so that it can be read aloud, searched and scaled; what matplotlib
adds for files of their own (document type, name spaces, group ids, style rules) is left out.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

# Colours that stand for CSS variables of the page: drawn as these, replaced afterwards.
COLOURS: Mapping[str, str] = {
    "ink": "#010101",
    "muted": "#020202",
    "line": "#030303",
    "before": "#040404",
    "after": "#050505",
    "reference": "#060606",
}

_SETTINGS: Any = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.parse_math": False,
    "text.color": COLOURS["ink"],
    "axes.edgecolor": COLOURS["line"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.titlecolor": COLOURS["ink"],
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.use_mathtext": False,
    "axes.unicode_minus": True,
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.6,
    "xtick.color": COLOURS["line"],
    "ytick.color": COLOURS["line"],
    "xtick.labelcolor": COLOURS["muted"],
    "ytick.labelcolor": COLOURS["muted"],
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}
_STANDALONE = ("#b3261e", "#1f6f8b", "#3b7a3b", "#7a4f9a")
_NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


@contextmanager
def drawing(salt: str) -> Iterator[None]:
    """Set the look of figures that are made and saved inside the block.

    Args:
        salt: Name of the figure; keeps the ids of two figures on one page apart.
    """
    from matplotlib import rc_context, rcdefaults, rcParams

    with rc_context(), warnings.catch_warnings():
        rcdefaults()  # a user's own style file must not change a report
        rcParams.update({**_SETTINGS, "svg.hashsalt": salt})
        # A title in a script that the measuring font lacks is drawn by the reader's own fonts.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


Lines = Mapping[str, tuple[Sequence[float], Sequence[float]]]
"""Steps and values by name."""


def standalone_lines(panels: Mapping[str, Lines], title: str, x: str) -> str:
    """Return line plots as an SVG file of its own, for pages that are not ours.

    Args:
        panels: Lines by the label of the vertical axis, side by side.
        title: Title of the figure.
        x: Label of the horizontal axis.
    """
    from matplotlib.figure import Figure

    styles = ("-", "--", ":", "-.")
    with drawing(title):
        figure = Figure(figsize=(8, 3.2), layout="constrained")
        drawn = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (y, lines) in zip(drawn, panels.items(), strict=True):
            axes.set(xlabel=x, ylabel=y)
            for place, (name, (steps, values)) in enumerate(lines.items()):
                turn, colour = divmod(place, len(_STANDALONE))
                style = styles[(colour + turn) % len(styles)]
                axes.plot(steps, values, style, color=_STANDALONE[colour], label=name)
        drawn[0].set_title(title)
        drawn[-1].legend()
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata=_NO_METADATA)
    text = buffer.getvalue()
    for name, plain in (("ink", "#222222"), ("muted", "#555555"), ("line", "#bbbbbb")):
        text = text.replace(COLOURS[name], plain)
    return text


def inline_svg(figure: Figure, alt: str) -> Markup:
    """Return a figure as an SVG element.

    Args:
        figure: The figure, inside ``drawing``.
        alt: What a reader who cannot see it is told.
    """
    from markupsafe import Markup, escape

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=_NO_METADATA, transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r'<style type="text/css">.*?</style>', "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*">', "<g>", text)
    text = re.sub(r"font-family: [^;\"<]*;? ?", "", text)
    text = re.sub(r"font: ([\d.]+px)[^;\"<]*", r"font-size: \1", text)
    text = re.sub(r' (transform="rotate\(-0 [^"]*"|xmlns(:xlink)?="[^"]*"|version="1.1")', "", text)
    for name, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{name})")
    label = escape(alt)
    return Markup(text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1))
