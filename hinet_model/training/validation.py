"""Validation: a pass over the validation split, judged by cell; no worker holds the scores of the others' rows."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from hinet_model.objective.cell_statistics import MAX_SCORES, SplitStatistics, merged
from hinet_model.objective.metrics import CellMetrics, mean_defined
from hinet_model.training.callbacks import Callback

if TYPE_CHECKING:
    from hinet_model.training.run import Run


@dataclass(frozen=True)
class Validated:
    """What a validation found.

    Args:
        mean_auc: Mean AUC over the cells that have one; None where none has.
        cells: Metrics by scenario and task.
        scenario_attention: The attention table, where the model has one.
    """

    mean_auc: float | None
    cells: list[CellMetrics]
    scenario_attention: list[list[float]] | None


class Validation(Callback):
    """Validate the model, or the mean of its weights where there is one, every so many epochs.

    Args:
        every_epochs: Epochs between two.
        max_scores: Distinct scores of a cell beyond which its AUC is taken from a histogram.
    """

    def __init__(self, every_epochs: int, max_scores: int = MAX_SCORES) -> None:
        self._every, self._max_scores = every_epochs, max_scores

    def on_epoch(self, run: Run) -> None:
        run.validated = None
        if (run.entry["epoch"] + 1) % self._every:
            return
        run.parts.optimisers.flush_decay()
        with run.state.average.applied():
            run.parts.model.eval()
            statistics = self._scored(run)
            attention = run.parts.model.scenario_attention()
        cells = self._cells(run, statistics)
        mean_auc = mean_defined(cell.auc for cell in cells)
        # Ranks computed this from the same statistics; rank 0's word is taken, whatever their hosts.
        run.progress.enter("agree")
        mean_auc, cells = run.world.broadcast_object((mean_auc, cells), "validation")
        run.validated = Validated(mean_auc, cells, None if attention is None else attention.tolist())
        run.entry.update(mean_auc=mean_auc, cells=[asdict(cell) for cell in cells])

    def _scored(self, run: Run) -> SplitStatistics:
        """This rank's rows of the split."""
        plan = run.inputs.plan(0, "validation")
        batches = run.readers["validation"].batches(plan, run.world.rank, run.world.size)
        layout = run.parts.statistics
        statistics = SplitStatistics(layout.num_scenarios, layout.num_tasks, self._max_scores)
        for step in range(plan.num_steps):
            run.progress.step = step
            run.progress.enter("data" if step else "first batch")
            batch = next(batches)
            probs = run.trainer.predict(batch).cpu().numpy()
            statistics.add(batch.scenario_index.numpy(), batch.labels.numpy(), probs)
        return statistics

    def _cells(self, run: Run, statistics: SplitStatistics) -> list[CellMetrics]:
        """Every rank's statistics brought together, a scenario at a time."""
        cells: list[CellMetrics] = []
        for scenario in range(run.parts.statistics.num_scenarios):
            run.progress.enter("judge")
            own = statistics.of_scenario(scenario)
            run.progress.enter("gather")
            parts = run.world.gather_objects(own, "validation.cells")
            run.progress.enter("judge")
            cells += [cell.metrics(scenario, task) for task, cell in enumerate(merged(parts))]
        return cells
