#!/usr/bin/env bash
# All suites of `make test`, each by name; the last line adds up their counts.
# usage: test.sh BUILD_DIR   (BUILD_DIR/asan holds the unit tests, BUILD_DIR/release/tributary the node)
# A suite is any command whose output has a last line of the form "N passed, N failed[, N skipped]"; one that
# has none, or that exits non-zero without counting a failure, counts as one failure.
set -u
cd "$(dirname "$0")/.."
B=$1
export TRIBUTARY="$PWD/$B/release/tributary" NODE_PATH="$PWD/contracts-abi/node_modules"
logs=$B/test-logs
mkdir -p "$logs"
passed=0 failed=0 skipped=0 failures=()

suite() { # name command...
    local name=$1 started=$SECONDS rc line
    shift
    printf '== %s\n' "$name"
    "$@" >"$logs/$name.log" 2>&1
    rc=$?
    line=$(grep -aE '^[0-9]+ passed, [0-9]+ failed' "$logs/$name.log" | tail -1)
    read -r p f s <<<"$(sed -E 's/^([0-9]+) passed, ([0-9]+) failed(, ([0-9]+) skipped)?.*/\1 \2 \4/' <<<"${line:-0 passed, 0 failed}")"
    s=${s:-0}
    if [ "$f" -eq 0 ] && { [ $rc -ne 0 ] || [ -z "$line" ]; }; then f=1; fi
    grep -aE '^(note: |[a-z/_0-9]+ +[0-9]+ passed)' "$logs/$name.log"
    if [ "$f" -gt 0 ]; then
        tail -n 60 "$logs/$name.log"
        failures+=("$name")
    fi
    printf '   %s: %d passed, %d failed%s (%d s)\n' "$name" "$p" "$f" "$([ "$s" -gt 0 ] && echo ", $s skipped")" $((SECONDS - started))
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
}

for room in base kernels engine chain wallet attribution node bench; do
    case $room in
    kernels) dir=tests/ops ;;
    bench) dir=tests/bench ;;
    *) dir=tests/unit/$room ;;
    esac
    programs=()
    for source in "$dir"/test_*.c; do
        [ -e "$source" ] || continue
        # A test whose first line says so is too long for the sanitizers: the plain build runs it, alone or as well.
        first=$(head -1 "$source")
        [[ $first == *'variant: release'* ]] || programs+=("$B/asan/${source%.c}")
        [[ $first != *'variant: release'* && $first != *'variant: both'* ]] || programs+=("$B/release/${source%.c}")
    done
    suite "unit-$room" bash tests/run.sh "${programs[@]}"
done
suite soak bash tests/soak/soak.sh "$B"
suite replay bash tests/bench/replay.sh "$B"
suite load bash tests/bench/load.sh "$B"
suite contracts bash tests/contracts.sh
for test in tests/e2e/*.test.mjs; do
    [ -e "$test" ] || continue
    suite "e2e-$(basename "$test" .test.mjs)" node "$test"
done
suite fuzz-replay bash tests/fuzz/replay.sh "$B"

[ ${#failures[@]} -eq 0 ] || echo "failed suites: ${failures[*]} (logs in $logs)"
if [ $skipped -gt 0 ]; then echo "$passed passed, $failed failed, $skipped skipped"
else echo "$passed passed, $failed failed"; fi
[ $failed -eq 0 ]
