#!/usr/bin/env bash
# A short soak on the CPU: every token is the one its adapter gives alone; and when two entries of the adapter
# table are exchanged under way, the check says so.
# usage: soak.sh BUILD_DIR
set -u
soak=$1/release/tests/soak/soak passed=0 failed=0
expect() { # STATUS FLAG...
    local want=$1 rc
    shift
    echo "== soak $*: exit $want expected"
    "$soak" "$@"
    rc=$?
    if [ $rc -eq "$want" ]; then passed=$((passed + 1))
    else failed=$((failed + 1)); echo "soak $*: exit $rc"; fi
}
expect 0 --tokens 12000 --regenerate 20
expect 0 --tokens 4000 --preempt --regenerate 20 --seed 2
expect 0 --tokens 40000 --shared --preempt --regenerate 5 --seed 5
expect 1 --tokens 8000 --sabotage --seed 3
echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
