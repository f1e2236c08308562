#!/bin/bash
# To submit this by hand, first make the folder of its log:
#     mkdir -p '/runs/it'"'"'s 50% "so"/launches/20260101T000000-abc123'
#SBATCH --job-name='it'"'"'s 50% "so"'
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=8
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output='/runs/it'"'"'s 50%% "so"/launches/20260101T000000-abc123/log.txt'
#SBATCH --partition=large --time=1:00:00
#SBATCH --comment='two words'

# SIGTERM comes 120 seconds before the job's end. To srun it would mean to kill the ranks, so it
# goes to them directly; what comes before there are any waits for them.
asked=
ranks=
pass_on() {
    asked=--asked interrupted=yes
    [ -n "$ranks" ] || return
    until scancel --signal=TERM "$SLURM_JOB_ID.0" || ! kill -0 "$ranks" 2>/dev/null; do
        sleep 1
    done
}
trap pass_on TERM

began=$(date +%s)
launch='/runs/it'"'"'s 50% "so"/launches/20260101T000000-abc123'
gradacc='/opt/our tools/bin/gradacc'

if [ -e "$launch/stop" ]; then
    echo "gradacc: asked to stop before this try began: nothing is started" >&2
    exit 0
fi

nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | paste --serial --delimiters=,)
export GRADACC_LAUNCHED_BY=slurm
export GRADACC_LAUNCH_ID=20260101T000000-abc123
export GRADACC_ATTEMPT=$((${SLURM_RESTART_COUNT:-0} + 1))
export GRADACC_NODES=$nodes
export NNODES=$SLURM_JOB_NUM_NODES
export MASTER_ADDR=${nodes%%,*}
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
# The launcher of a node shall have all that the job has there, not the share of one task.
unset SLURM_CPUS_PER_TASK

# The quotes keep NODE_RANK, another on each node, from being set here. Where a node ends, the
# others have 120 seconds to save.
srun --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --export=ALL --mpi=none --cpu-bind=none \
    --kill-on-bad-exit=0 --wait=120 \
    bash -c 'NODE_RANK=$SLURM_NODEID exec "$@"' bash \
    "$gradacc" train --config '/data/my run.yaml' --ranks 8 --run.output_dir '/runs/it'"'"'s 50% "so"' --track.name '$HOME `no`' &
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
if [ "$code" = 75 ]; then
    # SLURM's controller may be away for a while.
    for _ in {1..30}; do
        scontrol requeue "$SLURM_JOB_ID" && exit 0
        sleep 10
    done
    echo "gradacc: SLURM does not start this job again; submit the run once more" >&2
fi
exit "$code"
