"""The picture of the architecture is that of the sources as they are."""

from tests.test_layers import FLOOR_OF
from tools.draw_architecture import PICTURE, draw, packages, reduced


def test_the_picture_is_up_to_date() -> None:
    assert PICTURE.read_text(encoding="utf-8") == draw(), "run python tools/draw_architecture.py"


def test_every_line_goes_down_and_everything_is_drawn() -> None:
    edges = packages()
    assert set(edges) == set(FLOOR_OF)
    assert all(FLOOR_OF[below] < FLOOR_OF[name] for name, others in edges.items() for below in others)


def test_an_import_that_follows_from_others_has_no_line() -> None:
    assert reduced({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == {"a": {"b"}, "b": {"c"}, "c": set()}
