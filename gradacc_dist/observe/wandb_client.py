"""The process that shows a run in wandb; started by tracker.py, and reached by two pipes only.

Reads one line of JSON, the job, and a second line once the run is over: `done` or `failed`, or none
when the run was killed. Writes lines of JSON: `where` the run is to be seen, and a `warning`.
"""

from __future__ import annotations

import json
import os
import select
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from gradacc_dist.observe.ledger import Tail, TrainRecord
from gradacc_dist.observe.metrics import Metrics

Report = Callable[..., None]

POLL_SECONDS = 1.0
# Together less than the run waits at its end: tracker.END_SECONDS.
INIT_SECONDS = 15.0
FINISH_SECONDS = 10.0


def main() -> int:
    """Track one run. Returns the exit code."""
    os.nice(10)  # the training comes first where cores are few
    channel = os.dup(1)
    os.dup2(2, 1)  # what wandb prints is no message

    def report(**told: str) -> None:
        os.write(channel, json.dumps(told).encode() + b"\n")

    with open(0, "rb", buffering=0) as orders:  # without a buffer, that select would not see
        job = json.loads(orders.readline())
        run = None
        try:
            run = _start(job, report)
            _follow(run, Tail(Path(job["ledger"])), orders)
        # wandb may fail in ways it does not document; whatever they are, one line tells of it.
        except Exception as error:  # noqa: BLE001
            kept = f"; {_sync(run)} sends what it has" if run else ""
            report(warning=f"stopped, {_cause(error)}{kept}")
            return 1
    return 0


def _follow(run: Any, tail: Tail, orders: BinaryIO) -> None:
    metrics = Metrics()
    is_first = True
    is_over = False
    while not is_over:
        # Asked before reading, so that what was written before the end is read.
        is_over = bool(select.select([orders], [], [], POLL_SECONDS)[0])
        for record in tail.new_records():
            if is_first and isinstance(record, TrainRecord):
                run.config.update({"world": _world(record)}, allow_val_change=True)
                is_first = False
            # The optimizer step is wandb's own: of a run that goes on, it leaves out those that the
            # server has. A record kept offline is whole, and replaces what was sent before.
            run.log(metrics.of(record), step=record.step)
    is_done = orders.readline() == b"done\n"
    run.finish(exit_code=0 if is_done else 1)


def _start(job: Mapping[str, Any], report: Report) -> Any:
    """Begin a run in the mode asked for; offline where online cannot be."""
    import wandb

    def on_stop() -> None:
        kept = f"`wandb sync` sends what is kept in {job['folder']}/wandb"
        report(warning=f"the server refuses the data, or someone pressed stop there; {kept}")

    failure = ""
    if job["mode"] == "online":
        try:
            settings = _settings(job, "online", on_stop)
            run = wandb.init(settings=settings, config=job["config"], allow_val_change=True)
        except (wandb.Error, TimeoutError) as error:
            failure = _cause(error)
            wandb.teardown()  # a run that failed to start keeps others from starting
        else:
            report(where=run.url)
            return run
    run = wandb.init(settings=_settings(job, "offline", on_stop), config=job["config"])
    report(where=f"offline run; {_sync(run)} sends it")
    if failure:
        report(warning=f"not online, {failure}; {_sync(run)} sends the run later")
    return run


def _settings(job: Mapping[str, Any], mode: str, on_stop: Callable[[], None]) -> Any:
    """Nothing is collected but what is logged: no argv, code, git, console, host or packages.

    `on_stop`: called when a person or the server wants no more of the run.
    """
    import wandb

    return wandb.Settings(
        mode=mode,
        project=job["project"],
        run_id=job["id"],
        resume="allow" if mode == "online" else None,
        run_name=job["name"],
        run_tags=tuple(job["tags"]),
        root_dir=job["folder"],
        use_dot_wandb=False,
        silent=True,
        console="off",
        save_code=False,
        disable_code=True,
        disable_git=True,
        label_disable=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
        init_timeout=INIT_SECONDS,
        finish_timeout=FINISH_SECONDS,
        finish_timeout_raises=True,
        # By default the stop button of the website interrupts the process.
        stop_on_fatal_error=True,
        stop_fn=on_stop,
    )


def _world(record: TrainRecord) -> dict[str, object]:
    factor = record.reduction_factor
    return {"ranks": record.ranks, "engine": record.engine, "reduction_factor": factor}


def _sync(run: Any) -> str:
    return f"`wandb sync {shlex.quote(str(Path(run.dir).parent))}`"


def _cause(error: BaseException) -> str:
    """An exception in one line, without the advice about wandb's own functions that follows."""
    first, *_ = [*str(error).splitlines(), ""]
    first = first[:300].rstrip(".")
    return f"{type(error).__name__}{': ' if first else ''}{first}"


if __name__ == "__main__":
    sys.exit(main())
