"""The pages on messages: complete, and about messages that exist."""

import ast
import re
import sys

import pytest

from tests.pages import DOCS

sys.path.insert(0, str(DOCS))
import all_messages
import messages

FOUND = messages.all_messages()
PAGE = (DOCS / "troubleshooting.md").read_text()
#: Entries on what gives no message.
SILENT = {"The training loss stays where it started", "Predictions differ from call to call"}


def test_every_message_is_read_from_the_source():
    """What a message says is known but for the values in it."""
    assert len(FOUND) > 250
    unknown = [m for m in FOUND if len(m.text.replace(messages.HOLE, "").strip()) < 10]
    assert not unknown, unknown


def test_the_page_of_all_messages_has_each_of_them(tmp_path):
    all_messages.write(tmp_path / "all.md")
    page = (tmp_path / "all.md").read_text()
    for message in FOUND:
        assert f"- {all_messages.escaped(message.text)} *(" in page
    assert all(all_messages.room_of(m) in all_messages.ROOMS for m in FOUND), "name the new room"


@pytest.mark.parametrize("entry", re.findall(r"^### (.+)$", PAGE, flags=re.MULTILINE))
def test_entries_begin_as_messages_do(entry):
    if entry in SILENT:
        return
    for start in entry.split(" / "):
        pieces = [re.escape(piece) for piece in start.split(messages.HOLE)]
        pattern = re.compile(".*".join(pieces))
        assert any(pattern.match(m.text) for m in FOUND), f"no message begins {start!r}"


def test_a_message_that_is_made_in_pieces_is_put_together():
    source = """
_WHY = "Since it is so."

def f(x, name):
    if x:
        raise ValueError(f"{name} is {x!r}: " + _WHY)
    warnings.warn("Beware.", stacklevel=2)
"""

    tree = ast.parse(source)
    names = messages.assigned(tree)
    said = [messages.spoken(node) for _, node in messages.walk(tree)]
    texts = [(k, messages.tidy(messages.template(t, names))) for k, t in filter(None, said)]
    assert texts == [("ValueError", "… is …: Since it is so."), ("UserWarning", "Beware.")]
