#!/usr/bin/env bash
# Train on several processes, one per GPU; without GPUs on the CPU.
#   tools/dist_train.sh CONFIG GPUS [options of tools/train.py]
# Several machines: run it on each with NNODES, NODE_RANK (0, 1, ...) and MASTER_ADDR (the address of machine 0) set.
set -euo pipefail

if [[ $# -lt 2 || $1 == -h || $1 == --help ]]; then
    sed -n '2,4s/^# \{0,1\}//p' "$0"
    [[ ${1:-} == -h || ${1:-} == --help ]] && exit 0 || exit 2
fi
config=$1 gpus=$2
shift 2
root=$(cd "$(dirname "$0")/.." && pwd)
[[ -f $config ]] || { echo "error: config $config does not exist; the configs that come with PixNerd are in mm_configs/" >&2; exit 1; }
[[ $gpus =~ ^[1-9][0-9]*$ ]] || { echo "error: GPUS must be the number of processes on this machine, got '$gpus'" >&2; exit 1; }

if [[ -z ${PYTHON:-} ]]; then
    PYTHON=python
    [[ -x $root/.venv/bin/python ]] && PYTHON=$root/.venv/bin/python
fi
PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} exec "$PYTHON" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node-rank="${NODE_RANK:-0}" \
    --master-addr="${MASTER_ADDR:-127.0.0.1}" \
    --master-port="${PORT:-29500}" \
    --nproc-per-node="$gpus" \
    "$root/tools/train.py" "$config" --launcher pytorch "$@"
