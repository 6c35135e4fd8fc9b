"""The report: what was done and what came out, in words and tables."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

import pyro_ibvi as ibvi
from benchmarks.demo import curve, digits
from benchmarks.demo.curve import Fit
from benchmarks.demo.digits import DISTRIBUTION, USUAL, Digits, Predictions


def write(
    path: Path,
    data: Digits,
    predictions: Predictions,
    fits: Sequence[Fit],
    seconds: Mapping[str, float],
    num_epochs: int,
) -> None:
    """Writes the report."""
    path.write_text(
        "\n\n".join(
            [
                _start(data, num_epochs),
                _scores(data, predictions),
                _doubted(data, predictions["clean"][DISTRIBUTION]),
                _curve(fits),
                _files(),
                _how(seconds),
            ]
        )
        + "\n"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]], num_text: int) -> str:
    """A Markdown table whose first ``num_text`` columns are text."""
    rule = ["---"] * num_text + ["---:"] * (len(header) - num_text)
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *rows))


def _start(data: Digits, num_epochs: int) -> str:
    return f"""# What a network knows, and what it guesses

An ordinary network was trained on {len(data.y):,} handwritten digits of 8 x 8 pixels, and then the
same network once more as a distribution: the weights of its first and last layer are random, and
training moves their mean and their spread. A prediction is the average over 100 draws of the
weights. Both had {num_epochs} passes over the data. The distribution was trained by implicit-bias
variational inference in its first form, that of the paper: it starts at the prior and maximizes
the expected log-likelihood alone, and nothing but the optimizer's own bias keeps it near its
start. Everything here is from one seed, a demonstration and no evidence; the page *Results* of the
documentation has comparisons."""


def _scores(data: Digits, predictions: Predictions) -> str:
    rows, scores = [], {}
    for name, methods in predictions.items():
        for method, prediction in methods.items():
            s = scores[name, method] = ibvi.score(prediction, data.y_test)
            confidence = prediction.mean.amax(-1).mean().item()
            numbers = [f"{100 * s['accuracy']:.1f}", f"{100 * confidence:.1f}"]
            rows.append([name, method, *numbers, f"{s['nll']:.3f}", f"{s['ece']:.3f}"])
    header = ["images", "network", "right, %", "confidence, %", "NLL", "ECE"]
    usual, ours = scores["noisy", USUAL], scores["noisy", DISTRIBUTION]
    lower = "lower" if ours["nll"] < usual["nll"] else "no lower"
    return f"""## On what it knows, and on what it has never seen

Both were tested on {len(data.y_test)} digits kept aside, and on the same digits under noise that
was not there in training.

{table(header, rows, 2)}

- *images*: the test digits as they are, or with Gaussian noise of standard deviation
  {digits.NOISE} on pixels from -1 to 1.
- *network*: trained as usual, or as a distribution over its weights.
- *right*: how many digits it names rightly. Higher is better.
- *confidence*: the probability that it gives the digit it names, on average. It should equal the
  column before it: more is overconfidence.
- *NLL*: negative log-likelihood in nats per digit, the surprise at the true label. Lower is
  better; guessing costs 2.303.
- *ECE*: expected calibration error, the mean distance between confidence and frequency of being
  right, over bins of confidence. Lower is better.

On noisy digits the distribution's NLL is {lower} than the usual network's: {ours["nll"]:.3f}
against {usual["nll"]:.3f}. The picture shows confidence (across) against the share that was right
(up): below the dotted line a network is surer than it should be.

![Confidence against accuracy on noisy digits, for both networks](reliability.png)"""


def _doubted(data: Digits, prediction: ibvi.Prediction) -> str:
    found = digits.doubted(prediction, digits.NUM_DOUBTED)
    is_wrong = prediction.mean.argmax(-1) != data.y_test
    among, in_all = int(is_wrong[found].sum()), int(is_wrong.sum())
    return f"""## The digits it doubts

These are the {digits.NUM_DOUBTED} clean test digits about which the draws of the weights disagree
most (largest mutual information of label and weights), the most doubtful first, each with its two
best guesses. It got {among} of them wrong, and {in_all - among} of the other
{len(is_wrong) - len(found)}.

![The twelve digits that it doubts most, with two guesses each](doubted.png)"""


def _curve(fits: Sequence[Fit]) -> str:
    rows, ratios = [], []
    for fit in fits:
        among, gap = fit.spread(curve.AMONG), fit.spread(curve.GAP)
        ratios.append(gap / among)
        exact = [f"{number:.3f}" for number in fit.exact]
        rows.append([fit.name, f"{among:.3f}", f"{gap:.3f}", f"{gap / among:.1f}", *exact])
    header = ["fit", "among data", "in the gap", "ratio", "exact, among", "exact, gap"]
    return "\n\n".join([_curve_table(table(header, rows, 1)), _curve_finding(fits, ratios)])


def _curve_table(shown: str) -> str:
    return f"""## Where there are no data

Eighty points of a curve, with noise of standard deviation {curve.NOISE} and none of them in the
middle. The dark band is what the network itself does not know (twice the standard deviation over
draws of the weights), the light one has the noise as well.

![Three fits of a curve with a gap in its data, and their bands](curve.png)

{shown}

- *fit*: how the network was fitted, see below.
- *among data*, *in the gap*: standard deviation over draws of the weights at x = ±1.4, where there
  are data, and at x = ±0.1, where there are none.
- *ratio*: the gap's over that among the data. A useful band has a large one.
- *exact*: the same for the Gaussian process that this network's prior is at infinite width,
  conditioned on the data exactly."""


def _curve_finding(fits: Sequence[Fit], ratios: Sequence[float]) -> str:
    return f"""Two things decide how much the band widens, and neither is a switch of the method.

**The scale of the first layer.** Implicit bias ends at the fit that is nearest to the prior: it
takes away spread where the data say something and keeps the prior's elsewhere. With weights and
biases of standard deviation 1 in the first layer the functions of the prior hardly bend within 1.6
units, so the data on both sides settle what is between: even the exact answer widens little
({fits[0].exact[0]:.3f} to {fits[0].exact[1]:.3f}). A scale of 5 makes functions that bend within
the gap ({fits[1].exact[0]:.3f} to {fits[1].exact[1]:.3f}), and the band follows: the ratio is
{ratios[0]:.1f} in the first fit and {ratios[1]:.1f} in the second. Multiplying the inputs by 5 and
widening the biases does the same. So scale inputs by the distance over which you expect the curve
to change. The trained bands are narrower than the exact ones: the layers in front are points that
learn, and the method ends at a fit through the data, whose noise widens no band.

**Noise of the gradient.** The first two fits take the expectation over the last layer exactly
(`TraceClosedFormHead`), and nothing in front is random. The third draws first and last layer once
a step. In as many steps the spread among the data has hardly fallen (ratio {ratios[2]:.1f}): its
band is wide everywhere, since training is far from its end. More draws a step (`draws=`) and more
steps narrow it where there are data. A band that is as wide among the data as in a gap is a sign
that training has to go on."""


def _files() -> str:
    return """## What was left here

- `network.ibvi`: the distribution over networks; `ibvi.load("network.ibvi", network)` predicts
  with it.
- `posterior.nc`: draws of the ten biases of the last layer, one for each digit, with predictions
  and log-likelihoods of the clean test digits, for ArviZ: `data = az.from_netcdf("posterior.nc")`,
  then `az.summary(data)`, `az.plot_trace(data)`, `az.plot_forest(data)`. The draws are independent
  and stand in four chains, so that ArviZ has some to compare.
- `reliability.png`, `doubted.png`, `curve.png`: the pictures of this report."""


def _how(seconds: Mapping[str, float]) -> str:
    rows = [[name, f"{number:.1f}"] for name, number in seconds.items()]
    rows.append(["in all", f"{sum(seconds.values()):.1f}"])
    return f"""## How long, and on what

{_processor()} with {os.cpu_count()} logical cores, of which one thread was used
({platform.system()}, Python {platform.python_version()}, torch {torch.__version__}).

{table(["part", "seconds"], rows, 1)}

The time is that of the clock, without the start of Python; other work on the machine lengthens
it. To make it again: `make demo`."""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), platform.processor() or platform.machine())
