#!/usr/bin/env bash
# Runs cmocka programs one after the other and adds up their counts.
# usage: run.sh PROGRAM...   Each runs from the repository's root. The output of a program that fails
# is shown whole; the last line is "N passed, N failed" (", N skipped" where a test said why it
# cannot run here).
set -u
passed=0 failed=0 skipped=0
for program in "$@"; do
    out=$("$program" 2>&1)
    rc=$?
    p=$(grep -ac '^\[       OK \]' <<<"$out")
    f=$(grep -ac '^\[  FAILED  \] [^0-9]' <<<"$out")
    s=$(grep -ac '^\[  SKIPPED \] [^0-9]' <<<"$out")
    # cmocka names each failed test again in its summary.
    f=$(grep -aoE '^\[  FAILED  \] [A-Za-z_][A-Za-z0-9_]*' <<<"$out" | sort -u | wc -l)
    s=$(grep -aoE '^\[  SKIPPED \] [A-Za-z_][A-Za-z0-9_]*' <<<"$out" | sort -u | wc -l)
    if [ $rc -ne 0 ] && [ "$f" -eq 0 ]; then f=1; fi
    if [ $rc -eq 0 ] && [ "$p" -eq 0 ] && [ "$s" -eq 0 ]; then f=1; out="$out
$program ran no test"; fi
    printf '%-60s %4d passed, %d failed%s\n' "${program#*/tests/}" "$p" "$f" "$([ "$s" -gt 0 ] && echo ", $s skipped")"
    grep -aE '^\[ *(counted|note) *\]|^note: ' <<<"$out"
    if [ "$f" -ne 0 ]; then echo "$out"; fi
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
done
if [ $skipped -gt 0 ]; then echo "$passed passed, $failed failed, $skipped skipped"
else echo "$passed passed, $failed failed"; fi
[ $failed -eq 0 ]
