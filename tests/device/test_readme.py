"""The Python examples of the documentation run as printed, by pytest with nothing but the installed plugin."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from junitparser import JUnitXml

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGES = (README, *sorted(DOCS.glob("*.md")))
#: What an example prints, except for lines that are left out (…) and for addresses.
FINDING = re.findall(r"^    RX-BUF-003 error:.*?(?=\n\n)", (DOCS / "contract.md").read_text(), re.MULTILINE | re.DOTALL)
ADDRESS = re.compile("0x[0-9a-f]{8}")
EXAMPLES = [
    example
    for page in PAGES
    for example in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
]


def test_there_are_examples() -> None:
    assert EXAMPLES


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, JUnitXml]:
    """One run of pytest over all examples, each a file: what it printed, and its results."""
    folder = tmp_path_factory.mktemp("examples")
    for number, example in enumerate(EXAMPLES):
        (folder / f"test_example_{number}.py").write_text(example)
    command = [sys.executable, "-m", "pytest", "-s", "-p", "nicmodel.testing.plugin", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "--junitxml", "results.xml", str(folder)], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, JUnitXml.fromfile(str(folder / "results.xml"))


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_example(number: int, run: tuple[str, JUnitXml]) -> None:
    printed, results = run
    cases = [case for suite in results for case in suite if case.classname == f"test_example_{number}"]
    assert len(cases) == EXAMPLES[number].count("def test_") and all(case.is_passed for case in cases), printed
    if "print(finding)" in EXAMPLES[number]:
        said = ADDRESS.sub("0x", printed)
        for line in FINDING[0].splitlines():
            assert line.strip() == "…" or ADDRESS.sub("0x", line.strip()) in said, said
