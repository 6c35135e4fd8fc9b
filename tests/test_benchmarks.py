"""The speed benchmark measures what it says: every contender does its work. Nothing is timed."""

import math

import pyro
import pytest
import torch
from torch import nn

from benchmarks.speed import (
    last_layer,
    peers,
    per_datum,
    prediction,
    report,
    steps,
    targets,
    timing,
)
from benchmarks.speed.contenders import ByHand, own_contenders, weight_layers
from benchmarks.speed.names import BY_HAND, DETERMINISTIC, MEAN_FIELD, OURS_SVI, OURS_TORCH, PYRO
from benchmarks.speed.networks import Network, all_networks, make_lenet5, make_resnet18, mlp

CPU = torch.device("cpu")
TINY = mlp((8, 8), rounds=2, batch=16)
CONV = Network(
    lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 10)),
    input_shape=(1, 4, 4),
    batch=8,
    rounds=2,
)
OWN = own_contenders()
IDS = [f"{c.who}, {c.family}" for c in OWN]


def num_random(net, family):
    """Numbers of weights in the network, in its random layers, and in the first and last one."""
    sizes = [sum(p.numel() for p in layer.parameters()) for _, layer in weight_layers(net)]
    return sum(sizes) if family == MEAN_FIELD else sizes[0] + sizes[-1]


@pytest.mark.parametrize("network", [TINY, CONV], ids=["mlp", "conv"])
@pytest.mark.parametrize("contender", OWN, ids=IDS)
def test_a_step_draws_and_trains_what_it_should(network, contender):
    (trainer,) = steps.make_trainers(network, [contender], CPU).values()
    did = steps.work(trainer, CPU)
    assert did["fraction_trained"] == 1.0
    assert "host_syncs" not in did  # there is no GPU to wait for
    net = network.build()
    num_weights = sum(p.numel() for p in net.parameters())
    rank = None if contender.family in (MEAN_FIELD, DETERMINISTIC) else int(contender.family[5:])
    random = num_random(net, contender.family)
    if contender.who == DETERMINISTIC:
        expected, parameters = 0, num_weights
    elif rank is None:
        expected, parameters = num_weights, 2 * num_weights
    elif contender.who == PYRO:  # its covariance is low-rank plus diagonal, one for both layers
        expected, parameters = random + rank, num_weights + random * (rank + 1)
    else:
        first, last = (
            min(rank, sum(p.numel() for p in layer.parameters()))
            if contender.who != BY_HAND
            else rank
            for layer in (weight_layers(net)[0][1], weight_layers(net)[-1][1])
        )
        sizes = [sum(p.numel() for p in layer.parameters()) for _, layer in weight_layers(net)]
        expected = first + last
        parameters = num_weights + sizes[0] * first + sizes[-1] * last
    assert did["random_numbers"] == expected
    assert did["num_parameters"] == parameters


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("rank", [None, 3])
def test_weights_by_hand_have_the_covariance_that_they_claim(rank):
    net = ByHand(nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1)), rank)
    num_draws = 4_000
    with torch.no_grad():
        draws = [net.weights() for _ in range(num_draws)]
        flat = torch.stack([torch.cat([v.reshape(-1) for v in d.values()]) for d in draws])
        blocks = []
        for layer in net.factors.values():
            rows = torch.cat([f.reshape(-1, rank or 1) for f in layer.values()])
            blocks.append(rows.square().squeeze(-1).diag() if rank is None else rows @ rows.mT)
    covariance = torch.block_diag(*blocks)
    variance = covariance.diagonal()
    error = (variance.outer(variance) + covariance.square()).div(num_draws).sqrt()
    difference = (flat.T.cov() - covariance).abs()
    assert (difference <= 5 * error).all()
    # a covariance without its off-diagonal part must not pass
    if rank is not None:
        assert ((flat.T.cov() - variance.diag()).abs() > 5 * error).any()


@pytest.mark.parametrize("contender", OWN, ids=IDS)
def test_training_lowers_the_loss_at_fixed_noise(contender):
    (trainer,) = steps.make_trainers(TINY, [contender], CPU).values()
    losses = []
    for _ in range(20):
        pyro.set_rng_seed(1)
        losses.append(trainer.step())
    assert all(map(math.isfinite, losses))
    assert losses[-1] < losses[1]  # the first step draws for setting up, too


def test_steps_are_compared_within_a_round():
    results = steps.measure_network(TINY, OWN, rounds=2, device=CPU)
    assert list(results) == [DETERMINISTIC, MEAN_FIELD, "rank 10", "rank 100"]
    assert results[DETERMINISTIC][DETERMINISTIC]["ratio"] == 1.0
    assert results[MEAN_FIELD][OURS_SVI]["against_ours"] == 1.0
    assert set(results["rank 10"]) == {BY_HAND, OURS_SVI, OURS_TORCH, PYRO}


def test_the_median_is_that_of_the_ratios():
    row = timing.summary([2.0, 9.0, 4.0], ratio=[1.0, 3.0, 1.0], other=None)
    assert row["ms"] == 4.0
    assert row["ratio"] == 3.0  # of 2, 3 and 4; the ratio of the medians is 4
    assert "other" not in row


def test_calls_come_in_turn():
    log = []
    calls = {name: (lambda name=name: log.append(name)) for name in "ABC"}
    times = timing.in_turn(calls, rounds=2, device=CPU, warmup=1)
    assert "".join(log) == "ABC" * 3
    assert {name: len(values) for name, values in times.items()} == {"A": 2, "B": 2, "C": 2}


def test_random_numbers_and_changes_are_counted():
    assert timing.random_numbers(lambda: torch.randn(3, 4) + torch.empty(5).normal_()[0]) == 17
    first, second = torch.zeros(3), torch.zeros(1)
    assert timing.fraction_changed(lambda: first[0].add_(1), lambda: [first, second]) == 0.75


def test_predictions_average_over_as_many_draws_as_they_say():
    chosen = [c for c in OWN if c.family == MEAN_FIELD]
    num_weights = sum(p.numel() for p in TINY.build().parameters())
    few, many = (
        prediction.measure_network(TINY, chosen, n, 5, rounds=1, device=CPU)[MEAN_FIELD]
        for n in (4, 10)
    )
    for who in (BY_HAND, OURS_SVI, OURS_TORCH):
        assert few[who]["random_numbers"] == 4 * num_weights
    # Predictive draws labels, too, and has a few draws before the first one that counts.
    more = {who: many[who]["random_numbers"] - few[who]["random_numbers"] for who in many}
    assert more[BY_HAND] == more[OURS_SVI] == 6 * num_weights
    assert more[PYRO] == 6 * (num_weights + 5)
    for trainer in steps.make_trainers(TINY, chosen, CPU).values():
        trainer.step()
        probs = trainer.predict(torch.randn(5, 64), 6)
        torch.testing.assert_close(probs.sum(-1), torch.ones(5))


def test_a_peer_that_is_not_there_is_left_out_with_the_reason(monkeypatch):
    monkeypatch.setattr(peers, "PEERS", {"nobody": ("nobody", "no_such_module")})
    reason = "ModuleNotFoundError: No module named 'no_such_module'"
    assert peers.find_peers() == {"nobody": {"package": "nobody", "reason": reason}}
    assert peers.peer_contenders([]) == []


def test_networks_are_the_usual_ones():
    assert sum(p.numel() for p in make_lenet5().parameters()) == 61_706
    assert sum(p.numel() for p in make_resnet18().parameters()) == 11_173_962
    narrow = all_networks()["33 narrow layers"]
    assert len(weight_layers(narrow.build())) == 33


def test_a_target_is_reached_as_it_is_printed():
    assert targets.Target("", 1.1, at_most=True, measured=1.104).reached
    assert not targets.Target("", 1.1, at_most=True, measured=1.106).reached
    assert targets.Target("", 3, at_most=False, measured=2.996).reached
    assert not targets.Target("", 3, at_most=False, measured=2.99).reached


def test_the_committed_results_fill_the_page():
    results = report.load()
    assert set(results["steps"]) == set(all_networks())
    text = report.as_text(results)
    assert all(line.count("|") == 5 for line in report.target_table(results).splitlines())
    assert "nan" not in text
    assert len(targets.all_targets(results)) >= 20


def test_the_committed_results_per_datum_fill_the_page():
    results = report.load(per_datum.RESULTS)
    assert list(results["steps"]) == list(per_datum.ROUNDS)
    assert list(results["memory"]) == list(per_datum.MEMORY)
    for text, num_rows, names in (
        (report.per_datum_table(results), len(per_datum.CONTENDERS), per_datum.ROUNDS),
        (report.per_datum_memory_table(results), len(per_datum.CONTENDERS) - 2, per_datum.MEMORY),
    ):
        lines = text.splitlines()
        assert len(lines) == 2 + num_rows
        assert all(line.count("|") == 2 + len(names) for line in lines)


@pytest.mark.parametrize("network", [TINY, CONV], ids=["mlp", "conv"])
@pytest.mark.parametrize("who", per_datum.CONTENDERS)
def test_contenders_with_a_draw_per_datum_train(network, who):
    torch.manual_seed(0)
    x, y = network.data(network.batch, CPU)
    trainer = per_datum.CONTENDERS[who](network, x, y)
    for _ in range(2):  # the first step of ours goes by traces
        trainer.step()
    did = steps.work(trainer, CPU)
    assert did["fraction_trained"] == 1.0
    sizes = [layer.weight.shape[1] for _, layer in weight_layers(network.build())]
    linear = sizes if network is TINY else sizes[-1:]
    if "noise" in who and "without" not in who:
        per_row = network.batch if "datum" in who else 1
        assert did["random_numbers"] == per_row * sum(linear)


def test_the_cost_of_the_last_layer_is_measured():
    ((build, x),) = last_layer.networks(quick=True).values()
    found = last_layer.measure(build, x, rounds=1, num_draws=3)
    assert found["ratio"] == pytest.approx(found["prediction_ms"] / found["one_pass_ms"])
