#!/bin/bash
# Sepscene under Slurm: one heterogeneous job, trainers first, separators second.   Read docs/clusters.md first; then
#
#   ray get-auth-token --generate && chmod 600 ~/.ray/auth_token    # once: the cluster's password; $HOME is shared
#   mkdir -p runs && sepscene cluster check clusters/slurm.sh --experiment table4/S2+N/simclr-cp --scale paper
#   sbatch clusters/slurm.sh 'table4/S2+N/simclr-cp' my-run
#
# The same run id continues the run: where the time limit or a failure ends the job, send it again. --requeue does so by
# itself when a node is lost. What it costs: the allocation, whether it is used or not, so keep --time near what
# `sepscene plan` says. Partitions and sizes are yours to set, here and in slurm.pools.yaml.
#
# Nodes are exclusive: `ray symmetric-run` refuses a node that already runs Ray, and stops all its user's Ray at the end.
#
#SBATCH --job-name=sepscene
#SBATCH --output=runs/slurm-%j.log
#SBATCH --time=24:00:00
#SBATCH --requeue
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
EXPERIMENT=${1:?usage: sbatch clusters/slurm.sh EXPERIMENT RUN_ID}
RUN_ID=${2:?usage: sbatch clusters/slurm.sh EXPERIMENT RUN_ID}
STORAGE=${SEPSCENE_STORAGE:-$PWD/runs} # a folder that every node sees (Lustre, NFS)

source .venv/bin/activate
export RAY_AUTH_MODE=token OMP_NUM_THREADS=1
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=600 # nodes that load Python from a busy file system miss Ray's own 30 s

# Ray's first node is the first trainer; ports depend on the job, so that two jobs on one node do not meet.
read -r HEAD < <(scontrol show hostnames "${SLURM_JOB_NODELIST_HET_GROUP_0:-$SLURM_JOB_NODELIST}")
PORT=$((20000 + SLURM_JOB_ID % 10000))
NODES=$((SLURM_JOB_NUM_NODES_HET_GROUP_0 + SLURM_JOB_NUM_NODES_HET_GROUP_1))

# On every node: start Ray, join, and wait; on the first one: run the command, then stop Ray everywhere. The
# dashboard stays on the first node's loopback. Ray finds the GPUs that Slurm gave; --num-cpus says how many CPUs it gave.
symmetric() { echo ray symmetric-run --address "$HEAD:$PORT" --min-nodes "$NODES" "$@"; }
srun --kill-on-bad-exit=1 \
    --het-group=0 $(symmetric --num-cpus=64 --labels=pool=trainers) -- \
    sepscene pretrain "$EXPERIMENT" --scale paper --storage "$STORAGE" --run-id "$RUN_ID" --resume : \
    --het-group=1 $(symmetric --num-cpus=64 --labels=pool=separators) -- true
