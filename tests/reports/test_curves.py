"""Curves: what is drawn from a log, with gaps and hostile names."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from polyptych.reports import curves
from polyptych.reports.curves import last_step, moving_average, plots, sheet, svg
from polyptych.reports.style import COLORS, TEXT


def train(step: int, losses: dict, weights: dict | None = None, **more: float) -> dict:
    return {
        "event": "train",
        "step": step,
        "losses": losses,
        "weights": weights or dict.fromkeys(losses, 1.0),
        **more,
    }


def validation(step: int, skill: float | None = 0.1, **metrics: dict) -> dict:
    return {"event": "validation", "step": step, "metrics": metrics, "skill": skill}


def test_one_plot_for_each_loss_metric_and_rate() -> None:
    log = [
        train(step, {"semseg": 2.0, "depth": 1.0 / step}, learning_rate=0.1, images_per_second=30.0)
        for step in (1, 2, 3)
    ] + [validation(step, semseg={"accuracy": 50.0, "mIoU_per_image": 21.3}, depth={"RMSE": 0.9}) for step in (2, 3)]
    found = plots(log, {"semseg": "mIoU_per_image"})
    assert [plot.title for plot in found] == [
        "semseg loss",
        "depth loss",
        "semseg mIoU per image",
        "depth RMSE",
        "mean skill",
        "learning rate",
        "images per second",
    ]
    miou = found[2]
    assert miou.lines[0].values.tolist() == [21.3, 21.3] and miou.lines[0].steps.tolist() == [2, 3]
    assert miou.remark == "last 21.3" and "semseg mIoU per image over 2 points, last 21.3" in miou.description
    assert found[1].lines[0].values.tolist() == [1.0, 1 / 2, 1 / 3]


def test_without_headlines_the_first_metric_stands_for_the_task() -> None:
    log = [validation(step, semseg={"mIoU": 1.0, "other": 2.0}) for step in (1, 2)]
    assert plots(log)[0].title == "semseg mIoU"


def test_a_task_has_one_color_everywhere() -> None:
    log = [train(step, {"a": 1.0, "b": 2.0}, {"a": float(step), "b": 1.0}) for step in (1, 2)]
    found = plots([*log, *(validation(step, b={"m": 1.0}, a={"m": 1.0}) for step in (1, 2))])
    color = {
        line.label: {other.color for plot in found for other in plot.lines if other.label == line.label}
        for line in found[0].lines + found[1].lines
    }
    assert {len(colors) for colors in color.values()} == {1}
    assert color["a"] != color["b"]


@pytest.mark.parametrize(("second", "drawn"), [(1.0, False), (1.5, True)])
def test_weights_are_drawn_only_if_they_vary(second: float, drawn: bool) -> None:
    found = plots([train(1, {"a": 1.0}, {"a": 1.0}), train(2, {"a": 1.0}, {"a": second})])
    assert ("task weights" in [plot.title for plot in found]) == drawn


def test_of_a_repeated_step_the_later_line_holds() -> None:
    found = plots([train(1, {"a": 5.0}), train(2, {"a": 9.0}), train(1, {"a": 6.0})])
    assert found[0].lines[0].steps.tolist() == [1, 2] and found[0].lines[0].values.tolist() == [6.0, 9.0]


def test_the_last_loss_is_smoothed_only_where_the_curve_is() -> None:
    few = [train(step, {"a": float(step)}) for step in range(1, 5)]
    assert plots(few)[0].remark == "last 4"
    many = [train(step, {"a": 1.0 + step % 2}) for step in range(1, 402)]
    assert 1.4 < float(plots(many)[0].remark.removeprefix("last ")) < 1.6


def test_an_empty_log_has_no_plots() -> None:
    assert plots([]) == [] and last_step([]) == 0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
def test_values_that_are_not_finite_are_gaps(value: float | None) -> None:
    found = plots([train(1, {"a": 1.0}), train(2, {"a": value}), train(3, {"a": 3.0})])
    assert np.isnan(found[0].lines[0].values).tolist() == [False, True, False]
    ElementTree.fromstring(svg(found[0], last_step(found)))


def test_nothing_finite_is_said_in_words() -> None:
    found = plots([event for step in (1, 2) for event in
                   (train(step, {"a": math.nan}), validation(step, None, a={"m": None}))])
    assert [plot.remark for plot in found] == ["last not finite", "last not finite"]
    assert "no finite value" in svg(found[0], 1.0)  # the comment beside the drawn letters


def test_one_point_is_no_curve() -> None:
    """Neither a log of one step nor one of several in which a metric was known once."""
    assert plots([train(10, {"a": 1.0}), validation(10, a={"m": 1.0})]) == []
    found = plots([train(1, {"a": 1.0}), train(2, {"a": 2.0}), validation(1, None, a={"m": None}),
                   validation(2, 0.1, a={"m": 1.0})])
    assert [plot.title for plot in found] == ["a loss"]


def test_an_inline_plot_is_transparent_and_takes_the_color_of_the_text() -> None:
    drawn = svg(plots([train(step, {"a": 1.0}) for step in range(1, 30)])[0], 30.0)
    assert drawn.startswith("<svg") and "currentColor" in drawn and TEXT not in drawn
    assert "#ffffff" not in drawn and COLORS[0] in drawn


def test_drawing_is_repeatable_and_ids_differ_between_plots() -> None:
    found = plots([train(1, {"a": 1.0, "b": 1.0}), train(2, {"a": 1.0, "b": 1.0})])
    assert svg(found[0], 2.0) == svg(found[0], 2.0)
    first, second = (set(re.findall(r'clipPath id="(\w+)"', svg(plot, 2.0))) for plot in found[:2])
    assert first and second and not first & second


def test_the_sheet_holds_all_plots() -> None:
    log = [train(step, {"a": 1.0, "b": 2.0}, learning_rate=0.1) for step in (1, 2)]
    drawn = sheet(plots(log))
    ElementTree.fromstring(drawn)
    assert "<!-- a loss -->" in drawn and "<!-- b loss -->" in drawn and "<!-- learning rate -->" in drawn


def test_hostile_names_stay_text() -> None:
    found = plots([train(step, {"$\\frac{$ --><script>alert(1)</script>": 1.0}) for step in (1, 2)])
    root = ElementTree.fromstring(svg(found[0], 1.0))
    assert not [element for element in root.iter() if element.tag.endswith("script")]


def test_a_loss_over_decades_gets_a_logarithmic_axis() -> None:
    wide, narrow = plots([train(step, {"wide": 10.0 ** (2 - step), "narrow": 1.0 + step / 10}) for step in range(1, 5)])
    assert "<!-- 0.001 -->" not in svg(narrow, 4.0)
    assert "<!-- 0.1 -->" in svg(wide, 4.0) and "<!-- 10 -->" in svg(wide, 4.0)


def test_moving_average_is_unbiased_and_passes_over_gaps() -> None:
    assert moving_average(np.full(50, 3.0), 10.0) == pytest.approx(np.full(50, 3.0))
    average = moving_average(np.array([1.0, math.nan, 1.0, 5.0]), 3.0)
    assert math.isnan(average[1]) and average[2] == pytest.approx(1.0)
    # keep = 1/2: weights 1/4, 1/2, 1 of the finite values
    assert average[3] == pytest.approx((0.25 + 0.5 + 5.0) / 1.75)


def test_long_logs_are_thinned_without_losing_spikes() -> None:
    values = np.zeros(20_000)
    values[12_345] = 7.0
    steps, kept = curves._thinned(np.arange(20_000.0), values)
    assert len(kept) <= curves.MOST_POINTS + 2 and kept.max() == 7.0
    assert steps[kept.argmax()] == 12_345 and steps[0] == 0 and steps[-1] == 19_999


def test_gradients_of_the_tasks_are_shown_where_a_balancer_compares_them() -> None:
    log = [train(step, {"a": 1.0, "b": 2.0}, diagnostics={
        "gradient_norm/a": 1.0 * step, "gradient_norm/b": 2.0, "cosine/a/b": -0.5, "fallbacks": step - 1.0})
        for step in (1, 2, 3)]
    found = {plot.title: plot for plot in plots(log) if plot.group == curves.GRADIENTS}
    assert list(found) == ["gradient norms", "cosines of gradients", "steps with equal weights"]
    norms = found["gradient norms"].lines
    assert [line.label for line in norms] == ["a", "b"] and norms[0].values.tolist() == [1, 2, 3]
    assert norms[0].color == plots(log)[0].lines[0].color
    assert found["cosines of gradients"].lines[0].label == "a and b"
    assert found["steps with equal weights"].remark == "last 2"
    assert not [plot for plot in plots([train(1, {"a": 1.0}, diagnostics={"fallbacks": 0.0})])
                if plot.group == curves.GRADIENTS]
    assert svg(found["gradient norms"], 3).startswith("<svg")
