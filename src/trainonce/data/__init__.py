"""Images as uint8 in memory, four disjoint splits, and augmentation of whole batches on the device."""

from trainonce.data.adapters import from_arrays, from_hugging_face, from_pairs
from trainonce.data.augment import augment, normalise
from trainonce.data.dataset import DataSet, DataSource
from trainonce.data.load import load_dataset
from trainonce.data.splits import Split
from trainonce.data.table import TABLE

DATASET_NAMES = tuple(TABLE)

__all__ = [
    "DATASET_NAMES",
    "DataSet",
    "DataSource",
    "Split",
    "augment",
    "from_arrays",
    "from_hugging_face",
    "from_pairs",
    "load_dataset",
    "normalise",
]
