"""The host's side of a conversation with the guest agent.

`Agent` is the client; `Process`, `FileReader` and `TcpStream` are what its calls return. Failures:
GuestError (the guest's answer is an errno), AgentError (the channel is lost or the agent is
silent), ProtocolViolation (the agent broke the protocol; the connection is dead), StateError (you
closed it), UsageError (the request can't be sent).
"""

from sporevm.agent.client import Agent
from sporevm.agent.files import FileReader
from sporevm.agent.messages import (
    Configure,
    Exit,
    FileStat,
    GuestFile,
    Hello,
    Mount,
    ProcInfo,
    Volume,
)
from sporevm.agent.process import Process
from sporevm.agent.tcp import TcpStream

__all__ = [
    "Agent",
    "Configure",
    "Exit",
    "FileReader",
    "FileStat",
    "GuestFile",
    "Hello",
    "Mount",
    "ProcInfo",
    "Process",
    "TcpStream",
    "Volume",
]
