"""Time series with training, validation and test parts, shifted copies and strangers.

The Japanese vowels of Kudo, Toyama and Shimbo (1999, CC BY 4.0 by UCI): nine speakers say /ae/,
and twelve cepstral coefficients, brought to 25 steps, tell which one it was. The wheel of ``aeon``
has them. Some of the speakers are kept away from training as strangers.
"""

from __future__ import annotations

import numpy as np
import scipy.ndimage as ndi
import torch
from torch import Tensor

from .data import SEVERITIES, LabelledData

#: Standard deviation of noise, silent coefficients, steps of delay, remaining amplitude and width
#: of smoothing at each severity, in units of a coefficient's standard deviation and steps.
CORRUPTIONS = {
    "noise": (0.2, 0.4, 0.6, 0.8, 1.0),
    "silence": (1, 2, 3, 4, 5),
    "delay": (2, 4, 6, 8, 10),
    "amplitude": (0.8, 0.65, 0.5, 0.35, 0.2),
    "smoothing": (1, 2, 3, 4, 5),
}


def corrupt(series: np.ndarray, kind: str, severity: int) -> np.ndarray:
    """A shifted copy of standardized series ``(N, steps, coefficients)``."""
    value = CORRUPTIONS[kind][severity]
    if kind == "noise":
        return series + value * np.random.RandomState(severity).randn(*series.shape)
    if kind == "silence":
        silent = np.random.RandomState(severity).permutation(series.shape[-1])[:value]
        return np.where(np.isin(np.arange(series.shape[-1]), silent), 0.0, series)
    if kind == "delay":  # the first step is held
        return ndi.shift(series, (0, value, 0), order=0, mode="nearest")
    if kind == "smoothing":
        return ndi.gaussian_filter1d(series, value, axis=1)
    return value * series


def load_series(
    num_train: int, num_valid: int, num_strangers: int, num_shifted: int = 100
) -> LabelledData:
    """The data of a task.

    Args:
        num_train: Number of series to train on.
        num_valid: Number of series for validation; the others are for the test.
        num_strangers: Number of speakers, the last ones, that are none of the classes.
        num_shifted: Number of test series of which there are corrupted copies.

    Returns:
        The data, series of shape ``(N, 25, 12)``.
    """
    from aeon.datasets import load_classification

    series, speakers = load_classification("JapaneseVowels", load_equal_length=True)
    series, speakers = series.transpose(0, 2, 1), speakers.astype(int) - 1
    order = np.random.RandomState(0).permutation(len(series))
    series, speakers = series[order], speakers[order]
    is_known = speakers < speakers.max() + 1 - num_strangers
    known, labels = series[is_known], torch.from_numpy(speakers[is_known])
    mean, scale = known[:num_train].mean((0, 1)), known[:num_train].std((0, 1))

    def tensor(values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).float()

    x, start = (known - mean) / scale, num_train + num_valid
    shifted = x[start : start + num_shifted]
    return LabelledData(
        tensor(x[:num_train]),
        labels[:num_train],
        tensor(x[num_train:start]),
        labels[num_train:start],
        tensor(x[start:]),
        labels[start:],
        {
            f"{kind} {severity + 1}": tensor(corrupt(shifted, kind, severity))
            for kind in CORRUPTIONS
            for severity in SEVERITIES
        },
        labels[start : start + num_shifted],
        tensor((series[~is_known] - mean) / scale),
    )
