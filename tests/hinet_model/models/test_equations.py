"""Baselines written out from their papers' equations, one row, one expert, one gate at a time: slow and obvious.

They read the parameters of the model's network, so that answers and gradients can be compared. Where a paper stops
a gradient, the equation detaches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import test_conformance as suite
import torch
from batches import make_batch, make_layout
from reference import gate, perceptron
from torch import Tensor

from foundation.settings import ConfigError
from hinet_model.models.registry import REGISTRY
from hinet_model.nn.normalisation import ScenarioNorm

ROWS = 12
SHAPES = [(1, 1), (3, 2), (2, 3)]

pytestmark = pytest.mark.usefixtures("experts")


def build(name: str, num_scenarios: int, num_tasks: int, **changes: Any) -> Any:
    sizes: dict[str, Any] = {
        "embedding_dim": 3,
        "experts": 3,
        "levels": 3,
        "shared_experts": 2,
        "specific_experts": {f"t{j}": 1 + j for j in range(num_tasks)},
        "expert_dims": [6, 5],
        "tower_dims": [4],
        "scenario_embedding_dim": 3,
        "gate_dim": 4,
        "prior_features": ["city", "age"],
    }
    return suite.build(name, make_layout(num_scenarios, num_tasks), **{**sizes, **changes}).double()


def weighed(weights: Tensor, answers: Sequence[Tensor]) -> Tensor:
    return sum(weight * answer for weight, answer in zip(weights, answers, strict=True))  # type: ignore[return-value]


def tower(net: Any, i: int, j: int, extract: Tensor) -> Tensor:
    return perceptron(net.towers.towers, i * net.towers.num_tasks + j, extract, relu_last=False)[0]


def shared_bottom(net: Any, x: Tensor, i: int, j: int) -> Tensor:
    return tower(net, i, j, perceptron(net.bottom, 0, x))


def single(net: Any, x: Tensor, i: int, j: int) -> Tensor:
    return tower(net, i, j, perceptron(net.perceptrons, i * net.towers.num_tasks + j, x))


def flat_moe(net: Any, x: Tensor, i: int, j: int) -> Tensor:
    answers = [perceptron(net.experts, k, x) for k in range(3)]
    return tower(net, i, j, weighed(gate(net.gates.weight, i * 3, 3, x), answers))


def mmoe(net: Any, x: Tensor, i: int, j: int) -> Tensor:
    answers = [perceptron(net.experts, k, x) for k in range(3)]
    first = (i * net.towers.num_tasks + j) * 3
    return tower(net, i, j, weighed(gate(net.gates.weight, first, 3, x), answers))


def hmoe(net: Any, x: Tensor, i: int, j: int) -> Tensor:
    answers = [perceptron(net.experts, k, x) for k in range(3)]
    count = net.towers.num_scenarios
    scores = [tower(net, m, j, weighed(gate(net.gates.weight, m * 3, 3, x), answers)) for m in range(count)]
    if count == 1:
        return scores[0]
    weights = gate(net.label_gates.weight, i * count, count, x)
    return weighed(weights, [score if m == i else score.detach() for m, score in enumerate(scores)])


def ple(net: Any, x: Tensor, i: int, j: int) -> Tensor:
    num_scenarios, num_tasks = net.towers.num_scenarios, net.towers.num_tasks
    pairs = [(m, n) for m in range(num_scenarios) for n in range(num_tasks)]
    tasks, shared = [x] * num_tasks, x
    for level in net.levels:
        of_all = [perceptron(level.shared_experts, k, shared) for k in range(2)]
        own = []
        for n in range(num_tasks):
            first = sum(1 + task for m, task in pairs if (m, task) < (i, n))
            own.append([perceptron(level.specific_experts, first + k, tasks[n]) for k in range(1 + n)])
        gates = [sum(3 + task for m, task in pairs if (m, task) < (i, n)) for n in range(num_tasks)]
        after = [
            weighed(gate(level.task_gates.weight, gates[n], 3 + n, tasks[n]), of_all + own[n])
            for n in range(num_tasks)
        ]
        if level.shared_gates is not None:
            everything = of_all + [answer for answers in own for answer in answers]
            first, count = i * len(everything), len(everything)
            shared = weighed(gate(level.shared_gates.weight, first, count, shared), everything)
        tasks = after
    return tower(net, i, j, tasks[j])


def star(net: Any, x: Tensor, i: int, j: int) -> Tensor:
    hidden = x
    for (own, own_bias), (centre, bias) in zip(net.around.layers(), net.centre.layers(), strict=True):
        hidden = torch.relu((own[i] * centre[0]) @ hidden + own_bias[i] + bias[0])
    place, depth = i * net.towers.num_tasks + j, len(net.tower_centre.weights)
    around, centres = net.towers.towers.layers(), net.tower_centre.layers()
    for layer, ((own, own_bias), (centre, bias)) in enumerate(zip(around, centres, strict=True)):
        hidden = (own[place] * centre[j]) @ hidden + own_bias[place] + bias[j]
        hidden = torch.relu(hidden) if layer < depth - 1 else hidden
    auxiliary = perceptron(net.auxiliary, 0, torch.cat([x, net.indicator[i]]))
    return hidden[0] + perceptron(net.auxiliary_out, j, auxiliary, relu_last=False)[0]


def cross_stitch(net: Any, x: Tensor, i: int, j: int) -> Tensor:
    num_tasks = net.towers.num_tasks
    hidden = [x] * num_tasks
    for depth, layer in enumerate(net.layers):
        before = [perceptron(layer, n, hidden[n]) for n in range(num_tasks)]
        hidden = [weighed(net.stitches[i, depth, n], before) for n in range(num_tasks)]
    return tower(net, i, j, hidden[j])


def aitm(net: Any, x: Tensor, i: int, j: int) -> Tensor:
    z = perceptron(net.networks, 0, x)
    for t in range(1, j + 1):
        place = i * (net.num_tasks - 1) + t - 1
        pair = [perceptron(net.transfers, place, z), perceptron(net.networks, t, x)]
        h1, h2, h3 = zip(
            *(perceptron(net.projections, place, u, relu_last=False).chunk(3) for u in pair), strict=True
        )
        scores = [h2[u] @ h3[u] / math.sqrt(len(z)) for u in range(2)]
        z = weighed(torch.softmax(torch.stack(scores), dim=0), h1)
    return tower(net, i, j, z)


def pepnet(net: Any, x: Tensor, i: int, j: int) -> Tensor:
    def gate_nu(stack: Any, number: int, prior: Tensor, general: Tensor) -> Tensor:
        read = torch.cat([prior, general.detach()])
        return 2 * torch.sigmoid(perceptron(stack, number, read, relu_last=False))

    embedded = gate_nu(net.embedding_gate, 0, net.indicator[i], x) * x
    city, age = x[3:6], x[12:13]
    prior = torch.cat([net.indicator[i], city, age])
    scales = gate_nu(net.layer_gates, j, prior, embedded).split(net.dims)
    hidden = embedded
    for layer, scale in zip(net.layers, scales, strict=True):
        hidden = scale * perceptron(layer, j, hidden)
    return tower(net, i, j, hidden)


def m3oe(net: Any, x: Tensor, i: int, j: int) -> Tensor:
    def balanced(own: Tensor, others: list[Tensor], share: Tensor | None) -> Tensor:
        if share is None:
            return own
        b = torch.sigmoid(share)
        return b * own + (1 - b) * sum(others) / len(others)

    ((around, own_bias),), ((centre, bias),) = net.around.layers(), net.centre.layers()
    h = torch.relu((around[i] * centre[0]) @ x + own_bias[i] + bias[0]) + perceptron(net.skip, 0, x)
    num_scenarios, num_tasks = net.num_scenarios, net.num_tasks
    answers = [perceptron(net.experts, k, h) for k in range(3 + num_scenarios + num_tasks)]
    shared, scenarios, tasks = answers[:3], answers[3 : 3 + num_scenarios], answers[3 + num_scenarios :]
    common = weighed(gate(net.gates.weight, (i * num_tasks + j) * 3, 3, h), shared)
    of_scenario = balanced(scenarios[i], scenarios[:i] + scenarios[i + 1 :], net.own_scenario)
    of_task = balanced(tasks[j], tasks[:j] + tasks[j + 1 :], net.own_task)
    share_D, share_T = torch.sigmoid(net.scenario_share), torch.sigmoid(net.task_share)
    return tower(net, i, j, common + share_D * of_scenario + share_T * of_task)


Equation = Callable[[Any, Tensor, int, int], Tensor]
EQUATIONS: dict[str, Equation] = {
    equation.__name__: equation
    for equation in (
        shared_bottom, single, flat_moe, mmoe, hmoe, ple, star, cross_stitch, aitm, pepnet, m3oe
    )
}  # fmt: skip


def normalised(norm: ScenarioNorm, x: Tensor, i: int) -> Tensor:
    centred = (x - norm.mean[i]) / torch.sqrt(norm.variance[i] + norm.epsilon)
    return norm.scale * norm.scenario_scale[i] * centred + norm.shift + norm.scenario_shift[i]


@pytest.mark.parametrize("name", sorted(EQUATIONS))
@pytest.mark.parametrize(("num_scenarios", "num_tasks"), SHAPES)
def test_answers_and_gradients_equal_those_of_the_equations(
    name: str, num_scenarios: int, num_tasks: int
) -> None:
    model = build(name, num_scenarios, num_tasks)
    batch = make_batch(make_layout(num_scenarios, num_tasks), suite.mixed(num_scenarios, ROWS))
    batch = replace(batch, numbers=batch.numbers.double())
    if model.norm is not None:
        model.train()(batch)
        model.norm.update_statistics(model.norm.statistics())
    features = model.eval().embedding(batch)
    rows = []
    for row in range(ROWS):
        i = int(batch.scenario_index[row])
        x = features[row] if model.norm is None else normalised(model.norm, features[row], i)
        logits = [EQUATIONS[name](model.network, x, i, j).reshape(()) for j in range(num_tasks)]
        rows.append(torch.stack(logits))
    expected, found = torch.stack(rows), model(batch)
    torch.testing.assert_close(found, expected)
    factor = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    parameters = dict(model.named_parameters())
    wanted, given = (
        torch.autograd.grad((logits * factor).sum(), list(parameters.values()), materialize_grads=True)
        for logits in (expected, found)
    )
    for parameter, ours, theirs in zip(parameters, given, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, msg=lambda text, at=parameter: f"{at}: {text}")


def test_every_baseline_has_its_equations() -> None:
    assert set(EQUATIONS) == set(REGISTRY) - {"hinet"}


def test_a_prior_that_the_data_do_not_have_is_refused_with_a_suggestion() -> None:
    with pytest.raises(
        ConfigError, match=r"model\.prior_features: unknown name 'citi'.* did you mean 'city'"
    ):
        build("pepnet", 2, 2, prior_features=["citi"])
