import gzip
import hashlib
import pickle
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch

from hiertrain.values import InputError
from hiertrain.workload import datasets
from hiertrain.workload.datasets import DEBIAN_FASHION_MNIST, FASHION_MNIST_FOLDER, Dataset, load_dataset, read_idx
from hiertrain.workload.sample_order import batch_indices, iterations_per_epoch, sample_order
from hiertrain.workload.torchvision_ops import torchvision


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(datasets, "DEBIAN_FASHION_MNIST", Path("/nonexistent"))


def write_idx(path: Path, values: np.ndarray) -> None:
    header = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(header + values.astype(np.uint8).tobytes()))


def write_fashion_mnist(folder: Path, side: int = 28) -> None:
    for part, samples in (("train", 6), ("t10k", 3)):
        images = np.full((samples, side, side), 9)
        write_idx(folder / FASHION_MNIST_FOLDER / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(folder / FASHION_MNIST_FOLDER / f"{part}-labels-idx1-ubyte.gz", np.arange(samples))


def test_digits() -> None:
    digits = load_dataset("digits")
    assert digits.sample_shape == (1, 32, 32)
    assert (len(digits.train_labels), len(digits.test_labels)) == (1438, 359)
    assert digits.train_samples.max() == 255
    assert torch.equal(digits.train_samples[:, :, ::4, ::4], digits.train_samples[:, :, 3::4, 3::4])
    assert torch.equal(load_dataset("digits").test_samples, digits.test_samples)
    assert set(digits.test_labels.tolist()) == set(range(10))


def test_synthetic_has_the_shape_of_cifar10_and_is_always_the_same() -> None:
    synthetic = load_dataset("synthetic")
    assert synthetic.sample_shape == (3, 32, 32)
    assert synthetic.classes == 10
    assert torch.equal(load_dataset("synthetic").train_samples, synthetic.train_samples)
    assert load_dataset("synthetic-224").sample_shape == (3, 224, 224)


def test_fashion_mnist_from_files_is_padded_to_32x32(tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path)
    fashion = load_dataset("fashion-mnist", tmp_path)
    assert fashion.train_samples.shape == (6, 1, 32, 32)
    assert fashion.test_labels.tolist() == [0, 1, 2]
    assert int(fashion.train_samples[0].sum()) == 9 * 28 * 28
    assert (fashion.train_samples[:, :, 2:30, 2:30] == 9).all()


@pytest.mark.skipif(not DEBIAN_FASHION_MNIST.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_fashion_mnist_of_debian(tmp_path: Path) -> None:
    fashion = load_dataset("fashion-mnist", tmp_path)
    assert (len(fashion.train_labels), len(fashion.test_labels)) == (60_000, 10_000)
    assert torch.bincount(fashion.train_labels).tolist() == [6000] * 10


def test_fashion_mnist_of_another_size_is_refused(tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path, side=27)
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte.gz: images must be 28x28; got \[27, 27\]"):
        load_dataset("fashion-mnist", tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no gzip", "not a whole gzip file"),
        (gzip.compress(bytes(100), mtime=0)[:-9], "not a whole gzip file"),
        (gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 2, 1]), mtime=0), r"1 bytes of data do not fill the shape \[2\]"),
        (gzip.compress(bytes([0, 0, 8, 3, 0, 0, 0, 2, 1]), mtime=0), "not an idx file of bytes with 1 dimensions"),
        (gzip.compress(b"", mtime=0), "not an idx file"),
    ],
)
def test_broken_idx_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "labels.gz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"labels.gz: {message}"):
        read_idx(path, dimensions=1)


def test_corrupted_gzip_data_is_named(tmp_path: Path) -> None:
    content = bytearray(gzip.compress(bytes(range(256))))
    content[12] ^= 0xFF
    (tmp_path / "labels.gz").write_bytes(content)
    with pytest.raises(InputError, match=r"labels\.gz: not a whole gzip file"):
        read_idx(tmp_path / "labels.gz", dimensions=1)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", ["cifar10", "fashion-mnist"])
def test_failed_download_names_the_ways_to_get_the_data_and_leaves_no_files(
    tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError) as raised:
        load_dataset(name, tmp_path)
    message = str(raised.value)
    assert "\n" not in message
    for part in ("no route to host", "internet access", "by hand", str(tmp_path), "'digits'"):
        assert part in message
    assert ("dataset-fashion-mnist" in message) == (name == "fashion-mnist")
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def write_cifar10(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small CIFAR-10 in torchvision's layout; the checksums that torchvision expects are set to its own."""
    kind = torchvision.datasets.CIFAR10
    target = folder / kind.base_folder
    target.mkdir()

    def write(name: str, content: object) -> str:
        (target / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((target / name).read_bytes()).hexdigest()

    images = np.arange(2 * 3072).astype(np.uint8).reshape(2, 3072)
    for attribute in ("train_list", "test_list"):
        files = [[name, write(name, {"data": images, "labels": [3, 4]})] for name, _ in getattr(kind, attribute)]
        monkeypatch.setattr(kind, attribute, files)
    names = {"label_names": [str(label) for label in range(10)]}
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": write(kind.meta["filename"], names)})


@pytest.mark.usefixtures("no_network")
def test_cifar10_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar10(tmp_path, monkeypatch)
    cifar10 = load_dataset("cifar10", tmp_path)
    assert cifar10.train_samples.shape == (10, 3, 32, 32)
    assert cifar10.test_labels.tolist() == [3, 4]
    wanted = torch.arange(3072).to(torch.uint8).reshape(3, 32, 32)
    assert torch.equal(cifar10.test_samples[0], wanted)


def test_download_moves_whole_files_into_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Kind:
        def __init__(self, root: str, download: bool) -> None:
            assert download
            write_fashion_mnist(Path(root))

    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", Kind)
    monkeypatch.setattr(datasets, "DEBIAN_FASHION_MNIST", Path("/nonexistent"))
    assert len(load_dataset("fashion-mnist", tmp_path).train_labels) == 6
    assert [path.name for path in tmp_path.iterdir()] == ["FashionMNIST"]


def test_unknown_data_set() -> None:
    with pytest.raises(InputError, match="data set 'cifar' is unknown; did you mean 'cifar10'"):
        load_dataset("cifar")


def test_labels_and_samples_must_belong_together() -> None:
    samples, labels = torch.zeros(2, 1, 32, 32, dtype=torch.uint8), torch.tensor([0, 1])
    with pytest.raises(InputError, match="given, test: labels must be int64"):
        Dataset("given", 2, samples, labels, samples, labels[:1])
    with pytest.raises(InputError, match=r"given, train: labels must be in 0..0"):
        Dataset("given", 1, samples, labels, samples, labels)
    with pytest.raises(InputError, match="given, train: samples must be uint8"):
        Dataset("given", 2, samples.float(), labels, samples, labels)


def test_order_is_a_permutation_that_depends_on_seed_and_epoch_alone() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    order = sample_order(1000, seed=1, epoch=2)
    assert order.dtype == torch.int64
    assert torch.equal(order.sort().values, torch.arange(1000))
    order.zero_()  # the caller's own copy
    assert sample_order(1000, seed=1, epoch=2).sum() == 999 * 500
    assert torch.equal(torch.get_rng_state(), state)
    others = [sample_order(1000, 2, 1), sample_order(1000, 1, 3), sample_order(1000, 1 + 2**32, 2)]
    assert not any(torch.equal(sample_order(1000, 1, 2), other) for other in others)
    with pytest.raises(InputError, match="seed must be at least 0; got -1"):
        sample_order(10, seed=-1, epoch=0)


def test_the_order_never_changes() -> None:
    assert sample_order(8, seed=0, epoch=0).tolist() == [2, 4, 3, 6, 5, 0, 1, 7]


def test_iterations_run_on_through_the_epochs() -> None:
    assert iterations_per_epoch(10, 3) == 3
    taken = torch.cat([batch_indices(10, 3, seed=5, iteration=number) for number in range(6)])
    assert torch.equal(taken[:9], sample_order(10, 5, 0)[:9])
    assert torch.equal(taken[9:], sample_order(10, 5, 1)[:9])


@pytest.mark.parametrize("batch_size", [0, 11])
def test_batch_size_must_fit(batch_size: int) -> None:
    with pytest.raises(InputError, match=f"between 1 and the number of samples, 10; got {batch_size}"):
        batch_indices(10, batch_size, seed=0, iteration=0)
