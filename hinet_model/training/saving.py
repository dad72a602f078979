"""Saving: when a run's state becomes a checkpoint, and how training goes on while one is written.

The thread that trains copies the state and goes on; a thread of its own writes the copy. The next checkpoint waits
for the one before, so there is one copy at most, and what a store refuses ends the run at the step after.

Where the table is sharded, every rank writes its rows, and the manifest must come after all of them. Whether some
rank still writes travels with each step, so that all ranks find out after the same one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from threading import Thread
from typing import TYPE_CHECKING, Any

from foundation import stores
from hinet_model.config import CheckpointSettings
from hinet_model.data.batch import Batch
from hinet_model.training import checkpoint
from hinet_model.training.callbacks import Callback
from hinet_model.training.checkpoint_files import Alive
from hinet_model.training.state import Captured
from hinet_model.training.statistics import StepMeasures, Wishes

if TYPE_CHECKING:
    from hinet_model.training.run import Run

_LOOK_SECONDS = 0.2
"""How often a thread that waits for a writer looks whether it goes on."""


class Writer:
    """Does one piece of work at a time in a thread of its own, or at once where it is to have none.

    Args:
        background: Whether to have a thread.
    """

    def __init__(self, background: bool) -> None:
        self._background = background
        self._work: Future[Any] = Future()
        self._work.set_result(None)
        self._signs = 0

    @property
    def busy(self) -> bool:
        """Whether the work has not ended, well or badly."""
        return not self._work.done()

    def start(self, work: Callable[[Alive], Any], alive: Alive) -> None:
        """Begin; nothing else may be under way.

        Args:
            work: Is given what to call for a sign of life.
            alive: The caller's own, where it is kept waiting.
        """
        assert not self.busy
        self._work = Future()
        if self._background:
            # No pool: the interpreter would wait for its threads, and a store that hangs would keep it for good.
            Thread(target=self._run, args=(work, self._sign), name="checkpoint", daemon=True).start()
        else:
            self._run(work, alive)

    def _run(self, work: Callable[[Alive], Any], alive: Alive) -> None:
        try:
            self._work.set_result(work(alive))
        except BaseException as error:
            self._work.set_exception(error)

    def _sign(self) -> None:
        self._signs += 1

    def check(self) -> None:
        """Raise what the work has raised; returns at once."""
        if self._work.done():
            self._work.result()

    def wait(self, alive: Alive) -> Any:
        """What the work returned, once it has ended; its signs of life are passed on meanwhile."""
        seen = self._signs
        while not wait_for([self._work], _LOOK_SECONDS).done:
            if self._signs != seen:
                seen = self._signs
                alive()
        return self._work.result()


@dataclass
class _Account:
    """What a checkpoint cost: since when it is made, and how long training has stood still for it."""

    begun: float
    pause: float = 0.0


class SaveCheckpoints(Callback):
    """Make checkpoints: every so many steps, minutes and epochs, of the best epoch, and where the run ends.

    Args:
        folder: Place of the run's checkpoints.
        settings: How often, how many are kept, and whether training goes on meanwhile.
        saved_step: Step whose checkpoint there is already; -1 for none.
    """

    def __init__(self, folder: stores.Place, settings: CheckpointSettings, saved_step: int = -1) -> None:
        self._folder, self._settings = folder, settings
        self._writer = Writer(settings.background)
        self._due = False
        self._saved_step, self._saved_at = saved_step, time.monotonic()
        self._unsealed: tuple[Captured, str, _Account] | None = None
        """A checkpoint whose shards are being written."""

    def on_step(self, run: Run, batch: Batch, measures: StepMeasures) -> None:
        self._writer.check()
        if self._unsealed is not None and not measures.wishes.writing:
            self._seal(run)
        every, step = self._settings.every_steps, run.state.global_step
        self._due |= measures.wishes.checkpoint or (every is not None and step % every == 0)
        # What comes after an epoch's last step is saved with it.
        if self._due and run.state.step < run.plan.num_steps and run.stop_reason is None:
            self._save(run)
        self._tell(run)

    def on_epoch(self, run: Run) -> None:
        state = run.state
        is_best = state.best is not None and state.best.checkpoint == checkpoint.name_of(state.global_step)
        if self._due or is_best or state.epoch % self._settings.every_epochs == 0:
            self._save(run)
        self._tell(run)

    def on_stop(self, run: Run) -> None:
        if run.state.global_step != self._saved_step:
            self._save(run)
        run.progress.enter("checkpoint")
        self._settle(run)

    def _tell(self, run: Run) -> None:
        """What travels with the next step; rank 0's clock is everybody's."""
        minutes = self._settings.every_minutes
        late = minutes is not None and time.monotonic() - self._saved_at > 60 * minutes
        run.trainer.wishes = Wishes(checkpoint=late and run.world.rank == 0, writing=self._writer.busy)

    def _save(self, run: Run) -> None:
        account = _Account(time.perf_counter())
        run.progress.enter("checkpoint")
        self._settle(run)
        captured = run.state.capture(self._settings.background, run.progress)
        self._due, self._saved_at = False, time.monotonic()
        self._saved_step = captured.position.global_step
        alive = run.progress.alive
        if captured.shard.count > 1:
            folder = self._begin_together(run, captured)
            self._unsealed = captured, folder, account
            account.pause = time.perf_counter() - account.begun
            self._writer.start(
                lambda alive: checkpoint.write_rows(
                    folder, captured.rows, captured.shard, captured.num_rows, alive
                ),
                alive,
            )
        elif run.world.rank == 0:
            account.pause = time.perf_counter() - account.begun
            self._writer.start(lambda alive: self._finish(run, captured, None, {}, account, alive), alive)
        if not self._settings.background:
            self._settle(run)

    def _begin_together(self, run: Run, captured: Captured) -> str:
        """Place of the new checkpoint, emptied before any rank writes there."""
        with run.progress.within("agree"):
            begun = ""
            if run.world.rank == 0:
                begun = checkpoint.begin(self._folder, captured.position.global_step)
            return run.world.broadcast_object(begun, "checkpoint.folder")

    def _seal(self, run: Run) -> None:
        """All ranks' rows are on storage: the rest follows, the manifest last."""
        assert self._unsealed is not None
        (captured, folder, account), self._unsealed = self._unsealed, None
        started = time.perf_counter()
        with run.progress.within("gather"):
            manifests = run.world.gather_objects(self._writer.wait(run.progress.alive), "checkpoint.rows")
        account.pause += time.perf_counter() - started
        if run.world.rank == 0:
            rows = {name: fingerprint for manifest in manifests for name, fingerprint in manifest.items()}
            self._writer.start(
                lambda alive: self._finish(run, captured, folder, rows, account, alive), run.progress.alive
            )

    def _settle(self, run: Run) -> None:
        """Wait until what is under way has ended; on all ranks, where the table is sharded."""
        self._writer.wait(run.progress.alive)
        if self._unsealed is not None:
            self._seal(run)
            self._writer.wait(run.progress.alive)

    def _finish(
        self,
        run: Run,
        captured: Captured,
        begun: str | None,
        rows: dict[str, Any],
        account: _Account,
        alive: Alive,
    ) -> None:
        """Rank 0's part: all but the rows, the manifest last; then older checkpoints go."""
        position = captured.position
        if begun is None:
            begun = checkpoint.begin(self._folder, position.global_step)
        written = checkpoint.finish(begun, captured.state, position, rows, alive)
        checkpoint.prune(self._folder, written, self._settings.keep)
        seconds = time.perf_counter() - account.begun
        run.reporter.send(
            "checkpoint",
            path=written,
            epoch=position.epoch if position.step else position.epoch - 1,
            global_step=position.global_step,
            seconds=seconds,
            # Whoever writes in the thread that trains keeps it waiting all the time.
            pause_seconds=account.pause if self._settings.background else seconds,
        )
