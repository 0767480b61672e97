"""The devices, instruction sets and dtypes that all operators serve."""

import torch

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
# Of ATEN_CPU_CAPABILITY, those that this processor has: PyTorch believes it and would stop at an unknown instruction.
_CAPABILITIES = ["default", "avx2", "avx512"]
_widest = torch.backends.cpu.get_cpu_capability().lower()  # on other processors, a name of theirs
CAPABILITIES = _CAPABILITIES[: _CAPABILITIES.index(_widest) + 1] if _widest in _CAPABILITIES else ["default"]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
