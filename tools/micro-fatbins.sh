#!/usr/bin/env bash
# Compiles the micro-kernels of the conformance suite for a GPU: emulator/tests/conformance_gpu.rs loads them.
#
#   tools/micro-fatbins.sh FOLDER      for sm_90a, with the nvcc of .cuda/ (tools/cuda-toolkit.sh) or NVCC
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:?usage: tools/micro-fatbins.sh FOLDER}
nvcc=${NVCC:-.cuda/bin/nvcc}
mkdir -p "$folder"
for source in emulator/kernels/micro_*.cu; do
    name=$(basename "$source" .cu)
    "$nvcc" --fatbin -std=c++20 -O3 -Ikernels -Iemulator/kernels \
        -gencode arch=compute_90a,code=sm_90a -o "$folder/$name.fatbin" "$source"
done
echo "micro-fatbins: $(ls "$folder"/*.fatbin | wc -l) in $folder"
