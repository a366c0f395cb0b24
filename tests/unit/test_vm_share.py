"""What of the host's files a guest is given: how that is said, and what is wrong with it."""

from pathlib import Path

import pytest

from nicmodel.vm.errors import VmError
from nicmodel.vm.guest import GuestConfig, check_files, print_command
from nicmodel.vm.share import Share, parse_put, ports


def test_shares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Share.parse("/some/where") == Share(Path("/some/where"), "/mnt/where")
    assert Share.parse("/some/where:/opt/x") == Share(Path("/some/where"), "/opt/x")
    assert Share.parse("/some/where:ro") == Share(Path("/some/where"), "/mnt/where", readonly=True)
    assert Share.parse("/some/where:/opt/x:ro") == Share(Path("/some/where"), "/opt/x", readonly=True)
    assert Share.parse(".") == Share(Path("."), f"/mnt/{tmp_path.name}")


def test_a_colon_in_a_name(tmp_path: Path) -> None:
    folder = tmp_path / "a:ro"
    folder.mkdir()
    assert Share.parse(str(folder)) == Share(folder, "/mnt/a:ro")
    assert Share.parse(f"{folder}:/x:ro") == Share(folder, "/x", readonly=True)


def test_puts(tmp_path: Path) -> None:
    assert parse_put("/some/tool") == ("/root/tool", Path("/some/tool"))
    assert parse_put("tool:/usr/local/bin/") == ("/usr/local/bin/tool", Path("tool"))
    assert parse_put("tool:/usr/local/bin/other") == ("/usr/local/bin/other", Path("tool"))


@pytest.mark.parametrize("text", ["a:b", "a:", "a:b:ro", "/x:rw"])
def test_the_guests_path_is_absolute(text: str) -> None:
    with pytest.raises(VmError, match=r"--share '.*': the guest's path, '.*', begins with /"):
        Share.parse(text)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (GuestConfig(shares=[Share(Path("nowhere"), "/x")]), r"the folder to share, nowhere, does not exist"),
        (GuestConfig(shares=[Share(Path(__file__), "/x")]), r"is no folder: --put copies files"),
        (GuestConfig(shares=[Share(Path("/"), "x")]), r"an absolute path in the guest, not 'x'"),
        (GuestConfig(files={"/x": Path("nothing")}), r"the file to put into the guest, nothing, does not exist"),
        (GuestConfig(files={"/x": Path("/")}), r"is no file: --share shares folders"),
        (GuestConfig(files={"x": Path(__file__)}), r"an absolute path in the guest, not 'x'"),
    ],
)
def test_what_cannot_be_given(config: GuestConfig, words: str) -> None:
    with pytest.raises(VmError, match=words):
        check_files(config)


def test_a_command_line_alone_gives_nothing() -> None:
    with pytest.raises(VmError, match="--share and --put need more than QEMU's command line"):
        print_command(GuestConfig(shares=[Share(Path("/"), "/mnt")]))


def test_one_machine_serves_up_to_four_shares() -> None:
    """So one snapshot does; a guest without shares has the machine that it always had."""
    assert ports(0) == []
    assert ports(1) == ports(4)
    assert len(ports(5)) == 2 * 5
