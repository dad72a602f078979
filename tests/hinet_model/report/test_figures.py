"""Figures show what they were given, and survive what a short run gives them."""

from __future__ import annotations

import io

import numpy as np
import pytest

from hinet_model.report.figures import learning_curves, loss_curve, scenario_attention


def is_drawn(figure: object) -> bool:
    image = io.BytesIO()
    figure.savefig(image, format="png")  # type: ignore[attr-defined]
    return image.getvalue().startswith(b"\x89PNG")


def test_every_task_has_a_panel_and_every_cell_a_curve() -> None:
    auc = {(s, t): [(1.0, 0.6), (2.0, 0.7)] for s in ("a", "b") for t in ("click", "like")}
    figure = learning_curves(auc, ["a", "b"], ["click", "like"])
    panels = [panel for panel in figure.axes if panel.get_visible()]
    assert [panel.get_title(loc="left") for panel in panels] == ["click", "like"]
    assert all(len([line for line in panel.lines if line.get_label() in ("a", "b")]) == 2 for panel in panels)
    assert is_drawn(figure)


def test_the_best_point_is_written_beside_its_curve() -> None:
    figure = learning_curves({("a", "t"): [(1.0, 0.6), (2.0, 0.8123), (3.0, 0.7)]}, ["a"], ["t"])
    assert [text.get_text() for text in figure.axes[0].texts] == ["0.8123"]


@pytest.mark.parametrize("points", [[], [(1.0, float("nan"))], [(1.0, 0.5), (2.0, float("nan"))]])
def test_undefined_cells_do_not_stop_the_figure(points: list[tuple[float, float]]) -> None:
    assert is_drawn(learning_curves({("a", "t"): points}, ["a", "b"], ["t"]))


def test_many_tasks_and_scenarios_are_drawn_without_a_legend() -> None:
    scenarios, tasks = [f"s{i}" for i in range(15)], [f"t{i}" for i in range(5)]
    figure = learning_curves({(s, t): [(1.0, 0.5)] for s in scenarios for t in tasks}, scenarios, tasks)
    assert not figure.legends
    assert is_drawn(figure)


def test_the_loss_is_smoothed_without_lag_and_without_touching_its_level() -> None:
    figure = loss_curve([(float(step), 2.0) for step in range(200)], [(100.0, 1.9)])
    smoothed = next(line for line in figure.axes[0].lines if line.get_label() == "training (smoothed)")
    np.testing.assert_allclose(smoothed.get_ydata(), 2.0)
    assert is_drawn(figure)


@pytest.mark.parametrize("train", [[], [(0.0, 1.0)], [(0.0, float("nan")), (1.0, 1.0)]])
def test_short_runs_have_a_loss_curve_too(train: list[tuple[float, float]]) -> None:
    assert is_drawn(loss_curve(train))


def test_the_attention_table_shows_every_weight_but_the_own() -> None:
    figure = scenario_attention(
        np.array([[0.0, 0.25, 0.75], [0.5, 0.0, 0.5], [1.0, 0.0, 0.0]]), ["a", "b", "c"]
    )
    shown = {text.get_position(): text.get_text() for text in figure.axes[0].texts}
    assert shown[1, 0] == "0.25"
    assert shown[2, 0] == "0.75"
    assert (0, 0) not in shown
    assert len(shown) == 6
    assert is_drawn(figure)


def test_a_table_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="3 scenarios"):
        scenario_attention(np.zeros((2, 2)), ["a", "b", "c"])
