"""The recipe of the default image."""

from __future__ import annotations

from sporevm.image.base import _clean_hook


def test_the_cleaning_hook_leaves_mmdebstraps_own_files_alone() -> None:
    """Its apt.conf is in the tree's /tmp: without it, its last steps would clean the host's apt."""
    hook = _clean_hook()
    assert '"$1"/tmp' not in hook
    assert "cd " not in hook  # a failed cd would turn relative paths into the caller's own
    for word in hook.replace(";", " ").split():
        if word.startswith("/"):
            raise AssertionError(f"{word} is a path of the host")
