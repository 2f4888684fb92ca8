"""What holds for every test."""

from __future__ import annotations

import signal

# A shell that starts tests in the background has SIGINT ignored, and programs inherit that: then
# the commands under test could not be interrupted either.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
