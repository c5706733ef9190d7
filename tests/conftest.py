"""What all tests rely on."""

from __future__ import annotations

import signal

# Started in the background of a script, a test run ignores SIGINT, and so would every process that
# the tests interrupt on purpose.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
