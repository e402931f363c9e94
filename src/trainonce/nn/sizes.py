"""The size of a map after a layer. `plain` and `plain_resnet` say it again: their text is copied into model.py."""


def out_size(size: int, stride: int) -> int:
    """The side of the map after a convolution that pads by half its kernel."""
    return -(-size // stride)
