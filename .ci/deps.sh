#!/usr/bin/env bash
# Installs what the build and the tests need, when it is missing: Debian packages, then the node
# modules of contracts-abi/ (forge, anvil, solc, ethers, openai). Does nothing when all is there.
# usage: deps.sh "debian packages..."
set -eu
cd "$(dirname "$0")/.."

if [ "$(uname -sm)" != "Linux x86_64" ] || ! command -v apt-get >/dev/null; then
    echo "make deps knows Debian 12, Ubuntu 24.04 and newer on amd64; this is $(uname -sm)." >&2
    echo "Elsewhere, install the equivalents of: $1" >&2
    exit 1
fi

missing=()
for package in $1; do
    # Node from another source than the distribution serves as well, if it is new enough.
    case $package in
    nodejs) command -v node >/dev/null && [ "$(node -p 'process.versions.node.split(".")[0]')" -ge 18 ] && continue ;;
    npm) command -v npm >/dev/null && continue ;;
    gcc | make) command -v "$package" >/dev/null && continue ;;
    esac
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    echo "installing ${missing[*]}"
    as_root=
    [ "$(id -u)" -eq 0 ] || as_root=sudo
    $as_root apt-get update -qq
    DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

modules=contracts-abi/node_modules
if [ -f contracts-abi/package-lock.json ] && [ ! contracts-abi/package-lock.json -ot $modules/.installed ]; then
    echo "installing node modules (contracts-abi/package-lock.json)"
    (cd contracts-abi && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error)
    touch $modules/.installed
fi
