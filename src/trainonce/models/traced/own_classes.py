"""A subnet as an object of the person's own classes, for their own code."""

import copy

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from trainonce.errors import UserError
from trainonce.models.traced.supernet import Traced
from trainonce.space import Architecture


def in_own_classes(net: Traced, model: nn.Module, arch: Architecture) -> nn.Module:
    """A copy of `model`, the network that `net` was made of, with the weights of the subnet `arch`.

    Blocks that are left out become `nn.Identity`. What the copy computes is compared with the subnet, to the last bit.
    Raises `UserError` where the person's forward pass cannot be this subnet: it may spell numbers of channels out, or
    have a branch that is no module of its own.
    """
    plain, own = net.extract(arch).eval(), copy.deepcopy(model).eval()
    for at, name in net.layout.depths.items():
        if name in arch:
            for residual in net.layout.residuals.stages[at].residuals[arch[name] :]:
                _leave_out(own, net.settings.origins[residual.out].module)
    for name, tensor in [*plain.named_parameters(), *plain.named_buffers()]:
        path, _, last = name.rpartition(".")
        try:
            owner = own.get_submodule(path)
        except AttributeError:
            continue  # the comparison says whether it is missed
        if last in dict(owner.named_parameters(recurse=False)) | dict(owner.named_buffers(recurse=False)):
            setattr(owner, last, tensor)
    for module in own.modules():
        _follow(module)
    side, channels = net.describe(arch).resolution, net.settings.in_channels
    x_BCHW = torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            same = torch.equal(own(x_BCHW), plain(x_BCHW))
    except (RuntimeError, ValueError, TypeError) as error:
        first = str(error).partition("\n")[0]
        kind = type(model).__name__
        raise UserError(f"{kind} cannot be the subnet {arch} in its own classes: {first:.200}") from error
    if not same:
        raise UserError(f"{type(model).__name__} computes something else than the subnet {arch} in its own classes")
    return own.train(net.training)


def _leave_out(network: nn.Module, name: str) -> None:
    """Let a module give what it is given; the network itself cannot be left out."""
    parent, _, last = name.rpartition(".")
    if name:
        setattr(network.get_submodule(parent), last, nn.Identity())


def _follow(module: nn.Module) -> None:
    """Let the numbers that a layer keeps of itself follow its weights."""
    if isinstance(module, nn.Conv2d | nn.Conv1d):
        made, inside = module.weight.shape[:2]
        if module.groups > 1:  # groups go whole
            module.groups = made // (module.out_channels // module.groups)
        module.in_channels, module.out_channels = inside * module.groups, made
        if module.weight.shape[2:] != module.kernel_size:  # of an elastic kernel, which is centred
            module.kernel_size = module.weight.shape[2:]
            module.padding = tuple(size // 2 for size in module.kernel_size)
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, _BatchNorm) and module.running_mean is not None:
        module.num_features = len(module.running_mean)
    elif isinstance(module, nn.LayerNorm) and module.elementwise_affine:
        module.normalized_shape = tuple(module.weight.shape)
    elif isinstance(module, nn.GroupNorm) and module.affine:
        module.num_channels = len(module.weight)
