"""Talk to a trained DiVA in the browser: `python -m diva.demo [--model RUN_OR_EXPORT_OR_ID] [--runs runs]`.

It starts with MODEL, or with the newest finished run below `runs/`. The model answers the recording and reads all
earlier turns. Next to its answer is the answer of the text teacher (the same frozen LLM) to the transcript.
Answers are greedy and have at most 128 tokens, as with `model.generate([clip])`. No data leaves the machine.
"""

import argparse
import os
from pathlib import Path

from diva.command import add_parts, exit_codes, quieten
from diva.errors import UserError


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="diva.demo", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--model", help="a run directory, its export/ folder or a hub id; the newest run unless given"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs to choose from")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; away from it, browsers give a page the microphone over https only",
    )
    parser.add_argument("--port", type=int, default=7860)
    add_parts(parser)
    return parser.parse_args()


def reach_directly(host: str) -> None:
    """Exclude the page's own address from the proxy of the environment (`http_proxy`): gradio connects to it."""
    for name in ("no_proxy", "NO_PROXY"):
        hosts = [os.environ.get(name), host, "localhost", "127.0.0.1"]
        os.environ[name] = ",".join(filter(None, hosts))


@exit_codes
def main() -> None:
    arguments = parse_arguments()
    reach_directly(arguments.host)
    from diva.serving.demo import CSS, Demo, models, page  # after --help: it imports gradio and torch

    quieten()
    choices = models(arguments.model, arguments.runs)
    demo = Demo(
        arguments.model,
        llm=arguments.llm,
        encoder=arguments.encoder,
        encoder_dtype=arguments.encoder_dtype,
    )
    demo.load(choices[0][1])
    blocks = page(demo, choices)
    try:
        blocks.launch(
            server_name=arguments.host,
            server_port=arguments.port,
            share=False,
            quiet=True,
            show_error=True,
            css=CSS,
            footer_links=[],
            run_history=False,
            prevent_thread_lock=True,
        )
    except OSError as error:
        raise UserError(
            f"--host {arguments.host} --port {arguments.port} cannot be listened on ({error}); choose another port"
        ) from error
    print(f"diva: {choices[0][0]} at http://{arguments.host}:{arguments.port}", flush=True)
    blocks.block_thread()


if __name__ == "__main__":
    main()
