"""What the kernel's network selftests need in a guest, as a disk: an archive that the guest unpacks over its root."""

import hashlib
import os
import re
from dataclasses import replace
from pathlib import Path

from nicmodel.cache import cache_dir
from nicmodel.vm.compiler import link_tree
from nicmodel.vm.image import (
    MODULES,
    copy_modules,
    mark_used,
    userland,
    walk,
    write_cpio,
)
from nicmodel.vm.kernel import Kernel
from nicmodel.vm.packages import locked, obtain, workplace
from nicmodel.vm.progress import step
from nicmodel.vm.tools import BPF_TOOLS, NEWER_TOOLS, build_selftests

FOLDER = "/usr/lib/kselftest"
"""Where the selftests are in the guest."""

UNPACK = "cd / && cpio -idu --quiet < /dev/vda"
"""Commands of a guest whose first disk is the archive: unpack it over its root."""

SELFTEST_MODULES = (
    *("netconsole", "configfs", "macsec", "sch_etf", "sch_multiq", "act_tunnel_key", "cls_fw"),
    *("ipip", "sit", "ip_gre", "ip6_gre", "ip6_tunnel", "fou", "fou6", "geneve"),
    *("esp4", "esp6", "esp4_offload", "esp6_offload", "xfrm_user", "gcm", "ctr", "ghash_generic"),
)
"""Modules that the tests load, besides those of every guest (drivers/net/config, drivers/net/hw/config)."""

RUNTIME = re.compile(r"usr/s?bin/(bpf|ethtool)|usr/lib/[^/]+-linux-gnu/lib(?!clang-cpp)[^/]+\.so")
"""What the packages have for running bpftool, bpftrace and ethtool. clang has done its work already."""


def build_disk(kernel: Kernel, tree: Path | None = None) -> Path:
    """The archive for guests of `kernel` (cpio, about 300 MB): from the cache, else built.

    Args:
        kernel: The kernel.
        tree: The source of a kernel that the selftests are taken of; None: that of the package.
    """
    selftests, programs = build_selftests(tree, kernel.arch), obtain(userland(kernel.arch))
    tools = [obtain(replace(tools, architecture=kernel.arch.name)) for tools in (BPF_TOOLS, NEWER_TOOLS)]
    trees = (selftests.parent.name, kernel.id, programs.id, *(tool.id for tool in tools))
    identity = repr(trees).encode() + Path(__file__).read_bytes()
    folder = cache_dir() / "images"
    disk = folder / f"{kernel.release}-{hashlib.sha256(identity).hexdigest()[:12]}.selftests"
    with locked(disk.with_suffix(".lock"), "the disk of selftests"):
        if not disk.exists():
            with (
                workplace(folder) as work,
                step(f"building the disk of selftests for Linux {kernel.release}"),
            ):
                root = work / "root"
                link_tree(selftests, root / FOLDER.lstrip("/"))
                for tool in tools:
                    for file in walk(tool.path):
                        if file.source and RUNTIME.match(file.name):
                            (root / file.name).parent.mkdir(parents=True, exist_ok=True)
                            os.link(file.source, root / file.name, follow_symlinks=False)
                copy_modules(kernel, root, (*MODULES, *SELFTEST_MODULES))
                unfinished = work / disk.name
                with unfinished.open("wb") as archive:
                    write_cpio(archive, walk(root))
                unfinished.rename(disk)
        mark_used(disk)
    return disk
