#!/usr/bin/env python3
"""Compiles the CUDA sources of this folder to PTX, and has ptxas assemble them.

Needs the wheels nvidia-cuda-nvrtc-cu12==12.0.* and nvidia-cuda-nvcc-cu12 (scripts/build-kernels.sh installs them into a
virtual environment). Nothing here runs on a GPU, and nothing of it is needed to build or run Barista.

    build.py [--out DIR] [--define NAME]... [FILE.cu]...   writes DIR/FILE.ptx (default: ptx/ beside this file)
    build.py --ptxas [--json]                              registers, shared memory and spills for sm_75, 80, 90
"""
import argparse, ctypes, glob, json, os, re, subprocess, sys, tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
ARCH = "compute_75"
TARGETS = ["sm_75", "sm_80", "sm_90"]


def find(pattern):
    for root in sys.path:
        hits = glob.glob(os.path.join(root, "nvidia", pattern))
        if hits:
            return hits[0]
    sys.exit(f"build.py: nvidia/{pattern} not found; run scripts/build-kernels.sh")


def nvrtc(path, defines):
    lib = ctypes.CDLL(find("cuda_nvrtc/lib/libnvrtc.so.12"))
    major, minor = ctypes.c_int(), ctypes.c_int()
    lib.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    if (major.value, minor.value) != (12, 0):
        sys.exit(f"build.py: NVRTC {major.value}.{minor.value}, need 12.0 (PTX 8.0, which drivers from 525 on accept)")
    program = ctypes.c_void_p()
    name = os.path.basename(path).encode()
    lib.nvrtcCreateProgram(ctypes.byref(program), open(path, "rb").read(), name, 0, None, None)
    options = [f"--gpu-architecture={ARCH}", "--std=c++17", f"--include-path={HERE}"] + [f"--define-macro={d}" for d in defines]
    array = (ctypes.c_char_p * len(options))(*[o.encode() for o in options])
    code = lib.nvrtcCompileProgram(program, len(options), array)
    size = ctypes.c_size_t()
    lib.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    lib.nvrtcGetProgramLog(program, log)
    if log.value.strip():
        print(log.value.decode(), file=sys.stderr)
    if code != 0:
        sys.exit(f"build.py: {path}: NVRTC error {code}")
    lib.nvrtcGetPTXSize(program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    lib.nvrtcGetPTX(program, text)
    return text.value


def ptxas(path, target):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as out:
        run = subprocess.run([find("cuda_nvcc/bin/ptxas"), "-v", f"-arch={target}", "-o", out.name, path], capture_output=True, text=True)
    if run.returncode:
        sys.exit(f"build.py: ptxas {target} {path}: {run.stderr}")
    rows, kernel = [], None
    for line in run.stderr.splitlines():
        if m := re.search(r"Compiling entry function '(\w+)'", line):
            kernel = {"kernel": m[1], "target": target, "registers": None, "shared": 0, "stack": 0, "spill_stores": 0, "spill_loads": 0}
            rows.append(kernel)
        if m := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            kernel.update(stack=int(m[1]), spill_stores=int(m[2]), spill_loads=int(m[3]))
        if m := re.search(r"Used (\d+) registers", line):
            kernel["registers"] = int(m[1])
        if m := re.search(r"(\d+) bytes smem", line):
            kernel["shared"] = int(m[1])
    return rows


def fixed_addresses():
    """NVRTC's output depends on addresses (a pass iterates by pointer): run again without randomisation, with a fixed
    environment and hash seed."""
    no_randomise = 0x0040000
    libc = ctypes.CDLL(None)
    now = libc.personality(0xFFFFFFFF)
    if now & no_randomise and os.environ.get("PYTHONHASHSEED") == "0" and len(os.environ) <= 2:  # python adds LC_CTYPE
        return
    if libc.personality(now | no_randomise) == -1:
        sys.exit("build.py: address randomisation cannot be switched off here; the PTX would not be reproducible")
    os.execve(sys.executable, [sys.executable] + sys.argv, {"PYTHONHASHSEED": "0"})


def main():
    fixed_addresses()
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--out", default=os.path.join(HERE, "ptx"))
    args.add_argument("--define", action="append", default=[])
    args.add_argument("--ptxas", action="store_true")
    args.add_argument("--json", action="store_true")
    args.add_argument("files", nargs="*")
    a = args.parse_args()
    files = a.files or sorted(glob.glob(os.path.join(HERE, "*.cu")))
    stem = lambda f: os.path.splitext(os.path.basename(f))[0]
    if a.ptxas:
        rows = [r for t in TARGETS for f in files for r in ptxas(os.path.join(a.out, stem(f) + ".ptx"), t)]
        if a.json:
            print(json.dumps(rows))
        else:
            for r in rows:
                print(f"{r['target']} {r['kernel']:20} {r['registers']:4} registers {r['shared']:6} B shared {r['stack']:4} B stack {r['spill_stores']:4}+{r['spill_loads']} B spilled")
        return
    os.makedirs(a.out, exist_ok=True)
    for f in files:
        with open(os.path.join(a.out, stem(f) + ".ptx"), "wb") as out:
            out.write(nvrtc(f, a.define))


main()
