"""Random streams that are addressed, not stored.

Every draw comes from ``stream(seed, purpose, shard, step)``. So a checkpoint needs the step and no generator states, a step that
is done twice gives the same bits, and the streams of the logical shards do not depend on how many workers share them.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Generator, Tensor

_NUM_WORDS = 624  # the state of a Mersenne twister
_WORDS_AT = (
    24  # where torch's CPU generator state keeps them, as 64-bit integers; a test guards this
)


def _bytes(seed: int, purpose: str, shard: int, step: int, count: int) -> bytes:
    return hashlib.shake_128(f"{seed}/{purpose}/{shard}/{step}".encode()).digest(count)


def stream(
    seed: int, purpose: str, shard: int = 0, step: int = 0, *, device: torch.device | str = "cpu"
) -> torch.Generator:
    """The random stream of this purpose, logical shard and step, at its beginning.

    ``manual_seed`` on the CPU keeps only 32 bits of its seed, so among a million streams some hundred pairs would be the same
    stream. There the whole state is filled from the hash of the address instead; on a GPU (Philox) 64 bits of it are the seed.
    """
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
    """As :func:`stream`, for work on arrays (a counter-based Philox generator with a 128-bit key)."""
    return np.random.Generator(
        np.random.Philox(key=int.from_bytes(_bytes(seed, purpose, shard, step, 16), "little"))
    )


@contextmanager
def seeded(seed: int, purpose: str) -> Iterator[None]:
    """Inside, torch's global generator is the stream of this purpose: for module initialisers, which take no generator."""
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(stream(seed, purpose).get_state())
        yield


def bernoulli(p: Tensor, generator: Generator) -> Tensor:
    """Ones with probability ``p (*shape)``, else zeros; on a CPU three times as fast as torch's."""
    return (torch.rand(p.shape, generator=generator, device=p.device, dtype=p.dtype) < p).to(
        p.dtype
    )
