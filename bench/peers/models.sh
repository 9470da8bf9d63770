#!/usr/bin/env bash
# Fetches the two larger models of docs/benchmarks/executor.md into FOLDER (default target/bench-models):
# `ppocr-cls.onnx` (PaddleOCR's text direction classifier, Apache-2.0, from the wheel rapidocr-onnxruntime) with its
# image size fixed, and `resnet50.onnx`: the ResNet-50 topology that the wheel `onnx` ships without weights, given
# random ones (seed 0). Nothing of them is committed.
#
#   bench/peers/models.sh [--small] [FOLDER]    --small: only ppocr-cls.onnx, which a test of the CUDA backend wants
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
small=
if [ "${1:-}" = --small ]; then
  small=1
  shift
fi
folder=${1:-target/bench-models}
[ -n "$small" ] || [ -s "$folder/resnet50.onnx" ] && [ -s "$folder/ppocr-cls.onnx" ] && exit 0
mkdir -p "$folder"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q onnx==1.23.2 numpy
"$work/venv/bin/pip" download -q --no-deps -d "$work" rapidocr-onnxruntime==1.4.4
python3 -m zipfile -e "$work"/rapidocr_onnxruntime-*.whl "$work/rapidocr"
"$work/venv/bin/python" bench/peers/models.py "$work/rapidocr" "$folder" $small
