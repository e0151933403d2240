"""One self-contained HTML page: text, tables, and figures inside it; no script, nothing fetched."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence

from .._optional import require

__all__ = ["curves", "heading", "page", "paragraphs", "picture", "table", "verdicts"]

_STYLE = """
:root { color-scheme: light dark;
  --ink: #1c2127; --soft: #68727d; --line: #dfe3e8; --paper: #ffffff; --good: #1a7f4b; --bad: #c4314b; }
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e4e8ec; --soft: #98a2ad; --line: #313841; --paper: #14171b; --good: #4fc387; --bad: #ff6f86; }
}
body { margin: 0 auto; max-width: 60rem; padding: 2.5rem 1.25rem 4rem;
  color: var(--ink); background: var(--paper);
  font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .4rem; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; }
p { margin: .5rem 0; max-width: 46rem; }
.soft, figcaption { color: var(--soft); font-size: .9rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .45rem 1.3rem .45rem 0; text-align: left; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 500; }
figure { margin: .8rem 0; }
figure.half { display: inline-block; width: calc(50% - .6rem); min-width: 20rem; margin-right: .4rem;
  vertical-align: top; }
img, svg { width: 100%; height: auto; display: block; }
img { image-rendering: pixelated; border-radius: 4px; }
ul { list-style: none; padding: 0; margin: .4rem 0; }
.good b { color: var(--good); } .bad b { color: var(--bad); }
"""

_INK = "#010203"  # a colour that no curve has; the page's own text colour takes its place
_COLOURS = ("#8a94a0", "#2f7de1", "#e07b39", "#2aa876")


def page(title: str, lead: str, parts: Sequence[str]) -> str:
    """The page; ``title`` and ``lead`` are text, ``parts`` are HTML from the functions below."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{_text(title)}</h1>\n<p>{_text(lead)}</p>\n" + "\n".join(parts) + "\n</body>\n</html>\n"
    )


def heading(text: str) -> str:
    return f"<h2>{_text(text)}</h2>"


def paragraphs(texts: Sequence[str]) -> str:
    return "\n".join(f'<p class="soft">{_text(text)}</p>' for text in texts)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; an empty header leaves the header row out."""
    head = "<tr>" + "".join(f"<th>{_text(cell)}</th>" for cell in header) + "</tr>" if header else ""
    body = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table>{head}{body}</table></div>'


def verdicts(checks: Sequence[tuple[str, str, bool]]) -> str:
    """Checks as (name, text, passed)."""
    items = (
        f'<li class="{"good" if passed else "bad"}"><b>{"passed" if passed else "failed"}</b> '
        f"{_text(name)}: {_text(text)}</li>"
        for name, text, passed in checks
    )
    return "<ul>" + "".join(items) + "</ul>"


def picture(png: bytes, caption: str) -> str:
    """A PNG, half the page wide."""
    data = base64.b64encode(png).decode()
    return (
        f'<figure class="half"><img alt="{_text(caption)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{_text(caption)}</figcaption></figure>"
    )


def curves(panels: Sequence[tuple[str, Mapping[str, Sequence[float]]]], x_label: str) -> str:
    """Panels side by side as inline SVG, each (title, {name: one value per x}); x counts from 1."""
    matplotlib, figures = require("matplotlib"), require("matplotlib.figure")
    style = {
        "svg.fonttype": "none",  # text stays text
        "svg.hashsalt": "variate",  # equal data, equal file
        "font.family": "sans-serif",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlelocation": "left",
        "axes.titlesize": 10,
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK),
    }
    with matplotlib.rc_context(style):
        figure = figures.Figure(figsize=(10, 3.1), layout="constrained")
        for axes, (title, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            for (name, values), colour in zip(lines.items(), _COLOURS, strict=False):
                # The later line is thinner, so that the earlier one shows where they coincide.
                width = 1.3 if axes.lines else 3.2
                axes.plot(range(1, len(values) + 1), values, color=colour, linewidth=width, label=name)
            # Leave the steep start out of the scale: it would flatten all that follows.
            settled = [v for values in lines.values() for v in values[len(values) // 10 :]]
            margin = 0.08 * (max(settled) - min(settled)) or 1.0
            axes.set_ylim(min(settled) - margin, max(settled) + margin)
            axes.set_title(title)
            axes.set_xlabel(x_label)
            axes.grid(alpha=0.15, color=_INK)
            axes.legend(frameon=False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    return "<figure>" + svg[svg.index("<svg") :].replace(_INK, "currentColor") + "</figure>"


def _text(text: str) -> str:
    return html.escape(text)
