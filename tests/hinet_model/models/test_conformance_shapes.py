"""Any numbers of scenarios, tasks, rows and experts: scores belong to rows, gradients add up over them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from batches import make_batch, make_columns, make_layout, take
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_conformance import MODELS, build, exempt, scores_by_row
from torch import Tensor, nn

from hinet_model.data.batch import Batch

pytestmark = pytest.mark.conformance


@st.composite
def shapes(draw: st.DrawFn) -> dict[str, Any]:
    """Scenarios (of which some may be absent), tasks, the scenario of each row, and unequal expert counts."""
    num_scenarios, num_tasks = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    few = st.integers(1, 3)
    names, tasks = [f"s{i}" for i in range(num_scenarios)], [f"t{j}" for j in range(num_tasks)]
    return {
        "num_scenarios": num_scenarios,
        "num_tasks": num_tasks,
        "scenarios": draw(st.lists(st.integers(0, num_scenarios - 1), max_size=24)),
        "cut": draw(st.floats(0, 1)),
        "counts": {
            "sub_experts": {name: draw(few) for name in ("shared", *names)},
            "shared_experts": {name: draw(few) for name in names},
            "specific_experts": {name: {task: draw(few) for task in tasks} for name in names},
        },
    }


def summed_gradients(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    torch.nn.functional.softplus(model(batch)).sum().backward()
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in model.named_parameters()
    }


@pytest.mark.parametrize("name", MODELS)
@given(shape=shapes())
@settings(max_examples=8, suppress_health_check=[HealthCheck.too_slow])
def test_scores_belong_to_rows_and_gradients_add_up_whatever_the_shape(
    name: str, shape: dict[str, Any]
) -> None:
    layout = make_layout(shape["num_scenarios"], shape["num_tasks"])
    shared = {"shared_experts": 2} if exempt(name, "counts_per_scenario") else {}
    model = build(name, layout, **shape["counts"] | shared)
    rows = len(shape["scenarios"])
    columns = make_columns(layout, shape["scenarios"])
    whole = scores_by_row(model, layout, columns)
    assert whole.shape == (rows, shape["num_tasks"])
    assert torch.isfinite(whole).all()
    backwards = scores_by_row(model, layout, take(columns, range(rows)[::-1]))
    torch.testing.assert_close(backwards.flip(0), whole, rtol=1e-4, atol=1e-5)

    cut = int(shape["cut"] * rows)
    parts = [take(columns, range(cut)), take(columns, range(cut, rows))]
    torch.testing.assert_close(
        torch.cat([scores_by_row(model, layout, part) for part in parts]), whole, rtol=1e-4, atol=1e-5
    )
    expected = summed_gradients(model, make_batch(layout, shape["scenarios"]))
    first, second = (summed_gradients(model, layout.to_batch(part)[0]) for part in parts)
    for parameter, gradient in expected.items():
        together = first[parameter] + second[parameter]
        torch.testing.assert_close(together, gradient, rtol=1e-3, atol=1e-4, msg=parameter)
