"""The batch script of a run: a pure function, and a page that people can read and submit by hand.

SLURM starts it on the first node. It starts one `gradacc train` on each node, passes SIGTERM on,
and when all have ended puts the job back into the queue where `gradacc after-slurm` says so.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gradacc_dist.errors import ConfigError
from launcher.launches import LaunchFolder
from launcher.request import Nodes, Request

TRY_AGAIN = 75
"""Exit status of `gradacc after-slurm`: the job goes back into the queue (EX_TEMPFAIL)."""

_SCRIPT = """\
#!/bin/bash
# To submit this by hand, first make the folder of its log:
#     mkdir -p {launch}
{directives}

# SIGTERM comes {grace} seconds before the job's end. To srun it would mean to kill the ranks, so it
# goes to them directly; what comes before there are any waits for them.
asked=
ranks=
pass_on() {{
    asked=--asked interrupted=yes
    [ -n "$ranks" ] || return
    until scancel --signal=TERM "$SLURM_JOB_ID.0" || ! kill -0 "$ranks" 2>/dev/null; do
        sleep 1
    done
}}
trap pass_on TERM

began=$(date +%s)
launch={launch}
gradacc={gradacc}

if [ -e "$launch/stop" ]; then
    echo "gradacc: asked to stop before this try began: nothing is started" >&2
    exit 0
fi

nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | paste --serial --delimiters=,)
export GRADACC_LAUNCHED_BY=slurm
export GRADACC_LAUNCH_ID={launch_id}
export GRADACC_ATTEMPT=$((${{SLURM_RESTART_COUNT:-0}} + 1))
export GRADACC_NODES=$nodes
export NNODES=$SLURM_JOB_NUM_NODES
export MASTER_ADDR=${{nodes%%,*}}
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
# The launcher of a node shall have all that the job has there, not the share of one task.
unset SLURM_CPUS_PER_TASK

# The quotes keep NODE_RANK, another on each node, from being set here. Where a node ends, the
# others have {grace} seconds to save.
srun --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --export=ALL --mpi=none --cpu-bind=none \\
    --kill-on-bad-exit=0 --wait={grace} \\
    bash -c 'NODE_RANK=$SLURM_NODEID exec "$@"' bash \\
    "$gradacc" {words} &
ranks=$!
[ -z "$asked" ] || pass_on
while
    interrupted=no
    wait "$ranks"
    status=$?
    [ "$interrupted" = yes ]
do :; done

# Nobody is left to be asked.
trap '' TERM
"$gradacc" after-slurm --began "$began" --status "$status" $asked "$launch"
code=$?
if [ "$code" = {try_again} ]; then
    # SLURM's controller may be away for a while.
    for _ in {{1..30}}; do
        scontrol requeue "$SLURM_JOB_ID" && exit 0
        sleep 10
    done
    echo "gradacc: SLURM does not start this job again; submit the run once more" >&2
fi
exit "$code"
"""


def batch_script(
    request: Request, folder: LaunchFolder, options: Sequence[str], grace_seconds: int
) -> str:
    """Of `request`, whose ranks are set; `options` follow ours, and win.

    Raises ConfigError where a line of it cannot be written.
    """
    on_each_node = replace(request, nodes=Nodes())
    return _SCRIPT.format(
        directives="\n".join(
            f"#SBATCH {line}" for line in _directives(request, folder, options, grace_seconds)
        ),
        launch=shlex.quote(str(folder.path)),
        launch_id=shlex.quote(folder.path.name),
        gradacc=shlex.quote(str(Path(sys.executable).with_name("gradacc"))),
        words=shlex.join(("train", *on_each_node.command_line())),
        grace=grace_seconds,
        try_again=TRY_AGAIN,
    )


def _directives(
    request: Request, folder: LaunchFolder, options: Sequence[str], grace_seconds: int
) -> list[str]:
    nodes = request.nodes
    ours = [
        f"--job-name={_quoted(folder.output.name)}",
        # Of so many as are free, each time that the job starts.
        f"--nodes={nodes.minimum}" + (f"-{nodes.maximum}" if nodes.is_elastic else ""),
        "--ntasks-per-node=1",
        f"--cpus-per-task={request.ranks}",
        *([] if request.cpu else [f"--gpus-per-node={request.ranks}"]),
        f"--signal=B:TERM@{grace_seconds}",
        "--requeue",
        # The second try goes on where the log of the first ends.
        "--open-mode=append",
        f"--output={_quoted(str(folder.log).replace('%', '%%'))}",
    ]
    for line in options:
        if "\n" in line or not line.startswith("-"):
            raise ConfigError(
                f"--sbatch: got {line!r}; needs options of sbatch in one line, such as "
                "--sbatch '--partition=large --time=1:00:00'"
            )
    return [*ours, *options]


def _quoted(text: str) -> str:
    """A word for sbatch's own lines, in which quotes are the shell's and backslashes are not."""
    if "\n" in text or "\\" in text:
        raise ConfigError(
            f"run.output_dir: {text!r} has a line break or a backslash in it, which SLURM cannot "
            "write its log to; choose another name"
        )
    return shlex.quote(text)
