"""A terminal with a command in it, and a person who waits for a question before they answer."""

import os
import pty
import re
import select
import signal
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self


class Terminal:
    """Use it as a context manager. `said` is all that stood on the screen, without colours."""

    def __init__(self, words: Sequence[str], env: Mapping[str, str], cwd: str) -> None:
        self.said = ""
        self._pid, self._screen = pty.fork()
        if self._pid == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # which a test in the background ignores
            os.chdir(cwd)
            os.execve(words[0], list(words), {**env, "TERM": "dumb", "COLUMNS": "120"})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._screen)

    def wait(self, question: str, *, seconds: float = 60) -> None:
        """Wait until it was asked, after what was waited for before."""
        until, begins = time.monotonic() + seconds, len(self.said)
        while question not in self.said[self._seen :]:
            if time.monotonic() > until or not self._read():
                raise AssertionError(
                    f"Not asked: {question!r}. Said:\n{self.said[begins - 2000 :]}"
                )
        self._seen = self.said.index(question, self._seen) + len(question)

    def answer(self, question: str, text: str = "") -> None:
        self.wait(question)
        os.write(self._screen, f"{text}\n".encode())

    def ends(self) -> int:
        """Read to the end and return the exit code."""
        while self._read():
            pass
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])

    _seen = 0

    def _read(self) -> bool:
        if not select.select([self._screen], [], [], 60)[0]:
            return False
        try:
            data = os.read(self._screen, 65_536)
        except OSError:  # EIO: whoever wrote has ended
            return False
        self.said += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", data.decode(errors="replace"))
        return bool(data)
