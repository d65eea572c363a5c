#!/bin/sh
# Makes VENV and installs medseq from SOURCE into it: the steps of the Dockerfile, and of anybody who has no container.
#
#   container/install.sh SOURCE VENV
#
# TORCH_INDEX   where torch comes from, e.g. an index of CPU builds; the configured package index if empty
# CUDA=1        also build mamba-ssm and causal-conv1d, which needs nvcc and a CUDA build of torch
# EXTRAS        extras of medseq
# PYTHON, PIP   the interpreter, and what to call instead of the new environment's pip
set -eu

source=$1
venv=$2
extras=${EXTRAS:-dicom,wsi,mri,review,export}
constraints=$source/constraints.txt

"${PYTHON:-python3}" -m venv "$venv"
pip() {
    # shellcheck disable=SC2086  # PIP may be several words
    ${PIP:-"$venv/bin/python" -m pip} "$@"
}

# torch alone and first: the packages after it must take the one that is there.
torch=$(grep '^torch==' "$constraints")
if [ -n "${TORCH_INDEX:-}" ]; then
    pip install --no-cache-dir --index-url "$TORCH_INDEX" "$torch"
else
    pip install --no-cache-dir "$torch"
fi
# A local version such as 2.13.0+cpu fits its pin; nothing may replace it by another build.
pip install --no-cache-dir --constraint "$constraints" "$source[$extras]"
if [ "${CUDA:-0}" = 1 ]; then
    pip install --no-cache-dir --constraint "$constraints" --no-build-isolation mamba-ssm causal-conv1d
fi
pip check
