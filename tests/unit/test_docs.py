"""The documentation builds without a warning, its links lead somewhere, and it needs no network to be read."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import click
import pytest

from nicmodel import __version__
from nicmodel.cli.main import cli
from nicmodel.gvnic.contract.rules import RULES
from nicmodel.gvnic.descriptors import RX_COMPLETION
from nicmodel.idpf.contract.rules import RULES as IDPF_RULES

# Two builds of some fifteen seconds each, on a machine that is not busy.
pytestmark = pytest.mark.timeout(1500)

ROOT = Path(__file__).parents[2]
#: Texts that are read outside of the site too; their links are relative to where they are.
TEXTS = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "benchmarks" / "README.md")
#: Elements whose address a browser fetches by itself.
FETCHED = {("link", "href"), ("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src")}


class Page(HTMLParser):
    """What a page can be linked at, where it links to, and what it makes a browser fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.anchors.add(value)
            if tag == "a" and name == "href" and value:
                self.links.append(value)
            if (tag, name) in FETCHED and value:
                self.fetched.append(value)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `html` and `man`, built as `make docs` does it."""
    folder = tmp_path_factory.mktemp("docs")
    for builder in ("html", "man"):
        options = ["--quiet", "--fail-on-warning", "--keep-going", "--doctree-dir", str(folder / "doctrees")]
        command = [sys.executable, "-m", "sphinx", *options, "--builder", builder, ROOT / "docs", folder / builder]
        done = subprocess.run(command, capture_output=True, text=True, timeout=700)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(built: Path) -> dict[Path, Page]:
    return {path: Page(path.read_text()) for path in (built / "html").rglob("*.html")}


def test_every_link_leads_to_a_place(built: Path, pages: dict[Path, Page]) -> None:
    assert len(pages) > 30
    wrong = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            known = pages.get(target)
            if not target.exists() or (parts.fragment and known and unquote(parts.fragment) not in known.anchors):
                wrong.append(f"{path.relative_to(built)}: {link}")
    assert not wrong


def test_nothing_is_fetched_from_elsewhere(built: Path, pages: dict[Path, Page]) -> None:
    addresses = [address for page in pages.values() for address in page.fetched]
    assert addresses
    assert not [address for address in addresses if urlsplit(address).scheme or urlsplit(address).netloc]
    for sheet in (built / "html").rglob("*.css"):
        assert not re.search(r"@import|url\(['\"]?(https?:)?//", sheet.read_text()), sheet


def test_the_datasheet_has_every_field_and_rule(built: Path) -> None:
    receive = (built / "html" / "datasheet" / "receive.html").read_text()
    drawn = "".join(re.findall(r"<text[^>]*>(.*?)</text>", receive))
    for field in RX_COMPLETION:
        assert field in drawn and f">{field}<" in receive
    rules = Page((built / "html" / "datasheet" / "rules.html").read_text())
    assert {name.lower() for name in RULES} <= rules.anchors
    idpf = Page((built / "html" / "datasheet" / "idpf.html").read_text())
    assert {f"idpf-{name.lower()}" for name in IDPF_RULES} <= idpf.anchors


def test_every_command_has_a_man_page(built: Path) -> None:
    """Each with all of its options."""
    context = click.Context(cli)
    for name in cli.list_commands(context):
        text = (built / "man" / f"nicmodel-{name}.1").read_text().replace("\\-", "-")
        command = cli.get_command(context, name)
        assert command is not None
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert all(word in text for word in parameter.opts), (name, parameter.opts)
    assert __version__ in (built / "man" / "nicmodel.1").read_text()


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_of_texts_in_the_repository(text: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", text.read_text())
    missing = [link for link in links if not urlsplit(link).scheme and not (text.parent / link).exists()]
    assert not missing


def names(source: str, word: str) -> bool:
    """Whether a module's code has the word in a name or a text, its docstrings left out."""
    tree = ast.parse(source)
    told = {
        id(first.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        for first in node.body[:1]
        if isinstance(first, ast.Expr)
    }
    texts = (
        getattr(node, field)
        for node in ast.walk(tree)
        if id(node) not in told
        for field in ("id", "attr", "arg", "name", "module", "value")
        if hasattr(node, field)
    )
    return any(isinstance(text, str) and word in text.lower() for text in texts)


def test_only_files_that_architecture_lists_name_the_second_device() -> None:
    package = ROOT / "nicmodel"
    files = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if not path.is_relative_to(package / "idpf") and names(path.read_text(), "idpf")
    }
    text = (ROOT / "docs" / "architecture.md").read_text()
    [paragraph] = re.findall(r"^Outside of its folder a personality is named.*?\n\n", text, re.MULTILINE | re.DOTALL)
    assert files == set(re.findall(r"`([\w/]+\.py)`", paragraph))
