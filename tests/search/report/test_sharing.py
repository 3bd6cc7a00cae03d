"""Who shares what, in text and pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from polyptych.search.report.pictures import Point, pareto_front, ranks_svg, tradeoff_svg
from polyptych.search.report.sharing import is_tree, lanes, svg, tree_lines, write_png
from polyptych.search.space.policy import Policy


def policy(*rows: str, tasks: tuple[str, ...] = ("a", "b", "c")) -> Policy:
    """Rows such as ``sso``: s shared, b group b, o own, x skip."""
    words = {"s": "shared", "b": "b", "o": "own", "x": "skip"}
    return Policy(tasks, tuple(f"u{i}" for i in range(len(rows))), tuple(tuple(words[c] for c in row) for row in rows),
                  "0")


def test_a_tree_as_text() -> None:
    assert list(tree_lines(policy("sss", "sss", "sss", "sso", "xxo", "ooo"))) == [
        "u0 … u2 (3 units)  [a, b, c]",
        "├─ u3, u4, without u4  [a, b]",
        "│  ├─ u5  [a]",
        "│  └─ u5  [b]",
        "└─ u3 … u5 (3 units)  [c]",
    ]
    assert list(tree_lines(policy("ooo"))) == [
        "(nothing in common)  [a, b, c]", "├─ u0  [a]", "├─ u0  [b]", "└─ u0  [c]"]
    assert list(tree_lines(policy("sss", "sss"))) == ["u0, u1  [a, b, c]"]


def test_what_is_no_tree_is_a_list() -> None:
    mixed = policy("sso", "sso", "oss", "sxs")
    assert not is_tree(mixed)
    assert list(tree_lines(mixed)) == ["u0, u1: a = b | c", "u2: a | b = c", "u3: a = c | without: b"]


@pytest.mark.parametrize(("rows", "tree"), [
    (("sss", "sso", "ooo"), True), (("sso", "sss"), False), (("ooo", "sso"), False), (("ssb", "ssb"), True),
    (("sss", "xss", "sss"), True), (("sss", "xxx", "sss"), True), (("sso", "xxx", "sss"), False)])
def test_trees_are_told_from_others(rows: tuple[str, ...], tree: bool) -> None:
    assert is_tree(policy(*rows)) is tree


def test_lanes_put_tasks_that_share_together() -> None:
    found = lanes(policy("ssss", "sbsb", "obob", tasks=("a", "b", "c", "d")))
    assert [found.index(i) for i in (0, 2)] in ([0, 1], [2, 3]) and set(found) == {0, 1, 2, 3}


def test_pictures(tmp_path: Path) -> None:
    write_png(policy("sss", "sso", "xxo", "oxo"), tmp_path / "p.png", "a policy")
    with Image.open(tmp_path / "p.png") as image:
        assert image.width > 400 and len(image.convert("RGB").getcolors(10**6) or ()) > 20
    drawn = svg(policy("sss", "sos"))
    assert drawn.startswith("<svg") and "currentColor" in drawn and drawn == svg(policy("sss", "sos"))


def test_the_front_is_what_nothing_cheaper_beats() -> None:
    points = [Point("a", "shared", 1.0, 0.3, None, 0.1), Point("b", "tree", 1.5, 0.2, None, 0.2),
              Point("c", "searched", 1.4, 0.5, 0.01, 0.3), Point("d", "single", 3.0, 0.5, None, 0.0),
              Point("e", "op", 2.0, 0.6, None, 0.0)]
    assert [point.label for point in pareto_front(points)] == ["a", "c", "e"]
    for text in (tradeoff_svg(points, "cost", "skill", 1.5), ranks_svg(points, "skill")):
        assert text.startswith("<svg") and "currentColor" in text
    assert tradeoff_svg(points, "cost", "skill", page=False).startswith("<?xml")
