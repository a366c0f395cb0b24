"""Options that commands with guests have in common."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from nicmodel.nearest import Choice
from nicmodel.vm.arch import AMD64, ARCHES
from nicmodel.vm.kernel import CHOSEN, DEBUG, DEFAULT_KERNEL, KERNELS, kernel_named


def kernel_options(command: Callable[..., None]) -> Callable[..., None]:
    """Options that choose the guest's kernel; the command gets it as `kernel`, a `KernelChoice`."""

    @click.option("--kernel", default=DEFAULT_KERNEL.name, show_default=True, metavar="KERNEL", envvar=CHOSEN,
                  help=f"The newest cloud kernel of a Debian suite ({', '.join(KERNELS)}); {DEBUG}, which looks for "
                       "mistakes of drivers (`nicmodel kernel build`); a package of backports, linux-image-<version>; "
                       "a bzImage or vmlinuz; the folder in which make has built a kernel; or "
                       "the release of one that is installed on this host.")  # fmt: skip
    @click.option("--modules", type=click.Path(path_type=Path), metavar="FOLDER",
                  help="The modules of a kernel that is given by its file: lib/modules/RELEASE, or a folder that has "
                       "lib/modules. Without it they are looked for where kernels are installed.")  # fmt: skip
    @click.option("--arch", type=Choice(list(ARCHES)), metavar="ARCH",
                  help="The guest's architecture, of which a suite's kernel is taken: amd64, or arm64, whose CPUs QEMU "
                       "emulates. Packages and files have theirs: linux-image-arm64-16k is arm64 with pages of 16 KiB."
                       f"  [default: {AMD64.name}]")  # fmt: skip
    @functools.wraps(command)
    def with_kernel(*arguments: Any, kernel: str, modules: Path | None, arch: str | None, **keywords: Any) -> None:
        command(*arguments, kernel=kernel_named(kernel, modules, ARCHES[arch] if arch else None), **keywords)

    return with_kernel


module_option = click.option(
    "--module", "module_files", multiple=True, metavar="FILE", type=click.Path(path_type=Path),
    help="Load this kernel module instead of the stock one of the same name; `nicmodel driver build` makes one. Repeat "
         "for more.",
)  # fmt: skip
"""The command gets them as `module_files`."""
