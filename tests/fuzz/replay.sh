#!/usr/bin/env bash
# Replays each fuzz target over its corpus and a fixed number of deterministic mutations of it, under the
# sanitizers and without libFuzzer, so that `make test` exercises every parser's edge on any compiler.
# usage: replay.sh BUILD_DIR
set -u
passed=0 failed=0
for source in tests/fuzz/fuzz_*.c; do
    target=$(basename "$source" .c)
    corpus=tests/fuzz/corpus/${target#fuzz_}
    if [ ! -d "$corpus" ]; then echo "$target: has no corpus folder $corpus"; failed=$((failed + 1)); continue; fi
    if out=$("$1/asan/tests/fuzz/$target" -n "${FUZZ_MUTATIONS:-2000}" "$corpus" 2>&1); then passed=$((passed + 1))
    else failed=$((failed + 1)); echo "$target:"; tail -30 <<<"$out"; fi
done
echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
