#!/usr/bin/env bash
# Installs what reads and formats the kernels' sources, without root: libclang, which tools/abi-gen uses,
# and clang-format, each from a pinned Python wheel.
#
#   tools/clang.sh      into .clang/ beside Cargo.toml, which git ignores; the second run costs nothing
set -euo pipefail

folder=$(realpath -m "$(dirname "$0")/../.clang")
wheels=(libclang==18.1.1 clang-format==20.1.8)

if [ "$(cat "$folder/wheels.txt" 2>/dev/null)" = "${wheels[*]}" ]; then
    echo "clang: $folder is complete"
    exit 0
fi
scratch="$folder.new.$$"
trap 'rm -rf "$scratch"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --no-deps \
    --target "$scratch/wheels" "${wheels[@]}"
mkdir "$scratch/tools"
mv "$scratch"/wheels/clang/native/libclang* "$scratch"/wheels/clang_format/data/bin/clang-format* \
    "$scratch/tools"
chmod +x "$scratch"/tools/clang-format*
echo "${wheels[*]}" > "$scratch/tools/wheels.txt"
rm -rf "$folder"
mv "$scratch/tools" "$folder"
"$folder/clang-format" --version
echo "clang: installed in $folder"
