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

if [[ -z ${PYTHON:-} ]]; then
    PYTHON=python
    [[ -x $root/.venv/bin/python ]] && PYTHON=$root/.venv/bin/python
fi
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${SAVE_SECONDS:-600}
# torchrun ends with 1 whatever its processes end with, so the main one leaves a mark when it has saved and stopped.
PIXNERD_PREEMPTED=$(mktemp -u)
export PIXNERD_PREEMPTED
trap 'rm -f "$PIXNERD_PREEMPTED"' EXIT
"$PYTHON" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node-rank="${NODE_RANK:-0}" \
    --master-addr="${MASTER_ADDR:-127.0.0.1}" \
    --master-port="${PORT:-29500}" \
    --nproc-per-node="$gpus" \
    --max-restarts="${MAX_RESTARTS:-0}" \
    "$root/tools/train.py" "$config" --launcher pytorch "$@" &
launcher=$!
trap 'kill -TERM "$launcher" 2>/dev/null || true' TERM
trap 'kill -INT "$launcher" 2>/dev/null || true' INT
status=0
while kill -0 "$launcher" 2>/dev/null; do
    wait "$launcher" && status=0 || status=$?
done
[[ -e $PIXNERD_PREEMPTED ]] && exit 75
exit "$status"
