#!/usr/bin/env bash
# Test on several processes, one per GPU; without GPUs on the CPU.
#   tools/dist_test.sh CONFIG CHECKPOINT GPUS [options of tools/test.py]
# Several machines: run it on each with NNODES, NODE_RANK (0, 1, ...) and MASTER_ADDR (the address of machine 0) set.
set -euo pipefail

if [[ $# -lt 3 || $1 == -h || $1 == --help ]]; then
    sed -n '2,4s/^# \{0,1\}//p' "$0"
    [[ ${1:-} == -h || ${1:-} == --help ]] && exit 0 || exit 2
fi
config=$1 checkpoint=$2 gpus=$3
shift 3
root=$(cd "$(dirname "$0")/.." && pwd)
[[ -f $config ]] || { echo "error: config $config does not exist; the configs that come with PixNerd are in mm_configs/" >&2; exit 1; }
[[ -f $checkpoint ]] || { echo "error: checkpoint $checkpoint does not exist" >&2; exit 1; }
[[ $gpus =~ ^[1-9][0-9]*$ ]] || { echo "error: GPUS must be the number of processes on this machine, got '$gpus'" >&2; exit 1; }

# shellcheck source=tools/launch.sh
source "$root/tools/launch.sh"
launch "$root/tools/test.py" "$config" "$checkpoint" --launcher pytorch "$@"
[[ $status -eq 0 ]] || repeat_last_words
exit "$status"
