#!/usr/bin/env bash
# Many adapters and little room, over HTTP on a CPU: the same load with everything resident, with a device pool for a
# few, and with host memory for a few as well, in turn; medians, and their ratios to the first.
# usage: residency_cpu.sh BUILD_DIR [ADAPTERS [POOL [TURNS [SECONDS]]]]   defaults 1000 50 3 20
# Adapters of rank 8 for demo-7m are made in a temporary folder; 16 streams draw them uniformly at random.
set -eu
build=$1 n=${2:-1000} pool=${3:-50} turns=${4:-3} seconds=${5:-20}
model=tests/fixtures/models/demo-7m/ work=$(mktemp -d) node=
finish() {
    [ -z "$node" ] || kill "$node" 2>/dev/null
    rm -rf "$work"
}
trap finish EXIT

"$build/release/tests/bench/make_random" "$model" "$work/adapters" "$n" 8
each=$(stat -c %s "$work/adapters/adapter-00/adapter_model.safetensors")
few=$(((pool + 1) * each)) # a file is a little larger than its tensors
many=$((n * each + (64 << 20)))

run() { # NAME DEVICE_BYTES HOST_BYTES
    : >"$work/out"
    "$build/release/tributary" serve --model "$model" --data "$work/data" --listen 127.0.0.1:0 --log-level warn \
        --adapters-dir "$work/adapters" --engine-adapter-bytes "$2" --engine-adapter-host-bytes "$3" \
        >"$work/out" 2>>"$work/log" &
    node=$!
    until grep -q '^listening on' "$work/out"; do kill -0 $node || { cat "$work/log"; exit 1; }; sleep 0.1; done
    address=$(sed -n 's|^listening on http://||p' "$work/out")
    # What shall be resident is so before it counts.
    case $1 in all) order=warm ;; device) order=load ;; both) order= ;; esac
    if [ -n "$order" ]; then
        for dir in "$work"/adapters/*; do
            echo "url = \"http://$address/admin/v1/adapters/${dir##*/}/$order\""
            echo 'output = "/dev/null"'
        done >"$work/orders"
        curl -fsS --json '{}' -K "$work/orders"
    fi
    rm -f "$work/csv"
    "$build/release/tests/bench/load" "$address" --streams 16 --adapters "$n" --popularity uniform --vocab 4096 \
        --prompt 128 --generate 64 --warm 5 --seconds "$seconds" --csv "$work/csv" >"$work/load" || { cat "$work/load"; exit 1; }
    awk -F, -v name="$1" 'NR == 1 {split($0, k)} NR == 2 {for (i = 1; i <= NF; i++) v[k[i]] = $i
        printf "%s %s %s %s %s\n", name, v["output_tokens_s"], v["ttft_p50_ms"], v["ttft_p99_ms"], v["errors"]}' \
        "$work/csv" | tee -a "$work/results"
    curl -fsS "http://$address/metrics" | grep -E '^tributary_adapter(_requests_total|_evictions_total|s)\{' |
        sed "s/^tributary_/    /" >"$work/metrics.$1"
    kill $node
    wait $node
    node=
}

echo "adapters $n of $each bytes, pool for $pool; columns: tokens/s, TTFT p50 and p99 in ms, errors"
for turn in $(seq "$turns"); do
    run all "$many" "$many"
    run device "$few" "$many"
    run both "$few" "$few"
done
for name in all device both; do
    awk -v n=$name '$1 == n {print $2}' "$work/results" | sort -n | awk -v n=$name '{v[NR] = $1} END {print n, v[int((NR + 1) / 2)]}'
done | tee "$work/medians"
awk '{v[$1] = $2} END {printf "device pool for few / all resident: %.3f\ndevice and host for few / all resident: %.3f\n",
    v["device"] / v["all"], v["both"] / v["all"]}' "$work/medians"
for name in all device both; do echo "$name, last turn:"; cat "$work/metrics.$name"; done
