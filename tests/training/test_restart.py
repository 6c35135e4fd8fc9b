"""A training that is killed and started again ends where it would have ended, bit for bit."""

import os
import signal
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch.distributions import constraints
from torch.utils.data import RandomSampler

import pyro_ibvi as ibvi
from pyro_ibvi.training import checkpoints
from pyro_ibvi.training import course as _course
from tests.training.kill_often import kill_often
from tests.training.killable import (
    CASES,
    NUM_BATCHES,
    NUM_EPOCHS,
    OPTIMIZERS,
    Killed,
    differences,
    make_loader,
    make_svi,
    summary,
    train,
)

SCRIPT = Path(__file__).with_name("killable.py")


def run_script(what, folder):
    command = [sys.executable, str(SCRIPT), what, str(folder)]
    subprocess.run(command, check=True, cwd=SCRIPT.parent.parent)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs signals that kill")
def test_a_killed_process_is_continued_by_another(tmp_path):
    run_script("kill", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {f"{case[0]}.pt" for case in CASES}
    run_script("resume", tmp_path)
    for optimizer, *_ in CASES:
        svi = make_svi(optimizer)
        expected = summary(svi, train(svi))
        resumed = torch.load(tmp_path / f"{optimizer}.summary", weights_only=True)
        assert differences(expected, resumed) == []
        assert len(resumed["history"][0]) == NUM_EPOCHS


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_kills_at_random_moments(tmp_path):
    hits, differing = kill_often(20, tmp_path)
    assert differing == []
    assert hits == 20


def interrupted(path, make, killed_after, make_loaders=lambda: {}, **kwargs):
    """Trains until killed, then sets everything up anew from another seed and goes on."""
    with pytest.raises(Killed):
        train(make(), killed_after=killed_after, checkpoint=path, **make_loaders(), **kwargs)
    pyro.clear_param_store()
    svi = make(seed=77)
    return svi, train(svi, seed=78, checkpoint=path, **make_loaders(), **kwargs)


@pytest.mark.parametrize("killed_after", [1, 4, 5, 7, 10])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_place_in_an_epoch(tmp_path, optimizer, killed_after):
    def make(seed=0):
        return make_svi(optimizer, seed)

    svi = make()
    expected = summary(svi, train(svi))
    for steps in (None, 2) if killed_after >= NUM_BATCHES else (1,):
        path = tmp_path / f"{steps}.pt"
        resumed = interrupted(path, make, killed_after, checkpoint_steps=steps)
        assert differences(expected, summary(*resumed)) == []


def generator():
    return torch.Generator().manual_seed(3)


LOADERS = {
    "generator": lambda: make_loader(generator=generator()),
    "sampler": lambda: make_loader(
        shuffle=False, sampler=RandomSampler(range(37), replacement=True, generator=generator())
    ),
    "batch sampler": lambda: make_loader(
        shuffle=False,
        batch_size=1,
        batch_sampler=torch.utils.data.BatchSampler(
            RandomSampler(range(37), generator=generator()), 8, False
        ),
    ),
    "workers": lambda: make_loader(num_workers=2),
}


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # of forked workers
@pytest.mark.parametrize("kind", LOADERS)
def test_loaders_with_random_states_of_their_own(tmp_path, kind):
    def loaders():
        valid = make_loader(generator=torch.Generator().manual_seed(4))
        return {"loader": LOADERS[kind](), "valid_loader": valid}

    def make(seed=0):
        return make_svi("momentum", seed)

    svi = make()
    expected = summary(svi, train(svi, **loaders()))
    resumed = interrupted(tmp_path / "run.pt", make, 8, loaders, checkpoint_steps=2)
    assert differences(expected, summary(*resumed)) == []


def restart_without(monkeypatch, tmp_path, module, name, replacement, make):
    """Paths that differ if a part of the restart is left out."""
    svi = make()
    expected = summary(svi, train(svi))
    path = tmp_path / "run.pt"
    with pytest.raises(Killed):
        train(make(), killed_after=8, checkpoint=path, checkpoint_steps=2)
    with monkeypatch.context() as patch:
        patch.setattr(module, name, replacement)
        svi = make(seed=77)
        history = train(svi, seed=78, checkpoint=path)
        return differences(expected, summary(svi, history))


CONTROLS = {
    "the random state": (checkpoints, "set_random_state", lambda state: None),
    "the order of the epoch": (_course, "set_random_state", lambda state: None),
    "the optimizer": (checkpoints, "set_optimizer_state", lambda *args: None),
    "parameters and buffers": (checkpoints, "set_tensors", lambda svi, content: None),
}


@pytest.mark.parametrize("what", CONTROLS)
def test_nothing_of_this_can_be_left_out(monkeypatch, tmp_path, what):
    differing = restart_without(
        monkeypatch, tmp_path, *CONTROLS[what], lambda seed=0: make_svi("momentum", seed)
    )
    assert any(path.startswith("/modules/1/locs") for path in differing)


def counting_svi(seed=0):
    """With particles in parallel the objective counts the model's plates at its first step."""
    loss = ibvi.TraceExpectedLogLikelihood(2, vectorize_particles=True, reduction="mean")
    return make_svi("momentum", seed, loss=loss)


def test_an_objective_that_runs_the_model_once_more_at_its_first_step(monkeypatch, tmp_path):
    args = (monkeypatch, tmp_path, checkpoints, "_run_once")
    assert restart_without(*args, checkpoints._run_once, counting_svi) == []
    # Nothing is run beforehand, and the count is not restored: statistics are updated twice.
    (tmp_path / "run.pt").unlink()
    monkeypatch.setattr(checkpoints, "_LOSS_NUMBERS", ())
    differing = restart_without(*args, lambda *_: None, counting_svi)
    assert "/modules/0/net.net.1.num_batches_tracked" in differing


def regression(x, y):
    shift = pyro.param("shift", lambda: torch.randn(()))
    scale = pyro.param("scale", lambda: torch.rand(()) + 0.5, constraint=constraints.positive)
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with pyro.plate("data", 37, subsample_size=len(x)):
        pyro.sample("obs", dist.Normal(x @ w + shift, scale), obs=y.squeeze(-1))


def decay(_):
    return {"lr": 0.05, "weight_decay": 0.1}


OPTIMIZERS_OF_PYRO = {
    "Adam": lambda: pyro.optim.Adam({"lr": 0.05}),
    "rates by name": lambda: pyro.optim.AdamW(decay),
    "clipped": lambda: pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.9}),
    "scheduler": lambda: pyro.optim.ExponentialLR(
        {"optimizer": torch.optim.SGD, "optim_args": {"lr": 1e-3, "momentum": 0.9}, "gamma": 0.5}
    ),
}
OBJECTIVES = {
    "ELBO": Trace_ELBO,
    "graph": TraceGraph_ELBO,
    "enumeration": partial(TraceEnum_ELBO, strict_enumeration_warning=False),
    "expected": ibvi.TraceExpectedLogLikelihood,
}


def interrupted_stock(tmp_path, make, leave_out=()):
    """Differences after a restart of a training with one of Pyro's optimizers."""

    def summary_without(svi, history):
        return {k: v for k, v in summary(svi, history).items() if k not in leave_out}

    svi = make()
    expected = summary_without(svi, train(svi))
    path = tmp_path / "run.pt"
    with pytest.raises(Killed):
        train(make(), killed_after=8, checkpoint=path, checkpoint_steps=2)
    svi = make(seed=77)
    return differences(expected, summary_without(svi, train(svi, seed=78, checkpoint=path)))


@pytest.mark.parametrize("loss", OBJECTIVES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS_OF_PYRO)
def test_pyros_guides_optimizers_and_parameters_in_the_store(tmp_path, optimizer, loss):
    kind = AutoMultivariateNormal if optimizer == "clipped" else AutoNormal

    def make(seed=0):
        pyro.set_rng_seed(seed)
        pyro.clear_param_store()
        optim = OPTIMIZERS_OF_PYRO[optimizer]()
        return SVI(regression, kind(regression), optim, OBJECTIVES[loss]())

    assert interrupted_stock(tmp_path, make) == []
    assert {"shift", "scale"} <= set(pyro.get_param_store())


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("guide", [ibvi.AutoMuPNormal, AutoNormal])
def test_pyros_optimizers_of_parameters_that_are_not_in_the_store(tmp_path, guide, local):
    pyro.settings.set(module_local_params=local)

    def make(seed=0):
        pyro.clear_param_store()
        model = make_svi("adamw", seed).model
        return SVI(model, guide(model), pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())

    if guide is ibvi.AutoMuPNormal:
        guide = partial(guide, covariance=ibvi.Diagonal())
    assert interrupted_stock(tmp_path, make) == []


def test_baselines_of_score_functions(tmp_path):
    def model(x, y):
        z = pyro.sample("z", dist.Bernoulli(0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(x[:, 0] + z, 1.0), obs=y.squeeze(-1))

    def guide(x, y):
        p = pyro.param("p", torch.tensor(0.3), constraint=constraints.unit_interval)
        baseline = {"use_decaying_avg_baseline": True}
        pyro.sample("z", dist.Bernoulli(p), infer={"baseline": baseline})

    def make(seed=0):
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        return SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), TraceGraph_ELBO())

    # Pyro makes a new tensor for the average at each step, and its optimizer keeps all of them.
    differing = interrupted_stock(tmp_path, make, leave_out=["optimizer"])
    assert differing == []
    assert len(pyro.get_param_store()) == 2


@pytest.mark.parametrize("guide", [ibvi.AutoMuPNormal, AutoNormal])
def test_one_optimizer_for_a_hand_written_model(tmp_path, guide):
    def make(seed=0):
        pyro.set_rng_seed(seed)
        pyro.clear_param_store()
        of_model = guide(regression)
        args = {"lr": 0.01, "momentum": 0.9}
        optim = ibvi.MuPOptim(torch.optim.SGD, args, of_model, clip_norm=0.1)
        return SVI(regression, of_model, optim, ibvi.TraceExpectedLogLikelihood(reduction="mean"))

    svi = make()
    expected = summary(svi, train(svi))
    resumed = interrupted(tmp_path / "run.pt", make, 8, checkpoint_steps=2)
    assert differences(expected, summary(*resumed)) == []


def test_an_annealed_weight_and_a_plateau(tmp_path):
    weight = ibvi.KLAnnealing(0.5, 0.0, num_steps=3)

    def make(seed=0):
        pyro.set_rng_seed(seed)
        pyro.clear_param_store()
        of_model = AutoNormal(regression)
        optim = ibvi.MuPOptim(
            torch.optim.SGD,
            {"lr": 0.01},
            of_model,
            scheduler=lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(
                o, patience=0, threshold=1e9
            ),
        )
        return SVI(regression, of_model, optim, ibvi.TraceExpectedLogLikelihood(kl_weight=0.5))

    def run(svi, **kwargs):
        def anneal(epoch, history):
            svi.loss.__self__.kl_weight = weight(epoch + 1)

        return train(svi, callback=anneal, valid_loader=make_loader(), **kwargs)

    svi = make()
    expected = summary(svi, run(svi))
    with pytest.raises(Killed):
        run(make(), killed_after=12, checkpoint=tmp_path / "run.pt", checkpoint_steps=1)
    svi = make(seed=77)
    assert differences(expected, summary(svi, run(svi, checkpoint=tmp_path / "run.pt"))) == []


def test_the_same_process_goes_back_to_its_checkpoint(tmp_path):
    svi = make_svi("momentum")
    expected = summary(svi, train(svi))
    svi = make_svi("momentum")
    path = tmp_path / "run.pt"
    with pytest.raises(Killed):
        train(svi, killed_after=8, checkpoint=path, checkpoint_steps=2)
    del svi.step  # alive again
    with torch.no_grad():
        for parameter in svi.guide.parameters():
            parameter.fill_(torch.nan)  # as after a training that failed
    assert differences(expected, summary(svi, train(svi, checkpoint=path))) == []


def test_a_training_at_its_end_is_restored_and_not_continued(tmp_path):
    path = tmp_path / "run.pt"
    svi = make_svi("adamw")
    expected = summary(svi, train(svi, checkpoint=path))
    for num_epochs in (NUM_EPOCHS, 2):
        svi = make_svi("adamw", 77)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*3 epochs were trained already")
            history = train(svi, seed=78, num_epochs=num_epochs, checkpoint=path)
        assert differences(expected, summary(svi, history)) == []
    longer = train(make_svi("adamw", 77), num_epochs=NUM_EPOCHS + 1, checkpoint=path)
    assert longer.train_loss[:NUM_EPOCHS] == expected["history"][0]
    assert longer.num_epochs == NUM_EPOCHS + 1


def test_a_training_that_a_callback_stopped_stays_stopped(tmp_path):
    def stop(epoch, history):
        return epoch == 1

    path = tmp_path / "run.pt"
    train(make_svi("adamw"), checkpoint=path, callback=stop)
    assert train(make_svi("adamw"), checkpoint=path, callback=stop).num_epochs == 2
