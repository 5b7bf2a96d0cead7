"""What a caller may have set for all of torch, put aside while the library works."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch


@contextmanager
def differentiable() -> Iterator[None]:
    """Leave inference mode in the block: scores and training need gradients."""
    with torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext():
        yield


@contextmanager
def usual() -> Iterator[None]:
    """Leave inference mode, and make float32 the default type, in the block."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with differentiable():
            yield
    finally:
        torch.set_default_dtype(before)
