#!/usr/bin/env bash
# The rules of the house that a compiler doesn't check:
#   1. includes flow downhill (each room may include only itself and the rooms below it);
#   2. a third-party header stays in its one room;
#   3. formatting (clang-format), and cppcheck's findings.
# Prints each offence; exit 1 if there is any.
set -u
cd "$(dirname "$0")/.."
bad=0
complain() { echo "lint: $*"; bad=1; }
sources() { git ls-files -co --exclude-standard -- "$@" | grep -E '\.(c|h|cu|cuh)$'; }

# ---- 1. arrows -------------------------------------------------------------------------------------
# room -> what it may include from the tree
check_arrows() { # room files-pattern allowed-regex
    local room=$1 allowed=$3 line
    while IFS= read -r line; do
        complain "$line: $room/ may include only ${allowed//|/, }"
    done < <(sources $2 | xargs -r grep -nE '^#include "' | grep -vE "#include \"($allowed)/?")
}
check_arrows node/base 'node/base/' 'node/base'
check_arrows kernels 'kernels/' 'kernels|node/base'
check_arrows engine 'engine/' 'engine|kernels/ops.h|node/base'
check_arrows chain 'chain/' 'chain|contracts-abi|node/base'
check_arrows wallet 'wallet/' 'wallet|chain|node/base'
check_arrows attribution 'attribution/' 'attribution|wallet|chain|node/base'
# backends answer to ref, never to each other
while IFS= read -r line; do complain "$line: backends do not include each other"; done < <(
    for b in ref cpu cuda; do
        sources "kernels/$b/" | xargs -r grep -nE '^#include "kernels/(ref|cpu|cuda)/' | grep -v "#include \"kernels/$b/"
    done)

# ---- 2. one room for each third-party header ---------------------------------------------------------
one_room() { # header-regex allowed-path-regex
    while IFS= read -r file; do
        [[ $file =~ ^($2)$ ]] || complain "$file includes <$1>, which lives in $2 only"
    done < <(sources node engine kernels chain wallet attribution | xargs -r grep -lE "^#include <$1")
}
one_room 'sqlite3\.h' 'attribution/db\.c'
one_room 'curl/' 'node/base/http_client\.c'
one_room 'microhttpd\.h' 'node/http_internal\.h'
one_room 'secp256k1' 'wallet/ecdsa\.c'
one_room 'sodium' 'wallet/.*|node/base/random\.c'
one_room 'openssl/' 'wallet/legacy\.c|node/base/sha256\.c'
one_room 'ini\.h' 'node/config\.c'
one_room 'pcre2' 'engine/tokenizer/.*'
one_room 'utf8proc' 'engine/tokenizer/.*|wallet/mnemonic\.c'
one_room 'cuda|cublas' 'kernels/cuda/.*'

# ---- 3. format and static analysis -------------------------------------------------------------------
if command -v clang-format >/dev/null; then
    unformatted=$(sources node engine kernels chain wallet attribution tests | xargs clang-format --dry-run 2>&1 |
        grep -oE '^[^:]+:[0-9]+' | sort -u)
    [ -z "$unformatted" ] || complain "not in clang-format's form ($(wc -l <<<"$unformatted") places):
$(head -20 <<<"$unformatted")"
else
    complain "clang-format is not installed (make deps-lint)"
fi
if command -v cppcheck >/dev/null; then
    # uninitvar and the *Cond family guess wrong about out-parameters in cppcheck 2.10; the compilers' own
    # -Wmaybe-uninitialized and the sanitizers watch those. Arenas hand out typed memory: invalidPointerCast.
    cppcheck --quiet --std=c11 --enable=warning,portability --inline-suppr --error-exitcode=1 -j2 -I. \
        --suppress=missingIncludeSystem --suppress=normalCheckLevelMaxBranches --suppress=unknownMacro --suppress=uninitvar \
        --suppress=nullPointerRedundantCheck --suppress=arrayIndexOutOfBoundsCond --suppress=invalidPointerCast \
        $(sources node engine kernels chain wallet attribution | grep '\.c$') || complain "cppcheck found the above"
else
    complain "cppcheck is not installed (make deps-lint)"
fi
while IFS= read -r line; do complain "$line: a path of somebody's machine"; done < <(
    git grep -nIE '(^|[^A-Za-z.])/(work|root|home)/[a-z]' -- ':!tests/lint.sh' ':!*/package-lock.json' | cut -c1-160)
[ $bad -eq 0 ] && echo "lint: clean"
exit $bad
