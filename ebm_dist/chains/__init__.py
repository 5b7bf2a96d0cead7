"""Chains: runs in training, compiled kernels, replay buffer, diagnostics, tempering, warm-up."""


def compile_error() -> type[Exception]:
    """Return what ``torch.compile`` raises; its module takes a second to import."""
    from torch._dynamo.exc import TorchDynamoException

    return TorchDynamoException
