"""What can be known of the made log: from next to nothing to what the parameters say of the oracle."""

from __future__ import annotations

import numpy as np

from benchmarks.reachable import auc_of_cells, draw, levels
from feature_eng.contract.six_scenarios import SixScenarios
from feature_eng.sources.six_scenarios.expected import expectations


def test_each_part_of_the_truth_adds_to_auc_up_to_the_oracle_s() -> None:
    parameters = SixScenarios(scenarios=2, groups=2, impressions=60_000, users=600, items=300)
    log = draw(parameters, 1)
    place = np.arange(len(log.user)) / len(log.user)
    means = [np.mean(auc_of_cells(log, chances, place >= 0.5)) for _, chances in levels(log, place < 0.5)]
    assert means == sorted(means)
    expected = [(one.click_auc + one.order_auc) / 2 for one in expectations(parameters)]
    assert abs(means[-1] - np.mean(expected)) < 0.02
