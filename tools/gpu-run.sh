#!/usr/bin/env bash
# Runs a bundle of tools/gpu-bundle.sh on this machine: conformance first, then tests, the portable path again
# with the driver's own compilation of the PTX, compute-sanitizer where it is installed, benches. Ends in a
# table; the exit status is 0 if nothing failed.
#
#   ./run.sh               everything; logs and gpu.csv in results/
#   ./run.sh --record      the conformance suite writes golden/ from this GPU instead of comparing
#   ./run.sh --quick       without compute-sanitizer and benches
set -uo pipefail
cd "$(dirname "$0")"

record=0 quick=0
for option in "$@"; do
    case $option in
    --record) record=1 ;;
    --quick) quick=1 ;;
    *) echo "run.sh: $option is no option" >&2 && exit 2 ;;
    esac
done
mkdir -p results
rm -f results/*.log results/gpu.csv
export MOE_MICRO_FATBINS=$PWD/micro MOE_GOLDEN=$PWD/golden MOE_FIXTURES=$PWD/tests/fixtures
rows=()
failed=0

# Runs one step with its output in a log, and keeps a row of the table.
step() { # NAME COMMAND...
    local name=$1 log="results/$1.log" from=$SECONDS status verdict counts
    shift
    echo "=== $name: $*"
    "$@" > "$log" 2>&1
    status=$?
    counts=$(grep -hoE '[0-9]+ passed; [0-9]+ failed' "$log" | tail -1)
    # A test tells of each thing that it could not do.
    skipped=$(grep -c 'SKIPPED' "$log")
    verdict=passed
    if [ $status -ne 0 ]; then
        verdict=FAILED failed=1
        grep -E 'panicked|wrong|error|ERROR|FAILED|refused' "$log" | head -20
    elif [ "$skipped" -gt 0 ]; then
        verdict="SKIPPED $skipped"
        grep -o 'SKIPPED.*' "$log" | cut -c 1-200 | head -3
    fi
    rows+=("$(printf '%-26s %-12s %6ds  %s' "$name" "$verdict" $((SECONDS - from)) "$counts")")
}
leave_out() { # NAME WHY
    rows+=("$(printf '%-26s %-12s %6s   %s' "$1" "left out" "" "$2")")
}

step doctor bash -c './doctor || test -z "${MOE_REQUIRE_GPU:-}"'
MOE_RECORD_GOLDEN=$record step conformance ./conformance_gpu the_gpu_computes_the_truth
step tests ./gpu --test-threads 1
CUDA_FORCE_PTX_JIT=1 step tests-ptx-jit ./gpu --test-threads 1
step run_layer ./run_layer tests/fixtures/mixtral.safetensors
if [ $quick = 1 ]; then
    leave_out memcheck "--quick"
    leave_out racecheck "--quick"
    leave_out bench "--quick"
else
    for tool in memcheck racecheck; do
        if command -v compute-sanitizer >/dev/null; then
            step "$tool" compute-sanitizer --tool "$tool" --error-exitcode 1 ./gpu --test-threads 1 small
        else
            leave_out "$tool" "no compute-sanitizer here"
        fi
    done
    step bench bash -c './bench > results/gpu.csv; status=$?; cat results/gpu.csv; exit $status'
fi

{
    echo
    echo "moe-kernels $(cat commit.txt), $(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null |
        head -1 || true)"
    printf '%s\n' "${rows[@]}"
} | tee results/table.txt
[ $record = 0 ] || echo "golden/ was recorded here: copy it to emulator/golden/ and commit it"
exit $failed
