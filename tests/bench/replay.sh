#!/usr/bin/env bash
# Every row of replay on the tiny shape, for a moment: each runs, no request fails, every step holds the adapters
# that its requests asked for, and the CSV has the rows it should. What they say about speed means nothing here.
# usage: replay.sh BUILD_DIR
set -u
replay=$1/release/tests/bench/replay passed=0 failed=0
csv=$(mktemp)
trap 'rm -f "$csv"' EXIT

# Runs whose group "all", or only group, must be in the CSV; then flags.
expect() { # RUNS FLAG...
    local runs=$1 rc n why=
    shift
    echo "== replay $*"
    "$replay" "$@" --csv "$csv"
    rc=$?
    [ $rc -eq 0 ] || why="exit $rc"
    # Every row has as many cells as there are titles, some requests, and none that failed.
    awk -F, '/^#/ {next} !titles {titles = NF; next} NF != titles || $NF != 0 {bad = 1} END {exit bad}' "$csv" ||
        why="$why; a row is broken or counts failures"
    for n in ${runs//,/ }; do
        grep -q "^[^#,]*,$n," "$csv" || why="$why; no run $n"
    done
    if [ -z "$why" ]; then passed=$((passed + 1))
    else failed=$((failed + 1)); echo "replay $*: $why"; fi
}
small=(--shape tiny --shrink 100 --seconds 0.6)
expect resident,pool --row 2 "${small[@]}"
expect resident,missing,saturated,half --row 4 "${small[@]}"
expect closed-in,poisson-in,cv8-in,closed,poisson,cv8 --row 5 "${small[@]}"
expect closed,rate-10,rate-40 --row 6 "${small[@]}"
expect resident,half --row 7 "${small[@]}"
expect unlike,alike,one-payer,solo,hot --row 8 "${small[@]}"
expect base,rank-8,rank-128,mixed --row 9 "${small[@]}"
expect 10000,1000,100,1 --row 11 "${small[@]}"
expect own --adapters 40:r8:qv,10:r16:all --pool-adapters 12 --streams 8 --popularity zipf:1.1 --lengths uniform:4:40 \
    --miss-rate 20 --missing 20 --seconds 0.5 --warm 0.1
expect own --adapters 40:r8:qv,10:r16:all --fewer 5 --rate 60 --cv 4 --lengths azure-conv --payers 3 --seconds 0.5 --warm 0.1

# A step that holds another adapter than its requests asked for is noticed.
echo "== replay --sabotage: exit 1 expected"
"$replay" --adapters 8:r8:all --lengths fixed:8:8 --seconds 0.4 --warm 0.1 --sabotage
rc=$?
if [ $rc -eq 1 ]; then passed=$((passed + 1)); else failed=$((failed + 1)); echo "replay --sabotage: exit $rc"; fi

# A flag is refused, not rounded.
echo "== replay --streams 1.5: exit 2 expected"
"$replay" --adapters 8:r8:all --streams 1.5 --seconds 0.1 --warm 0 2>/dev/null
rc=$?
if [ $rc -eq 2 ]; then passed=$((passed + 1)); else failed=$((failed + 1)); echo "replay --streams 1.5: exit $rc"; fi
echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
