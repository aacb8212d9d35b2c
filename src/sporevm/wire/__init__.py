"""The guest protocol without I/O: docs/protocol.md in Python."""
