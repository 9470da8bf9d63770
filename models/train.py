#!/usr/bin/env python3
"""Trains the committed models, in numpy alone, and writes them beside this script.

    scripts/train-models.sh                         train all, write *.onnx, scores.json, test-vectors.json
    scripts/train-models.sh --only delay            one of them
    scripts/train-models.sh --check                 train into a temporary folder, compare with what is committed
    scripts/train-models.sh --score-recorded FILE   no training: delay.onnx on a recording of HFP v2

Everything is seeded and single-threaded: the same machine writes the same bytes again, and so does any
x86-64 with AVX2 (the two settings below keep numpy and OpenBLAS from using more than that).
"""

import os
import sys

# Before numpy is imported: they are read once.
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OPENBLAS_CORETYPE"] = "Haswell"
os.environ["NPY_DISABLE_CPU_FEATURES"] = "AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR"

import argparse
import json
import tempfile
import time
import warnings
from pathlib import Path

# numpy warns when a feature that is to be disabled does not exist here anyway.
warnings.filterwarnings("ignore", category=ImportWarning)
warnings.filterwarnings("ignore", message=".*NPY_DISABLE_CPU_FEATURES.*")

from training import count, delay, export, occupancy, recorded

HERE = Path(__file__).resolve().parent
MODELS = {"delay": delay, "occupancy-gru": occupancy, "count-cnn": count}


def say(text):
    print(text, file=sys.stderr, flush=True)


def train(names, folder):
    """Trains `names` into `folder`; returns {name: (file, scores, vectors)}."""
    built = {}
    for name in names:
        began = time.monotonic()
        path = folder / f"{name}.onnx"
        scores, vectors = MODELS[name].build(path)
        for vector in vectors:
            export.confirm(path, vector)
        say(f"{path.name}: {path.stat().st_size / 1000:.0f} kB in {time.monotonic() - began:.0f} s, {scores}")
        built[name] = (path, scores, vectors)
    return built


def update(file, header, entries):
    """Replaces the entries of `file` that were made anew; the others stay."""
    old = json.loads(file.read_text())["models"] if file.exists() else {}
    merged = {k: entries.get(k, old.get(k)) for k in MODELS if k in entries or k in old}
    file.write_text(json.dumps({**header, "models": merged}, indent=1) + "\n")


def write_reports(built):
    update(
        HERE / "scores.json",
        {"about": "Held-out simulated data; written by train.py. What the figures mean: README.md."},
        {k: {"sha256": export.sha256(p), "bytes": p.stat().st_size, "held_out": s} for k, (p, s, _) in built.items()},
    )
    update(
        HERE / "test-vectors.json",
        {
            "about": "Inputs and expected outputs, computed in float64 from the float32 weights and confirmed with "
            "ONNX Runtime. Input either `rows` (literal) or `sine`: element i of the row-major tensor is "
            "offset + scale * sin(step * i), computed in float64 and rounded to float32.",
            "tolerance": 1e-4,
            "tolerance_is": "absolute difference / max(1, |expected|)",
        },
        {
            k: {"file": p.name, "sha256": export.sha256(p), **MODELS[k].IO, "cases": v}
            for k, (p, _, v) in built.items()
        },
    )


def check(names):
    """Fails when a model trained now differs from the committed file."""
    with tempfile.TemporaryDirectory() as folder:
        stale = [k for k, (p, _, _) in train(names, Path(folder)).items() if p.read_bytes() != (HERE / p.name).read_bytes()]
    if stale:
        raise SystemExit(f"not what this machine trains: {', '.join(stale)}")
    say("identical: " + ", ".join(names))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=sorted(MODELS), help="train this one (may be repeated)")
    parser.add_argument("--check", action="store_true", help="compare with the committed files, write nothing")
    parser.add_argument("--score-recorded", type=Path, metavar="FILE", help="score delay.onnx on recorded HFP v2 lines")
    args = parser.parse_args()
    names = args.only or list(MODELS)
    if args.score_recorded:
        scores = recorded.score(HERE / "delay.onnx", args.score_recorded, delay.scores)
        print(json.dumps(scores, indent=1))
    elif args.check:
        check(names)
    else:
        write_reports(train(names, HERE))


if __name__ == "__main__":
    main()
