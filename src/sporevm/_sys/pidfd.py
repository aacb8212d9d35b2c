"""Process descriptors: the parts that `os` has no function for."""

from __future__ import annotations

import os


def reap(fd: int) -> int | None:
    """Status of an ended process (negative for a signal), None if it is not our child."""
    try:
        result = os.waitid(os.P_PIDFD, fd, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        return None
    if result is None:
        return None
    return result.si_status if result.si_code == os.CLD_EXITED else -result.si_status
