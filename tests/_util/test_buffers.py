"""Buffers that are given back, and those that are not ours to give back."""

import threading

import torch
from torch import nn

from pyro_ibvi._util.buffers import buffers_kept


def test_buffers_of_what_runs_meanwhile_are_given_back():
    known, unknown = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    with buffers_kept(known):
        known(torch.randn(5, 3))
        unknown(torch.randn(5, 3))
        assert known.num_batches_tracked == unknown.num_batches_tracked == 1
    for norm in (known, unknown):
        assert norm.num_batches_tracked == 0
        assert not norm.running_mean.any()


def test_what_another_thread_trains_meanwhile_is_left_alone():
    norm = nn.BatchNorm1d(3)

    def train():
        for _ in range(5):
            norm(torch.randn(5, 3))

    with buffers_kept():
        thread = threading.Thread(target=train)
        thread.start()
        thread.join()
    assert norm.num_batches_tracked == 5
