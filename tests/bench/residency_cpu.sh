#!/usr/bin/env bash
# Many adapters and little room, over HTTP on a CPU: the same load with everything resident, with a device pool for a
# few, and with host memory for a few as well, in turn; medians, and their ratios to the first. Where others use the
# machine, too, the node's own processor time for a token says more than tokens in a second: both are told.
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

cpu_ms() { # of the node, all threads
    awk -v hz="$(getconf CLK_TCK)" '{print ($14 + $15) * 1000 / hz}' "/proc/$node/stat"
}
tokens() { # computed so far: prompts' and completions'
    curl -fsS "http://$address/metrics" | awk '/^tributary_engine_(prefill|decode)_rows_total/ {n += $2} END {print n}'
}

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
    local ms=$(cpu_ms) n_before=$(tokens)
    "$build/release/tests/bench/load" "$address" --streams 16 --adapters "$n" --popularity uniform --vocab 4096 \
        --prompt 128 --generate 64 --warm 5 --seconds "$seconds" --csv "$work/csv" >"$work/load" || { cat "$work/load"; exit 1; }
    ms=$(awk -v a="$ms" -v b="$(cpu_ms)" -v c="$n_before" -v d="$(tokens)" 'BEGIN {print (b - a) / (d - c)}')
    awk -F, -v name="$1" -v ms="$ms" 'NR == 1 {split($0, k)} NR == 2 {for (i = 1; i <= NF; i++) v[k[i]] = $i
        printf "%s %s %.4f %s %s %s\n", name, v["output_tokens_s"], ms, v["ttft_p50_ms"], v["ttft_p99_ms"], v["errors"]}' \
        "$work/csv" | tee -a "$work/results"
    curl -fsS "http://$address/metrics" | grep -E '^tributary_adapter(_requests_total|_evictions_total|s)\{' |
        sed "s/^tributary_/    /" >"$work/metrics.$1"
    kill $node
    wait $node
    node=
}

echo "adapters $n of $each bytes, pool for $pool; columns: tokens/s, node's CPU ms a row, TTFT p50 and p99 in ms, errors"
for turn in $(seq "$turns"); do
    run all "$many" "$many"
    run device "$few" "$many"
    run both "$few" "$few"
done
median() { # NAME COLUMN
    awk -v name="$1" -v c="$2" '$1 == name {print $c}' "$work/results" | sort -n | awk '{v[NR] = $1} END {print v[int((NR + 1) / 2)]}'
}
for name in all device both; do
    echo "$name: median $(median $name 2) tokens/s, $(median $name 3) ms a row"
done
for name in device both; do
    awk -v name=$name -v t="$(median $name 2)" -v t0="$(median all 2)" -v m="$(median $name 3)" -v m0="$(median all 3)" \
        'BEGIN {printf "%s / all: tokens/s %.3f, work for a row %.3f\n", name, t / t0, m / m0}'
done
for name in all device both; do echo "$name, last turn:"; cat "$work/metrics.$name"; done
