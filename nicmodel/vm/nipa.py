"""What a runner of the netdev CI (NIPA) needs to test a driver on the NIC.

The formats are those of its public code: contest/remote/vmksft-p.py and lib/vm.py (the configuration, and the script
that a guest begins with), lib/fetcher.py (results and manifest), contest/results-collector.py, which reads them, and
contest/scripts/vm-virtio-loop.sh, the example.
"""

import json
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from nicmodel.vm import link
from nicmodel.vm.errors import VmError
from nicmodel.vm.layout import Nic
from nicmodel.vm.packages import write_whole
from nicmodel.vm.saved import read_json
from nicmodel.vm.selftests import ENVIRONMENT
from nicmodel.vm.virtme import qemu_options, vng_options

MANIFEST = "results.json"
"""The list of runs, which the collector fetches."""

#: So many runs the runner's own manifest has at most (fetcher.py, _result_set).
_RUNS = 500

_SETUP = """#!/bin/sh
# Sourced by the guest's shell before the tests (`setup=` of the runner's configuration): two NICs of nicmodel, wired
# back to back, the second in a network namespace as the remote end.

modprobe {driver}
# In the order of their PCI addresses, as they are on QEMU's command line.
nics=
for try in $(seq 20); do
    nics=$(for device in /sys/bus/pci/devices/*; do
        [ "$(cat "$device/vendor" "$device/device" | tr '\\n' ' ')" = "{vendor:#06x} {device:#06x} " ] &&
            ls "$device/net" 2>/dev/null
    done)
    [ "$(echo "$nics" | wc -w)" -ge 2 ] && break
    sleep 0.5
done
export NETIF=$(echo "$nics" | sed -n 1p)
peer=$(echo "$nics" | sed -n 2p)
if [ -z "$peer" ]; then
    echo "Error: the driver {driver} has not bound to two NICs"
    exit 1
fi
{exports}
ip netns add "$REMOTE_ARGS"
ip link set dev "$peer" netns "$REMOTE_ARGS"
ip link set dev "$NETIF" up
ip -netns "$REMOTE_ARGS" link set dev lo up
ip -netns "$REMOTE_ARGS" link set dev "$peer" up
ip addr add dev "$NETIF" "$LOCAL_V4/24"
ip -netns "$REMOTE_ARGS" addr add dev "$peer" "$REMOTE_V4/24"
ip addr add dev "$NETIF" "$LOCAL_V6/64" nodad
ip -netns "$REMOTE_ARGS" addr add dev "$peer" "$REMOTE_V6/64" nodad
ip -netns "$REMOTE_ARGS" route add "$LOCAL_PREFIX_V6" via "$LOCAL_V6"
sysctl -qw "net.ipv6.conf.$NETIF.keep_addr_on_down=1"
for try in $(seq 100); do
    {link_is_up} && break
    sleep 0.1
done
"""

_INFO = """#!/bin/sh
# What the results say of the device (`info_script=` of the runner's configuration), in the form of `devlink dev info`.
echo '{about}'
"""

_CONFIG = """[executor]
name={name}
[remote]
branches={branches}
[local]
base_path={base}
json_path=json
results_path=results
tree_path={tree}
[www]
url={url}
[env]
paths=
[vm]
cpus={vcpus}
mem={memory}
init_prompt={prompt}
default_timeout=240
boot_timeout=120
setup=. {setup}
virtme_opt={virtme}
qemu_opt={qemu}
[ksft]
target=drivers/net drivers/net/hw
nested_tests=on
[device]
info_script={info}
[cfg]
thread_cnt=1
"""


def sockets(folder: Path) -> list[Path]:
    """Where the two NICs' server listens."""
    return [folder / f"nic{number}.sock" for number in range(2)]


def write_runner(
    folder: Path,
    *,
    name: str,
    tree: Path,
    branches: str,
    url: str,
    driver: str,
    pci: tuple[int, int],
    version: str,
    vcpus: int = 2,
    memory: str = "2G",
    qemu: str = "",
    kvm: bool = True,
) -> Path:
    """Write the files of a runner.

    Args:
        folder: Where: set-up script, info script and configuration; results come there, too.
        name: The runner's, which its results bear.
        tree: A kernel's source under git, which the runner checks out and builds.
        branches: Where the list of branches to test is, a URL.
        url: By which the folder is to be reached from outside.
        driver: The module of the driver.
        pci: The NICs' vendor and device in PCI's numbers.
        version: nicmodel's, which the results tell as the firmware's.
        vcpus: The guest's virtual CPUs.
        memory: The guest's memory.
        qemu: QEMU's program; the one on the PATH if empty.
        kvm: Whether the guest may use KVM.

    Returns:
        The configuration, for `vmksft-p.py`.

    Raises:
        VmError: A path or an address has characters that the runner's configuration cannot hold.
    """
    folder, tree = folder.absolute(), tree.absolute()
    for text in (str(folder), str(tree), branches, url, name, qemu, driver):
        if re.search(r"[\s,%'\"]", text):
            raise VmError(
                f"'{text}' has a character that a runner's configuration cannot hold: blank, comma, % or quote"
            )
    for what in ("json", "results"):
        (folder / what).mkdir(parents=True, exist_ok=True)
    exports = "\n".join(f"export {key}={value}" for key, value in ENVIRONMENT.items() if key != "NETIF")
    about = {"driver": driver, "versions": {"fixed": {}, "stored": {}, "running": {"fw": f"nicmodel {version}"}}}
    setup, info, config = folder / "setup.sh", folder / "info.sh", folder / "nicmodel.config"
    options = vng_options(memory)[1:] + ([f"--qemu={qemu}"] if qemu else []) + ([] if kvm else ["--disable-kvm"])
    # The runner calls its guests by this name (`vng --name`), and the prompt of Debian's bash has it.
    values = {
        "name": name,
        "branches": branches,
        "base": folder,
        "tree": tree,
        "url": url.rstrip("/"),
        "vcpus": vcpus,
        "memory": memory,
        "prompt": f"root@{name},debug-threads=on:{tree}#",
        "setup": setup,
        "info": info,
        "virtme": ",".join(options),
        "qemu": qemu_options([Nic(socket) for socket in sockets(folder)]),
    }
    write_whole(
        setup,
        _SETUP.format(driver=driver, link_is_up=link.is_up("$NETIF"), exports=exports, vendor=pci[0], device=pci[1]),
    )
    write_whole(info, _INFO.format(about=json.dumps(about)))
    write_whole(config, _CONFIG.format(**values))
    for script in (setup, info):
        script.chmod(0o755)
    return config


def publish(results: Mapping[str, Any], folder: Path, *, url: str, name: str, branch: str) -> Path:
    """Add a run of `nicmodel selftests --json` to a folder of results, and to its manifest, for the CI's collector.

    Args:
        results: What `--json` has written.
        folder: Of the manifest and the results.
        url: By which the folder is to be reached from outside.
        name: The runner's.
        branch: The name of the branch that was tested, as the CI's list has it.

    Returns:
        The file of the run.

    Raises:
        VmError: These are no such results, or the manifest is none.
    """
    if not {"executor", "branch", "start", "end", "results"} <= results.keys():
        raise VmError("these are no results of 'nicmodel selftests --json'")
    if not urlsplit(url).scheme:
        raise VmError(f"'{url}' is no URL: say where the collector finds the folder, such as https://host/json")
    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / MANIFEST
    known = _manifest(manifest)
    # As the runner's: minutes of the start; the collector wants each run in a file of its own.
    cookie = int(datetime.fromisoformat(results["start"]).timestamp() / 60) % 1_000_000
    taken = {entry["url"].rpartition("/")[2] for entry in known if entry["url"] and entry["branch"] != branch}
    while (file := folder / f"results-{cookie}.json").name in taken:
        cookie += 1
    write_whole(file, json.dumps({**results, "executor": name, "branch": branch}))
    entry = {"url": f"{url.rstrip('/')}/{file.name}", "branch": branch, "executor": name}
    others = [one for one in known if (one["branch"], one["executor"]) != (branch, name)]
    write_whole(manifest, json.dumps([*others, entry][-_RUNS:]))
    return file


def _manifest(path: Path) -> list[dict[str, Any]]:
    known = read_json(path, "is no manifest of results: move it away") if path.exists() else []
    try:
        return [{key: one[key] for key in ("url", "branch", "executor")} for one in known]
    except (KeyError, TypeError):
        raise VmError(f"{path} is no manifest of results: move it away") from None
