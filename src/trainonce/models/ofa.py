"""The published once-for-all supernets (OFA, arXiv 1908.09791): their state dicts, into the supernets here.

OFA's modules are those of the supernets here under other names, so tensors are renamed and nothing is computed. Their
names are those of mit-han-lab/once-for-all, which renamed modules over time and reads old names too, as this does:

    blocks.3.mobile_inverted_conv.…   or   blocks.3.conv.…     a block
    ….bn.bn.weight                    or   ….bn.weight         an elastic layer inside its wrapper, or the layer
    ….conv.conv.weight                or   ….conv.weight
    ….linear.linear.weight            or   ….linear.weight
"""

import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from trainonce.errors import UserError
from trainonce.models.layout import Layout, MBConvSettings
from trainonce.models.mbconv import MBConvSupernet
from trainonce.models.mobilenet_v3 import MobileNetV3
from trainonce.models.proxyless_nas import ProxylessNAS
from trainonce.models.supernet import Supernet
from trainonce.models.weights import check_weights, is_counter, read_weights
from trainonce.nn.blocks import ElasticMBConv

OFA_NETWORKS: dict[str, tuple[type[MBConvSupernet], float]] = {
    "ofa_mbv3_d234_e346_k357_w1.0": (MobileNetV3, 1.0),
    "ofa_mbv3_d234_e346_k357_w1.2": (MobileNetV3, 1.2),
    "ofa_proxyless_d234_e346_k357_w1.3": (ProxylessNAS, 1.3),
}
"""Family and width of each published network. All have depths 2, 3, 4, expand ratios 3, 4, 6, kernel sizes 3, 5, 7."""

OFA_RESNET = "ofa_resnet50"
"""The published network of bottlenecks, of the family `ofa_resnet`."""

OFA_RESOLUTIONS = (128, 160, 192, 224)
"""Sides of the images they were trained on, in pixels, beside the multiples of 4 in between (OFA's training script)."""

CLASSIFIER = "classifier.linear.weight"
LEAST_SIDE = 32
"""What the five strides of a ResNet leave one pixel of."""


def load_ofa(path: str | Path, name: str, *, resolutions: tuple[int, ...] = OFA_RESOLUTIONS) -> Supernet:
    """The supernet of a published OFA network's weights, in evaluation mode.

    `path` is a file of weights, read as `read_weights` does. `name` is one of `OFA_NETWORKS` or `OFA_RESNET`;
    `resolutions` are the sides of the input in pixels, rising. The number of classes is the file's. Any subnet makes
    of an image at its resolution the logits that it makes in OFA's code, up to rounding.

    Raises `UserError` that names the valid names, or says what is wrong with the file: damaged, foreign, or a tensor
    that is missing, unexpected, of another shape or not finite in float32. Warns of a file without sums (torch's
    earlier format), in which damage cannot be told.
    """
    if name not in (*OFA_NETWORKS, OFA_RESNET):
        raise UserError(f"unknown OFA network {name!r}; the networks are {', '.join((*OFA_NETWORKS, OFA_RESNET))}")
    path = Path(path)
    given, where = _canonical(read_weights(path), path), f"{path} is not a {name}"
    if CLASSIFIER not in given or given[CLASSIFIER].ndim != 2:
        raise UserError(f"{where}: it has no {CLASSIFIER} of two dimensions")
    if name == OFA_RESNET:
        return _resnet(given, resolutions, where)
    family, width = OFA_NETWORKS[name]
    fields = {"num_classes": len(given[CLASSIFIER]), "width_mult": width, "resolutions": resolutions}
    settings = family.settings_type.parse(fields, where=f"{name} in {path}")
    assert isinstance(settings, MBConvSettings)
    _check_classifier(family.layout, settings, given[CLASSIFIER], where)
    net = family(settings)
    names, state = _ofa_names(net), net.state_dict()
    if not any(key.endswith("_matrix") for key in given):  # trained without them; OFA's code reads on, and so does this
        names = {ours: theirs for ours, theirs in names.items() if not theirs.endswith("_matrix")}
    check_weights({theirs: state[ours] for ours, theirs in names.items()}, given, where)
    net.load_state_dict(state | {ours: given[theirs].to(torch.float32) for ours, theirs in names.items()})
    return net.eval()


def _resnet(given: Mapping[str, Tensor], resolutions: tuple[int, ...], where: str) -> Supernet:
    """The supernet of ResNet-50: its largest subnet with these weights, traced at each resolution."""
    from trainonce.models.ofa_resnet import LargestResNet, OFAResNet  # which import torch's tracer
    from trainonce.models.traced.supernet import supernet_of

    if list(resolutions) != sorted({*resolutions}) or min(resolutions, default=0) < LEAST_SIDE:
        raise UserError(f"the resolutions must be rising, and at least {LEAST_SIDE}, not {resolutions}")
    with torch.device("meta"):
        model = LargestResNet(len(given[CLASSIFIER]))
    state = model.state_dict()
    check_weights({name: tensor for name, tensor in state.items() if not is_counter(name)}, given, where)
    counters = {name: torch.zeros((), dtype=torch.int64) for name in state if is_counter(name)}
    model.load_state_dict(counters | {n: tensor.to(torch.float32) for n, tensor in given.items()}, assign=True)
    example_BCHW = torch.zeros(1, 3, resolutions[-1], resolutions[-1])
    return supernet_of(OFAResNet, model.eval(), example_BCHW, resolutions=resolutions).eval()


def _canonical(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The tensors under OFA's shortest names, without what batch norms count."""
    named: dict[str, Tensor] = {}
    for name, tensor in state.items():
        short = name.replace(".mobile_inverted_conv.", ".conv.").replace(".bn.bn.", ".bn.")
        short = re.sub(r"\.conv\.conv\.weight$", ".conv.weight", short).replace(".linear.linear.", ".linear.")
        short = re.sub(r"^(input_stem\.1\.conv)\.weight$", r"\1.conv.weight", short)  # a layer inside of a block
        if short in named:
            raise UserError(f"{path} holds {short} twice, under the names of two versions of OFA's code")
        if not is_counter(name):
            named[short] = tensor
    return named


_AROUND = {"stem.0": "first_conv.conv", "stem.1": "first_conv.bn", "classifier": "classifier.linear"}
_INSIDE = {
    "expand": "inverted_bottleneck.conv",
    "expand_bn": "inverted_bottleneck.bn",
    "depthwise": "depth_conv.conv",
    "depthwise_bn": "depth_conv.bn",
    "se.reduce": "depth_conv.se.fc.reduce",
    "se.expand": "depth_conv.se.fc.expand",
    "project": "point_linear.conv",
    "project_bn": "point_linear.bn",
}


def _ofa_names(net: MBConvSupernet) -> dict[str, str]:
    """OFA's shortest name of each tensor of a supernet, by its name here."""
    final = "feature_mix_layer" if net.feature is None else "final_expand_layer"
    layers = _AROUND | {"final.0": f"{final}.conv", "final.1": f"{final}.bn", "feature": "feature_mix_layer.conv"}
    names: dict[str, str] = {}
    for number, (ours, block) in enumerate({"first": net.first, **_blocks(net)}.items()):
        theirs = f"blocks.{number}.conv"
        layers |= {f"{ours}.{layer}": f"{theirs}.{its}" for layer, its in _INSIDE.items()}
        for small, large in pairwise(block.depthwise.kernel_sizes):
            matrix = f"{theirs}.depth_conv.conv.{large}to{small}_matrix"
            names[f"{ours}.depthwise.transforms.to_{small}"] = matrix
    for name in net.state_dict():
        layer, _, tensor = name.rpartition(".")
        if name not in names and not is_counter(name):
            names[name] = f"{layers[layer]}.{tensor}"
    return names


def _blocks(net: MBConvSupernet) -> dict[str, ElasticMBConv]:
    """The elastic blocks in order, by the beginning of their tensors' names."""
    active = net.active_blocks(net.space.largest())[1:]
    return {f"blocks.{name}": block for name, block in zip(net.blocks, active, strict=True)}


def _check_classifier(layout: Layout, settings: MBConvSettings, weight_KF: Tensor, where: str) -> None:
    """Raise `UserError` where its features are not the network's: then its size says nothing of the classes."""
    largest = layout.describe(settings, layout.space(settings).largest())
    wanted = (settings.num_classes, largest.feature_channels or largest.final_channels)
    if weight_KF.shape != wanted:
        raise UserError(f"{where}: {CLASSIFIER} is {tuple(weight_KF.shape)} in it, not {wanted}")
