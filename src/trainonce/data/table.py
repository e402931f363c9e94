"""The data sets that are known by name, each as a value: what it is, where it comes from, how to vary it.

Means, standard deviations, sizes of the splits and augmentations are the paper's, except for `digits`,
which is ours: small enough for a test, and part of scikit-learn, so it needs no file.
"""

from dataclasses import dataclass
from typing import Literal

from trainonce.data.download import PublishedFile
from trainonce.data.splits import Sizes
from trainonce.recipes import Augmentation, Colour, Crop, Flip

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

COLOUR_AUGMENTATION: Augmentation = (Crop(), Flip(), Colour(brightness=32 / 255, saturation=0.5))
MNIST_AUGMENTATION: Augmentation = (Crop(), Flip())  # the paper mirrors digits too
DIGITS_AUGMENTATION: Augmentation = (Crop(scale=(0.6, 1.0)),)


@dataclass(frozen=True, kw_only=True)
class TableEntry:
    """A data set known by name.

    `image_size` in pixels; `mean` and `std` of pixels in 0..1, one for each channel. `folder` is the
    sub-folder of the data directory with the files; `train_files` and `test_files` are their names (for
    `idx` the images and then the labels). `downloads` yields those files. `train_images` and `test_images`
    are the published counts, which are checked; `sizes` what is carved out of the training images.
    """

    name: str
    layout: Literal["sklearn", "idx", "cifar10", "cifar100"]
    image_size: int
    channels: int
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation
    train_images: int
    test_images: int
    sizes: Sizes
    folder: str = ""
    train_files: tuple[str, ...] = ()
    test_files: tuple[str, ...] = ()
    downloads: tuple[PublishedFile, ...] = ()


_TEN_DIGITS = tuple(str(digit) for digit in range(10))
_GARMENTS = (
    "t-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
_CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
_CIFAR100_CLASSES = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl",
    "boy", "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair",
    "chimpanzee", "clock", "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin",
    "elephant", "flatfish", "forest", "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp",
    "lawn_mower", "leopard", "lion", "lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain",
    "mouse", "mushroom", "oak_tree", "orange", "orchid", "otter", "palm_tree", "pear", "pickup_truck",
    "pine_tree", "plain", "plate", "poppy", "porcupine", "possum", "rabbit", "raccoon", "ray", "road",
    "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk", "skyscraper", "snail", "snake", "spider",
    "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank", "telephone", "television",
    "tiger", "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale", "willow_tree", "wolf",
    "woman", "worm",
)  # fmt: skip

_IDX_NAMES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)


def _mnist_like(name: str, *, class_names: tuple[str, ...], url: str, checksums: tuple[str, ...]) -> TableEntry:
    files = zip(_IDX_NAMES, checksums, strict=True)
    return TableEntry(
        name=name,
        layout="idx",
        image_size=28,
        channels=1,
        class_names=class_names,
        mean=(0.0,),
        std=(1.0,),
        augmentation=MNIST_AUGMENTATION,
        train_images=60_000,
        test_images=10_000,
        sizes=Sizes(calibrate=2000, validate=8000, test=0),
        folder=name,
        train_files=_IDX_NAMES[:2],
        test_files=_IDX_NAMES[2:],
        downloads=tuple(PublishedFile(url=f"{url}/{file}", checksum=checksum) for file, checksum in files),
    )


_DIGITS = TableEntry(
    name="digits",
    layout="sklearn",
    image_size=8,
    channels=1,
    class_names=_TEN_DIGITS,
    mean=(0.0,),
    std=(1.0,),
    augmentation=DIGITS_AUGMENTATION,
    train_images=1797,
    test_images=0,
    sizes=Sizes(calibrate=180, validate=180, test=359),  # leaves 1,078 for training: 60, 10, 10, 20 %
)
_MNIST = _mnist_like(
    "mnist",
    class_names=_TEN_DIGITS,
    url="https://ossci-datasets.s3.amazonaws.com/mnist",
    checksums=(
        "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "d53e105ee54ea40749a09fcbcd1e9432",
        "9fb629c4189551a2d022fa330f9573f3",
        "ec29112dd5afa0611ce80d1b7f02629c",
    ),
)
_FASHION_MNIST = _mnist_like(
    "fashion-mnist",
    class_names=_GARMENTS,
    url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
    checksums=(
        "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "25c81989df183df01b3e8a0aad5dffbe",
        "bef4ecab320f06d8554ea6380940ec79",
        "bb300cfdad3c16e7a12a480ee83cd310",
    ),
)


def _cifar(
    name: Literal["cifar10", "cifar100"],
    *,
    class_names: tuple[str, ...],
    folder: str,
    train_files: tuple[str, ...],
    test_file: str,
    archive: str,
    checksum: str,
) -> TableEntry:
    members = tuple(f"{folder}/{file}" for file in (*train_files, test_file))
    url = f"https://www.cs.toronto.edu/~kriz/{archive}"
    return TableEntry(
        name=name,
        layout=name,
        image_size=32,
        channels=3,
        class_names=class_names,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        augmentation=COLOUR_AUGMENTATION,
        train_images=50_000,
        test_images=10_000,
        sizes=Sizes(calibrate=2000, validate=8000, test=0),
        folder=folder,
        train_files=train_files,
        test_files=(test_file,),
        downloads=(PublishedFile(url=url, checksum=checksum, members=members),),
    )


_CIFAR10 = _cifar(
    "cifar10",
    class_names=_CIFAR10_CLASSES,
    folder="cifar-10-batches-bin",
    train_files=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    test_file="test_batch.bin",
    archive="cifar-10-binary.tar.gz",
    checksum="c32a1d4ab5d03f1284b67883e8d87530",
)
_CIFAR100 = _cifar(
    "cifar100",
    class_names=_CIFAR100_CLASSES,
    folder="cifar-100-binary",
    train_files=("train.bin",),
    test_file="test.bin",
    archive="cifar-100-binary.tar.gz",
    checksum="03b5dce01913d631647c71ecec9e9cb8",
)

TABLE = {entry.name: entry for entry in (_DIGITS, _MNIST, _FASHION_MNIST, _CIFAR10, _CIFAR100)}
