"""Charts put things where they belong, and hold up on what is hardly there."""

from __future__ import annotations

import pytest

from hinet_model.report import charts


def places(line: charts.Line) -> list[tuple[float, float]]:
    return [tuple(map(float, pair.split(","))) for pair in line.points.split()]  # type: ignore[misc]


@pytest.mark.parametrize(
    ("low", "high", "texts"),
    [
        (0.0, 1.0, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (0.0, 0.3, ["0.0", "0.1", "0.2", "0.3"]),
        (1.0, 3.0, ["1.0", "1.5", "2.0", "2.5", "3.0"]),
        (0.7012, 0.7049, ["0.702", "0.703", "0.704"]),
        (1.0, 20.0, ["5", "10", "15", "20"]),
    ],
)
def test_ticks_are_round_and_told_apart(low: float, high: float, texts: list[str]) -> None:
    assert [text for _, text in charts.ticks(low, high)] == texts


def test_a_roc_curve_runs_from_corner_to_corner() -> None:
    chart = charts.roc("t", {"challenger": [[0, 0], [0.5, 1], [1, 1]], "champion": []}, "w")
    assert chart is not None
    assert [line.kind for line in chart.lines] == ["chance", "challenger"]
    corners = places(chart.lines[1])
    assert corners[0] == (chart.left, chart.bottom)
    assert corners[-1] == (chart.right, chart.top)
    assert corners[1] == ((chart.left + chart.right) / 2, chart.top)


def test_a_cell_without_curves_has_no_chart() -> None:
    assert charts.roc("t", {"challenger": []}, "w") is None
    assert charts.reliability("t", {}, "w") is None
    assert charts.scores("t", [], "w") is None
    assert charts.learning("t", [(1.0, float("nan"))], (0.0, 1.0), 2.0, "w") is None


def test_scores_of_each_class_sum_to_one_whatever_their_steps() -> None:
    chart = charts.scores("t", [[0.0, 3.0, 0.0], [0.5, 1.0, 2.0]], "w")
    assert chart is not None
    assert [line.kind for line in chart.lines] == ["negatives", "positives"]
    tops = {text: place for place, text in chart.y_ticks}
    (_, highest), (low_text, lowest) = max((float(t), p) for t, p in tops.items()), min(tops.items())
    assert float(low_text) == 0
    unit = (lowest - highest) / max(float(text) for text in tops)
    for line in chart.lines:
        stairs = places(line)[1:-1]
        heights = [(lowest - stairs[place][1]) / unit for place in range(0, len(stairs), 2)]
        assert len(heights) == 30
        assert sum(heights) == pytest.approx(1.0, abs=0.05)  # places are to a tenth


def test_a_class_that_is_missing_has_no_line() -> None:
    chart = charts.scores("t", [[0.1, 3.0, 0.0], [0.5, 1.0, 0.0]], "w")
    assert chart is not None
    assert [line.kind for line in chart.lines] == ["negatives"]


def test_a_strip_holds_all_that_it_is_made_for() -> None:
    strip = charts.Strip.of([0.7, None, 0.74], (0.5,))
    assert strip.low < 0.5
    assert 0 < strip.at(0.5) < strip.at(0.7) < strip.at(0.74) < strip.width
    assert charts.Strip.of([None]).at(0.5) == charts.Strip.width / 2
    assert charts.Strip.of([0.7]).at(0.7) == charts.Strip.width / 2
