"""Process groups of torch, and tasks handed out to processes, Ray or torchrun's ranks."""

from trainonce.parallel.distributed import Ranks, process_group

__all__ = ["Ranks", "process_group"]
