"""Training on augmented clips: no encoder frame is cached, the teacher's states are, SpecAugment hides the log-mel."""

from types import SimpleNamespace

import pytest
import torch
from hydra.utils import instantiate
from steps import batch_of

from diva.audio.masks import Masks
from diva.config import check_overrides
from diva.errors import UserError
from diva.models.build import build
from diva.models.parts import load_tokenizer
from diva.run import make_data, make_module
from diva.training.frozen import FrozenParts
from diva.training.module import DivaTraining


def test_no_frames_of_augmented_clips_are_cached(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setenv("DIVA_CACHE", str(tmp_path))
    given = ["max_steps=6", "objective.distill_from_step=0", "precompute.encoder_frames_gb=1"]
    config = check_overrides("train", [*tiny_run, *given, "data.augment.gain.probability=0.5"])
    model_config = instantiate(config.model)
    tokenizer = load_tokenizer(model_config.llm.name)
    data = make_data(config.data, tokenizer, model_config.adapter, tmp_path)
    data.setup("fit")
    module = make_module(config, build(model_config, tokenizer))
    module._trainer = SimpleNamespace(datamodule=data, max_steps=6)
    module.on_fit_start()
    train, val = (module.frozen[split] for split in ("train", "dev"))
    assert (train.cached_frames is None, val.cached_frames is None) == (True, False)
    assert train.cached_teacher is not None
    assert next(iter(data.train_dataloader())).waveforms.shape[1] > 0


class Hidden(torch.nn.Module):
    """A log-mel with zeros in given places, one by one."""

    def __init__(self, log_mel: torch.nn.Module, places: list[tuple[int, int, int]]):
        super().__init__()
        self.log_mel, self.places = log_mel, places

    def forward(self, waveforms: torch.Tensor) -> torch.Tensor:
        found = self.log_mel(waveforms).clone()
        for row, mel, frame in self.places:
            found[row, mel, frame] = 0.0
        return found


@pytest.mark.parametrize("context", ["bucket", "full"])
def test_the_encoder_hears_a_log_mel_with_hidden_parts(tiny_model, context):
    tiny_model.encoder.context = context
    batch = batch_of(1.0, 0.6)
    plain = FrozenParts(tiny_model).frames(batch)[0]
    batch.masks = Masks(torch.tensor([[[10, 13]], [[0, 0]]]), torch.tensor([[[0.0, 0.0]], [[0.5, 0.525]]]))
    found = FrozenParts(tiny_model).frames(batch)[0]
    # Two of 80 bins, and three frames.
    length = 3000 if context == "full" else batch.waveforms.shape[1] // 160
    places = [(0, mel, frame) for mel in range(80) for frame in (10, 11, 12)]
    places += [(1, mel, frame) for mel in (40, 41) for frame in range(length)]
    tiny_model.encoder.log_mel = Hidden(tiny_model.encoder.log_mel, places)
    batch.masks = None
    assert found.equal(FrozenParts(tiny_model).frames(batch)[0])
    assert not found[0].equal(plain[0])
    assert not found[1].equal(plain[1])


def test_spec_augment_is_refused_for_an_encoder_without_a_log_mel():
    model = SimpleNamespace(encoder=object(), config=SimpleNamespace(encoder=SimpleNamespace(name="hubert")))
    data = SimpleNamespace(augment=SimpleNamespace(masks=True))
    training = SimpleNamespace(trainer=SimpleNamespace(datamodule=data), model=model)
    with pytest.raises(UserError, match=r"hubert reads none: set data\.augment\.spec_augment\.probability=0"):
        DivaTraining.on_fit_start(training)
