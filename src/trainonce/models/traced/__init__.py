"""A person's own network as a supernet: `elastic(model, example)`. docs/own_network.md says what is found and how.

tracing     the network's operations, by `torch.export`
axes        which dimensions must agree: union-find over axes
analysis    the dimensions of tensors and values, while they are being found
rules       what each operation asks of the axes
following   which of its numbers follow where axes become shorter
residuals   branches that can be left out
layout      what of them is elastic, the search space, what each architecture is and costs
resolutions the same network at several sizes of images
supernet    the family
given       networks that a person names: timm:resnet18
own_classes a subnet as an object of the person's own classes
table       what is elastic and what stays, for a person
"""

from trainonce.models.traced.given import GivenNetwork, network_named
from trainonce.models.traced.own_classes import in_own_classes
from trainonce.models.traced.supernet import Traced, TracedSettings, elastic
from trainonce.models.traced.table import table

__all__ = ["GivenNetwork", "Traced", "TracedSettings", "elastic", "in_own_classes", "network_named", "table"]
