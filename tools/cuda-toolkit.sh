#!/usr/bin/env bash
# Installs the CUDA compiler that this project is built and checked with, without root: pinned
# Python wheels, laid out like a toolkit, where build.rs looks.
#
#   tools/cuda-toolkit.sh [FOLDER]     default: .cuda/ beside Cargo.toml, which git ignores
#
# FOLDER/bin has nvcc, ptxas, cuobjdump, nvdisasm. About 300 MB; the second run costs nothing.
# The wheels are NVIDIA's, under NVIDIA's licence: they are fetched, never redistributed.
set -euo pipefail

folder=$(realpath -m "${1:-$(dirname "$0")/../.cuda}")

# nvcc's own requirements are not pinned, hence --no-deps and the whole list. 13.0, because the
# drivers in the field (580) load its cubins; the two readers of SASS exist from 13.2 on.
wheels=(
    nvidia-cuda-nvcc==13.0.88
    nvidia-nvvm==13.0.88
    nvidia-cuda-crt==13.0.88
    nvidia-cuda-runtime==13.0.96
    nvidia-cuda-cccl==13.0.85
    nvidia-cuda-cuobjdump==13.2.51
    nvidia-cuda-nvdisasm==13.2.51
)

stamp="$folder/wheels.txt"
if [ "$(cat "$stamp" 2>/dev/null)" = "${wheels[*]}" ]; then
    echo "cuda-toolkit: $folder is complete"
    exit 0
fi
if [ -e "$folder" ] && [ ! -e "$stamp" ] && [ -n "$(ls -A "$folder")" ]; then
    echo "cuda-toolkit: $folder exists and is not ours; remove it or name another folder" >&2
    exit 1
fi

# Built beside the folder and moved at the end: an interrupted run leaves nothing half done.
scratch="$folder.new.$$"
trap 'rm -rf "$scratch"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --no-deps --no-compile \
    --target "$scratch/wheels" "${wheels[@]}"
toolkit="$scratch/wheels/nvidia/cu13"
chmod +x "$toolkit"/bin/* "$toolkit"/nvvm/bin/*
echo "${wheels[*]}" > "$toolkit/wheels.txt"
rm -rf "$folder"
mkdir -p "$(dirname "$folder")"
mv "$toolkit" "$folder"

"$folder/bin/nvcc" --version | tail -2 | head -1
"$folder/bin/cuobjdump" --version | tail -2 | head -1
echo "cuda-toolkit: installed in $folder"
# build.rs looks for nvcc anew when it is newer than its last run.
touch "$(dirname "$0")/../build.rs"
