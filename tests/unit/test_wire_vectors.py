"""The codec against the golden vectors that the C agent is tested with."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from sporevm.errors import ProtocolViolation
from sporevm.wire import frames, tlv
from sporevm.wire.constants import OPEN
from sporevm.wire.frames import Decoder, Frame
from sporevm.wire.sync import AckScanner, sync_record

VECTORS = Path(__file__).parents[1] / "vectors"


def load(name: str) -> Any:
    entries = json.loads((VECTORS / f"{name}.json").read_text())
    return [pytest.param(entry, id=entry["name"].replace(" ", "-")) for entry in entries]


def decode(data: bytes, step: int) -> tuple[list[Frame], ProtocolViolation | None]:
    """Frames of `data`, given to a decoder `step` bytes at a time, and the violation, if any."""
    decoder, found, at = Decoder(), [], 0
    while at < len(data):
        room = decoder.room()
        size = min(step, len(room), len(data) - at)
        room[:size] = data[at : at + size]
        decoder.wrote(size)
        at += size
        try:
            for frame in decoder.frames():
                found.append(frame)
        except ProtocolViolation as error:
            return found, error
    return found, None


def test_the_files_are_what_the_generator_makes() -> None:
    rendered = runpy.run_path(str(VECTORS / "make.py"))["render"]()
    assert {path.name for path in VECTORS.glob("*.json")} == set(rendered)
    for name, text in rendered.items():
        assert (VECTORS / name).read_text() == text, f"run tests/vectors/make.py: {name} is old"


@pytest.mark.parametrize("step", [1, 7, 1 << 20])
@pytest.mark.parametrize("vector", load("frames"))
def test_frames(vector: Any, step: int) -> None:
    data = bytes.fromhex(vector["hex"])
    if step == 1 and len(data) > 1000:
        step = 11
    found, error = decode(data, step)
    expected = [
        Frame(f["stream"], f["type"], f["channel"], bytes.fromhex(f["payload_hex"]))
        for f in vector["frames"]
    ]
    assert found == expected
    assert (error is not None) is vector["error"]
    whole = b"".join(frames.encode(f.stream, f.type, f.payload, f.channel) for f in expected)
    assert data.startswith(whole)


@pytest.mark.parametrize("vector", load("tlv"))
def test_tlv(vector: Any) -> None:
    data = bytes.fromhex(vector["hex"])
    if vector["error"]:
        with pytest.raises(ProtocolViolation):
            tlv.Fields(data)
        if vector["rule"] == "shape":
            with pytest.raises(ProtocolViolation):
                tlv.split(data)
        return
    expected = [(tag, bytes.fromhex(value)) for tag, value in vector["fields"]]
    assert tlv.split(data) == expected
    assert tlv.encode(expected) == data
    tlv.Fields(data)


@pytest.mark.parametrize("step", [1, 39, 1 << 20])
@pytest.mark.parametrize("vector", [v for v in load("sync") if v.values[0]["role"] == "host"])
def test_finding_an_ack(vector: Any, step: int) -> None:
    data = bytes.fromhex(vector["hex"])
    scanner = AckScanner(bytes.fromhex(vector["nonce_hex"]))
    end = None
    for at in range(0, len(data), step):
        rest = scanner.feed(data[at : at + step])
        if rest is not None:
            end = at + len(data[at : at + step]) - len(rest)
            break
    assert end == vector["end"]
    if end is not None:
        assert scanner.version == vector["version"]
        assert scanner.skipped == end - 40


@pytest.mark.parametrize("vector", [v for v in load("sync") if v.values[0]["role"] == "agent"])
def test_our_sync_is_the_one_an_agent_looks_for(vector: Any) -> None:
    if (vector["end"], vector.get("lowest"), vector.get("highest")) != (40, 1, 1):
        return
    ours = sync_record(bytes.fromhex(vector["nonce_hex"]))
    assert bytes.fromhex(vector["hex"])[:40] == ours


@pytest.mark.parametrize("vector", load("messages"))
def test_messages(vector: Any) -> None:
    (frame,), error = decode(bytes.fromhex(vector["hex"]), 1 << 20)
    assert error is None
    payload = frame.payload
    if frame.type == OPEN:
        assert payload[0] == vector["service"]
        payload = payload[1:]
    assert (frame.stream, frame.type) == (vector["stream"], vector["type"])
    fields = [(tag, bytes.fromhex(value)) for tag, value in vector["fields"]]
    assert tlv.split(payload) == fields
