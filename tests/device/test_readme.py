"""The Python examples of the documentation run as printed, by pytest with nothing but the installed plugin."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_example(number: int, tmp_path: Path) -> None:
    file = tmp_path / "test_example.py"
    file.write_text(EXAMPLES[number])
    command = [sys.executable, "-m", "pytest", "-s", "-p", "nicmodel.testing.plugin", "-p", "no:cacheprovider"]
    done = subprocess.run([*command, str(file)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(rf" {EXAMPLES[number].count('def test_')} passed", done.stdout), done.stdout
    if "print(finding)" in EXAMPLES[number]:
        said = ADDRESS.sub("0x", done.stdout)
        for line in FINDING[0].splitlines():
            assert line.strip() == "…" or ADDRESS.sub("0x", line.strip()) in said, said
