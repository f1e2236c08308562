"""What rank 0 tells of a run: tables, progress line, ledger, tracker, figure.

The other ranks are silent.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.text import Text

from gradacc_dist.config.schema import Config
from gradacc_dist.errors import DiskError
from gradacc_dist.observe.figures import loss_figure
from gradacc_dist.observe.ledger import (
    LEDGER,
    EvalRecord,
    Ledger,
    Record,
    TrainRecord,
    comparison_label,
)
from gradacc_dist.observe.progress import Progress
from gradacc_dist.observe.tables import end_table, start_table
from gradacc_dist.observe.tracker import Tracker


class Observer:
    """Context manager around a run. With `enabled` false every method does nothing.

    `started`: by time.perf_counter, as if earlier invocations had come just before this one.
    `tracker_id`: what a tracker, if there is one, knows the run by.
    """

    def __init__(
        self,
        config: Config,
        num_steps: int,
        started: float,
        tracker_id: str | None,
        *,
        enabled: bool,
    ) -> None:
        self._config = config
        self._num_steps = num_steps
        self._enabled = enabled
        self._console = Console()
        self._folder = config.run.folder
        self._ledger_path = self._folder / LEDGER
        self._started = started
        self._tracker_id = tracker_id
        self._failure: DiskError | None = None
        self._tracker: Tracker | None = None
        self._open = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._open.__exit__(kind, error, traceback)
        if self._enabled and self._ledger_path.exists():
            # Of a run that stopped with an error too: that is when one wants to look.
            try:
                loss_figure(self._ledger_path, self._folder / "loss.png", title=self._folder.name)
            except DiskError:
                if error is None:  # else the first cause is what counts
                    raise

    def start(self, rows: Mapping[str, str], notes: Sequence[str] = ()) -> None:
        """Show `notes` and what is about to run, then the progress line."""
        if self._enabled:
            for note in notes:
                self._console.print(Text(note), soft_wrap=True)
            self._console.print(start_table(rows))
            config = self._config
            self._ledger = self._open.enter_context(Ledger(self._ledger_path))
            self._progress = self._open.enter_context(
                Progress(
                    self._num_steps,
                    config.track.every_steps,
                    console=self._console,
                    label=comparison_label(config.objective.denominator),
                )
            )
            if config.track.wandb != "off":
                assert self._tracker_id is not None, "a run that is tracked has an id"
                self._tracker = self._open.enter_context(
                    Tracker(config, self._ledger_path, self._tracker_id, self._progress.note)
                )

    def failure(self) -> DiskError | None:
        """Why the ledger could not be written, if it could not.

        Nothing raises it but `end`: the other ranks would wait for this one in their next window.
        """
        return self._failure

    def train(self, record: TrainRecord) -> None:
        """Record an optimizer step."""
        if self._enabled:
            self._write(record)
            self._progress.step(record)
            if self._tracker:
                self._tracker.poll()

    def evaluation(self, record: EvalRecord) -> None:
        """Record an evaluation."""
        if self._enabled:
            self._write(record)
            self._progress.evaluation(record)

    def note(self, text: str) -> None:
        """Show a line that stays."""
        if self._enabled:
            self._progress.note(text)

    def stopped(self, step: int) -> None:
        """Say that this invocation ends before the run does."""
        if self._enabled:
            text = (
                f"Stopped after step {step} of {self._num_steps}, as run.stop_after_steps says; "
                "the same command without it goes on"
            )
            self._console.print(Text(text), soft_wrap=True)

    def end(self, checkpoint: Path | None = None) -> None:
        """Close the ledger and show what the run did. `checkpoint`: the newest.

        Raises DiskError where a line of the ledger is missing.
        """
        if self._failure is not None:
            raise self._failure
        if self._enabled:
            self._open.close()
            outputs = {"output": f"{self._folder}/"}
            if checkpoint is not None:
                outputs["checkpoint"] = f"{checkpoint}/"
            if self._tracker and self._tracker.where:
                outputs["wandb"] = self._tracker.where
            wall_seconds = time.perf_counter() - self._started
            self._console.print(end_table(self._ledger_path, outputs, wall_seconds))

    def _write(self, record: Record) -> None:
        if self._failure is None:  # no line after one that is missing
            try:
                self._ledger.write(record)
            except DiskError as error:
                self._failure = error

    def sample(self, prompt: str, written: str) -> None:
        """Show what the trained model writes."""
        if self._enabled:
            label = comparison_label(self._config.objective.denominator)
            title = f"Sample ({label})" if label else "Sample"
            self._console.print(Text(f"{title}: after the prompt", style="bold"))
            self._console.print(Text(prompt, style="dim"))
            self._console.print(Text("the model writes", style="bold"))
            # An untrained model may write nothing but line ends.
            self._console.print(Text(written.strip() or "(blanks)"))
