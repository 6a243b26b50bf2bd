"""Progress: a bar on a terminal, nothing in a pipe."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

WORK = """
from decipher_rt.train.progress import Progress
progress = Progress()
progress.say("reading what is there")
with progress.bar("series", 3) as show:
    show(2)
    show(3)
for _ in range(2):
    progress.warn("look\\nhere")
"""


def test_a_terminal_shows_how_far_a_run_is() -> None:
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen([sys.executable, "-c", WORK], stderr=slave, stdout=subprocess.PIPE, env=environment)
    os.close(slave)
    said = b""
    while True:
        try:
            part = os.read(master, 4096)
        except OSError:  # how Linux says that nobody has the other end any more
            break
        if not part:
            break
        said += part
    os.close(master)
    assert process.communicate()[0] == b""
    assert process.returncode == 0
    shown = said.decode()
    assert "reading what is there" in shown
    assert "series" in shown
    assert "3/3" in shown
    assert shown.count("decipher-rt: look here") == 1


def test_a_pipe_is_told_nothing_but_warnings() -> None:
    done = subprocess.run([sys.executable, "-c", WORK], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "decipher-rt: look here\n")
