"""libvirt and QEMU: the only room that imports ``libvirt`` and ``lxml``."""
