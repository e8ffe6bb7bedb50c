"""MMEngine's scope ``mmorepa``: a name means what it means in the library of the config.

MMEngine imports this module by itself where it meets the prefix ``mmorepa.``. So
``dict(type='mmorepa.OREPAResNet')`` needs no ``custom_imports``: it is mmdet's OREPAResNet where
the default scope is mmdet, mmseg's where it is mmseg.
"""

from __future__ import annotations

from importlib import import_module

from mmengine.registry import DefaultScope, Registry, root

from .environment import LIBRARIES

SCOPE = 'mmorepa'

#: The import point for each scope that has one.
IMPORT_POINTS = {library: f'{SCOPE}.{part}' for part, library in LIBRARIES.items()}


class ForwardingRegistry(Registry):
    """A child of one of MMEngine's registries that holds nothing and asks the current library's."""

    def get(self, key: str) -> type | None:
        """Look ``key`` up in the library of the default scope, with our backbones registered there.

        Args:
            key (str): A name without the prefix.

        Returns:
            type | None: As in MMEngine.

        Raises:
            LookupError: If the default scope is no library that has an import point here, and
                MMEngine itself does not know the name.
        """
        if '.' in key.removeprefix(f'{SCOPE}.'):
            return None  # the path of a class: MMEngine imports it
        current = DefaultScope.get_current_instance()
        scope = current and current.scope_name
        if scope in IMPORT_POINTS:
            import_module(IMPORT_POINTS[scope])
            return self.parent.children.get(scope, self.parent).get(key)
        found = self.parent.get(key)
        if found is None:
            raise LookupError(
                f'{SCOPE}.{key} is taken from the library of the default scope, which is {scope}; '
                f'wanted one of {", ".join(IMPORT_POINTS)}: set default_scope, or name the '
                f'library, as in mmdet.{key} after importing {SCOPE}.det'
            )
        return found


for registry in [value for value in vars(root).values() if isinstance(value, Registry)]:
    ForwardingRegistry(registry.name, parent=registry, scope=SCOPE)
