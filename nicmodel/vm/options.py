"""Options that commands with guests have in common."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from nicmodel.vm.kernel import DEFAULT_KERNEL, KERNELS, kernel_named


def kernel_options(command: Callable[..., None]) -> Callable[..., None]:
    """Options that choose the guest's kernel; the command gets it as `kernel`, a `KernelChoice`."""

    @click.option("--kernel", default=DEFAULT_KERNEL.name, show_default=True, metavar="KERNEL",
                  help=f"The newest cloud kernel of a Debian suite ({', '.join(KERNELS)}); a package of backports, "
                       "linux-image-<version>; a bzImage or vmlinuz; the folder in which make has built a kernel; or "
                       "the release of one that is installed on this host.")  # fmt: skip
    @click.option("--modules", type=click.Path(path_type=Path), metavar="FOLDER",
                  help="The modules of a kernel that is given by its file: lib/modules/RELEASE, or a folder that has "
                       "lib/modules. Without it they are looked for where kernels are installed.")  # fmt: skip
    @functools.wraps(command)
    def with_kernel(*arguments: Any, kernel: str, modules: Path | None, **keywords: Any) -> None:
        command(*arguments, kernel=kernel_named(kernel, modules), **keywords)

    return with_kernel


module_option = click.option(
    "--module", "module_files", multiple=True, metavar="FILE", type=click.Path(path_type=Path),
    help="Load this kernel module instead of the stock one of the same name; `nicmodel driver build` makes one. Repeat "
         "for more.",
)  # fmt: skip
"""The command gets them as `module_files`."""
