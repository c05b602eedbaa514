"""Tables that depend on sizes alone, kept from one evaluation to the next: some sixty launches a step on a GPU."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch

T = TypeVar('T')

KEPT = 16
LARGEST_KEPT = 2**22
"""Bytes of a table that is still kept: coordinates of patches of 128x128 pixels."""


def kept(make: Callable[..., T]) -> Callable[..., T]:
    """Keep the last tables, a tensor or a tuple, that a function made of hashable arguments, a device among them.

    Not while a compiler traces it, a CUDA graph is captured, or fake tensors take the place of real ones.
    """
    tables: OrderedDict[Any, T] = OrderedDict()

    @wraps(make)
    def find(*arguments: Any) -> T:
        if torch.compiler.is_compiling() or torch._guards.detect_fake_mode() is not None:
            return make(*arguments)
        if arguments in tables:
            tables.move_to_end(arguments)
            return tables[arguments]
        # Sampling may run in inference mode, whose tensors could not be trained with.
        with torch.inference_mode(False), torch.no_grad():
            table = make(*arguments)
        parts: Any = table if isinstance(table, tuple) else (table,)
        if sum(part.nbytes for part in parts) <= LARGEST_KEPT and not _is_capturing():
            tables[arguments] = table
            while len(tables) > KEPT:
                tables.popitem(last=False)
        return table

    return find


def _is_capturing() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
