"""Stand-ins for packages that a program imports and its loaders do not need, for scripts that are run by hand."""

from __future__ import annotations

from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from unittest.mock import MagicMock


class StandIns(MetaPathFinder, Loader):
    """Packages all of whose modules are there and do nothing."""

    def __init__(self, packages):
        self.packages = packages

    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] in self.packages else None

    def create_module(self, spec):
        module = MagicMock(name=spec.name)
        module.__spec__, module.__path__, module.__version__ = spec, [], "0.0.0"
        return module

    def exec_module(self, module):
        pass
