"""The optimizers that a recipe may name, and their state as groups of tensors that checkpoints keep."""

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd

from trainonce.errors import UserError
from trainonce.recipes import Phase, Recipe
from trainonce.training.muon import Matrix, orthogonal_step, scale_of, takes_orthogonal_steps

GROUPS = {
    "sgd": {"momentum_buffer": "optimizer"},
    "adamw": {"step": "optimizer-steps", "exp_avg": "optimizer-means", "exp_avg_sq": "optimizer-squares"},
    "muon": {"momentum_buffer": "optimizer", "scale": "optimizer-scales"},
}
"""For each optimizer, what torch calls a tensor of a parameter's state, and the group that has it in a checkpoint."""
SGD_SETTINGS = ("weight_decay", "momentum", "lr", "dampening", "nesterov", "maximize")
"""What torch's function of an SGD step takes beside tensors."""


class _SGD(torch.optim.SGD):
    """torch's SGD without what wraps it for `torch.compile`: at its first use that imports torch's compiler."""

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    step = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))


class _Muon(_SGD):
    """Steps of SGD, but orthogonal ones in groups that are marked so: see `trainonce.training.muon`.

    torch's own Muon takes one matrix after the other, in bfloat16, and no convolutions.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take a step; training takes them by a stepper that is made once."""
        assert closure is None
        stepper_for(self)()


class _AdamW(torch.optim.AdamW):
    """torch's AdamW, in the same way."""

    add_param_group = _SGD.add_param_group
    zero_grad = _SGD.zero_grad
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


def optimizer_for(
    network: nn.Module, recipe: Recipe, phase: Phase, head: Collection[str] = ()
) -> torch.optim.Optimizer:
    """The optimizer of a phase over the weights that it trains; those of norms and biases do not decay.

    `head` names the parameters that it trains otherwise than the rest. Each group of parameters has, as "times", what
    the learning rate is multiplied by for it.
    """
    named = dict(network.named_parameters())
    last = {name: parameter for name, parameter in named.items() if name in head}
    rest = {name: parameter for name, parameter in named.items() if name not in head}
    orthogonal = recipe.optimizer == "muon"
    groups = [] if phase.trains == "head" else _groups(rest, recipe, times=phase.backbone_lr, orthogonal=orthogonal)
    if last:
        groups += _groups(last, recipe)
    if recipe.optimizer == "adamw":  # corrects a weight's means by the steps with a gradient
        return _AdamW(groups, lr=phase.lr, betas=recipe.betas, fused=True)  # a step reads nothing back
    momentum = recipe.momentum
    kind = _Muon if orthogonal else _SGD
    optimizer = kind(groups, lr=phase.lr, momentum=momentum, nesterov=momentum > 0, fused=True)
    for group in groups:
        for parameter in group["params"]:
            if momentum > 0 or group["orthogonal"]:  # the fused step wants all or none; from zero is as torch begins
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
            if group["orthogonal"]:
                optimizer.state[parameter]["scale"] = scale_of(parameter)
    return optimizer


def idle_gradients(optimizer: torch.optim.Optimizer) -> list[tuple[nn.Parameter, Tensor]]:
    """The weights that momentum and decay may move in a step that leaves them out, each with a gradient of zero for it:
    all but the matrices of Muon, which rest."""
    moving = (group for group in optimizer.param_groups if not group.get("orthogonal"))
    return [(parameter, torch.zeros_like(parameter)) for group in moving for parameter in group["params"]]


def let_idle_move(idle: Collection[tuple[nn.Parameter, Tensor]]) -> None:
    """Give those of `idle_gradients` that a step left out their gradient of zero."""
    for parameter, zeros in idle:
        if parameter.grad is None:
            parameter.grad = zeros


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate, multiplied as a group has it."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("times", 1.0)


def stepper_for(optimizer: torch.optim.Optimizer) -> Callable[[], object]:
    """What takes a step of an optimizer whose state is there; the parameters and their state must stay the same.

    For SGD it is torch's own function without its search, in each step, for each parameter's state, which on a GPU's
    host was a tenth of a step. The numbers are those of `optimizer.step`. Groups marked orthogonal take Muon's steps.
    """
    if not isinstance(optimizer, torch.optim.SGD):
        return optimizer.step
    groups = [
        (group, group["params"], [optimizer.state[p].get("momentum_buffer") for p in group["params"]])
        for group in optimizer.param_groups
        if not group.get("orthogonal")
    ]
    matrices = [
        (
            group,
            [Matrix(p, optimizer.state[p]["momentum_buffer"], optimizer.state[p]["scale"]) for p in group["params"]],
        )
        for group in optimizer.param_groups
        if group.get("orthogonal")
    ]

    @torch.no_grad()
    def step() -> None:
        for group, parameters, momenta in groups:
            used = [at for at, parameter in enumerate(parameters) if parameter.grad is not None]
            sgd(
                [parameters[at] for at in used],
                [parameters[at].grad for at in used],
                [momenta[at] for at in used],
                fused=True,
                **{name: group[name] for name in SGD_SETTINGS},
            )
        for group, those in matrices:
            orthogonal_step(those, **{name: group[name] for name in ("lr", "momentum", "weight_decay")})

    return step


def _groups(
    named: Mapping[str, nn.Parameter], recipe: Recipe, *, times: float = 1.0, orthogonal: bool = False
) -> list[dict[str, Any]]:
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    matrices: list[nn.Parameter] = []
    for name, parameter in named.items():
        norm_or_bias = parameter.ndim == 1 or name.endswith("bias")
        of_matrices = orthogonal and takes_orthogonal_steps(parameter)
        (plain if norm_or_bias else matrices if of_matrices else decayed).append(parameter)
    groups = [(decayed, recipe.weight_decay), (plain, 0.0)]
    if matrices:
        groups.append((matrices, recipe.matrix_decay))
    return [
        {"params": parameters, "weight_decay": decay, "times": times, "orthogonal": parameters is matrices}
        for parameters, decay in groups
    ]


def refuse_another(optimizer: torch.optim.Optimizer) -> None:
    """Raise `UserError` for any optimizer but these and torch's SGD and AdamW: checkpoints would not keep its state."""
    if type(optimizer) not in (_SGD, _AdamW, _Muon, torch.optim.SGD, torch.optim.AdamW):
        raise UserError(
            f"the optimizer is a {type(optimizer).__name__}, but training takes torch.optim.SGD and torch.optim.AdamW: "
            "a checkpoint keeps no other state, so that a resumed run would go on without it"
        )


def state_groups(
    network: nn.Module, recipe: Recipe, optimizer: torch.optim.Optimizer | None
) -> dict[str, dict[str, Tensor]]:
    """The state of a recipe's optimizer, by group and name of the parameter; empty groups where there is none yet."""
    of: Mapping[Tensor, Mapping[str, Tensor]] = {} if optimizer is None else optimizer.state
    return {
        group: {
            name: of[parameter][key] for name, parameter in network.named_parameters() if key in of.get(parameter, {})
        }
        for key, group in GROUPS[recipe.optimizer].items()
    }


def restore_state(
    network: nn.Module,
    recipe: Recipe,
    optimizer: torch.optim.Optimizer,
    names: Mapping[str, Collection[str]],
    groups: Mapping[str, Mapping[str, Tensor]],
) -> None:
    """Give an optimizer the state of `groups`; where that is empty, tensors for the `names` of each, to be filled."""
    for key, group in GROUPS[recipe.optimizer].items():
        for name, parameter in network.named_parameters():
            if name in names[group]:
                scalar = key in ("step", "scale")
                blank = torch.zeros((), device=parameter.device) if scalar else torch.zeros_like(parameter)
                optimizer.state[parameter][key] = blank.copy_(groups[group][name]) if groups else blank
