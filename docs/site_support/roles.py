"""Docstrings are written with Sphinx's roles; the site is made by mkdocstrings, from Markdown."""

import re

import griffe

ROLE = re.compile(r':(?:py:)?(?:attr|class|data|exc|func|meth|mod|obj):`~?([\w.]+)(\(\))?`')
LITERAL = re.compile(r'::(?=\n\n? {4})')
#: Griffe knows the section by its plural.
EXAMPLE = re.compile(r'^Example:$', re.MULTILINE)


class Roles(griffe.Extension):
    """Turns ``:class:`x.Y``` into a link, where the site has the page, and ``::`` into ``:``."""

    def on_instance(self, *, obj: griffe.Object, **_) -> None:
        """Change the docstring of one object."""
        if obj.docstring:
            text = ROLE.sub(lambda found: link(obj, found[1]), obj.docstring.value)
            obj.docstring.value = EXAMPLE.sub('Examples:', LITERAL.sub(':', text))


def link(obj: griffe.Object, name: str) -> str:
    """Code, and a link for a name that mkdocstrings can resolve from where it is used."""
    return f'<autoref optional identifier="{target(obj, name)}"><code>{name}</code></autoref>'


def target(obj: griffe.Object, name: str) -> str:
    """The whole name, as Python would find it: in the class, the module, or from the top."""
    scope = obj
    while scope is not None:
        if name.partition('.')[0] in scope.members:
            return f'{scope.path}.{name}'
        scope = scope.parent
    return name
