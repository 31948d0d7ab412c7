"""Register DiVA with transformers' Auto classes on `import diva`, without importing torch or transformers.

Stand-in classes are registered as soon as transformers has imported its Auto classes. They are names only. The first
use of a stand-in imports diva's real classes, registers them, and is passed on to the class of the same name.
"""

import functools
import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

CLASSES = {
    "DivaConfig": "diva.models.configuration",
    "DivaForConditionalGeneration": "diva.models.modeling",
    "DivaProcessor": "diva.models.processing",
}
_MODEL_TYPE = "diva"
_AUTO = "transformers.models.auto"


@functools.cache
def load(name: str) -> Any:
    """A class of diva by its name. It also registers all classes with the Auto classes."""
    register()
    return getattr(importlib.import_module(CLASSES[name]), name)


@functools.cache
def register() -> None:
    """Register diva's own classes with the Auto classes; imports torch and transformers."""
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForMultimodalLM,
        AutoProcessor,
    )

    from diva.models.configuration import DivaConfig
    from diva.models.modeling import DivaForConditionalGeneration
    from diva.models.processing import DivaProcessor

    AutoConfig.register(_MODEL_TYPE, DivaConfig, exist_ok=True)
    for auto in (AutoModel, AutoModelForCausalLM, AutoModelForMultimodalLM):
        auto.register(DivaConfig, DivaForConditionalGeneration, exist_ok=True)
    AutoProcessor.register(DivaConfig, DivaProcessor, exist_ok=True)


class _StandIn(type):
    """The metaclass of a stand-in: it passes all attributes and calls on to the real class of the same name."""

    def __getattr__(cls, name: str) -> Any:
        return getattr(load(cls.__name__), name)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return load(cls.__name__)(*args, **kwargs)


_CONFIG = _StandIn("DivaConfig", (), {})
_PROCESSOR = _StandIn("DivaProcessor", (), {})


def _place(module: ModuleType) -> None:
    """Register the stand-ins with the Auto class that `module` defines."""
    if module.__name__ == f"{_AUTO}.configuration_auto":
        module.AutoConfig.register(_MODEL_TYPE, _CONFIG, exist_ok=True)
    else:
        module.AutoProcessor.register(_CONFIG, _PROCESSOR, exist_ok=True)


class _Finder(MetaPathFinder):
    """Calls `_place` on the modules of the Auto classes after their import."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _WATCHED:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_place(module: ModuleType) -> None:
                run(module)
                _place(module)

            spec.loader.exec_module = run_and_place  # type: ignore[method-assign]
        return spec


_WATCHED = (f"{_AUTO}.configuration_auto", f"{_AUTO}.processing_auto")


def register_on_first_use() -> None:
    """What `import diva` does."""
    loaded = [sys.modules[name] for name in _WATCHED if name in sys.modules]
    for module in loaded:
        _place(module)
    if len(loaded) < len(_WATCHED):
        sys.meta_path.insert(0, _Finder())
