"""Which of torch's devices can train."""

import torch

from trainonce.errors import UserError


def check_device(name: str) -> None:
    """Raise `UserError` unless torch can compute, learn, draw and give numbers back on the device of that name.

    `meta` is a device whose tensors have no numbers; others are known to torch but not there, or not built in.
    """
    try:
        x = torch.ones(2, device=name, requires_grad=True)
        if x.device.type != "cpu":
            torch.autograd.backward(x.square().sum())
            torch.rand(2, device=name, generator=torch.Generator(name).manual_seed(0)).add_(x.detach()).tolist()
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0].split(". ")[0].rstrip(".")
        raise UserError(f"the device {name!r} cannot be trained on here: {reason}") from error
