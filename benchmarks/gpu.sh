#!/usr/bin/env bash
# Everything that only a GPU can show, with one command, in under nine minutes:
#
#     benchmarks/gpu.sh OUT
#
# Each part writes OUT/NAME.json (tests: tests.xml) and OUT/NAME.log, and has a time limit of its own. One that fails
# or runs out of time does not stop the others, and what it has measured until then is in its JSON. OUT/summary.json
# says how each ended, and OUT/gpu.tar.gz holds all files. The exit status is 0 where all that were to run did. In the
# order of their importance:
#
#     pytorch          against PyTorch at its best in bfloat16, batch 512 and 1024 (needs PyTorch)
#     pytorch-float32  the same in float32 (TF32 on both sides), batch 512
#     published        the published run of 51 epochs, three seeds
#     step             speed, memory and compiling at batch 512, against a plain Flax step
#     startup          what a start costs: importing, compiling, the first step
#     tests            the test suite, with full float32 matrix products (needs pytest and hypothesis)
#
# The tests come last and get what time is left. They need minutes: give them a call of their own.
#
#     SKIP=tests benchmarks/gpu.sh OUT/1; ONLY=tests benchmarks/gpu.sh OUT/2
#
# Variables, none of which must be set:
#
#     SKIP="tests pytorch"   leave these parts out           ONLY="step"      run no others
#     TOTAL=515              seconds for all parts together  LIMIT=300        seconds for each, in place of its own
#     TESTS="tests/test_a.py tests/test_b.py"                test files, in place of all
#     DATA=FOLDER            CIFAR-10 for the published run; without it the images are drawn, and only the time counts
#     WHEELS=FOLDER          packages (*.whl) that are missing here; they are installed for these programs alone
#     PYTHON=python3         the interpreter
#     JAXRESNET_COMMIT=...   what the JSON says the commit is, where this is no checkout
#     TOY=1                  on a CPU, as small as can be: shows that everything runs, and nothing else
set -uo pipefail
parts="pytorch pytorch-float32 published step startup tests"
[ $# = 1 ] && [[ $1 != -* ]] || { echo "usage: benchmarks/gpu.sh OUT" >&2; exit 2; }
for name in ${SKIP:-} ${ONLY:-}; do
    [[ " $parts " == *" $name "* ]] || { echo "gpu.sh: no part named $name; there are: $parts" >&2; exit 2; }
done
mkdir -p "$1" && out=$(cd "$1" && pwd) || exit 2
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
python=${PYTHON:-python3}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export JAX_PLATFORMS=cuda  # without a GPU nothing runs, rather than on the CPU
# Several processes share the GPU in turns: none may take all of its memory for itself.
export XLA_PYTHON_CLIENT_PREALLOCATE=false
device=cuda
[ -z "${TOY:-}" ] || { export JAX_PLATFORMS=cpu; device=cpu; }

temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT
if [ -n "${WHEELS:-}" ]; then
    "$python" -m pip install --quiet --no-index --no-deps --target "$temporary/site" "$WHEELS"/*.whl || exit 2
    export PYTHONPATH="$PYTHONPATH:$temporary/site"
fi

status=0
# What one program has compiled the others need not. Those that measure compiling do without.
export JAX_COMPILATION_CACHE_DIR=$temporary/compiled
rows=()

wanted() { [[ " ${ONLY:-$parts} " == *" $1 "* && " ${SKIP:-} " != *" $1 "* ]]; }

# part NAME SECONDS COMMAND...: run it, and note how it ended.
part() {
    local name=$1 limit begin=$SECONDS left=$((${TOTAL:-515} - SECONDS)) code=0 result=done
    limit=${LIMIT:-$2}
    shift 2
    if ! wanted "$name"; then
        result=skipped
    elif [ "$left" -lt 10 ]; then
        result="no time left" status=1
    else
        [ "$limit" -lt "$left" ] || limit=$left
        echo "== $name (at most $limit s)"
        # Asked to end by Ctrl-C, so that what was found until then is written, and killed if that does not help.
        timeout --signal INT --kill-after 15 "$limit" "$@" >"$out/$name.log" 2>&1 || code=$?
        tail -n 25 "$out/$name.log"
        case $code in
            0) ;;
            124 | 137) result="out of time" status=1 ;;
            *) result=failed status=1 ;;
        esac
    fi
    rows+=("{\"part\": \"$name\", \"result\": \"$result\", \"status\": $code, \"seconds\": $((SECONDS - begin))}")
}

# measure NAME SECONDS PROGRAM ARGUMENTS...: a program of this folder, whose first argument is its JSON file.
measure() {
    local name=$1 limit=$2 program=$3
    shift 3
    part "$name" "$limit" "$python" "benchmarks/$program.py" "$out/$name.json" "$@"
}

run_tests() {
    # shellcheck disable=SC2086  # several files
    "$python" -m pytest -o addopts= -q -rfE --continue-on-collection-errors --junitxml "$out/tests.xml" ${TESTS:-tests}
}

if [ -z "${TOY:-}" ]; then
    against=(compare_pytorch --device $device --timeout 90)
    measure pytorch 150 "${against[@]}" --batch-sizes 512 1024 --precisions bfloat16 --pairs 5
    measure pytorch-float32 90 "${against[@]}" --batch-sizes 512 --precisions float32 --pairs 5
    measure published 100 published_run --precision bfloat16 --seeds 0 1 2 ${DATA:+--data "$DATA"}
    JAX_ENABLE_COMPILATION_CACHE=false measure step 50 train_step --batch-sizes 512 --precisions bfloat16 --pairs 3
    measure startup 90 startup --precision bfloat16 --rounds 2
else
    against=(compare_pytorch --device $device --batch-sizes 16 --rivals eager --pairs 1 --images 64 --width 8)
    measure pytorch 120 "${against[@]}" --precisions bfloat16
    measure pytorch-float32 120 "${against[@]}" --precisions float32
    measure published 60 published_run --width 4 --stage-sizes 1 --epochs 2 --images 512 --seeds 0 \
        ${DATA:+--data "$DATA"}
    measure step 90 train_step --batch-sizes 16 --precisions float32 --pairs 1
    measure startup 90 startup --width 4 --rounds 1
    TESTS=${TESTS:-tests/training/test_metrics.py}
fi
export JAX_DEFAULT_MATMUL_PRECISION=highest
# Some tests ask for the same bits twice.
[ -n "${TOY:-}" ] || export XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_deterministic_ops=true"
export -f run_tests
export python out TESTS
part tests 515 bash -c run_tests

{
    echo "{\"toy\": $([ -z "${TOY:-}" ] && echo false || echo true), \"seconds\": $SECONDS, \"parts\": ["
    for i in "${!rows[@]}"; do echo "  ${rows[i]}$([ "$i" = $((${#rows[@]} - 1)) ] || echo ,)"; done
    echo "]}"
} | tee "$out/summary.json"
tar -czf "$temporary/gpu.tar.gz" -C "$out" . && mv "$temporary/gpu.tar.gz" "$out"
exit $status
