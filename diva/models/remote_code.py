"""The code that an export carries, so that it loads with `trust_remote_code` where diva is not installed.

transformers loads a module and those that it imports from the same folder (`from .adapter import ...`). Subfolders are
not possible. If a module imports a missing package, transformers refuses to load it
(`transformers.dynamic_module_utils`). So an export holds copies of these modules in one folder. None of them imports
diva, Lightning, Hydra, gguf or peft outside a `try`.
"""

import re
from pathlib import Path

# Modules of this folder, or paths relative to it.
_MODULES = (
    "modeling",
    "generation",
    "configuration",
    "processing",
    "prompts",
    "parts",
    "llm",
    "lora",
    "adapter",
    "encoder",
    "folders",
    "released",
    "remote_code",
    "pretrained",
    *(
        f"../audio/{name}"
        for name in ("frames", "filterbank", "log_mel", "decoding", "containers", "foreign")
    ),
    "../errors",
    "../files",
)
AUTO_MAP = {
    "AutoConfig": "configuration.DivaConfig",
    **dict.fromkeys(
        ("AutoModel", "AutoModelForCausalLM", "AutoModelForMultimodalLM"),
        "modeling.DivaForConditionalGeneration",
    ),
    "AutoProcessor": "processing.DivaProcessor",
}


def write_code(folder: Path) -> None:
    """Copy the modules. `from ..audio.frames import` becomes `from .frames import`; nothing else changes."""
    here = Path(__file__).parent
    for module in _MODULES:
        name = module.rpartition("/")[2]
        inside = here / f"{name}.py"  # of an export, whose modules all lie here
        source = inside if inside.is_file() else here / f"{module}.py"
        copy = re.sub(
            r"^(\s*from )\.\.(\w+\.)?(?=\w)", r"\1.", source.read_text(encoding="utf-8"), flags=re.M
        )
        (folder / f"{name}.py").write_text(copy, encoding="utf-8")
