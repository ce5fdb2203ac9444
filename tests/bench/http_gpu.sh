#!/usr/bin/env bash
# The HTTP row: a node with a random 8B model and 32 random adapters on the GPU, under a closed loop of 64 streams.
#
#   http_gpu.sh [FLAGS OF tributary serve ...]
#
# Environment: BUILD (build/release), SHAPE (8b), ADAPTERS (32), STREAMS (64), SECONDS_MEASURED (60), WARM (10),
# BACKEND (cuda), WORK (a temporary folder with 20 GB; it is removed), CSV (where the row goes), COMMIT.
# Metering, signing and fsync are on: they always are. The load comes from another process.
set -euo pipefail
build=${BUILD:-build/release} shape=${SHAPE:-8b} adapters=${ADAPTERS:-32} streams=${STREAMS:-64}
work=${WORK:-$(mktemp -d)}
node=
finish() {
    # There is one only if something has failed, and then it may be gone.
    [ -z "$node" ] || kill -KILL "$node" 2>/dev/null || echo "the node ended by itself" >&2
    rm -rf "$work"
}
trap finish EXIT

began=$(date +%s)
"$build/tests/bench/make_random" "$shape" "$work" "$adapters" 16
echo "random model and $adapters adapters written in $(($(date +%s) - began)) s"
flags=()
for dir in "$work"/adapter-*; do flags+=(--adapter "$(basename "$dir")=$dir"); done

serve() { # WHAT FLAGS...: starts a node; returns when it listens
    local what=$1 began
    shift
    : >"$work/out" # what the last one said
    began=$(date +%s%N)
    "$build/tributary" serve --backend "${BACKEND:-cuda}" --model "$work/model" --data "$work/data" \
        --listen 127.0.0.1:0 --server-threads 4 --max-seqs $((streams * 2)) --max-context 2048 \
        --engine-adapter-bytes 8g --engine-adapter-host-bytes 16g "$@" >"$work/out" 2>"$work/log" &
    node=$!
    until grep -q '^listening on' "$work/out"; do
        kill -0 "$node" 2>/dev/null || { node= ; cat "$work/log"; exit 1; }
        sleep 0.05
    done
    echo "$what: ready in $((($(date +%s%N) - began) / 1000000)) ms"
}

for again in 1 2; do # files lie in the page cache: written there, then read
    serve "the model alone, start $again" "$@"
    kill "$node"
    wait "$node" || { echo "the node ended with $?" >&2; exit 1; }
    node=
done
serve "the model and $adapters adapters" "${flags[@]}" "$@"
address=$(sed -n 's|^listening on http://||p' "$work/out")
vocab=$(sed -n 's/.*"vocab_size": \([0-9]*\).*/\1/p' "$work/model/config.json")
rc=0
"$build/tests/bench/load" "$address" --streams "$streams" --adapters "$adapters" --vocab "$vocab" \
    --seconds "${SECONDS_MEASURED:-60}" --warm "${WARM:-10}" ${CSV:+--csv "$CSV"} \
    --commit "${COMMIT:-unknown}" || rc=$?
kill "$node"
wait "$node" || { echo "the node ended with $?" >&2; rc=1; }
node=
awk 'tolower($0) ~ /warn|error/ && ++n <= 5; END {print n + 0, "warnings and errors in the node\047s log"}' "$work/log"
exit $rc
