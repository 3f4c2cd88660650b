#!/usr/bin/env bash
# A run under SLURM, a task per device, which queues itself again when it is preempted or out of time:
#
#   sbatch --nodes=2 _tools/slurm.sh main_pretrain_yaml.py --config _args/args_pretrain.json
#
# Adapt the lines below to the cluster. Submit it from the project's folder, which the machines share.
#SBATCH --job-name=violet
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail

REQUEUE=85 # exit code of a run that has saved its state and wants to go on
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000)) OMP_NUM_THREADS=1
export LOCAL_WORLD_SIZE=$((SLURM_NTASKS / SLURM_JOB_NUM_NODES))

# shellcheck disable=SC2016  # the variables are each task's own
srun bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS exec python "$@"' \
    task "$@" --resume auto --requeue_code $REQUEUE
code=$?

if [ $code -eq $REQUEUE ]; then
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
exit $code
