#!/usr/bin/env bash
# What each kernel of a CUDA program takes, in its place among the others: trace/kernel_times.c says how it is counted.
#
#   kernel_times.sh FILE PROGRAM [ARGUMENT ...]
#   kernel_times.sh FILE build/release/tributary bench --backend cuda --shape 8b --kinds shared --streams 64 --rounds 2
#
# Environment: KERNEL_TIMES_FROM (0.4: told are the program's kernels from that share of them on), CUDA_HOME.
# Needs gcc and CUPTI, which comes with the CUDA toolkit. Steps take some 2 % longer under it.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2; }
here=$(dirname "$0") file=$1 cuda=${CUDA_HOME:-/usr/local/cuda} work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
shift
gcc -O2 -std=c17 -D_GNU_SOURCE -Wall -Wextra -shared -fPIC -I"$cuda/include" "$here/trace/kernel_times.c" \
    -o "$work/kernel_times.so" -L"$cuda/lib64" -lcupti -Wl,-rpath,"$cuda/lib64"
CUDA_INJECTION64_PATH=$work/kernel_times.so KERNEL_TIMES=$work/times.csv \
    KERNEL_TIMES_FROM=${KERNEL_TIMES_FROM:-0.4} "$@"
[ -s "$work/times.csv" ] || { echo "no kernel was recorded" >&2; exit 1; }
if command -v c++filt >/dev/null; then c++filt <"$work/times.csv" >"$file"; else cp "$work/times.csv" "$file"; fi
