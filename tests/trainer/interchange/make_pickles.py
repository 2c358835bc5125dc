#!/usr/bin/env python3
"""Makes PyTorch files, honest and hostile: make_pickles.py OUT

OUT/good.bin      torch.save of an OrderedDict: every dtype, a parameter, a shared storage with an offset, a scalar
OUT/good.safetensors  the same tensors
OUT/bad_*.bin     must be refused: bad_call runs a shell command when unpickled (it would make OUT/pwned), bad_transposed
                  is not row-major, bad_nested holds more than tensors, bad_legacy is the form before zip, bad_storage
                  says more elements than there are, bad_compressed has deflated members
"""
import os
import pathlib
import sys
import zipfile

import torch
from safetensors.torch import save_file

out = pathlib.Path(sys.argv[1])
torch.manual_seed(4)
base = torch.randn(10, 6)
good = {
    "float": torch.randn(5, 7),
    "half": torch.randn(3, 4).half(),
    "bfloat16": torch.randn(4, 3).bfloat16(),
    "double": torch.randn(2, 2, 2).double(),
    "long": torch.arange(5) - 2,
    "int": torch.arange(4, dtype=torch.int32),
    "bool": torch.tensor([True, False]),
    "scalar": torch.tensor(3.5),
    "parameter": torch.nn.Parameter(torch.randn(6)),
    "rows": base[3:7],
    "all": base,
}
module = torch.nn.Linear(3, 2)
state = module.state_dict()  # an OrderedDict with _metadata, as models have
state.update(good)
torch.save(state, out / "good.bin")
save_file({k: v.detach().clone().contiguous() for k, v in state.items()}, out / "good.safetensors")


class Shell:
    def __reduce__(self):
        return os.system, (f"touch {out}/pwned",)


torch.save({"weight": torch.ones(2), "x": Shell()}, out / "bad_call.bin")
torch.save({"weight": torch.randn(3, 4).T}, out / "bad_transposed.bin")
torch.save({"state_dict": {"weight": torch.ones(2)}, "epoch": 3}, out / "bad_nested.bin")
torch.save({"weight": torch.ones(2)}, out / "bad_legacy.bin", _use_new_zipfile_serialization=False)


def rewrite(name, change, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(out / "good.bin") as source, zipfile.ZipFile(out / name, "w", method) as target:
        for member in source.infolist():
            target.writestr(member.filename, change(member.filename, source.read(member)))


rewrite("bad_storage.bin", lambda name, data: data[:-2] if name.endswith("/data/0") else data)
rewrite("bad_compressed.bin", lambda name, data: data, zipfile.ZIP_DEFLATED)
