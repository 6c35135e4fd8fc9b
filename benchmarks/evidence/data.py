"""Images and tables with training, validation and test parts, shifted copies and strangers.

Files are read from the folder that ``PYRO_IBVI_DATA`` names, laid out as their publishers do.
"""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.ndimage as ndi
import torch
from torch import Tensor

SEVERITIES = range(5)
#: Standard deviation, blur radius, angle, remaining contrast and block size at each severity.
CORRUPTIONS = {
    "noise": (0.05, 0.1, 0.2, 0.3, 0.4),
    "blur": (0.5, 0.8, 1.2, 1.6, 2.0),
    "rotation": (8, 16, 24, 32, 40),
    "contrast": (0.75, 0.6, 0.45, 0.3, 0.2),
    "shift": (1, 2, 3, 4, 5),
}


@dataclass(frozen=True)
class LabelledData:
    """Standardized inputs, such as images ``(N, channels, height, width)``, and labels."""

    x: Tensor
    y: Tensor
    x_valid: Tensor
    y_valid: Tensor
    x_test: Tensor
    y_test: Tensor
    corrupted: dict[str, Tensor]
    y_corrupted: Tensor
    ood: Tensor


def data_folder() -> Path:
    """The folder with the data."""
    folder = os.environ.get("PYRO_IBVI_DATA")
    if folder is None:
        raise SystemExit("Set PYRO_IBVI_DATA to the folder that holds fashion-mnist/, uci/, ...")
    return Path(folder)


def read_idx(path: Path) -> np.ndarray:
    """The array in a gzipped file of the idx format."""
    content = gzip.decompress(path.read_bytes())
    shape = [int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(content[3])]
    return np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(shape)


def read_cifar10() -> dict[str, np.ndarray]:
    """CIFAR-10 from its archive of JPEG files, class by class in alphabetical order."""
    from PIL import Image

    cache = Path(os.environ.get("PYRO_IBVI_CACHE", "/tmp")) / "cifar10-jpeg.npz"
    if cache.exists():
        return dict(np.load(cache))
    parts: dict[str, list] = {"train": [], "test": []}
    with tarfile.open(data_folder() / "cifar10-jpeg" / "CIFAR-10-images.tar.gz") as archive:
        for member in archive:
            steps = Path(member.name).parts
            if member.isfile() and member.name.endswith(".jpg"):
                image = np.asarray(Image.open(io.BytesIO(archive.extractfile(member).read())))
                parts[steps[-3]].append((steps[-2], steps[-1], image))
    result = {}
    for part, rows in parts.items():
        rows.sort(key=lambda row: row[:2])
        classes = sorted({row[0] for row in rows})
        order = np.random.RandomState(0).permutation(len(rows))
        result[f"x_{part}"] = np.stack([rows[i][2] for i in order]).transpose(0, 3, 1, 2)
        result[f"y_{part}"] = np.array([classes.index(rows[i][0]) for i in order])
    np.savez(cache, **result)
    return result


def raw_images(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Images ``(N, channels, height, width)`` in [0, 1] and labels, training then test."""
    if name == "cifar10-jpeg":
        parts = read_cifar10()
        arrays = [parts[k] for k in ("x_train", "y_train", "x_test", "y_test")]
    else:
        folder = data_folder() / name
        arrays = [
            read_idx(folder / f"{part}-{kind}-ubyte.gz")
            for part in ("train", "t10k")
            for kind in ("images-idx3", "labels-idx1")
        ]
        arrays[0], arrays[2] = arrays[0][:, None], arrays[2][:, None]
    x, y, x_test, y_test = arrays
    return (
        x / np.float32(255),
        y.astype(np.int64),
        x_test / np.float32(255),
        y_test.astype(np.int64),
    )


def strangers(name: str, num: int, shape: tuple[int, ...]) -> np.ndarray:
    """Images of another kind in [0, 1], brought to the shape ``(channels, height, width)``."""
    if name == "kmnist":
        archive = np.load(data_folder() / "kmnist-test" / "kmnist-test-imgs.npz")
        images = archive[archive.files[0]][:num, None] / np.float32(255)
    else:
        images = raw_images(name)[2][:num]
    margins = [
        (wanted - found) // 2 for wanted, found in zip(shape, images.shape[1:], strict=True)
    ]
    images = np.pad(images, [(0, 0), (0, 0), *((m, m) for m in margins[1:])])
    return np.broadcast_to(images, (len(images), *shape))


def corrupt(images: np.ndarray, kind: str, severity: int) -> np.ndarray:
    """A shifted copy of images in [0, 1]."""
    value = CORRUPTIONS[kind][severity]
    if kind == "noise":
        noise = np.random.RandomState(severity).randn(*images.shape)
        return np.clip(images + value * noise, 0, 1).astype(np.float32)
    if kind == "blur":
        return ndi.gaussian_filter(images, (0, 0, value, value))
    if kind == "rotation":
        return ndi.rotate(images, value, axes=(2, 3), reshape=False, order=1, mode="nearest")
    if kind == "shift":
        return np.roll(images, (value, value), axis=(2, 3))
    mean = images.mean((2, 3), keepdims=True)
    return mean + value * (images - mean)


def load_images(
    name: str,
    num_train: int,
    num_valid: int,
    ood: str,
    num_shifted: int = 500,
    num_test: int | None = None,
) -> LabelledData:
    """The data of a task; validation images are the last of the training set."""
    x, y, x_test, y_test = raw_images(name)
    x_test, y_test = x_test[:num_test], y_test[:num_test]
    mean = x[:num_train].mean((0, 2, 3), keepdims=True)
    scale = x[:num_train].std((0, 2, 3), keepdims=True)

    def standardized(images: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray((images - mean) / scale)).float()

    labels = torch.from_numpy(y)
    return LabelledData(
        standardized(x[:num_train]),
        labels[:num_train],
        standardized(x[-num_valid:]),
        labels[-num_valid:],
        standardized(x_test),
        torch.from_numpy(y_test),
        {
            f"{kind} {severity + 1}": standardized(corrupt(x_test[:num_shifted], kind, severity))
            for kind in CORRUPTIONS
            for severity in SEVERITIES
        },
        torch.from_numpy(y_test[:num_shifted]),
        standardized(strangers(ood, 2000, x.shape[1:])),
    )


@dataclass(frozen=True)
class Table:
    """Standardized features and target of one split, with the target's standard deviation."""

    x: Tensor
    y: Tensor
    x_valid: Tensor
    y_valid: Tensor
    x_test: Tensor
    y_test: Tensor
    y_scale: float


UCI = {
    "concrete": 8,
    "energy": 8,
    "kin8nm": 8,
    "naval-propulsion-plant": 16,
    "power-plant": 4,
    "protein-tertiary-structure": 9,
    "wine-quality-red": 11,
    "yacht": 6,
}


def table_splits(name: str, num_splits: int) -> Iterator[Table]:
    """The published splits of a UCI set; a tenth of each training part is for validation."""
    rows = np.loadtxt(data_folder() / "uci" / f"{name}.txt", ndmin=2)
    features, target = rows[:, : UCI[name]], rows[:, UCI[name]]
    state = np.random.RandomState(1)
    for _ in range(num_splits):
        order = state.choice(range(len(rows)), len(rows), replace=False)
        end = round(0.9 * len(rows))
        start = round(0.9 * end)
        train = order[:start]
        shift, scale = features[train].mean(0), features[train].std(0)
        scale[scale == 0] = 1.0
        y_shift, y_scale = target[train].mean(), target[train].std()
        tensors = []
        for part in (train, order[start:end], order[end:]):
            tensors.append(torch.tensor((features[part] - shift) / scale, dtype=torch.float32))
            y = torch.tensor((target[part] - y_shift) / y_scale, dtype=torch.float32)
            tensors.append(y.unsqueeze(-1))
        yield Table(*tensors, float(y_scale))
