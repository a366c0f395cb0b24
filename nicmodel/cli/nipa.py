"""``nicmodel nipa``: a runner of the netdev CI (NIPA) for a driver of your own."""

from __future__ import annotations

import os
from pathlib import Path

import click

from nicmodel import __version__
from nicmodel.cli.devices import DEVICES, device_option
from nicmodel.vm import needs
from nicmodel.vm import nipa as runner
from nicmodel.vm.errors import VmError
from nicmodel.vm.saved import read_json

_FOLDER = click.Path(path_type=Path, file_okay=False)


@click.group()
def nipa() -> None:
    """Set up a runner of the netdev CI, and publish results to it.

    NIPA, the CI of the kernel's network developers, takes results from runners that others host. A runner polls a list
    of branches, builds each, and runs the driver selftests in guests of virtme-ng; the CI fetches its results over
    HTTP. The runner's code is github.com/linux-netdev/nipa.

    \b
    A runner of their code, with the NIC of this project:
      nicmodel nipa setup /srv/nipa --tree ~/linux \\
        --branches https://host/all.json --url https://me/nipa

    \b
    Or results of nicmodel's own run of the tests:
      nicmodel selftests --kernel ~/linux --tree ~/linux --json run.json
      nicmodel nipa publish run.json /srv/nipa/json \\
        --branch net-next-2026-11-29--09-00 --url https://me/nipa/json
    """


@nipa.command()
@click.argument("folder", type=_FOLDER)
@click.option("--tree", required=True, type=_FOLDER, help="A kernel's source under git, which the runner builds.")
@click.option("--branches", required=True, metavar="URL", help="The list of branches to test.")
@click.option("--url", required=True, help="By which FOLDER is to be reached from outside.")
@click.option("--name", default="nicmodel", show_default=True, help="The runner's name in its results.")
@device_option
@click.option("--driver", metavar="MODULE", help="The driver's module.  [default: the stock one of this kind of NIC]")
@click.option("--vcpus", type=click.IntRange(1, 64), default=2, show_default=True, help="Virtual CPUs of a guest.")
@click.option("--memory", default="2G", show_default=True, metavar="SIZE", help="Memory of a guest.")
@click.option("--qemu", default="", metavar="PROGRAM",
              help="QEMU, 10.1 or later.  [default: qemu-system-x86_64]")  # fmt: skip
@click.option("--kvm/--no-kvm", default=None, help="Whether guests use KVM.  [default: if it can be opened]")
def setup(
    folder: Path,
    tree: Path,
    branches: str,
    url: str,
    name: str,
    device: str,
    driver: str | None,
    vcpus: int,
    memory: str,
    qemu: str,
    kvm: bool | None,
) -> None:
    """Write the files of a runner into FOLDER.

    setup.sh is what each guest begins with: it finds the two NICs, has the second in a network namespace as the remote
    end, and exports NETIF, REMOTE_TYPE and what else the tests read. info.sh tells the results of which device they
    are. nicmodel.config is the runner's configuration, and names both.

    The guests have this host's own files: it needs what the tests need (ethtool, iperf3, socat, python3-yaml …), and
    what virtme-ng needs.
    """
    pci = DEVICES[device].pci
    config = runner.write_runner(
        folder,
        name=name,
        tree=tree,
        branches=branches,
        url=url,
        driver=driver or needs.DRIVERS[pci].module,
        pci=pci,
        version=__version__,
        vcpus=vcpus,
        memory=memory,
        qemu=qemu,
        kvm=os.access("/dev/kvm", os.R_OK | os.W_OK) if kvm is None else kvm,
    )
    first, second = runner.sockets(folder.absolute())
    click.echo(
        f"{config} is written. The NICs, which serve one guest after the other:\n"
        f"  nicmodel serve --device {device} --socket {first} --wire link --socket {second} --wire link --mtu 9000\n"
        "and, in a clone of github.com/linux-netdev/nipa, the runner:\n"
        f"  PYTHONPATH=. contest/remote/vmksft-p.py {config}"
    )


@nipa.command()
@click.argument("results", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.argument("folder", type=_FOLDER)
@click.option("--url", required=True, help="By which FOLDER is to be reached from outside.")
@click.option("--branch", required=True, help="The branch that was tested, as the CI's list of branches has it.")
@click.option("--name", default="nicmodel", show_default=True, help="The runner's name.")
def publish(results: Path, folder: Path, url: str, branch: str, name: str) -> None:
    """Add RESULTS, which `nicmodel selftests --json` has written, to FOLDER and its manifest, results.json.

    The CI's collector fetches the manifest, and then each file of results that it has not seen. A run of a branch that
    the manifest has already replaces that.
    """
    content = read_json(results, "is no JSON: RESULTS is what 'nicmodel selftests --json' has written")
    if not isinstance(content, dict):
        raise VmError(f"{results}: these are no results of 'nicmodel selftests --json'")
    click.echo(runner.publish(content, folder, url=url, name=name, branch=branch))
