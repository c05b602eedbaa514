#!/usr/bin/env bash
# Train on a Slurm cluster, one task per GPU.
#   GPUS=16 GPUS_PER_NODE=8 tools/slurm_train.sh PARTITION JOB_NAME CONFIG [options of tools/train.py]
# CPUS_PER_TASK (8) and SRUN_ARGS (further options of srun) are read from the environment too.
set -euo pipefail

if [[ $# -lt 3 || $1 == -h || $1 == --help ]]; then
    sed -n '2,4s/^# \{0,1\}//p' "$0"
    [[ ${1:-} == -h || ${1:-} == --help ]] && exit 0 || exit 2
fi
partition=$1 job=$2 config=$3
shift 3
root=$(cd "$(dirname "$0")/.." && pwd)
[[ -f $config ]] || { echo "error: config $config does not exist; the configs that come with PixNerd are in mm_configs/" >&2; exit 1; }
command -v srun >/dev/null || { echo "error: srun not found; this is for Slurm clusters, elsewhere use tools/dist_train.sh" >&2; exit 1; }

gpus=${GPUS:-8}
per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
# shellcheck disable=SC2086 # SRUN_ARGS is several words
PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} exec srun \
    --partition="$partition" \
    --job-name="$job" \
    --gres="gpu:$per_node" \
    --ntasks="$gpus" \
    --ntasks-per-node="$per_node" \
    --cpus-per-task="${CPUS_PER_TASK:-8}" \
    --kill-on-bad-exit=1 \
    ${SRUN_ARGS:-} \
    "${PYTHON:-python}" -u "$root/tools/train.py" "$config" --launcher slurm "$@"
