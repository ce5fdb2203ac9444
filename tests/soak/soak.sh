#!/usr/bin/env bash
# A short soak on the CPU: every token is the one its adapter gives alone, however fast the adapter table changes;
# and when two of its entries are exchanged under way, prefixes are found under any adapters, an adapter stays in
# memory or changes come too slowly, the check says which.
# usage: soak.sh BUILD_DIR
set -u
soak=$1/release/tests/soak/soak passed=0 failed=0
expect() { # STATUS VERDICT FLAG...
    local want=$1 verdict=$2 rc output
    shift 2
    echo "== soak $*: exit $want expected, $verdict"
    output=$("$soak" "$@")
    rc=$?
    echo "$output"
    if [ $rc -eq "$want" ] && [[ $(tail -1 <<<"$output") == "$verdict: "* ]]; then passed=$((passed + 1))
    else failed=$((failed + 1)); echo "soak $*: exit $rc"; fi
}
expect 0 'all the same' --tokens 12000 --regenerate 20
expect 0 'all the same' --tokens 4000 --preempt --regenerate 20 --seed 2
expect 0 'all the same' --tokens 40000 --shared --preempt --regenerate 5 --seed 5
# More changes a second than requests: they come by the clock alone.
expect 0 'all the same' --changes 1000 --seconds 1 --tokens 4000 --streams 16 --kv 10000 --seed 4
expect 1 'NOT THE SAME' --tokens 8000 --sabotage --seed 3
expect 1 'NOT THE SAME, PREFIX HITS ACROSS CONTENTS' --tokens 12000 --kv 40000 --sabotage-prefixes --seed 2
expect 1 'all the same, MEMORY NOT BACK' --tokens 1000 --sabotage-memory
expect 1 'all the same, TOO FEW CHANGES' --tokens 1000 --changes 10000000
echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
