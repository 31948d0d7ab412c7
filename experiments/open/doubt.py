"""Does the hearing distance tell known words from others? `python experiments/open/doubt.py MODEL CORPUS`.

CORPUS is the folder of the spoken corpus that MODEL was trained on. Clips of its held-out sentences are compared with
examples of WordNet of which at most a third of the words are in its training sentences, in the same voices. Prints the
area under the ROC curve, and the fraction of clips that is marked as "may not have understood".
"""

import argparse
import io
import random
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import numpy as np
import soundfile
from sklearn.metrics import roc_auc_score

from diva.audio.decoding import to_waveform
from diva.command import exit_codes
from diva.data.corpora.common_voice import CommonVoice
from diva.data.corpora.spoken import wordnet
from diva.data.corpora.spoken.corpus import PITCH_RANGE, TEMPO_RANGE
from diva.data.corpora.spoken.release import cast
from diva.data.corpora.spoken.sentences import MAX_CHARACTERS, Sentence, words_of
from diva.data.corpora.spoken.voices import TRAINED
from diva.models.load import load_model


def spoken(text: str) -> np.ndarray:
    """The sentence in one of the voices of training, from an mp3 as in the corpus: [S] at 16 kHz."""
    clip = cast(Sentence(text, "wordnet", None), TRAINED, 1, TEMPO_RANGE, PITCH_RANGE)
    samples, rate = clip.voice.speak(text, clip.stretch, clip.pitch)
    mp3 = io.BytesIO()
    soundfile.write(mp3, samples, rate, format="MP3")
    return to_waveform(mp3.getvalue())


@exit_codes
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--clips", type=int, default=100, help="of each kind (default: 100)")
    parser.add_argument("--wordnet", help="folder of WordNet's data files")
    options = parser.parse_args()
    corpus, model = CommonVoice(options.corpus, "en"), load_model(options.model)
    known = set().union(*map(words_of, corpus.manifest("train").column("text")))
    examples = wordnet.example_sentences(wordnet.folder_of(options.wordnet))
    random.Random(0).shuffle(examples)
    others = (
        text
        for text in examples
        if len(text) <= MAX_CHARACTERS and 3 * len(words_of(text) & known) <= len(words_of(text))
    )

    def distances(clips: Iterable[np.ndarray]) -> np.ndarray:
        return np.array([model.hearing_distance(clip) for clip in islice(clips, options.clips)])

    other = distances(map(spoken, others))
    for split in ("test", "unseen_voice"):
        manifest = corpus.manifest(split)
        held_out = distances(manifest.waveform(row) for row in range(len(manifest)))
        labels = np.repeat([0, 1], [len(held_out), len(other)])
        area = roc_auc_score(labels, np.concatenate([held_out, other]))
        print(f"{split}: mean {held_out.mean():.3f}, other words {other.mean():.3f}, AUC {area:.3f}")
        if (threshold := model.config.hearing_threshold) is not None:
            marked = [f"{np.mean(found > threshold):.2f}" for found in (held_out, other)]
            print(f"{split}: marked above {threshold:.3f}: {marked[0]}, other words {marked[1]}")


if __name__ == "__main__":
    main()
