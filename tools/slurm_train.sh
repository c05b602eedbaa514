#!/usr/bin/env bash
# Train on a Slurm cluster, one task per GPU.
#   GPUS=16 GPUS_PER_NODE=8 tools/slurm_train.sh PARTITION JOB_NAME CONFIG [options of tools/train.py]
# CPUS_PER_TASK (8) and SRUN_ARGS (further options of srun) are read from the environment too.
# SAVE_SECONDS (300) before the time limit, and when preempted, the run saves and ends with exit code 75. In a batch job
# (#SBATCH --requeue --open-mode=append --signal=TERM@300) this requeues the job, which then goes on with --resume.
set -euo pipefail

if [[ $# -lt 3 || $1 == -h || $1 == --help ]]; then
    sed -n '2,6s/^# \{0,1\}//p' "$0"
    [[ ${1:-} == -h || ${1:-} == --help ]] && exit 0 || exit 2
fi
partition=$1 job=$2 config=$3
shift 3
root=$(cd "$(dirname "$0")/.." && pwd)
[[ -f $config ]] || { echo "error: config $config does not exist; the configs that come with PixNerd are in mm_configs/" >&2; exit 1; }
command -v srun >/dev/null || { echo "error: srun not found; this is for Slurm clusters, elsewhere use tools/dist_train.sh" >&2; exit 1; }

gpus=${GPUS:-8}
export SAVE_SECONDS=${SAVE_SECONDS:-300}
per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
# Slurm counts the turns of a requeued job.
resume=()
[[ ${SLURM_RESTART_COUNT:-0} -gt 0 ]] && resume=(--resume)
status=0
# --wait and not --kill-on-bad-exit: a task that has saved and ended must not take along the others, whose exit code would
# then hide its own, and not the one that is still saving; one that died ends the others after SAVE_SECONDS all the same.
# shellcheck disable=SC2086 # SRUN_ARGS is several words
srun \
    --partition="$partition" \
    --job-name="$job" \
    --gres="gpu:$per_node" \
    --ntasks="$gpus" \
    --ntasks-per-node="$per_node" \
    --cpus-per-task="${CPUS_PER_TASK:-8}" \
    --kill-on-bad-exit=0 \
    --wait="$SAVE_SECONDS" \
    --signal="TERM@$SAVE_SECONDS" \
    ${SRUN_ARGS:-} \
    "${PYTHON:-python}" -u "$root/tools/train.py" "$config" --launcher slurm "$@" "${resume[@]}" || status=$?
if [[ $status -eq 75 && -n ${SLURM_JOB_ID:-} ]]; then
    echo "saved; requeueing job $SLURM_JOB_ID"
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
exit "$status"
