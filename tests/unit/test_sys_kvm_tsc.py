"""The KVM probe's verdicts, and the TSC's frequency."""

from __future__ import annotations

from pathlib import Path

import pytest

from sporevm._sys import kvm, tsc
from sporevm._sys.kvm import Outcome, Verdict


def test_speed_decides():
    assert kvm.judge(2500.0).outcome is Outcome.USABLE
    slow = kvm.judge(0.8)
    assert slow.outcome is Outcome.TOO_SLOW
    assert "0.8 million" in slow.sentence


async def test_absent(tmp_path: Path):
    assert (await kvm.probe(tmp_path / "kvm")).outcome is Outcome.ABSENT


async def test_a_file_that_is_not_kvm_is_broken(tmp_path: Path):
    device = tmp_path / "kvm"
    device.touch()
    verdict = await kvm.probe(device)
    assert verdict.outcome is Outcome.BROKEN
    assert "does not run code" in verdict.sentence


async def test_a_probe_that_gets_stuck_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The deadline is enforced from outside, whatever the child is doing."""
    monkeypatch.setattr(kvm, "_DEADLINE", 0.01)  # less than a Python process takes to start
    device = tmp_path / "kvm"
    device.touch()
    verdict = await kvm.probe(device)
    assert verdict.outcome is Outcome.BROKEN
    assert "did not run a loop" in verdict.sentence


@pytest.mark.skipif(not kvm.DEVICE.exists(), reason="there is no /dev/kvm")
async def test_the_real_device_gets_a_verdict(tmp_path: Path):
    verdict = await kvm.verdict(tmp_path)
    assert verdict.outcome in Outcome
    assert verdict.sentence


async def test_a_verdict_is_kept_for_this_boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    device = tmp_path / "kvm"
    device.touch()
    probes = []

    async def probe(_: Path) -> Verdict:
        probes.append(1)
        return kvm.judge(1000.0)

    monkeypatch.setattr(kvm, "probe", probe)
    cache = tmp_path / "cache"
    assert await kvm.verdict(cache, device) == await kvm.verdict(cache, device)
    assert len(probes) == 1
    device.chmod(0o600)  # its permissions changed: look again
    await kvm.verdict(cache, device)
    assert len(probes) == 2
    (cache / "kvm.json").write_text("{")
    await kvm.verdict(cache, device)
    assert len(probes) == 3


def test_tsc(tmp_path: Path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu tsc\nbogomips\t: 5192.27\n")
    assert tsc.emulated_tsc_khz(cpuinfo, "x86_64") == 2596135
    assert tsc.emulated_tsc_khz(cpuinfo, "aarch64") == 1_000_000
    cpuinfo.write_text("processor : 0\n")
    assert tsc.emulated_tsc_khz(cpuinfo, "x86_64") == 0
    assert tsc.emulated_tsc_khz(tmp_path / "none", "x86_64") == 0
