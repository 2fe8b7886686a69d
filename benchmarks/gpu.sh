#!/usr/bin/env bash
# Everything that needs a GPU, within 8 minutes: the GPU tests and the comparison with nanoGPT, and scaling.py.
#     benchmarks/gpu.sh PATH_OF_A_CLONE_OF_NANOGPT [FOLDER_FOR_THE_RESULTS]
# PYTHON is the interpreter, if it is not `python`.
set -euo pipefail
clone=$(realpath "$1")
cd "$(dirname "$0")/.."
out=$(realpath -m "${2:-benchmarks/results}")
python=${PYTHON:-python}
export PYTHONPATH=$PWD  # the benchmarks start programs in other folders
mkdir -p "$out"

# a failure does not stop the next part
failed=0
"$python" benchmarks/on_gpu.py --nanogpt "$clone" --seconds 380 --out "$out" || failed=1
timeout 90 "$python" benchmarks/scaling.py --device cuda --preset shakespeare_char --dtype bfloat16 \
    --out "$out/scaling_gpu" || failed=1
exit $failed
