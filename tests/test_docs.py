"""The pages of docs/: what the code, the tests and other pages point to is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = [path for folder in ("kcptun_lite", "tests", "tools") for path in sorted((ROOT / folder).rglob("*.py"))]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("openwrt/*.md")])

REFERENCE = re.compile(r'docs/(\w+)\.md((?:,? "[^"]+")+)')  # docs/protocol.md, "Frames", "Flow control"
LINK = re.compile(r"\]\(([^)#]+)(?:#([^)]*))?\)")


def headings(page: Path) -> list[str]:
    """The headings of a page, blocks of code left out."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"^#+ (.+)$", text, re.MULTILINE)


def references(text: str) -> list[tuple[str, str]]:
    """(page, heading) of all that a source points to, also where a reference goes on in the next line."""
    flat = re.sub(r"\s*\n[\s#]*", " ", text)
    return [(page, name) for page, names in REFERENCE.findall(flat) for name in re.findall(r'"([^"]+)"', names)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_sections_that_sources_point_to_are_there(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for page, heading in references(text):
        assert heading in headings(ROOT / "docs" / f"{page}.md"), f'docs/{page}.md has no section "{heading}"'
    for page in re.findall(r"docs/(\w+\.md)", text):
        assert (ROOT / "docs" / page).exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target, _ in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_headings_of_a_page_differ(page: Path) -> None:
    if page.name != "CHANGELOG.md":  # where each version has the same ones
        assert len(set(headings(page))) == len(headings(page))


def test_what_the_architecture_names_is_in_the_sources() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    sources = "".join(path.read_text(encoding="utf-8") for path in SOURCES)
    words = {word for code in re.findall(r"`([^`]+)`", text) for word in re.findall(r"[A-Za-z_]\w{4,}", code)}
    assert words, "it names functions"
    assert not {word for word in words if not re.search(rf"\b{word}\b", sources)}
    for path in re.findall(r"\b(?:core|net|app|tests|tools)/[\w/]+\.\w+", text):
        assert (ROOT / path).exists() or (ROOT / "kcptun_lite" / path).exists(), path


def test_references_are_found_across_lines() -> None:
    text = '# as docs/protocol.md,\n    # "Frames", "Flow\n    # control" say'
    assert references(text) == [("protocol", "Frames"), ("protocol", "Flow control")]
