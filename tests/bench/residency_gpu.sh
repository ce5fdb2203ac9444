#!/usr/bin/env bash
# The rows of issue 4 that are about many adapters on one GPU, within about 8 minutes: RESULTS/residency-ROW.csv
# and RESULTS/residency-ROW.log for each.
#
#   residency_gpu.sh [BUILD [RESULTS [ROW ...]]]      BUILD: build/release, RESULTS: tests/bench/results
#
# ROW: 4 to 11; all of them. replay.c says what each is. Rows 5 and 11 want 110 GB of host memory; next to each other
# they share one process and its adapters ("5,11" is a row too). Row 10 is tests/soak. Environment: BACKEND (cuda);
# SECONDS_4, SECONDS_5, ... (the rows' own), a bound on the time each measures, setting up not included; REPLAY
# (further flags of replay, as --shape tiny --shrink 100 for a try on a CPU); SOAK (those of soak; for the whole row
# --shape 1b --tokens 1000000 --seconds 300 --changes 10 --streams 128 --pool 40 --kv 16000 --regenerate 1
# and LIMIT=1500); LIMIT (s a row; 300); COMMIT.
# Exit status: 1 when a row could not be run or a request in it failed; the other rows run all the same.
set -uo pipefail
cd "$(dirname "$0")/../.."
build=${1:-build/release} results=${2:-tests/bench/results}
shift $(($# < 2 ? $# : 2))
rows=${*:-4 6 7 8 9 5,11 10}
backend=${BACKEND:-cuda}
commit=${COMMIT:-$(git describe --always --dirty 2>/dev/null || echo unknown)}
mkdir -p "$results"
began=$SECONDS rc=0

churn() { # row 10: every token compared with its adapter alone
    echo "# commit $commit"
    # shellcheck disable=SC2086
    timeout --foreground "${LIMIT:-300}" "$build/tests/soak/soak" --backend "$backend" ${SOAK:---shape 1b --tokens 200000 --seconds 30 --changes 10 --streams 128 --pool 40 --kv 16000 --regenerate 1}
}

for row in $rows; do
    name=${row//,/-} seconds=SECONDS_${row%%,*}
    log=$results/residency-$name.log
    echo "== row $row"
    if [ "$row" = 10 ]; then
        churn
    else
        # shellcheck disable=SC2086
        timeout --foreground "${LIMIT:-300}" "$build/tests/bench/replay" --row "$row" --backend "$backend" --commit "$commit" \
            --csv "$results/residency-$name.csv" ${!seconds:+--seconds "${!seconds}"} ${REPLAY:-}
    fi 2>&1 | tee "$log"
    status=${PIPESTATUS[0]}
    [ "$status" -eq 0 ] || { echo "== row $row: exit $status"; rc=1; }
    echo "== row $row: done, $((SECONDS - began)) s in all"
done
exit $rc
