"""The heart: a running guest is snapshotted, dirtied, and brought back."""

from __future__ import annotations

from vmimagemanager import Box


def test_restore_discards_a_file_written_after_the_snapshot(box: Box) -> None:
    box.run(["sh", "-c", "echo dirty > /root/canary; echo dirty > /root/.hidden; sync"])
    assert box.run(["cat", "/root/canary"]).text == "dirty\n"
    restored = box.restore("clean")
    assert restored.engine == "live"
    assert restored.proven
    assert "canary" not in box.run(["ls", "-A", "/root"]).text
    assert ".hidden" not in box.run(["ls", "-A", "/root"]).text


def test_restore_brings_back_the_memory_and_not_a_reboot(box: Box) -> None:
    boot_id = box.run(["cat", "/proc/sys/kernel/random/boot_id"]).text
    box.run(["sh", "-c", "echo later > /run/memory-only"])
    box.restore("clean")
    assert box.run(["cat", "/proc/sys/kernel/random/boot_id"]).text == boot_id
    assert box.run(["test", "-e", "/run/memory-only"], check=False).status == 1
