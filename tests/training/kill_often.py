"""Kills a training at random moments, again and again, and compares its end with one in peace.

The tests kill 20 times; by hand, ``python -m tests.training.kill_often 100``. A kill may come
anywhere: in a step, while a batch is loaded, while the checkpoint is written. Each time the same
script goes on from what the file holds.
"""

import os
import random
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import torch

from tests.training.killable import differences, make_loader, make_svi, summary, train

NUM_EPOCHS = 40


def run(checkpoint, result):
    torch.set_num_threads(1)
    svi = make_svi("momentum")
    history = train(
        svi,
        loader=make_loader(),
        valid_loader=make_loader(),
        num_epochs=NUM_EPOCHS,
        patience=NUM_EPOCHS,
        accumulate=2,
        checkpoint=checkpoint,
        checkpoint_steps=None if checkpoint is None else 1,
    )
    whole = result.with_suffix(".part")  # a kill may come here, too
    torch.save(summary(svi, history), whole)
    whole.replace(result)


def started(checkpoint, result):
    process = os.fork()
    if process == 0:
        try:
            run(checkpoint, result)
        except BaseException:
            traceback.print_exc()
            os._exit(1)  # or what forked goes on here, too
        os._exit(0)
    return process


def kill_often(num_kills, folder, seed=0):
    """Number of kills that hit a training under way, and the paths that differ in the end."""
    moments, peaceful = random.Random(seed), folder / "peaceful"
    begin = time.monotonic()
    assert os.waitpid(started(None, peaceful), 0)[1] == 0
    whole = time.monotonic() - begin
    hits, checkpoint, result = 0, folder / "run.pt", folder / "result"
    expected, differing = torch.load(peaceful, weights_only=True), []
    while hits < num_kills or not result.exists():
        if result.exists():  # a training that ended before it was killed often enough: once more
            result.unlink()
            checkpoint.unlink()
        process = started(checkpoint, result)
        if hits < num_kills:
            time.sleep(moments.uniform(0.1, 1.3) * whole / num_kills)
            os.kill(process, signal.SIGKILL)
        status = os.waitpid(process, 0)[1]
        assert status == 0 or os.WIFSIGNALED(status), status
        hits += os.WIFSIGNALED(status)
        if result.exists():
            differing += differences(expected, torch.load(result, weights_only=True))
    left = {path.name for path in folder.iterdir()} - {"result.part"}
    assert left == {"peaceful", "result", "run.pt"}, left  # and no half-written checkpoint
    return hits, differing


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        hits, differing = kill_often(int(sys.argv[1]), Path(name))
    print(f"killed {hits} times; differs in {differing or 'nothing'}")
    sys.exit(bool(differing))
