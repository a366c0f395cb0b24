"""A runner of the netdev CI: its files as the public runner reads them, and results as its collector does."""

import configparser
import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from nicmodel.cli.nipa import nipa
from nicmodel.vm.errors import VmError
from nicmodel.vm.layout import Nic
from nicmodel.vm.nipa import publish, write_runner
from nicmodel.vm.virtme import qemu_options, vng_command

RESULTS = {
    "executor": "nicmodel", "branch": "7.3.4", "start": "2026-11-29 09:00:30+00:00", "end": "2026-11-29 09:10:00+00:00",
    "results": [{"test": "hds", "group": "selftests-drivers-net", "result": "pass", "link": ""}],
}  # fmt: skip
URL = "https://host/json"


def runner(folder: Path, **changes: Any) -> Path:
    given = {"name": "mine", "tree": folder / "linux", "branches": "https://host/b.json", "url": "https://host/ci/"}
    return write_runner(folder, **{**given, "driver": "gve", "pci": (0x1AE0, 0x42), "version": "0.2", **changes})


def test_the_configuration(tmp_path: Path) -> None:
    """As contest/remote/lib/vm.py reads it."""
    config = configparser.ConfigParser()
    config.read(runner(tmp_path, qemu="/opt/qemu", kvm=False))
    vm = config["vm"]
    assert vm["virtme_opt"].split(",") == ["--numa=2G", "--qemu=/opt/qemu", "--disable-kvm"]
    assert vm["init_prompt"] == f"root@mine,debug-threads=on:{tmp_path}/linux#"
    devices = [json.loads(word) for word in shlex.split(vm["qemu_opt"]) if word.startswith("{")]
    assert [one["socket"]["path"] for one in devices] == [f"{tmp_path}/nic{number}.sock" for number in (0, 1)]
    assert config["www"]["url"] == "https://host/ci"
    said = subprocess.run(config["device"]["info_script"], check=True, capture_output=True, text=True).stdout
    assert json.loads(said)["versions"]["running"] == {"fw": "nicmodel 0.2"}


def test_the_guests_script(tmp_path: Path) -> None:
    """It is a shell's, and exports what the tests read (drivers/net/README.rst)."""
    runner(tmp_path, driver="mine")
    script = (tmp_path / "setup.sh").read_text()
    subprocess.run(["sh", "-n", tmp_path / "setup.sh"], check=True)
    exports = {line.split()[1].partition("=")[0] for line in script.splitlines() if line.startswith("export ")}
    assert exports >= {"NETIF", "LOCAL_V4", "LOCAL_V6", "REMOTE_V4", "REMOTE_V6", "REMOTE_TYPE", "REMOTE_ARGS"}
    assert "modprobe mine\n" in script and '"0x1ae0 0x0042 "' in script


@pytest.mark.parametrize("changes", [{"name": "my runner"}, {"qemu": "/opt/q,emu"}, {"url": "https://host/%20"}])
def test_what_a_configuration_cannot_hold(tmp_path: Path, changes: dict[str, str]) -> None:
    with pytest.raises(VmError, match="has a character that a runner's configuration cannot hold"):
        runner(tmp_path, **changes)


@pytest.mark.parametrize("device, driver, pci", [("gvnic", "gve", "0x1ae0 0x0042"), ("idpf", "idpf", "0x8086 0x145c")])
def test_each_kind_of_nic(tmp_path: Path, device: str, driver: str, pci: str) -> None:
    """With its stock driver, if no other is named."""
    arguments = ["--tree", "linux", "--branches", "https://host/b.json", "--url", "https://host/ci", "--device", device]
    for more, module in (([], driver), (["--driver", "mine"], "mine")):
        run = CliRunner().invoke(nipa, ["setup", str(tmp_path), *arguments, *more])
        assert run.exit_code == 0 and f"nicmodel serve --device {device} " in run.output
        script = (tmp_path / "setup.sh").read_text()
        assert f"modprobe {module}\n" in script and f'"{pci} "' in script


def test_publishing(tmp_path: Path) -> None:
    """One entry in the manifest for each branch; each run in a file of its own."""
    first = publish(RESULTS, tmp_path, url=URL, name="mine", branch="net-next-1")
    second = publish(RESULTS, tmp_path, url=URL, name="mine", branch="net-next-2")
    again = publish(RESULTS, tmp_path, url=URL, name="mine", branch="net-next-2")
    assert first != second == again
    manifest = json.loads((tmp_path / "results.json").read_text())
    assert manifest == [
        {"url": f"{URL}/{file.name}", "branch": branch, "executor": "mine"}
        for file, branch in ((first, "net-next-1"), (second, "net-next-2"))
    ]
    # contest/results-collector.py, result_matches_manifest_entry
    result = json.loads(second.read_text())
    assert (result["executor"], result["branch"]) == ("mine", "net-next-2")


@pytest.mark.parametrize(
    ("results", "url", "words"),
    [({}, URL, "no results of 'nicmodel selftests --json'"), (RESULTS, "host/json", "is no URL")],
)
def test_what_cannot_be_published(tmp_path: Path, results: dict[str, Any], url: str, words: str) -> None:
    with pytest.raises(VmError, match=words):
        publish(results, tmp_path, url=url, name="mine", branch="b")


@pytest.mark.parametrize("content", ["{", "{}x", "[" * 100_000, '[{"url": 1}]', "3"])
def test_a_broken_manifest_is_left_alone(tmp_path: Path, content: str) -> None:
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(VmError, match="is no manifest of results: move it away"):
        publish(RESULTS, tmp_path, url=URL, name="mine", branch="b")
    assert (tmp_path / "results.json").read_text() == content


def test_the_command(tmp_path: Path) -> None:
    words = ["--tree", str(tmp_path), "--branches", URL, "--url", URL]
    said = CliRunner().invoke(nipa, ["setup", str(tmp_path / "ci"), *words])
    assert said.exit_code == 0 and f"vmksft-p.py {tmp_path}/ci/nicmodel.config" in said.output
    (tmp_path / "run.json").write_text(json.dumps(RESULTS))
    words = [str(tmp_path / "run.json"), str(tmp_path / "ci/json"), "--url", URL, "--branch", "b"]
    said = CliRunner().invoke(nipa, ["publish", *words])
    assert said.exit_code == 0 and Path(said.output.strip()).is_file()


def test_vng_passes_devices_through_a_shell() -> None:
    """It puts the option's value into a shell's command as it is (virtme_ng/run.py)."""
    odd = '/tmp/it\'s a "socket"'
    value = qemu_options([Nic(odd, id="x")])
    said = subprocess.run(f"printf '%s\\n' {value}", shell=True, check=True, capture_output=True, text=True).stdout
    option, device = said.splitlines()
    assert option == "-device" and json.loads(device)["socket"]["path"] == odd and json.loads(device)["id"] == "x"
    command = vng_command("bzImage", [Nic("/a")], "1G", ["--qemu=/q"])
    assert command[:2] == ["vng", "--run=bzImage"] and "--numa=1G" in command and command[-1].startswith("--qemu-opts=")
