"""One thread at a time where Pyro's effect handlers are at work.

Pyro keeps its handlers on one stack for the whole process: what a thread traces, another one's
handlers see. Training takes this lock for as long as it needs handlers, so that two threads may
each train a model, one step after the other. Predictions need none and take none.
"""

from __future__ import annotations

import threading

#: To be held while Pyro's handlers are on their stack. A thread may take it again.
HANDLERS = threading.RLock()
