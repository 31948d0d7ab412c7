"""Ask a trained DiVA aloud: `python -m diva.generate MODEL clip.wav [clip2.wav ...] [--prompt TEXT]`.

MODEL is a run directory or its export. One response a line, in the order of the clips.
"""

import argparse
import sys
from pathlib import Path

import torch

from diva.audio import decode, one_clip
from diva.cli import exit_codes, quieten
from diva.errors import AudioFault
from diva.models.build import load_trained
from diva.prompts import user_turn


@exit_codes
def main() -> None:
    arguments = parse_arguments()
    quieten()
    model, tokenizer = load_trained(arguments.model)
    prompt = user_turn(tokenizer, arguments.prompt) if arguments.prompt else None
    damaged = 0
    for clip in arguments.clips:
        try:
            waveforms, samples = one_clip(decode(clip))
        except AudioFault as fault:
            damaged += 1
            print(f"diva: skipped {clip}: {fault}", file=sys.stderr)
            continue
        with torch.autocast("cpu", dtype=torch.bfloat16):
            ids = model.answer(waveforms, samples, arguments.max_new_tokens, prompt)
        print(" ".join(tokenizer.decode(ids[0], skip_special_tokens=True).split()), flush=True)
    if damaged:
        sys.exit(2)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="diva.generate", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, help="a run directory or its export/ folder")
    parser.add_argument("clips", nargs="+", help="audio files in any format that libsndfile reads")
    parser.add_argument("--prompt", help="an instruction beside the speech, such as 'Reply briefly'")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    return parser.parse_args()


if __name__ == "__main__":
    main()
