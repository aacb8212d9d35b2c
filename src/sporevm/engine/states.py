"""The one place a sandbox's state changes."""

from __future__ import annotations

from sporevm.errors import StateError
from sporevm.spec import State
from sporevm.store.records import SandboxRecord

_ALLOWED: dict[State, frozenset[State]] = {
    State.CREATING: frozenset({State.RUNNING, State.FAILED, State.REMOVED}),
    State.RUNNING: frozenset({State.PAUSED, State.STOPPED, State.FAILED, State.REMOVED}),
    State.PAUSED: frozenset({State.RUNNING, State.STOPPED, State.FAILED, State.REMOVED}),
    State.STOPPED: frozenset({State.CREATING, State.REMOVED}),
    State.FAILED: frozenset({State.CREATING, State.REMOVED}),
    State.REMOVED: frozenset(),
}


def require(record: SandboxRecord, *states: State, to: str) -> None:
    """Raise StateError unless the sandbox is in one of `states`; `to` names what was wanted."""
    if record.state in states:
        return
    wanted = " or ".join(states)
    hint = ""
    if record.state in (State.STOPPED, State.FAILED):
        hint = f"spore logs {record.name} shows its output; spore rm {record.name} removes it"
    reason = f" ({record.error})" if record.error else ""
    raise StateError(
        f"cannot {to} {record.name}: it is {record.state}{reason}, and must be {wanted}",
        current=record.state,
        required=wanted,
        hint=hint,
    )


def transition(record: SandboxRecord, to: State) -> None:
    """Change the state, or raise StateError if there is no such way."""
    current = State(record.state)
    if to not in _ALLOWED[current]:
        raise StateError(
            f"{record.name}: {current} can't become {to}",
            current=current,
            required=" or ".join(sorted(s for s in State if to in _ALLOWED[s])),
        )
    record.state = to.value
