#!/usr/bin/env bash
# make bench-gpu: every number about the GPU but HTTP's (http_gpu.sh), within 8 minutes on one H100.
#
#   gpu.sh [BUILD [RESULTS [PART ...]]]        BUILD: build/release, RESULTS: tests/bench/results
#
# PART: operators, decode, traffic, prefill, mixed; all of them. Each writes RESULTS/gpu-PART.csv: one table or
# several, each after lines that name the device, the commit and the flags. COMMIT names the commit where git can't.
# report_gpu.py sets them beside what was asked for.
set -euo pipefail
cd "$(dirname "$0")/../.."
build=${1:-build/release} results=${2:-tests/bench/results}
shift $(($# < 2 ? $# : 2))
parts=${*:-operators decode traffic prefill mixed}
commit=${COMMIT:-$(git describe --always --dirty 2>/dev/null || echo unknown)}
mkdir -p "$results"
began=$SECONDS

operators() {
    "$build/tests/bench/bench_cuda" --commit "$commit" --csv "$results/gpu-operators.csv"
}

rows() { # FLAGS...: one table of the part at hand
    "$build/tributary" bench --backend cuda --shape 8b --commit "$commit" --csv "$@" | tee -a "$results/gpu-$part.csv"
}

decode() {
    rows --kinds base,shared,distinct --streams 1,8,32,64,128 --rounds 5 --show-memory
}

traffic() { # many tenants: whoever comes
    rows --kinds base,distinct,uniform,skewed --adapters 128 --streams 32,64,128 --rounds 3
}

prefill() {
    rows --kinds base --streams 1 --prompt 2048 --generate 1 --rounds 15
    rows --kinds base --streams 1 --prompt 8192 --generate 1 --rounds 9
    rows --kinds base --streams 1 --prompt 256 --generate 1 --rounds 15
    rows --kinds base --streams 64 --prompt 128 --generate 1 --rounds 9
}

mixed() { # 1, 8 and 32 adapters in the 2,048 rows of a step
    for n in 1 8 32; do
        rows --kinds base,distinct --adapters "$n" --streams 32,128 --prompt 64 --generate 1 --rounds 15
    done
}

for part in $parts; do
    echo "== $part"
    : >"$results/gpu-$part.csv"
    "$part"
    echo "== $part: done, $((SECONDS - began)) s in all"
done
