#!/usr/bin/env bash
# So many cycles of load, open, run, close, unload: in one process, then in as many processes, each of which must end with
# 0 and say nothing.
#     tests/native/proof/cycles.sh BUILD BUNDLE CYCLES
set -euo pipefail
build=$1 bundle=$2 cycles=$3
library=$build/decipher_rt/native/libdecipher_rt.so
cache=$(mktemp -d)
trap 'rm -rf "$cache"' EXIT
"$build/tests/native/cycle" "$library" "$bundle" "$cycles" 20 "$cache"
for ((i = 1; i <= cycles; i++)); do
    said=$("$build/tests/native/cycle" "$library" "$bundle" 1 1 "$cache" 2>&1) || { echo "process $i failed: $said"; exit 1; }
    [ -z "$said" ] || { echo "process $i said: $said"; exit 1; }
done
echo "$cycles processes: load, open, run, close, unload, exit; every one ended with 0 and said nothing"
