"""The command `nicmodel vm`."""

import shlex
import sys
from pathlib import Path

import click

from nicmodel.nearest import Choice
from nicmodel.vm import shell
from nicmodel.vm.coverage.files import DRIVERS
from nicmodel.vm.coverage.recorder import recorded
from nicmodel.vm.dpdk import install_dpdk, obtain_dpdk
from nicmodel.vm.guest import Guest, GuestConfig, parse_named_size, print_command
from nicmodel.vm.image import build_image
from nicmodel.vm.kernel import KernelChoice
from nicmodel.vm.layout import LAYOUTS, Nic
from nicmodel.vm.options import kernel_options, module_option
from nicmodel.vm.qemu import find_qemu, unpacked_qemu
from nicmodel.vm.share import Share, parse_put
from nicmodel.vm.tools import (
    build_guest_module,
    build_guest_tools,
    build_ncdevmem,
    check_guest_module,
    check_host,
    install_guest_module,
    install_guest_tools,
)

#: After the settings, which are for a shell: what to do with them.
_PREPARED = """
{version} is ready, and a kernel. In a shell that has read the lines above, eval "$(nicmodel vm --prepare)":
  eval $QEMU -device help                        this QEMU, on its own
  export QEMU; nicmodel config q35 --nic SOCKET -- -drive file=DISK,if=virtio    a command line with your own disk
  nicmodel vm --nic SOCKET --print               the one of the guest that nicmodel vm starts"""


@click.command()
@click.option("--nic", "nics", multiple=True, metavar="SOCKET",
              help="Plug in the NIC that `nicmodel serve` serves at this socket. Repeat for more.")  # fmt: skip
@click.option("--vcpus", type=click.IntRange(1, 64), default=2, show_default=True, help="Virtual CPUs.")
@click.option("--memory", default="1G", show_default=True, metavar="SIZE", help="Memory, such as 512M or 2G.")
@click.option("--layout", type=Choice(list(LAYOUTS)),
              help="The machine: the NIC behind a root port (q35), two such NICs, NICs behind a PCIe switch, or behind "
                   "an IOMMU; for arm64 the NIC behind a root port (virt). `nicmodel config` shows each.  "
                   "[default: q35, or virt]")  # fmt: skip
@kernel_options
@click.option("--cmdline", default="", metavar="WORDS",
              help="Added to the kernel's command line. modprobe.blacklist=gve leaves the driver to be loaded "
                   "by hand.")  # fmt: skip
@module_option
@click.option("--device-memory", multiple=True, metavar="NAME=SIZE",
              help="Memory of a device, as a NUMA node without CPUs (node 1, 2, …): bind memory there for "
                   "devmem.")  # fmt: skip
@click.option("--accelerator", "accelerators", multiple=True, metavar="NAME=SIZE",
              help="A PCI device with memory in a BAR; nicmodel's guest module makes dma-bufs of it "
                   "(/dev/bar_dmabuf/). With --layout switch it is below the NIC's switch.")  # fmt: skip
@click.option("--cpu", default="max", show_default=True, metavar="MODEL",
              help="QEMU's CPU model. With EPYC, Linux allows peer-to-peer DMA through the host bridge.")  # fmt: skip
@click.option("--share", "shares", multiple=True, metavar="HOST[:GUEST][:ro]",
              help="Mount a folder of the host's in the guest, at /mnt/NAME if GUEST is not given; with :ro the guest "
                   "cannot write there. Repeat for more.")  # fmt: skip
@click.option("--put", "puts", multiple=True, metavar="FILE[:GUEST]",
              help="Copy a file into the guest when it starts, to /root if GUEST is not given. Repeat for "
                   "more.")  # fmt: skip
@click.option("--tools", is_flag=True,
              help="Install devmem_receiver, devmem_sender and the kernel's ncdevmem in the guest. They are "
                   "compiled once.")  # fmt: skip
@click.option("--dpdk", is_flag=True,
              help="Install DPDK's dpdk-testpmd in the guest, Debian's, with its drivers for either kind of NIC. "
                   "They want --layout iommu.")  # fmt: skip
@click.option("--boot", is_flag=True,
              help="Boot the guest, and do not start it from a snapshot of one that has booted.")  # fmt: skip
@click.option("--console", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Write the serial console (the kernel's messages) there.")  # fmt: skip
@click.option("--coverage", "coverage_file", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Record there which code of the NIC's driver runs; `nicmodel coverage` shows it, also while the "
                   "guest runs. Its CPU is emulated then, without KVM.")  # fmt: skip
@click.option("--coverage-module", "coverage_modules", multiple=True, metavar="MODULE",
              help="Record this module instead: a name, or the file of one of your own (./mine.ko). Repeat for "
                   f"more.  [default: {', '.join(DRIVERS)}]")  # fmt: skip
@click.option("--run", "command", metavar="COMMAND", help="Run this and exit with its status, instead of a shell.")
@click.option(
    "--prepare",
    is_flag=True,
    help="Only download and build what a guest needs; print where it is, as settings for a shell.",
)
@click.option("--update", is_flag=True, help="Look for newer packages first. Otherwise what is there is used, offline.")
@click.option("--print", "only_print", is_flag=True, help="Only print the QEMU command line.")
@click.argument("qemu_arguments", nargs=-1, metavar="[-- QEMU ARGUMENTS]")
def vm(
    nics: tuple[str, ...],
    vcpus: int,
    memory: str,
    layout: str | None,
    kernel: KernelChoice,
    cmdline: str,
    module_files: tuple[Path, ...],
    device_memory: tuple[str, ...],
    accelerators: tuple[str, ...],
    cpu: str,
    shares: tuple[str, ...],
    puts: tuple[str, ...],
    tools: bool,
    dpdk: bool,
    boot: bool,
    console: Path | None,
    coverage_file: Path | None,
    coverage_modules: tuple[str, ...],
    command: str | None,
    prepare: bool,
    update: bool,
    only_print: bool,
    qemu_arguments: tuple[str, ...],
) -> None:
    """Start a guest and open a root shell in it.

    The guest is gone when the shell ends; Ctrl-] ends it too.

    Everything comes from Debian packages, downloaded once through this host's own apt into ~/.cache/nicmodel: an
    unmodified kernel (its driver gve or idpf binds to the NIC), the programs in the guest, and QEMU if the host's has
    no vfio-user-pci. Nothing is installed, and no rights are needed. The first guest of a kind boots, in about 10
    seconds without KVM, and is kept as a snapshot; the next ones start from the snapshot in a second or two, unless
    --boot is given.

    \b
    A guest with a NIC, in two terminals:
      nicmodel serve --socket /tmp/nic.sock --wire tap:tap0
      nicmodel vm --nic /tmp/nic.sock

    \b
    One command, for a script:
      nicmodel vm --nic /tmp/nic.sock --run 'ethtool -i eth0'

    \b
    A kernel of your own as make left it, a folder of tests:
      nicmodel vm --kernel ~/src/linux --share tests --run 'sh /mnt/tests/all.sh'

    \b
    What of the driver runs when its interface comes up:
      nicmodel vm --nic nic.sock --coverage up.cov --run 'ip link set eth0 up'
      nicmodel coverage report up.cov

    Environment: NICMODEL_MIRROR (a Debian mirror), NICMODEL_QEMU (a QEMU binary), NICMODEL_ACCEL (kvm or tcg),
    XDG_CACHE_HOME.
    """
    if coverage_modules and not coverage_file:
        raise click.UsageError("--coverage-module is about what --coverage FILE records")
    if coverage_file and (prepare or only_print):
        raise click.UsageError("--coverage records a guest that runs: not with --prepare or --print")
    if tools or accelerators:
        check_host()
    if accelerators:
        check_guest_module(kernel.find())
    if dpdk:
        obtain_dpdk(kernel.find().arch, update=update)
    if update:
        newer = kernel.find(update=True)
        build_image(newer, update=True)
        unpacked_qemu(newer.arch, update=True)
    if prepare:
        found = kernel.find()
        image, qemu = build_image(found), find_qemu(found.arch)
        made = {"KERNEL": image.kernel, "INITRD": image.initrd, "QEMU": shlex.join(qemu.shell_words())}
        if tools:
            made |= {"TOOLS": build_guest_tools(found.arch), "NCDEVMEM": build_ncdevmem(found.arch)}
        if accelerators:
            made |= {"MODULE": build_guest_module(found)}
        if dpdk:
            made |= {"DPDK": obtain_dpdk(found.arch).path}
        for name, value in made.items():
            click.echo(f"{name}={shlex.quote(str(value))}")
        click.echo(_PREPARED.format(version=qemu.version), err=True)
        return
    config = GuestConfig(
        nics=[Nic(socket) for socket in nics],
        vcpus=vcpus,
        memory=memory,
        device_memory=dict(parse_named_size(text, "--device-memory") for text in device_memory),
        accelerators=dict(parse_named_size(text, "--accelerator") for text in accelerators),
        layout=layout or "",
        kernel=kernel,
        cpu=cpu,
        cmdline=cmdline,
        shares=[Share.parse(text) for text in shares],
        files=dict(parse_put(text) for text in puts),
        modules=module_files,
        arguments=qemu_arguments,
    )
    if only_print:
        click.echo(print_command(config))
        return
    with (
        recorded(coverage_file, coverage_modules) as recorder,
        Guest(config, console=console, snapshot=not boot, recorder=recorder) as guest,
    ):
        if tools:
            install_guest_tools(guest)
        if dpdk:
            install_dpdk(guest)
        if accelerators:
            install_guest_module(guest)
        for name, device in guest.device_memory.items():
            place = device.device or f"node {device.node}"
            click.echo(f"{name}: {place} in the guest, {device.path} here", err=True)
        if command is None:
            booted = f"booted: {guest.why_booted}" if guest.why_booted else "from a snapshot"
            about = f"Linux {guest.kernel_version} ({guest.accel}, {booted})"
            click.echo(f"{about}. Ctrl-] or exit ends the guest.", err=True)
        status = shell.interactive(guest) if command is None else shell.run(guest, command)
    sys.exit(status)
