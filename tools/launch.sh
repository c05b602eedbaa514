# What dist_train.sh and dist_test.sh share; they source it. Sets PYTHON, and a folder for what processes leave behind.

if [[ -z ${PYTHON:-} ]]; then
    PYTHON=python
    [[ -x $root/.venv/bin/python ]] && PYTHON=$root/.venv/bin/python
fi
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
left_behind=$(mktemp -d)
trap 'rm -rf "$left_behind"' EXIT
# A process that ends in one line leaves it here (pixnerd_plugin/cli.py).
export PIXNERD_LAST_WORDS=$left_behind/error

# Run a script of tools/ with its arguments as $gpus processes, hand signals on to them, and set status to their exit code.
launch() {
    "$PYTHON" -m torch.distributed.run \
        --nnodes="${NNODES:-1}" \
        --node-rank="${NODE_RANK:-0}" \
        --master-addr="${MASTER_ADDR:-127.0.0.1}" \
        --master-port="${PORT:-29500}" \
        --nproc-per-node="$gpus" \
        --max-restarts="${MAX_RESTARTS:-0}" \
        "$@" &
    local launcher=$!
    # shellcheck disable=SC2064 # this process, whatever the name holds later
    trap "kill -TERM $launcher 2>/dev/null || true" TERM
    # shellcheck disable=SC2064
    trap "kill -INT $launcher 2>/dev/null || true" INT
    status=0
    while kill -0 "$launcher" 2>/dev/null; do
        wait "$launcher" && status=0 || status=$?
    done
}

# Print the line that the processes of the last start ended in: torchrun's own report would be the last on the screen.
repeat_last_words() {
    local last
    last=$(find "$left_behind" -name 'error_*' | sort -V | tail -n 1)
    [[ -z $last ]] || cat "$last" >&2
}
