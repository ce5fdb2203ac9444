#!/usr/bin/env bash
# load against a node on the CPU with a tiny random model: answers come whole and are counted; refusals are told
# from errors; what is not an answer is an error.
# usage: load.sh BUILD_DIR
set -u
build=$1 load=${LOAD:-$1/release/tests/bench/load} passed=0 failed=0 node=
work=$(mktemp -d)
finish() {
    [ -z "$node" ] || kill -KILL "$node" 2>/dev/null
    rm -rf "$work"
}
trap finish EXIT

serve() { # FLAG...
    if [ -n "$node" ]; then kill "$node"; wait "$node"; fi
    : >"$work/out"
    "$build/release/tributary" serve --model "$work/model" --data "$work/data" --listen 127.0.0.1:0 "${adapters[@]}" \
        "$@" >"$work/out" 2>"$work/log" &
    node=$!
    until grep -q '^listening on' "$work/out"; do
        kill -0 "$node" 2>/dev/null || { cat "$work/log"; node=; return 1; }
        sleep 0.05
    done
    address=$(sed -n 's|^listening on http://||p' "$work/out")
}

# The exit status, and conditions on the columns of the CSV as awk sees them (v["name"]).
expect() { # STATUS CONDITION FLAG...
    local want=$1 condition=$2 rc why=
    shift 2
    echo "== load $*: exit $want and $condition expected"
    rm -f "$work/csv"
    "$load" "$address" --vocab 64 --warm 0.2 --seconds 0.8 --csv "$work/csv" "$@" | tee "$work/said"
    rc=${PIPESTATUS[0]}
    [ $rc -eq "$want" ] || why="exit $rc"
    [ "$condition" = - ] || awk -F, 'NR == 1 {split($0, name)} NR == 2 {for (i = 1; i <= NF; i++) v[name[i]] = $i}
        END {exit !('"$condition"')}' "$work/csv" || why="$why; the figures are others"
    if [ -z "$why" ]; then passed=$((passed + 1))
    else failed=$((failed + 1)); echo "load $*: $why"; cat "$work/csv"; fi
}

"$build/release/tests/bench/make_random" tiny "$work" 6 4 || exit 1
adapters=()
for dir in "$work"/adapter-*; do adapters+=(--adapter "$(basename "$dir")=$dir"); done
printf 'one\ntwo\n' >"$work/keys"
while read -r key; do echo "name-$key $(printf %s "$key" | sha256sum | cut -d' ' -f1)"; done <"$work/keys" >"$work/hashes"

serve --api-keys "$work/hashes" || exit 1
whole='v["errors"] == 0 && v["answers"] > 0 && v["ttft_p50_ms"] > 0 && v["output_tokens_s"] > 0 && v["unfinished"] == 0'
expect 0 "$whole && v[\"out_distinct_max\"] == 6 && v[\"keys\"] == 2 && v[\"jain\"] > 0.6" \
    --streams 8 --adapters 6 --prompt 20 --generate 12 --keys "$work/keys"
expect 0 "$whole && v[\"out_distinct_max\"] == 0 && v[\"held\"] == \"0\"" \
    --streams 2 --adapters 0 --prompt 5 --generate 5 --keys "$work/keys"
expect 0 "$whole && v[\"status_503\"] == 0" --rate 40 --cv 2 --adapters 6 --popularity zipf:1.1 --lengths uniform:2:30 \
    --keys "$work/keys"
expect 1 'v["errors"] > 0 && v["answers"] == 0' --streams 2 --adapters 2 --prompt 300 --generate 4 --keys "$work/keys"
grep -q '^error: .*HTTP status 400: .*maximum context length' "$work/said" ||
    { failed=$((failed + 1)); echo "load doesn't say why the node refused"; }
expect 2 - --streams 1.5 --adapters 2 --keys "$work/keys"
expect 2 - --streams 2 --adapters 7 --keys "$work/keys"
expect 2 - --streams 2 --adapters 2
serve --server-max-requests 2 || exit 1
expect 0 'v["errors"] == 0 && v["answers"] > 0 && v["status_503"] > 0' \
    --streams 8 --adapters 6 --prompt 20 --generate 40
kill "$node"
wait "$node" || { failed=$((failed + 1)); echo "the node ended with $?"; }
node=
echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
