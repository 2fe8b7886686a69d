#!/usr/bin/env bash
# All that a GPU is asked for, within 8 minutes: the tests that need one, both programs in turn, how a step grows.
#     benchmarks/gpu.sh PATH_OF_A_CLONE_OF_NANOGPT [FOLDER_FOR_THE_RESULTS]
# PYTHON is the interpreter, if it is not `python`.
set -euo pipefail
clone=$(realpath "$1")
cd "$(dirname "$0")/.."
out=$(realpath -m "${2:-benchmarks/results}")
python=${PYTHON:-python}
export PYTHONPATH=$PWD  # for programs that run in other folders, where this one is not installed
mkdir -p "$out"

# each goes on where the one before failed, so that a failure costs its own results only
failed=0
mapfile -t tests < <(grep -l "mark.gpu" tests/test_*.py)
"$python" -m pytest -m gpu "${tests[@]}" || failed=1
timeout 360 "$python" benchmarks/on_gpu.py --nanogpt "$clone" --out "$out/on_gpu" || failed=1
timeout 90 "$python" benchmarks/scaling.py --device cuda --preset shakespeare_char --dtype bfloat16 \
    --out "$out/scaling_gpu" || failed=1
exit $failed
