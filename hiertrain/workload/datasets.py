"""Labelled images of 32x32 pixels in memory.

Samples are uint8 [n, C, 32, 32] with values 0..255, labels int64 [n] with values 0..classes-1.
"""

import difflib
import gzip
import hashlib
import http.client
import math
import socket
import tempfile
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hiertrain import paths
from hiertrain.values import InputError
from hiertrain.workload.compression import compress
from hiertrain.workload.sample_order import sample_order

FASHION_MNIST_FOLDER = Path("FashionMNIST", "raw")  # in the data folder, as torchvision lays it out
FASHION_MNIST_FILES = tuple(
    f"{part}-{content}-ubyte.gz" for part in ("train", "t10k") for content in ("images-idx3", "labels-idx1")
)
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist
DOWNLOAD_TIMEOUT_S = 10.0  # without an answer; a slow download may take longer
SIDE = 32


@dataclass(frozen=True)
class Dataset:
    """A data set, split into training and test samples."""

    name: str
    classes: int
    train_samples: Tensor  # uint8 [n, C, H, W]
    train_labels: Tensor  # int64 [n]
    test_samples: Tensor
    test_labels: Tensor

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            _check_part(f"{self.name}, {part}", getattr(self, f"{part}_samples"), getattr(self, f"{part}_labels"), self)

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one sample."""
        channels, height, width = self.train_samples.shape[1:]
        return (channels, height, width)

    def compressed_sample_bytes(self) -> int:
        """Bytes of one training sample by zlib, mean, rounded. It takes seconds: all of them are compressed."""
        return round(sum(map(len, compress(self.train_samples))) / len(self.train_samples))


def _check_part(name: str, samples: Tensor, labels: Tensor, dataset: Dataset) -> None:
    """Raise InputError unless samples and labels belong together."""
    if samples.dtype != torch.uint8 or samples.ndim != 4 or samples.shape[1:] != dataset.train_samples.shape[1:]:
        raise InputError(
            f"{name}: samples must be uint8 [n, C, H, W], of one shape; got {samples.dtype} {list(samples.shape)}"
        )
    if labels.dtype != torch.int64 or labels.shape != samples.shape[:1]:
        raise InputError(
            f"{name}: labels must be int64 [n], one for each of the {len(samples)} samples; "
            f"got {labels.dtype} {list(labels.shape)}"
        )
    if len(labels) == 0 or labels.min() < 0 or labels.max() >= dataset.classes:
        raise InputError(f"{name}: labels must be in 0..{dataset.classes - 1} and there must be at least one")


def load_dataset(name: str, folder: str | Path | None = None) -> Dataset:
    """A data set by its name: ``cifar10``, ``fashion-mnist``, ``digits``, ``synthetic`` or ``synthetic-224``.

    The first two are read from files: those in ``folder``, by default this checkout's data folder, or downloaded into
    it. Raises InputError for an unknown name and, with the ways to get one, for a data set that cannot be had.
    """
    if name not in LOADERS:
        near = difflib.get_close_matches(name, LOADERS)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(f"data set {name!r} is unknown; {hint}known are {', '.join(LOADERS)}")
    return LOADERS[name](Path(folder or paths.DATA))


def _load_cifar10(folder: Path) -> Dataset:
    """CIFAR-10 (Krizhevsky, 2009): 50,000 and 10,000 colour images. Checksums are verified at every reading."""
    from hiertrain.workload.torchvision_ops import torchvision  # noqa: PLC0415 - see the module: its import takes a second

    kind = torchvision.datasets.CIFAR10
    try:
        return _read_cifar10(kind, folder)
    except RuntimeError:  # torchvision's word for absent or corrupted
        by_hand = f"{kind.filename}, or what it contains, in {folder}"
        _download(kind, folder, by_hand, archive=folder / kind.filename, archive_md5=kind.tgz_md5)
    return _read_cifar10(kind, folder)


def _read_cifar10(kind: Callable[..., Any], folder: Path) -> Dataset:
    parts = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the files were pickled by a numpy whose types are deprecated today
        for train in (True, False):
            part = kind(folder, train=train)
            parts += [torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets)]
    return Dataset("cifar10", 10, *parts)


def _load_fashion_mnist(folder: Path) -> Dataset:
    """Fashion-MNIST (Xiao et al., 2017): 60,000 and 10,000 grey images of 28x28, padded with black to 32x32."""
    own = folder / FASHION_MNIST_FOLDER
    for source in (own, DEBIAN_FASHION_MNIST):
        if all((source / name).is_file() for name in FASHION_MNIST_FILES):
            return _read_fashion_mnist(source)
    from hiertrain.workload.torchvision_ops import torchvision  # noqa: PLC0415 - see the module: its import takes a second

    by_hand = f"{', '.join(FASHION_MNIST_FILES)} in {own}, or Debian's package dataset-fashion-mnist"
    _download(torchvision.datasets.FashionMNIST, folder, by_hand)
    return _read_fashion_mnist(own)


def _read_fashion_mnist(source: Path) -> Dataset:
    parts = []
    for part in ("train", "t10k"):
        images = read_idx(source / f"{part}-images-idx3-ubyte.gz", dimensions=3)
        if images.shape[1:] != (28, 28):
            raise InputError(
                f"{source / part}-images-idx3-ubyte.gz: images must be 28x28; got {list(images.shape[1:])}"
            )
        labels = read_idx(source / f"{part}-labels-idx1-ubyte.gz", dimensions=1)
        parts += [functional.pad(images.unsqueeze(1), (2, 2, 2, 2)), labels.long()]
    return Dataset("fashion-mnist", 10, *parts)


def read_idx(path: Path, dimensions: int) -> Tensor:
    """A gzipped idx file of bytes as a uint8 tensor: two zeros, type 8, dimensions, each size big-endian, data."""
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: not a whole gzip file: {error}") from error
    start = 4 + 4 * dimensions
    if len(content) < start or content[:4] != bytes([0, 0, 8, dimensions]):
        raise InputError(
            f"{path}: not an idx file of bytes with {dimensions} dimensions; it starts {content[:4].hex()}"
        )
    shape = [int.from_bytes(content[place : place + 4], "big") for place in range(4, start, 4)]
    if len(content) - start != math.prod(shape):
        raise InputError(f"{path}: {len(content) - start} bytes of data do not fill the shape {shape}")
    return torch.tensor(np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape))


def _download(
    kind: Callable[..., Any], folder: Path, by_hand: str, archive: Path | None = None, archive_md5: str = ""
) -> None:
    """Let torchvision download a data set and verify its checksums; files appear in ``folder`` whole or not at all.

    An ``archive`` that is already there and has the right checksum is used instead of a download.
    """
    timeout_s = socket.getdefaulttimeout()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_S)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as partial, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tarfile, about the archive's trust; its checksum is verified
            if archive is not None:
                _reuse_archive(archive, archive_md5, Path(partial))
            kind(partial, download=True)
            _move_files(Path(partial), folder)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise InputError(
            f"data set {kind.__name__} cannot be had: the download failed ({reason[0]}). "
            f"Either let torchvision download it into {folder} on a machine with internet access; "
            f"or put it there by hand: {by_hand}; or use the data set 'digits', which needs no network"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout_s)


def _reuse_archive(archive: Path, md5: str, partial: Path) -> None:
    """Give torchvision an archive that was put into the data folder by hand, when its checksum is right."""
    if not archive.is_file():
        return
    with archive.open("rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found == md5:
        (partial / archive.name).symlink_to(archive.resolve())


def _move_files(source: Path, target: Path) -> None:
    for path in source.rglob("*"):
        if path.is_file() and not path.is_symlink():
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            path.replace(place)


def _load_digits(_folder: Path) -> Dataset:
    """scikit-learn's 1,797 handwritten digits of 8x8 pixels, each pixel 4x4 times; a fixed fifth are for testing."""
    from sklearn.datasets import load_digits  # noqa: PLC0415 - takes seconds, and only this data set needs it

    pixels, digits = load_digits(return_X_y=True)
    grey = torch.from_numpy(np.rint(np.asarray(pixels) * (255 / 16)).astype(np.uint8)).reshape(-1, 8, 8)
    samples = grey.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2).unsqueeze(1)
    labels = torch.from_numpy(np.asarray(digits)).long()
    order = sample_order(len(labels), seed=0, epoch=0)
    test, train = order[: len(labels) // 5], order[len(labels) // 5 :]
    return Dataset("digits", 10, samples[train], labels[train], samples[test], labels[test])


def _load_synthetic(_folder: Path) -> Dataset:
    """Random images of CIFAR-10's shape."""
    return _random_images("synthetic", SIDE, 4096, 1024)


def _load_synthetic_224(_folder: Path) -> Dataset:
    """Random images of the size that ImageNet's models take; few, since only their size matters."""
    return _random_images("synthetic-224", 224, 128, 32)


def _random_images(name: str, side: int, *samples: int) -> Dataset:
    """Random images with random labels, always the same: to time training, not to learn from."""
    generator = torch.Generator().manual_seed(0)
    parts = []
    for number in samples:
        parts += [
            torch.randint(256, (number, 3, side, side), dtype=torch.uint8, generator=generator),
            torch.randint(10, (number,), generator=generator),
        ]
    return Dataset(name, 10, *parts)


LOADERS: dict[str, Callable[[Path], Dataset]] = {
    "cifar10": _load_cifar10,
    "fashion-mnist": _load_fashion_mnist,
    "digits": _load_digits,
    "synthetic": _load_synthetic,
    "synthetic-224": _load_synthetic_224,
}
