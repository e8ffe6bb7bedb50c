"""A hook of MkDocs: ``::: mmorepa.convs.*`` on a page stands for the package and its modules."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ALL_OF = re.compile(r'^::: ([\w.]+)\.\*$', re.MULTILINE)


def on_page_markdown(markdown, page, config, files):
    """Write them out, in the order of the alphabet."""
    return ALL_OF.sub(lambda found: '\n\n'.join(directives(found[1])), markdown)


def directives(package: str) -> list[str]:
    """What has mkdocstrings show a package's own docstring and then each of its modules."""
    folder = ROOT / package.replace('.', '/')
    modules = sorted(path.stem for path in folder.glob('*.py') if not path.stem.startswith('_'))
    first = f'::: {package}\n    options:\n      members: false\n      show_root_heading: false'
    return [first, *[f'::: {package}.{module}' for module in modules]]
