#!/bin/bash
# Sepscene under Slurm: one heterogeneous job, trainers first, separators second.   Read docs/clusters.md first; then
#
#   ray get-auth-token --generate && chmod 600 ~/.ray/auth_token    # once: create the cluster's token; $HOME is shared
#   mkdir -p runs && sepscene cluster check clusters/slurm.sh --experiment table4/S2+N/simclr-cp --scale paper
#   sbatch clusters/slurm.sh 'table4/S2+N/simclr-cp' my-run
#   scancel --batch --signal=TERM JOB          # stops the run with a checkpoint; a plain scancel saves none
#
# The same run id continues the run: submit it again after the time limit or a failure. Five minutes before the time
# limit the run saves a checkpoint and ends. What it costs: the allocation, whether it is used or not, so keep --time
# close to the estimate of `sepscene plan`. Set partitions and sizes here and in slurm.pools.yaml; the command
# `cluster template slurm` sets the sizes in both.
#
#SBATCH --job-name=sepscene
#SBATCH --output=runs/slurm-%j.log
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --no-kill
#SBATCH --partition=h100
#SBATCH --nodes=2
#SBATCH --exclusive
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=64
#SBATCH --gpus-per-node=H100:8
#SBATCH hetjob
#SBATCH --partition=l4
#SBATCH --nodes=8
#SBATCH --exclusive
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=64
#SBATCH --gpus-per-node=L4:8

set -euo pipefail
EXPERIMENT=${1:?usage: sbatch clusters/slurm.sh EXPERIMENT RUN_ID [OPTION...]}
RUN_ID=${2:?usage: sbatch clusters/slurm.sh EXPERIMENT RUN_ID [OPTION...]}
STORAGE=${SEPSCENE_STORAGE:-$PWD/runs} # a folder that all nodes mount (Lustre, NFS)
TRAINER_CPUS=64 SEPARATOR_CPUS=64

source .venv/bin/activate
export RAY_AUTH_MODE=token OMP_NUM_THREADS=1
# The run starts when the nodes that it needs have joined, or ends with a message if they have not within this time.
export SEPSCENE_CLUSTER=${SEPSCENE_CLUSTER:-clusters/slurm.pools.yaml} SEPSCENE_NODE_WAIT_SECONDS=900

# This script runs on the first trainer, which is Ray's head. Ports depend on the job, so that jobs do not interfere.
HEAD=$(hostname -s)
PORT=$((20000 + SLURM_JOB_ID % 10000))
export RAY_ADDRESS=$HEAD:$PORT

# The script for all other nodes: wait for the head's port and join. It tries three times, because a node that loads
# Python from a busy file system may exceed Ray's limit of 30 s.
join() { # CPUS POOL
    cat <<SCRIPT
for second in \$(seq 600); do (: < /dev/tcp/$HEAD/$PORT) 2> /dev/null && break; sleep 1; done
for attempt in 1 2 3; do
    ray start --block --address=$HEAD:$PORT --num-cpus=$1 --labels=pool=$2 && break
    (: < /dev/tcp/$HEAD/$PORT) 2> /dev/null || break
done
SCRIPT
}
# Ray detects the allocated GPUs; --num-cpus gives the allocated CPUs. The dashboard stays on loopback.
ray start --head --block --port="$PORT" --dashboard-host=127.0.0.1 --num-cpus=$TRAINER_CPUS --labels=pool=trainers &
RAY=$!
if [ "$SLURM_JOB_NUM_NODES_HET_GROUP_0" -gt 1 ]; then
    OTHERS=$((SLURM_JOB_NUM_NODES_HET_GROUP_0 - 1))
    srun --het-group=0 --nodes=$OTHERS --ntasks=$OTHERS --exclude="$HEAD" \
        bash -c "$(join $TRAINER_CPUS trainers)" &
    STEPS=$!
fi
SEPARATORS=$SLURM_JOB_NUM_NODES_HET_GROUP_1
srun --het-group=1 --nodes="$SEPARATORS" --ntasks="$SEPARATORS" \
    bash -c "$(join $SEPARATOR_CPUS separators)" &
STEPS="${STEPS:-} $!"

for second in $(seq 600); do (: < "/dev/tcp/$HEAD/$PORT") 2> /dev/null && break; sleep 1; done
sepscene pretrain "$EXPERIMENT" --scale paper --storage "$STORAGE" --run-id "$RUN_ID" --resume "${@:3}" &
RUN=$!
# Only this script receives SIGTERM. It passes the signal to the run only, which needs Ray to save its checkpoint.
trap 'kill -TERM $RUN' TERM
code=0
wait $RUN || code=$?
while kill -0 $RUN 2> /dev/null; do wait $RUN && code=0 || code=$?; done # a signal ends `wait` before the run
kill $RAY $STEPS # stops all nodes now; otherwise a node would search for its head for a minute and log errors
wait
exit $code
