"""Train one once-for-all supernet; take out a network for every device."""

__version__ = "0.1.0"
