"""Writes the page of all messages."""

import re
from itertools import groupby
from pathlib import Path

import messages

ROOMS = {
    "front": "The one object",
    "models": "Models",
    "guides": "Guides",
    "objectives": "Objectives",
    "mup": "Parametrizations and roles",
    "training": "Training",
    "prediction": "Prediction",
    "diagnostics": "Diagnostics",
    "arviz": "ArviZ",
    "estimators": "Estimators for scikit-learn",
    "lightning": "The module for Lightning",
    "botorch": "Models for BoTorch",
    "theory": "Theory",
    "pairing": "Model, guide and optimizer together",
    "_util": "Arguments, files and batches",
}


def room_of(message):
    return message.module.split(".")[1]


def escaped(text):
    """A sentence as Markdown shows it letter by letter."""
    return re.sub(r"([\\`*_{}\[\]<>#|$~^])", r"\\\1", text)


def order(message):
    names = list(ROOMS)
    room = room_of(message)
    return (names.index(room) if room in names else len(names), message.text.lower())


def write(path: Path) -> None:
    """Writes every message of the package, by room and then by its first words."""
    lines = [
        "# All messages\n",
        "Every error and warning of the package, by where it arises and then by its first words; "
        "… stands for the values that it names. Each says what was found, what was expected and "
        "what to write instead; [](troubleshooting.md) says more of those that come up most.\n",
    ]
    found = sorted({m.text: m for m in messages.all_messages()}.values(), key=order)
    for room, group in groupby(found, key=room_of):
        lines.append(f"## {ROOMS.get(room, room)}\n")
        lines += [f"- {escaped(m.text)} *({m.kind})*" for m in group]
        lines.append("")
    path.write_text("\n".join(lines))
