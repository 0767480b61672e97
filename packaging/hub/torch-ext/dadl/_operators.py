"""Loads the operators of a build for the Hugging Face Hub, which has a namespace of its own.

kernel-builder writes the module _ops, and metadata.json beside it. Its one library holds both backends.
"""

import importlib
import json
from pathlib import Path

import torch

from ._ops import add_op_namespace_prefix as add_op_namespace_prefix
from ._ops import ops

_METADATA = Path(__file__).with_name("metadata.json")
_HAS_CUDA = torch._C._dispatch_has_kernel_for_dispatch_key(add_op_namespace_prefix("rank"), "CUDA")
CPU_LIBRARY = Path(str(importlib.import_module(f".{ops.name}", __package__).__file__))
CUDA_LIBRARY = CPU_LIBRARY if _HAS_CUDA else None
CUDA_ARCHITECTURES = json.loads(_METADATA.read_text())["backend"]["archs"] if _HAS_CUDA and _METADATA.exists() else []
CUDA_ABSENT_BECAUSE = None if _HAS_CUDA else f"{ops.name} was built without CUDA"
VERSION = ops.name  # tells builds apart
