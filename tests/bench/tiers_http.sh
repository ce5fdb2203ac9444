#!/usr/bin/env bash
# What a miss costs in each tier, over HTTP: time to first token when the adapter is on the device, in host memory,
# on disk, and in a registry on loopback. A node with a random 8B model and random adapters of rank 16 on all linears;
# one request at a time, every half second, each under the next adapter. Beside it, what the node says of itself: the
# mean of how long its requests waited until their adapter was in host memory.
#
#   tiers_http.sh [RESULTS]        RESULTS: tests/bench/results; writes tiers-{device,host,disk,registry}.csv
#
# The pool of the device and the node's host memory hold a few adapters where they should be missed, all where not.
# What is read from disk was written or read a moment ago, so it comes from the page cache unless DROP_CACHES names a
# command that empties it. Environment: BUILD (build/release), SHAPE (8b), ADAPTERS (24), RANK (16), RATE (2 a second),
# PROMPT (128 tokens), BACKEND (cuda), WORK (a temporary folder with 20 GB and three times the adapters; removed), COMMIT.
# Without a GPU, adapters of the same size: SHAPE=110m RANK=256 PROMPT=1 RATE=1 BACKEND=cpu.
set -euo pipefail
cd "$(dirname "$0")/../.."
build=${BUILD:-build/release} shape=${SHAPE:-8b} adapters=${ADAPTERS:-24} results=${1:-tests/bench/results}
rate=${RATE:-2} work=${WORK:-$(mktemp -d)}
node= registry=
finish() {
    for child in $node $registry; do
        kill -KILL "$child" 2>/dev/null || echo "a process ended by itself" >&2
    done
    rm -rf "$work"
}
trap finish EXIT

listening() { # PID OUT LOG: waits; prints the address
    until grep -q '^listening on' "$2"; do
        kill -0 "$1" 2>/dev/null || { cat "$3" >&2; return 1; }
        sleep 0.05
    done
    sed -n 's|^listening on ||p' "$2" | sed 's|/$||'
}

stop_node() {
    kill "$node"
    wait "$node" || echo "the node ended with $?" >&2
    node=
}

serve() { # POOL_BYTES HOST_BYTES FLAG...
    local pool=$1 host=$2
    shift 2
    : >"$work/out"
    "$build/tributary" serve --backend "${BACKEND:-cuda}" --model "$work/model" --data "$work/data" \
        --listen 127.0.0.1:0 --max-context 256 --engine-adapter-bytes "$pool" --engine-adapter-host-bytes "$host" \
        "$@" >"$work/out" 2>"$work/log" &
    node=$!
    address=$(listening $node "$work/out" "$work/log")
}

found_in() { # TIER: requests whose adapter was found there, since the node began
    curl -sf "$address/metrics" | sed -n "s/^tributary_adapter_requests_total{tier=\"$1\"} //p"
}

ready_ms() { # TIER
    curl -sf "$address/metrics" | awk -v tier="{tier=\"$1\"}" '
        $1 == "tributary_adapter_ready_seconds_sum" tier {sum = $2} $1 == "tributary_adapter_ready_seconds_count" tier {n = $2}
        END {printf "%.1f", (n > 0 ? sum * 1000 / n : 0)}'
}

# As many seconds as it takes to ask for each adapter once, in turn.
ask() { # WHAT SECONDS WARM
    "$build/tests/bench/load" "$address" --models "$work/names" --popularity distinct --rate "$rate" --cv 0 \
        --prompt "${PROMPT:-128}" --generate 8 --vocab "$vocab" --warm "$3" --seconds "$2" --csv "$results/tiers-$1.csv" \
        --commit "${COMMIT:-$(git describe --always --dirty 2>/dev/null || echo unknown)}" >"$work/said" ||
        { cat "$work/said" "$work/log" >&2; return 1; }
    sed -n 's/^ttft_p50_ms *//p' "$work/said" >"$work/p50-$1"
    local asked found
    asked=$(sed -n 's/^asked *//p' "$work/said") found=$(found_in "$1")
    [ "$found" -ge $((asked * 9 / 10)) ] || { echo "only $found of $asked requests were for the tier $1" >&2; return 1; }
    echo "== $1: $asked requests, $found found there with warming up, time to first token p50 $(cat "$work/p50-$1") ms," \
        "p99 $(sed -n 's/^ttft_p99_ms *//p' "$work/said") ms; adapters ready after $(ready_ms "$1") ms"
}

mkdir -p "$results"
"$build/tests/bench/make_random" "$shape" "$work" "$adapters" "${RANK:-16}"
vocab=$(sed -n 's/.*"vocab_size": \([0-9]*\).*/\1/p' "$work/model/config.json")
size=$(stat -c %s "$work/adapter-00/adapter_model.safetensors")
flags=()
for dir in "$work"/adapter-*; do
    flags+=(--adapter "$(basename "$dir")=$dir")
    basename "$dir" >>"$work/names"
done
few=$((size * 4)) some=$((size * 6)) all=$((size * (adapters + 2)))
half=$((adapters / rate)) # seconds for each adapter once

serve "$all" "$all" "${flags[@]}"
ask device "$half" "$half"
stop_node
serve "$few" "$all" "${flags[@]}"
ask host "$half" "$half"
stop_node
serve "$few" "$some" "${flags[@]}"
${DROP_CACHES:-:}
ask disk "$half" "$half"
stop_node

# A registry with the same adapters under other names. No chain is asked for what isn't registered on one.
echo pass >"$work/passphrase"
chmod 600 "$work/passphrase"
key=(--wallet "$work/wallet" --passphrase-file "$work/passphrase")
"$build/tributary" wallet new default --no-mnemonic "${key[@]}" >"$work/said" 2>&1
"$build/tributary" registry serve --listen 127.0.0.1:0 --root "$work/registry" --allow-upload-from any \
    >"$work/registry-out" 2>"$work/registry-log" &
registry=$!
url=$(listening $registry "$work/registry-out" "$work/registry-log")
zero=0x1111111111111111111111111111111111111111
contracts=()
for contract in adapter-registry stake-manager escrow attribution-ledger token; do contracts+=("--$contract" "$zero"); done
for name in $(cat "$work/names"); do
    "$build/tributary" adapter publish "$work/$name" --name "far-$name" --model "$work/model" --no-register \
        --registry "$url" --rpc http://127.0.0.1:1 --chain-id 31337 "${contracts[@]}" "${key[@]}" >"$work/said" 2>&1 ||
        { cat "$work/said" >&2; exit 1; }
done
sed -i 's/^/far-/' "$work/names"
serve "$all" "$all" --registry "$url"
ask registry "$half" 0
stop_node
kill "$registry"
wait "$registry" || echo "the registry ended with $?" >&2
registry=

added() { awk -v a="$(cat "$work/p50-$1")" -v b="$(cat "$work/p50-device")" 'BEGIN {printf "%.1f", a - b}'; }
echo "== a miss adds to the median: host memory $(added host) ms, disk $(added disk) ms (asked: 150)," \
    "registry on loopback $(added registry) ms (asked: 400)"
