"""Compile the kernels down to machine code for GPUs that need not be there. Run by `test_gpu_step`."""

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ipinsights.training import gpu_kernels, step
from training.gpu_kernels import KERNELS

CONSTANTS = {
    "DIM": 128, "LEARNT": 125, "COLUMNS": gpu_kernels.COLUMNS, "PIECE": gpu_kernels.PIECE, "BLOCK": gpu_kernels.BLOCK,
    "COUNTED": True, "MOST_SOURCES": step.MOST_SOURCES, "BETA1": step.BETA1, "BETA2": step.BETA2,
    "EPSILON": step.EPSILON,
}  # fmt: skip
FLOATS = {"gradients", "sums", "prefix", "square", "entity", "rates", "deviation", "state", "gradient"}
NUMBERS = {"prefixes", "size"}
CAPABILITIES = (75, 80, 90, 100)  # T4, A100, H100, B200

compiled = 0
for capability in CAPABILITIES:
    for kernel in (getattr(gpu_kernels, name) for name in KERNELS):
        types = {name: "*fp32" if name in FLOATS else "i32" if name in NUMBERS else "*i32" for name in kernel.arg_names}
        constants = {name: CONSTANTS[name] for name in types.keys() & CONSTANTS.keys()}
        source = ASTSource(kernel, types | dict.fromkeys(constants, "constexpr"), constants)
        options = {"num_warps": gpu_kernels.WARPS} if kernel is not gpu_kernels.update_dense else {}
        code = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).asm
        assert code["cubin"]
        assert ".local" not in code["ptx"], "registers are spilled"
        compiled += 1
print("compiled", compiled)
