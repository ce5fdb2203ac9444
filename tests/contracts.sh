#!/usr/bin/env bash
# The contracts' suite, with forge's and node's counts added up in the form of all suites.
set -u
cd "$(dirname "$0")/../contracts-abi"
log=$(mktemp)
npm test --silent 2>&1 | tee "$log"
rc=${PIPESTATUS[0]}
forge=$(sed 's/\x1b\[[0-9;]*m//g' "$log" | grep -E '^Ran [0-9]+ test suites?' | tail -1)
fp=$(sed -nE 's/.*: ([0-9]+) tests? passed, ([0-9]+) failed.*/\1/p' <<<"$forge")
ff=$(sed -nE 's/.*: ([0-9]+) tests? passed, ([0-9]+) failed.*/\2/p' <<<"$forge")
np=$(sed -nE 's/^# pass ([0-9]+)$/\1/p' "$log" | tail -1)
nf=$(sed -nE 's/^# fail ([0-9]+)$/\1/p' "$log" | tail -1)
rm -f "$log"
failed=$((${ff:-0} + ${nf:-0}))
# A recompile that differs, or a suite that never ran, counts as a failure.
[ "$rc" -eq 0 ] || [ $failed -gt 0 ] || failed=1
[ -n "$fp" ] && [ -n "$np" ] || failed=$((failed + 1))
echo "note: ${fp:-no} forge tests, ${np:-no} JavaScript tests; ABI and bytecode equal a recompile"
echo "$((${fp:-0} + ${np:-0})) passed, $failed failed"
exit $((failed > 0))
