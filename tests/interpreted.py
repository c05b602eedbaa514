"""Triton's interpreter, which runs a kernel on the CPU, one operation after another, in numpy."""

import os

import pytest


def require_triton() -> str:
    """The device to run kernels on: a GPU, or the CPU under the interpreter; with neither, the module is skipped."""
    import torch

    if torch.cuda.is_available():
        pytest.importorskip('triton')
        return 'cuda'
    if os.environ.get('TRITON_INTERPRET') != '1':
        pytest.skip(
            'the kernel needs a GPU, or Triton and its interpreter: pip install triton; '
            'TRITON_INTERPRET=1 python -m pytest tests/functional/test_field_kernel.py',
            allow_module_level=True,
        )
    pytest.importorskip('triton')
    _mend()
    return 'cpu'


def _mend() -> None:
    """Mend the interpreter of Triton 3.6: loops to a run-time bound under numpy 2.4, and bfloat16."""
    import numpy as np
    from triton.runtime import interpreter

    builder, patch_tensor = interpreter.InterpreterBuilder, interpreter._patch_lang_tensor
    cast, multiply = builder.cast_impl, builder.create_dot

    def patch(tensor, *scope):
        patch_tensor(tensor, *scope)
        (scope[0].set_attr if scope else setattr)(tensor, '__index__', lambda self: int(self.handle.data.item()))

    def cast_impl(self, source, kind):
        if (source.dtype.scalar.name, kind.scalar.name) != ('fp32', 'bf16'):
            return cast(self, source, kind)
        # It cuts the digits off, where GPUs round to the nearest even number.
        bits = np.ascontiguousarray(source.data, dtype=np.float32).view(np.uint32)
        rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
        return interpreter.TensorHandle(rounded.astype(np.uint16), kind.scalar)

    def create_dot(self, a, b, *more):
        # Its bfloat16 are numpy's uint16, and it would multiply these.
        a, b = (self.cast_impl(x, interpreter.tl.float32) if x.dtype.name == 'bf16' else x for x in (a, b))
        return multiply(self, a, b, *more)

    interpreter._patch_lang_tensor = patch
    builder.cast_impl, builder.create_dot = cast_impl, create_dot
