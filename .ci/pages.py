"""What mkdocs.yml cannot say: pages from the top of the repository, and the list of decisions."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
TOP = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Name every record of a decision in the navigation."""
    records = sorted(page.relative_to(DOCS).as_posix() for page in DOCS.glob("decisions/*.md"))
    assert config.nav is not None
    config.nav = [{"Decisions": records} if "Decisions" in entry else entry for entry in config.nav]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are read at the top of the repository as well."""
    for source, page in TOP.items():
        files.append(File.generated(config, page, content=_as_page((ROOT / source).read_text())))
    return files


def _as_page(text: str) -> str:
    """A top page with links as they are from `docs`; what is no page is named, not linked."""
    return re.sub(r"\[([^]]*)\]\((?!https?:|#)([^)]*)\)", _as_link, text)


def _as_link(link: re.Match[str]) -> str:
    name, target = link.groups()
    path, anchor, where = target.partition("#")
    page = TOP.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
    if page is None and (ROOT / path).exists():
        return name
    return f"[{name}]({page or path}{anchor}{where})"
