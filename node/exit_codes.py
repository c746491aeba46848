"""What the process ends with, so that whoever started it knows whether starting it again makes sense (sysexits.h where
it has a word for it). docs/operations.md explains them to operators."""

from __future__ import annotations

OK = 0
FAILED = 1
"""Something outside is not as it should be, and a sentence says what. Again: perhaps."""
USAGE = 2
"""Wrong usage or config. Again: no."""
UNAVAILABLE = 69
"""A part of the node failed again and again, or is stuck. Again: yes, after a pause."""
SOFTWARE = 70
"""A bug; its traceback is in the log. Again: yes."""
STORAGE = 74
"""The journal or a checkpoint cannot be written or read. Again: when there is room on the disk."""
UNSAVED = 75
"""Stopped as asked, but the last steps could not be saved in time. Again: yes, from the checkpoint before."""
INTERRUPTED = 130
