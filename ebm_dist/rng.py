"""Random streams that are addressed, not stored.

Every draw comes from ``stream(seed, purpose, shard, step)``. A checkpoint therefore needs the step
but no generator states, a repeated step gives the same bits, and the streams of the logical shards
do not depend on the number of workers.

Torch is imported where it is used: stages that only read data start a second earlier without it.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Generator, Tensor

_NUM_WORDS = 624  # of the state of a Mersenne twister
_WORDS_AT = 24  # their offset in torch's CPU generator state, as 64-bit integers; a test guards it


def _bytes(seed: int, purpose: str, shard: int, step: int, count: int) -> bytes:
    return hashlib.shake_128(f"{seed}/{purpose}/{shard}/{step}".encode()).digest(count)


def stream(
    seed: int, purpose: str, shard: int = 0, step: int = 0, *, device: "torch.device | str" = "cpu"
) -> "Generator":
    """Return the random stream of this purpose, logical shard and step, at its beginning.

    ``manual_seed`` on the CPU uses only 32 bits of its seed: among a million streams about a
    hundred pairs would be equal. Therefore the whole state is filled from the hash of the address.
    On a GPU (Philox) the seed is 64 bits of the hash.
    """
    import torch

    generator = torch.Generator(device)
    if generator.device.type != "cpu":
        return generator.manual_seed(
            int.from_bytes(_bytes(seed, purpose, shard, step, 8), "little") >> 1
        )
    words = np.frombuffer(_bytes(seed, purpose, shard, step, 4 * _NUM_WORDS), "<u4").astype("<u8")
    state = generator.get_state()
    state[_WORDS_AT : _WORDS_AT + words.nbytes] = torch.from_numpy(words.view(np.uint8))
    return generator.set_state(state)


def numpy_stream(seed: int, purpose: str, shard: int = 0, step: int = 0) -> np.random.Generator:
    """Return the NumPy stream of this purpose, logical shard and step (Philox, 128-bit key)."""
    return np.random.Generator(
        np.random.Philox(key=int.from_bytes(_bytes(seed, purpose, shard, step, 16), "little"))
    )


@contextmanager
def seeded(seed: int, purpose: str) -> Iterator[None]:
    """Make the stream of this purpose torch's global generator inside the block.

    Module initialisers need this, because they take no generator.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(stream(seed, purpose).get_state())
        yield


def bernoulli(p: "Tensor", generator: "Generator") -> "Tensor":
    """Draw 1 with probability ``p (*shape)``, else 0; on a CPU three times as fast as torch's."""
    import torch

    return (torch.rand(p.shape, generator=generator, device=p.device, dtype=p.dtype) < p).to(
        p.dtype
    )
