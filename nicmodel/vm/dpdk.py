"""DPDK in a guest: Debian's `dpdk-testpmd`, with its drivers for both kinds of NIC."""

import io
import tarfile

from nicmodel.vm.arch import AMD64, Arch
from nicmodel.vm.errors import VmError
from nicmodel.vm.guest import Guest
from nicmodel.vm.packages import Packages, Tree, obtain

#: What dpdk-testpmd is linked with, and how memory is pooled; and the drivers. dpdk-dev depends on all of DPDK.
_KEPT = (
    r"dpdk-dev$|ibverbs-providers$|zlib1g$"
    r"|lib(bsd0|c6|cap2|dbus-1-3|elf1t64|fdt1|gcc-s1|ibverbs1|jansson4|md0|mnl0|nl-3-200|nl-route-3-200|numa1"
    r"|pcap0\.8t64|systemd0|zstd1)$"
    r"|librte-(argparse|bitratestats|bpf|bus-(auxiliary|dpaa|pci|vdev)|cmdline|common-(dpaax|iavf|idpf|mlx5-)"
    r"|crypto-scheduler|cryptodev|dmadev|eal|ethdev|eventdev|gro|gso|hash|ip-frag|kvargs|latencystats|log|mbuf"
    r"|mempool|mempool-(dpaa|ring)|meter|metrics|net|net-(bnxt|bond|dpaa|gve|i40e|iavf|ice|idpf|ixgbe|mlx5-)"
    r"|pcapng|pci|pdump|pmu|rcu|reorder|ring|sched|security|stack|telemetry|timer)\d+$"
)


def _dpdk(suite: str, version: int) -> Packages:
    wanted = ("dpdk-dev", f"librte-net-gve{version}", f"librte-net-idpf{version}")
    return Packages("dpdk", wanted, suite, keep=_KEPT)


#: 25.11, which is in Debian testing.
DPDK = _dpdk("forky", 26)
#: 24.11, as Debian 13 has it. What it does with a gVNIC in DQO-RDA is in docs/found.md.
DPDK_24_11 = _dpdk("trixie", 25)

_LIBRARIES = "usr/lib/x86_64-linux-gnu"
_PARTS = ("usr/bin/dpdk-testpmd", "usr/lib64", _LIBRARIES)
_PROGRAM = f"""#!/bin/sh
# With the C library that it was built for, whatever the guest's is.
cd /opt/dpdk
libraries=$PWD/{_LIBRARIES}
exec usr/lib64/ld-linux-x86-64.so.2 --library-path $libraries usr/bin/dpdk-testpmd -d $libraries/dpdk/pmds-* "$@"
"""


def obtain_dpdk(arch: Arch, packages: Packages = DPDK, *, update: bool = False) -> Tree:
    """The tree of DPDK's packages, downloaded if the cache does not have it.

    Args:
        arch: The guest's architecture.
        packages: Which DPDK.
        update: Look for newer versions first.

    Raises:
        VmError: It is another architecture than this host's, or the packages cannot be fetched.
    """
    if not arch.is_hosts:
        raise VmError(f"DPDK is there for {AMD64.name} guests only, and this guest is {arch.name}")
    return obtain(packages, update=update)


def install_dpdk(guest: Guest, packages: Packages = DPDK) -> None:
    """Put `dpdk-testpmd` where the guest's shell finds it, with all that it needs in /opt/dpdk, and mount the file
    system of huge pages; how many there are is for the caller to say.

    Raises:
        VmError: See `obtain_dpdk`.
    """
    tree = obtain_dpdk(guest.kernel.arch, packages).path
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for part in _PARTS:
            tar.add(tree / part, part, filter=lambda one: None if one.name.endswith("/gconv") else one)
    guest.run("rm -rf /opt/dpdk; mkdir -p /opt/dpdk; tar -x -C /opt/dpdk", input=archive.getvalue(), timeout=120)
    guest.put(_PROGRAM.encode(), "/usr/local/bin/dpdk-testpmd")
    guest.run("mountpoint -q /dev/hugepages || mount -t hugetlbfs hugetlbfs /dev/hugepages")
