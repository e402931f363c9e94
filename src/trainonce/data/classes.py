"""How many images of each class there are, and what is worth a warning about that."""

import torch

from trainonce.data.dataset import DataSet
from trainonce.data.splits import Split

FEW = 5
"""Fewer images of a class than this in a split say little about it."""
UNEVEN = 10
"""How many times as many training images the largest class may have as the smallest."""
MOST_LISTED = 20


def class_counts(split: Split, num_classes: int) -> list[int]:
    """How many images of each class a split has."""
    return torch.bincount(split.labels, minlength=num_classes).tolist()


def counts_text(data: DataSet) -> str:
    """The training images of each class in words; of many classes those with the fewest and the most."""
    counts = sorted(zip(class_counts(data.train, data.num_classes), data.class_names, strict=True))
    if len(counts) <= MOST_LISTED:
        named = dict(zip(data.class_names, class_counts(data.train, data.num_classes), strict=True))
        return ", ".join(f"{name} {count}" for name, count in named.items())
    (fewest, rarest), (most, commonest) = counts[0], counts[-1]
    return f"from {fewest} ({rarest}) to {most} ({commonest}) of each class"


def class_warnings(data: DataSet) -> list[str]:
    """A sentence for each split with classes of fewer than `FEW` images, and one where classes are very uneven."""
    said = []
    splits = {"train": data.train, "validate": data.validate, "test": data.test}
    for where, split in splits.items():
        counts = class_counts(split, data.num_classes)
        few = [f"{name} {count}" for name, count in zip(data.class_names, counts, strict=True) if count < FEW]
        if few:
            more = f" and {len(few) - MOST_LISTED} more" if len(few) > MOST_LISTED else ""
            said.append(
                f"{where} has fewer than {FEW} images of {len(few)} of {data.num_classes} classes "
                f"({', '.join(few[:MOST_LISTED])}{more}): what is "
                f"{'learnt' if where == 'train' else 'measured'} of them says little"
            )
    counts = class_counts(data.train, data.num_classes)
    if max(counts) > UNEVEN * max(1, min(counts)):
        most, fewest = counts.index(max(counts)), counts.index(min(counts))
        said.append(
            f"the classes are uneven: {data.class_names[most]} has {counts[most]} training images, "
            f"{data.class_names[fewest]} {counts[fewest]}; top-1 then tells most about the large ones"
        )
    return said
