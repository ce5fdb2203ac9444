#!/usr/bin/env bash
# make check-gpu: compute-sanitizer's four tools over the CUDA operator tests; one line a tool, exit 1 unless clean.
#
#   sanitize_gpu.sh [BUILD [LOGS [TOOL ...]]]        BUILD: build/release, LOGS: BUILD/sanitizer
#
# TOOL: memcheck, initcheck, synccheck, racecheck; all of them. The runs of a tool share the GPU, JOBS (4) at a time, and
# a run that takes more than SECONDS_MAX (300) counts as a failure. Under racecheck every access to shared memory is
# traced, and a whole program takes many minutes: there a run is one test, out of those that reach every kernel.
set -uo pipefail
cd "$(dirname "$0")/../.."
build=${1:-build/release} logs=${2:-${1:-build/release}/sanitizer}
shift $(($# < 2 ? $# : 2))
tools=${*:-memcheck initcheck synccheck racecheck}
jobs_max=${JOBS:-4} seconds_max=${SECONDS_MAX:-300}
command -v compute-sanitizer >/dev/null || { echo "compute-sanitizer isn't here (it comes with the CUDA toolkit)"; exit 2; }
mkdir -p "$logs"

programs=(test_cuda test_cuda_linear test_cuda_sample)
raced=( # PROGRAM:TEST
    'test_cuda:attention_agrees*' 'test_cuda:decodes_of*' 'test_cuda:copied*' 'test_cuda:norms*' 'test_cuda:sampling*'
    'test_cuda_linear:linear_with*' 'test_cuda_linear:linear_swiglu*' 'test_cuda_linear:sgmv*'
    'test_cuda_sample:ties*' 'test_cuda_sample:scores*')

run() { # TOOL PROGRAM TEST
    local log="$logs/$1.$2.${3%\*}" rc
    TEST=$3 timeout "$seconds_max" compute-sanitizer --tool "$1" "$build/tests/ops/$2" >"$log.log" 2>&1
    rc=$?
    # A test that skips itself would be clean, too.
    grep -q 'SKIPPED' "$log.log" && rc=skipped
    echo "$rc $(sed -n 's/.*\(ERROR\|RACECHECK\) SUMMARY: \([0-9]*\) .*/\2/p' "$log.log" | tail -1)" >"$log.status"
}

bad=0
for tool in $tools; do
    rm -f "$logs/$tool".*
    began=$SECONDS n=0 found=0 unfinished=0
    if [ "$tool" = racecheck ]; then units=("${raced[@]}"); else units=("${programs[@]/%/:*}"); fi
    for unit in "${units[@]}"; do
        while [ "$(jobs -rp | wc -l)" -ge "$jobs_max" ]; do wait -n; done
        run "$tool" "${unit%%:*}" "${unit#*:}" &
    done
    wait
    for status in "$logs/$tool".*.status; do
        read -r rc count <"$status"
        n=$((n + 1)) found=$((found + ${count:-0}))
        [ "$rc" = 0 ] && [ -n "$count" ] || unfinished=$((unfinished + 1))
    done
    echo "$tool: $n runs, $found findings, $unfinished not finished or failed, $((SECONDS - began)) s"
    [ "$found" = 0 ] && [ "$unfinished" = 0 ] || bad=1
done
[ "$bad" = 0 ] || echo "the reports are in $logs"
exit "$bad"
