"""A hook of MkDocs: links from the pages to files of the repository outside ``docs``.

On GitHub they are relative paths such as ``../configs/coco/README.md``, and stay that. In the site
each of these files is copied below ``repository/``, as a page where it is Markdown, else as plain
text, and the links lead there.
"""

import os
import re
from pathlib import Path

from mkdocs.structure.files import File

DOCS = Path(__file__).resolve().parents[1]
ROOT = DOCS.parent
FOLDER = 'repository'
#: What stands before a link's target, the target, and its anchor.
LINK = re.compile(r'(\]\()([^)\s#:]+)(#[^)\s]*)?(?=\))')
CODE = re.compile(r'(^ *```.*?^ *```|`[^`\n]+`)', re.DOTALL | re.MULTILINE)


def on_files(files, config):
    """Add the files that the pages link to, and those that these link to."""
    pages = [(source(file.src_uri), file.content_string) for file in files.documentation_pages()]
    nav = [Path(ROOT, uri.removeprefix(f'{FOLDER}/')) for uri in outside(config.nav)]
    found = set()
    waiting = nav + [path for page, text in pages for path in targets(page, text)]
    while waiting:
        path = waiting.pop()
        if path in found or path.is_relative_to(DOCS) or not path.is_file():
            continue
        found.add(path)
        files.append(File.generated(config, uri(path), abs_src_path=str(path)))
        if path.suffix == '.md':
            waiting += targets(path, path.read_text(encoding='utf-8'))
    return files


def on_page_markdown(markdown, page, config, files):
    """Let the links lead to where the files are in the site."""
    here = source(page.file.src_uri)
    folder = os.path.dirname(page.file.src_uri)

    def changed(link):
        path = resolve(here, link[2])
        if not path.is_file():
            return link[0]
        return f'{link[1]}{os.path.relpath(uri(path), folder or ".")}{link[3] or ""}'

    parts = CODE.split(markdown)
    parts[::2] = [LINK.sub(changed, part) for part in parts[::2]]
    return ''.join(parts)


def targets(page: Path, text: str) -> list[Path]:
    """The files of the repository that a page links to."""
    return [
        resolve(page, link[2]) for part in CODE.split(text)[::2] for link in LINK.finditer(part)
    ]


def resolve(page: Path, link: str) -> Path:
    """The file that a link in a page leads to."""
    return Path(os.path.normpath(page.parent / link))


def source(uri: str) -> Path:
    """The file that a page of the site comes from."""
    outside = f'{FOLDER}/'
    return ROOT / uri.removeprefix(outside) if uri.startswith(outside) else DOCS / uri


def uri(path: Path) -> str:
    """Where a file is in the site."""
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    is_page = path.suffix == '.md'
    # A browser shows a text, and would offer a Python file for download.
    return f'{FOLDER}/{path.relative_to(ROOT).as_posix()}{"" if is_page else ".txt"}'


def outside(nav) -> list[str]:
    """The pages in the navigation that are not in ``docs``."""
    if isinstance(nav, str):
        return [nav] if nav.startswith(f'{FOLDER}/') else []
    values = nav.values() if isinstance(nav, dict) else nav
    return [found for value in values for found in outside(value)]
