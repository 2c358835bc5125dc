"""Writes nf4_golden.h: what bitsandbytes makes of nf4_test.cpp's weights. Needs bitsandbytes and torch.
make_nf4_golden.py > nf4_golden.h"""
import numpy
import torch
from bitsandbytes import functional

BLOCKS = 600  # three groups, the last one not full


def weights():
    """The same numbers as nf4_test.cpp: all steps are exact, or one rounding."""
    i = numpy.arange(BLOCKS * 64, dtype=numpy.uint64)
    hashed = (i * numpy.uint64(2654435761)) & numpy.uint64(0xFFFFFFFF)
    centred = (hashed >> numpy.uint64(8)).astype(numpy.int64) - (1 << 23)
    return torch.from_numpy((centred.astype(numpy.float32) * numpy.float32(2.0**-28)) * (1 + (i // 64) % 37).astype(numpy.float32))


def fnv(data):
    digest = 0xCBF29CE484222325
    for byte in data:
        digest = ((digest ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return digest


def main():
    x = weights()
    codes, state = functional.quantize_4bit(x, blocksize=64, quant_type="nf4", compress_statistics=False)
    mean = state.absmax.double().mean().float()  # bitsandbytes sums in fp32, in an order that depends on the device
    # The general kernel, which finds the nearest code as that for GPUs does; the CPU library's is approximate.
    map8 = functional.create_dynamic_map(signed=True)
    quantize = torch.ops.bitsandbytes.quantize_blockwise.default._op_dk
    codes8, groups = quantize(torch._C.DispatchKey.CompositeExplicitAutograd, state.absmax - mean, map8, 256)
    state.absmax = functional.dequantize_blockwise(codes8, absmax=groups, code=map8, blocksize=256) + mean
    values = functional.dequantize_4bit(codes, state)
    lines = ["// Written by make_nf4_golden.py with bitsandbytes. Digests are FNV-1a.", "#pragma once", "",
             "#include <cstdint>", "", "namespace hearth::testing {", "",
             f"constexpr int kGoldenBlocks = {BLOCKS};",
             f"constexpr uint64_t kGoldenCodes = {fnv(codes.view(-1).numpy().tobytes()):#x}ULL;",
             f"constexpr uint64_t kGoldenScales = {fnv(codes8.numpy().tobytes()):#x}ULL;",
             f"constexpr uint64_t kGoldenMap = {fnv(map8.numpy().tobytes()):#x}ULL;",
             f"constexpr uint64_t kGoldenValues = {fnv(values.reshape(-1).float().numpy().tobytes()):#x}ULL;",
             f"constexpr float kGoldenMean = {float(mean).hex()}f;",
             "constexpr float kGoldenGroups[] = {" + ", ".join(f"{g.hex()}f" for g in groups.tolist()) + "};", "",
             "}  // namespace hearth::testing"]
    print("\n".join(lines))


if __name__ == "__main__":
    main()
