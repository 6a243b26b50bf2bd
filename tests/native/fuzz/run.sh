#!/usr/bin/env bash
# Fuzz the targets (default: both) for so many seconds each; seeds are the parts of a real bundle, and a manifest with
# every key. Ends with 0 where nothing was found.
#     tests/native/fuzz/run.sh BUILD BUNDLE SECONDS ["bundle slices"]
set -euo pipefail
build=$1 bundle=$2 seconds=$3 targets=${4:-bundle slices}
export DECIPHER_RT_TEST_BUNDLE=$bundle
export TBB_ENABLE_SANITIZERS=1 # oneTBB then leaves out RTLD_DEEPBIND, which sanitizers refuse
here=$(cd "$(dirname "$0")" && pwd)
suppressions=$(cd "$here/../suppressions" && pwd)
export LSAN_OPTIONS=suppressions=$suppressions/lsan.txt:print_suppressions=0
# The sanitizers stand between dlopen and its caller, whose run path is then not looked at.
LD_LIBRARY_PATH=$(dirname "$(grep -oP '^DALI_INCLUDE_DIR:PATH=\K.*' "$build/CMakeCache.txt")")
export LD_LIBRARY_PATH
corpus=$build/corpus
mkdir -p "$corpus/bundle" "$corpus/slices"
{ printf '\0'; cat "$bundle/manifest.json"; } >"$corpus/bundle/manifest"
{ printf '\0'; cat "$here/all_keys.json"; } >"$corpus/bundle/all_keys" # what the schema knows and this bundle has not
{ printf '\1'; cat "$bundle/SHA256SUMS"; } >"$corpus/bundle/sums"
{ printf '\3'; cat "$bundle/preprocess.cpu.dali"; } >"$corpus/bundle/operators"
smallest=$(find "$bundle" -name '*.onnx' -printf '%s %p\n' | sort -n | head -1 | cut -d' ' -f2-)
{ printf '\2'; cat "$smallest"; } >"$corpus/bundle/onnx"
{ printf '\4'; printf 'PK\5\6%018d' 0 | tr 0 '\0'; } >"$corpus/bundle/npz"
head -c 4096 "$bundle/encoder.onnx" >"$corpus/slices/noise"
for target in $targets; do
    dictionary=() stacks=1
    if [ "$target" = slices ]; then
        stacks=0 # whole ones, by which suppressions know OpenVINO: oneTBB keeps no frame pointers
    else
        dictionary=(-dict="$here/manifest.dict")
    fi
    ASAN_OPTIONS=fast_unwind_on_malloc=$stacks "$build/tests/native/fuzz_$target" -max_total_time="$seconds" -max_len=16384 -timeout=60 -rss_limit_mb=4096 \
        -artifact_prefix="$build/" -print_final_stats=1 ${dictionary[@]+"${dictionary[@]}"} "$corpus/$target" >"$build/fuzz_$target.log" 2>&1 &
done
status=0
for job in $(jobs -p); do wait "$job" || status=1; done
for target in $targets; do
    echo "fuzz_$target, $seconds s:"
    grep -E 'stat::number_of_executed_units|stat::peak_rss_mb|SUMMARY|Test unit written' "$build/fuzz_$target.log" || true
    grep -E '^#[0-9]+.*DONE' "$build/fuzz_$target.log" || true
done
exit $status
