"""Process groups of torch, and pieces of work handed out to processes, Ray or torchrun's ranks."""

from trainonce.parallel.distributed import Ranks, process_group

__all__ = ["Ranks", "process_group"]
