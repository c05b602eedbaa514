#!/usr/bin/env bash
# Train on several processes, one per GPU; without GPUs on the CPU.
#   tools/dist_train.sh CONFIG GPUS [options of tools/train.py]
# Several machines: run it on each with NNODES, NODE_RANK (0, 1, ...) and MASTER_ADDR (the address of machine 0) set.
# MAX_RESTARTS=3 starts all processes again, from the last checkpoint, when one of them dies (0 by default). SIGTERM lets
# them save for up to SAVE_SECONDS (600) and ends with exit code 75: start again with --resume.
set -euo pipefail

if [[ $# -lt 2 || $1 == -h || $1 == --help ]]; then
    sed -n '2,6s/^# \{0,1\}//p' "$0"
    [[ ${1:-} == -h || ${1:-} == --help ]] && exit 0 || exit 2
fi
config=$1 gpus=$2
shift 2
root=$(cd "$(dirname "$0")/.." && pwd)
[[ -f $config ]] || { echo "error: config $config does not exist; the configs that come with PixNerd are in mm_configs/" >&2; exit 1; }
[[ $gpus =~ ^[1-9][0-9]*$ ]] || { echo "error: GPUS must be the number of processes on this machine, got '$gpus'" >&2; exit 1; }

# shellcheck source=tools/launch.sh
source "$root/tools/launch.sh"
# Time between SIGTERM and SIGKILL, for the launcher and for the processes (pixnerd_plugin/engine/preemption.py).
export SAVE_SECONDS=${SAVE_SECONDS:-600}
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=$SAVE_SECONDS
# torchrun ends with 1 whatever its processes end with, so the main one leaves a mark when it has saved and stopped.
export PIXNERD_PREEMPTED=$left_behind/preempted
launch "$root/tools/train.py" "$config" --launcher pytorch "$@"
[[ -e $PIXNERD_PREEMPTED ]] && exit 75
[[ $status -eq 0 ]] || repeat_last_words
exit "$status"
