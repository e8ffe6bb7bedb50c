"""A hook of MkDocs: ``::: mmorepa.convs.*`` on a page stands for the package and its modules."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ALL_OF = re.compile(r'^::: ([\w.]+)\.\*$', re.MULTILINE)


def on_page_markdown(markdown, page, config, files):
    """Write them out, in the order of the alphabet."""
    return ALL_OF.sub(lambda found: '\n\n'.join(directives(found[1])), markdown)


def directives(package: str) -> list[str]:
    """What has mkdocstrings show a package's docstring, its modules and the packages in it."""
    folder = ROOT / package.replace('.', '/')
    modules = sorted(path.stem for path in folder.glob('*.py') if not path.stem.startswith('_'))
    packages = sorted(path.parent.name for path in folder.glob('*/__init__.py'))
    first = f'::: {package}\n    options:\n      members: false\n      show_root_heading: false'
    own = [first, *[f'::: {package}.{module}' for module in modules]]
    return own + [line for inner in packages for line in directives(f'{package}.{inner}')]
