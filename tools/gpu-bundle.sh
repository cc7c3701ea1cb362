#!/usr/bin/env bash
# Packs what a machine with a GPU, and without Rust, needs to prove and measure the kernels: tests, the
# conformance suite, examples, the bench, fixtures, and run.sh, which runs all of it.
#
#   tools/gpu-bundle.sh            into target/gpu-bundle/ and target/gpu-bundle.tar.gz
#
# CUDA_COMPUTE_CAP chooses the machine code (90 by default; the PTX floor is always there). Needs nvcc
# (tools/cuda-toolkit.sh).
set -euo pipefail
cd "$(dirname "$0")/.."

target=${CARGO_TARGET_DIR:-target}
bundle="$target/gpu-bundle"
export CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-90} MOE_KERNELS_REQUIRE_NVCC=1
export CARGO_PROFILE_RELEASE_STRIP=symbols
# The models of the emulator stay out: there is a GPU.
export CXX=/bin/false

# Builds in release, and copies the one executable of that kind and name.
build() { # KIND NAME PACKAGE FEATURES
    local executable
    executable=$(cargo build --release --message-format json --package "$3" --features "$4" "--$1" "$2" |
        python3 -c '
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable") and message["target"]["name"] == sys.argv[1]:
        print(message["executable"])' "$2")
    cp "$executable" "$bundle/$2"
}

rm -rf "$bundle" "$bundle.tar.gz"
mkdir -p "$bundle/tests"
build bench gpu moe-kernels cuda && mv "$bundle/gpu" "$bundle/bench"
build test gpu moe-kernels cuda
build example doctor moe-kernels cuda
build example run_layer moe-kernels cuda
build test conformance_gpu moe-emulator cuda
cp -r tests/fixtures "$bundle/tests/"
cp -r emulator/golden "$bundle/golden"
tools/micro-fatbins.sh "$bundle/micro"
cp tools/gpu-run.sh "$bundle/run.sh"
git describe --always --dirty > "$bundle/commit.txt" 2>/dev/null || echo unknown > "$bundle/commit.txt"

tar -C "$target" -czf "$bundle.tar.gz" gpu-bundle
bytes=$(stat --format=%s "$bundle.tar.gz")
echo "gpu-bundle: $bytes bytes in $bundle.tar.gz"
test "$bytes" -lt $((50 * 1000 * 1000))
