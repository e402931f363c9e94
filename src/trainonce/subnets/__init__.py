"""A subnet taken out: a directory that loads with torch and safetensors alone."""

from trainonce.subnets.directory import (
    FILES,
    check_place,
    describe_subnet,
    read_subnet,
    verify_subnet,
    write_subnet,
)

__all__ = ["FILES", "check_place", "describe_subnet", "read_subnet", "verify_subnet", "write_subnet"]
