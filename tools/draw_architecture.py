"""Draws docs/architecture.svg: the packages on their floors, and who imports whom.

In      the sources' imports and docstrings, the floors of tests/test_layers.py
Out     an SVG picture, the same for the same sources; tests/tools/test_draw_architecture.py looks that it is up to date
Knows   boxes and lines. Not: what is in a package

    python tools/draw_architecture.py

An import that follows from others (a package imports one that imports it, too) has no line of its own.
"""

import ast
import sys
import textwrap
from pathlib import Path
from xml.sax.saxutils import escape

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.test_layers import FLOORS, PACKAGE, PATHS, module_name, own_imports, package_of

PICTURE = PACKAGE.parent / "docs" / "architecture.svg"
WIDTH, MARGIN, GAP = 1120, 12, 10  # px
BOX, ROW = 74, 112  # px; heights of a box, and of a floor with the lines below it
LETTER = 6.3  # px; average width at the small size
COLOURS = {"core": "#dcebf7", "net": "#e2f2dc", "app": "#fbeed2", "monitor": "#f3e3f0"}
STYLE = (
    "text{font-family:sans-serif;font-size:11px;fill:#222}.name{font-weight:bold;font-size:13px}"
    "rect{stroke:#667;rx:4}line{stroke:#889;stroke-width:1.2}"
)

Edges = dict[str, set[str]]
Box = tuple[float, float, float]
"left, top, width"


def packages() -> Edges:
    """Each package, or module that stands alone, and those that it imports."""
    found: Edges = {name: set() for floor in FLOORS for name in sorted(floor)}
    for path in PATHS:
        package = package_of(module_name(path))
        if package not in found:
            continue  # core and net hold packages, and nothing themselves
        found[package] |= {package_of(name) for name in own_imports(path)} - {package}
    return found


def reduced(edges: Edges) -> Edges:
    """The edges that do not follow from others."""

    def below(name: str) -> set[str]:
        return edges[name].union(*(below(other) for other in edges[name]))

    return {name: others - set().union(*(below(other) for other in others)) for name, others in edges.items()}


def purpose(name: str) -> str:
    """The first sentence of a package's or module's docstring."""
    base = PACKAGE.joinpath(*name.split(".")) if name else PACKAGE
    path = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
    card = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or " "
    return card.splitlines()[0].rstrip(".")


def layout() -> dict[str, Box]:
    boxes = {}
    for row, floor in enumerate(reversed(FLOORS)):
        width = (WIDTH - 2 * MARGIN - (len(floor) - 1) * GAP) / len(floor)
        shown = min(width, 300.0)
        for column, name in enumerate(sorted(floor)):
            left = MARGIN + column * (width + GAP) + (width - shown) / 2
            boxes[name] = (left, MARGIN + row * ROW, shown)
    return boxes


def draw() -> str:
    boxes = layout()
    height = 2 * MARGIN + (len(FLOORS) - 1) * ROW + BOX
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">',
        f"<style>{STYLE}</style>",
        f'<rect x="0" y="0" width="{WIDTH}" height="{height}" style="fill:#fff;stroke:none"/>',
    ]
    for name, others in reduced(packages()).items():
        left, top, width = boxes[name]
        for other in sorted(others):
            to_left, to_top, to_width = boxes[other]
            x1, x2 = left + width / 2, to_left + to_width / 2
            parts.append(f'<line x1="{x1:.0f}" y1="{top + BOX}" x2="{x2:.0f}" y2="{to_top}"/>')
    for name, (left, top, width) in boxes.items():
        colour = COLOURS.get(name.partition(".")[0], "#eeeef2")
        middle = left + width / 2
        parts.append(f'<rect x="{left:.0f}" y="{top}" width="{width:.0f}" height="{BOX}" style="fill:{colour}"/>')
        parts.append(_text(middle, top + 18, name or "kcptun_lite", "name"))
        lines = textwrap.wrap(purpose(name), int(width / LETTER), max_lines=4, placeholder=" …")
        for number, line in enumerate(lines):
            parts.append(_text(middle, top + 33 + 12 * number, line, "what"))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text x="{x:.0f}" y="{y}" text-anchor="middle" class="{kind}">{escape(text)}</text>'


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
