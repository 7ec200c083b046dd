"""What requests leave in cycles is collected when they have been answered."""

import subprocess
import sys

_ANSWERED = """
import gc, itertools, weakref
from wsgiref.util import setup_testing_defaults

from ingestion_project.wsgi import application

class Left:
    pass

def leave():
    left = Left()
    left.itself = left
    return weakref.ref(left)

def answer(path):
    environ = {"PATH_INFO": path, "HTTP_HOST": "localhost"}
    setup_testing_defaults(environ)
    told = []
    answered = application(environ, lambda status, headers: told.append(status))
    body = b"".join(answered)
    return told[0], answered

gc.disable()  # nobody else collects
status, answered = answer("/healthz")
left = leave()
print(status, left() is not None)
answered.close()
print(left() is None)
# What two collections did not get, for somebody had it, is collected with what is older.
first, survivor = leave(), leave()
held = survivor()
answer("/healthz")[1].close()
held = None
print(first() is None, survivor() is not None)
for _ in range(gc.get_threshold()[1] + 1):
    answer("/healthz")[1].close()
print(survivor() is None)
"""


def test_what_an_answer_leaves_in_cycles_is_collected_when_it_was_sent() -> None:
    shown = subprocess.run(
        [sys.executable, "-c", _ANSWERED], capture_output=True, text=True, check=True
    )
    assert shown.stdout.split() == "200 OK True True True True True".split(), shown.stderr
