#!/usr/bin/env python3
"""Compares what ptxas says of every kernel (registers, spills, stack) with the checked-in ptxas_table.txt.

Usage: ptxas_table.py BUILD_DIR [--update]
Compiles kernels/*.cu again with the commands of BUILD_DIR/compile_commands.json, output thrown away (ccache answers
where it is in use). A spill or a stack frame always fails. Register counts are compared when the nvcc is the one that
the table names, because they change between versions. --update writes the table.
"""
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile

TABLE = pathlib.Path(__file__).with_name("ptxas_table.txt")


def nvcc_version(nvcc):
    return re.search(r"V(\d+\.\d+\.\d+)", subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout)[1]


def resources(log):
    """Maps a kernel's short name to (registers, spill bytes, stack bytes)."""
    entries = re.findall(
        r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
        r".*?Used (\d+) registers", log, re.S)
    mangled = "\n".join(entry[0] for entry in entries)
    names = subprocess.run(["c++filt"], input=mangled, capture_output=True, text=True, check=True).stdout.splitlines()
    out = {}
    for name, (_, stack, stores, loads, registers) in zip(names, entries):
        name = re.sub(r"^void ", "", name)
        if name.startswith("cub::"):  # the toolkit's own
            continue
        name = re.sub(r"\(anonymous namespace\)::|_GLOBAL__N__\w+::|hearth::kernels::", "", name)
        name = re.sub(r"\(\w*\)(?=\d)", "", name)  # casts of integer template arguments
        depth = 0
        for i, c in enumerate(name):  # cut the argument list, which starts outside the template arguments
            depth += {"<": 1, ">": -1}.get(c, 0)
            if c == "(" and depth == 0:
                name = name[:i]
                break
        out[name] = (int(registers), int(stores) + int(loads), int(stack))
    return out


def compile_one(command, directory, scratch):
    words = shlex.split(command)
    if shutil.which("ccache") and os.path.basename(words[0]) != "ccache":
        words.insert(0, "ccache")
    for flag, file in (("-o", "out.o"), ("-MF", "out.d")):
        if flag in words:
            words[words.index(flag) + 1] = os.path.join(scratch, file)
    done = subprocess.run(words, cwd=directory, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"ptxas_table: {' '.join(words)} failed:\n{done.stderr}")
    return done.stdout + done.stderr, next(w for w in words if os.path.basename(w) == "nvcc")


def main():
    build, update = pathlib.Path(sys.argv[1]), "--update" in sys.argv
    found, nvcc = {}, None
    with tempfile.TemporaryDirectory() as scratch:
        for entry in json.loads((build / "compile_commands.json").read_text()):
            if entry["file"].endswith(".cu") and "/kernels/" in entry["file"]:
                log, nvcc = compile_one(entry["command"], entry["directory"], scratch)
                found.update(resources(log))
    if not found:
        sys.exit("ptxas_table: no kernels found; are the .cu files compiled with -Xptxas -v?")
    version = nvcc_version(nvcc)
    lines = [f"{r:4} {name}" for name, (r, _, _) in sorted(found.items())]
    if update:
        TABLE.write_text("\n".join([f"# nvcc {version}, sm_90a; written by ptxas_table.py --update",
                                    "# registers a thread, kernel; none spills or has a stack frame"] + lines) + "\n")
    bad = [f"{n} spills {spill} bytes, stack {stack}" for n, (_, spill, stack) in sorted(found.items()) if spill or stack]
    old = TABLE.read_text().splitlines()
    if f"nvcc {version}," in old[0]:
        kept = {line[5:]: int(line[:4]) for line in old if not line.startswith("#")}
        for name in sorted(kept.keys() | found.keys()):
            now, before = found.get(name, ("no kernel",))[0], kept.get(name, "no entry")
            if now != before:
                bad.append(f"{name}: {before} registers in the table, {now} now")
    else:
        print(f"the table is of another nvcc ({old[0]}), this is {version}: only spills were checked")
    print(f"{len(found)} kernels, most registers {max(r for r, _, _ in found.values())}")
    if bad:
        sys.exit("\n".join(bad) + "\nptxas_table: if the change is meant, run ptxas_table.py BUILD_DIR --update")


main()
