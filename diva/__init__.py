"""Distilled Voice Assistants: a frozen text LLM learns to hear.

After `import diva` transformers' Auto classes load DiVA's exports. torch and transformers are imported on first use.
"""

from typing import TYPE_CHECKING, Any

from diva.models import registration

if TYPE_CHECKING:
    from diva.models.configuration import DivaConfig
    from diva.models.modeling import DivaForConditionalGeneration
    from diva.models.processing import DivaProcessor

__all__ = ["DivaConfig", "DivaForConditionalGeneration", "DivaProcessor"]

registration.register_on_first_use()


def __getattr__(name: str) -> Any:
    if name not in registration.CLASSES:
        raise AttributeError(f"module 'diva' has no attribute {name!r}")
    return registration.load(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
