"""Tasks: the clips that have an answer, what their columns may hold, and every shipped config."""

import functools
import shlex
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from datasets import ClassLabel, Dataset, DatasetDict, Features, Sequence, Value
from omegaconf import OmegaConf

from diva.config import CONFIG_DIR, check_overrides, make
from diva.data.manifest import Manifest
from diva.errors import UserError
from diva.evaluate import full_arguments
from diva.evaluation.evaluate import plain_config
from diva.evaluation.metrics import ContainsAnswer
from diva.evaluation.sources import HubBenchmark
from diva.evaluation.task import Task, data_hash

TASKS = sorted(file.stem for file in (Path(CONFIG_DIR) / "task").glob("*.yaml") if file.stem != "base")
SYSTEMS = sorted(file.stem for file in (Path(CONFIG_DIR) / "system").glob("*.yaml"))


class Corpus:
    def __init__(self, **columns: list[str]):
        self.columns = columns

    def manifest(self, split: str) -> Manifest:
        size = len(self.columns["answer"])
        table = {"clip_id": [f"c{i}" for i in range(size)], "text": [f"said {i}" for i in range(size)]}
        return Manifest(pa.table(table | self.columns), None, np.arange(size), [], f"the {split} split")  # type: ignore[arg-type]


def task(corpus: Corpus, **fields) -> Task:
    given = {"name": "t", "version": 1, "split": "test", "reference": "answer", "metrics": [ContainsAnswer()]}
    return Task(**given | {"corpus": lambda: corpus} | fields)


def test_samples_are_the_clips_with_an_answer():
    of = task(
        Corpus(answer=["4|four", "", " Paris "], speaker=["a", "b", "c"]), separator="|", group="speaker"
    )
    first, second = of.samples(of.open())
    assert (first.id, first.row, first.references, first.transcript, first.group) == (
        "c0", 0, ("4", "four"), "said 0", "a",
    )  # fmt: skip
    assert (second.id, second.row, second.references) == ("c2", 2, ("Paris",))
    assert len(task(of.corpus(), max_samples=1).samples(of.open())) == 1


def test_what_is_said_is_not_known_where_the_data_do_not_tell():
    of = task(Corpus(answer=["x"]), transcript=False)
    assert of.samples(of.open())[0].transcript is None


def test_data_that_changed_have_another_hash():
    one, same, other = (
        (of := task(Corpus(answer=[answer]))).samples(of.open()) for answer in ("Rome", "Rome", "Bern")
    )
    assert data_hash(one) == data_hash(same) != data_hash(other)


@pytest.mark.parametrize(
    ("corpus", "fields", "problem"),
    [
        ({"answer": ["x"]}, {"reference": "anser"}, "no column 'anser'"),
        ({"answer": ["", ""]}, {}, "no clip"),
        ({"answer": ["x", "y"], "n": ["1", "1"]}, {"id": "n"}, "several clips alike"),
        (
            {"answer": ["glad"]},
            {"labels": {"Yes": "true", "No": "false"}},
            "'glad', which task.labels does not know",
        ),
    ],
)
def test_data_that_do_not_fit_are_named(corpus, fields, problem):
    of = task(Corpus(**corpus), **fields)
    with pytest.raises(UserError, match=problem):
        of.samples(of.open())


def test_tasks_that_contradict_themselves():
    with pytest.raises(UserError, match="two of the task's labels mean the same"):
        task(Corpus(answer=[]), labels={"Yes": "true", "No": "true"})
    with pytest.raises(UserError, match="none of de, ta"):
        task(Corpus(answer=[]), variant="fr", variants={"de": "German", "ta": "Tamil"})


# ---- datasets of the hub


@pytest.fixture
def saved(tmp_path) -> Path:
    soundfile.write(tmp_path / "a.wav", np.sin(np.arange(16_000) / 9).astype(np.float32), 16_000)
    audio = {"bytes": (tmp_path / "a.wav").read_bytes(), "path": "a.wav"}
    features = Features(
        usa={"bytes": Value("binary"), "path": Value("string")}, question=Value("string"),
        answers=Sequence(Value("string")), squad=[{"text": Value("string"), "answer_start": Value("int64")}],
        label=ClassLabel(names=["angry", "sad"]), sarcasm=Value("bool"),
    )  # fmt: skip
    rows = {
        "usa": [audio, audio], "question": ["who", "where"], "answers": [["Bern\nTown", "Bern"], []],
        "squad": [[{"text": "a b", "answer_start": 3}, {"text": "c", "answer_start": 0}], []],
        "label": [1, 0], "sarcasm": [True, False],
    }  # fmt: skip
    DatasetDict(dev=Dataset.from_dict(rows, features)).save_to_disk(str(tmp_path / "set"))
    return tmp_path / "set"


def test_columns_of_any_kind_become_text(saved):
    corpus = HubBenchmark(str(saved), audio_column="usa", text_column="question", list_field="text")
    manifest = corpus.manifest("dev")
    assert manifest.column("answers") == ["Bern Town\nBern", ""]
    assert manifest.column("squad") == ["a b\nc", ""]
    assert manifest.column("label") == ["sad", "angry"]
    assert manifest.column("sarcasm") == ["true", "false"]
    assert manifest.column("row") == ["0", "1"]
    assert len(manifest.waveform(1)) == 16_000


def test_a_benchmark_on_disk_takes_the_shipped_config(saved):
    disk = [f"task.corpus.path={saved}", "task.id=row"]
    of: Task = make(check_overrides("evaluate", ["task=sdqa", *disk, "system.model=x", "name=x"]).task)
    (sample,) = of.samples(of.open())
    assert (sample.references, sample.transcript) == (("Bern Town", "Bern"), "who")


def test_every_language_has_its_own_references_on_disk(saved, tmp_path):
    """The documented command gives one corpus.path for seven languages."""
    (clip,) = Dataset.load_from_disk(str(saved / "dev")).select([0]).to_list()
    for language, text in {"de": "ein Tag", "tr": "bir gün"}.items():
        row = {"audio": [clip["usa"]], "sentence": ["a day"], "translation": [text], "id": ["1"]}
        DatasetDict(validation=Dataset.from_dict(row)).save_to_disk(
            str(tmp_path / "covost" / f"en_{language}")
        )
    for language, text in {"de": "ein Tag", "tr": "bir gün"}.items():
        given = [
            f"task.corpus.path={tmp_path / 'covost'}",
            f"task.variant={language}",
            "system.model=x",
            "name=x",
        ]
        of: Task = make(check_overrides("evaluate", ["task=covost2", *given]).task)
        assert [s.references for s in of.samples(of.open())] == [(text,)]
    given[1] = "task.variant=ja"
    of = make(check_overrides("evaluate", ["task=covost2", *given]).task)
    with pytest.raises(UserError, match=r"no 'en_ja' in .*covost, there are: en_de, en_tr"):
        of.open()


# ---- configs


@pytest.mark.parametrize("name", TASKS)
def test_every_task_config_builds(name):
    config = check_overrides("evaluate", [f"task={name}", "system.model=x", "name=x"])
    plain = plain_config(config)
    of: Task = make(config.task)
    assert of.name == name
    assert of.version == plain["task"]["version"]
    assert of.labels == plain["task"]["labels"]
    assert len(of.metrics) == len(plain["task"]["metrics"]) > 0
    assert "${" not in str(plain["task"])


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_config_names_what_it_can_be_built_from(name):
    given = ["system.model=x"] if name not in ("predictions",) else []
    config = check_overrides("evaluate", [f"system={name}", *given])
    if name != "predictions":
        OmegaConf.set_struct(config, False)
        assert callable(make(OmegaConf.merge(config.system, {"_partial_": True})))


def test_task_prompts_are_those_of_the_authors():
    @functools.cache
    def built(*overrides: str) -> Task:
        return make(check_overrides("evaluate", [*overrides, "system.model=x", "name=x"]).task)

    qa = "You are a helpful assistant. Give your answers as a simple single sentence."
    assert built("task=heysquad").system_prompt == built("task=sdqa").system_prompt == qa
    translate = "You are a helpful assistant. Translate the inputs from English to Simplified Chinese."
    assert built("task=covost2", "task.variant=zh-CN").system_prompt == translate
    emotion = "What emotion does the previous statement communicate?\nIf there is no clear emotion, respond 'Neutral'."
    assert built("task=meld").question == built("task=iemocap").question == emotion
    assert list(built("task=meld").labels) == [
        "Anger",
        "Disgust",
        "Fear",
        "Joy",
        "Neutral",
        "Sadness",
        "Surprise",
    ]
    assert list(built("task=iemocap").labels) == ["Anger", "Happiness", "Neutral", "Sadness"]
    assert built("task=mustard").labels == {"Yes": "true", "No": "false"}
    assert built("task=urfunny").labels == {"Yes": "humor", "No": "not_humor"}
    assert {built(f"task={name}").max_new_tokens for name in TASKS} == {64}
    figure3 = {built(f"task={name}").instruction.layout for name in ("iemocap", "meld", "mustard", "urfunny")}
    assert figure3 == {"authors"}
    with pytest.raises(UserError, match=r"task\.layout=author is none of question_last, authors"):
        built("task=meld", "task.layout=author")
    assert built("task=heysquad").separator == "\n"


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        (["task=heysqad"], "heysquad"),
        (["system=divva"], "diva"),
        (["task.promt=x"], "task.prompt|task.variant|task.system_prompt"),
        (["+task.sytem_prompt=x"], "task.system_prompt"),
        (["batchsize=3"], "batch_size"),
        ([], r"system\.model has no value"),
    ],
)
def test_misspelt_keys_are_errors(wrong, right):
    with pytest.raises(UserError, match=right):
        check_overrides("evaluate", wrong)


def documented() -> list[list[str]]:
    """The arguments of every diva.evaluate in the README, in docs/ and in experiments/, that of the fig7 loop aside."""
    root = Path(__file__).parents[2]
    files = [root / "README.md", *root.glob("docs/*.md"), *root.glob("experiments/**/README.md")]
    text = "".join(file.read_text() for file in files if file.parent.name != "fig7_ablation").replace(
        "\\\n", " "
    )
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    found = [shlex.split(line)[3:] for line in lines if line.startswith("python -m diva.evaluate ")]
    return [arguments for arguments in found if "--config-dir" not in arguments]


@pytest.mark.parametrize("arguments", documented(), ids=" ".join)
def test_documented_commands_compose(arguments):
    given = [
        argument.replace("$task", "meld").replace("$DIVA_RUN", "runs/mini")
        for argument in arguments
        if argument != "-m"
    ]
    if "name" not in {argument.partition("=")[0] for argument in given}:
        given.append("name=x")
    config = check_overrides("evaluate", full_arguments(given))
    assert plain_config(config)["task"]["name"] in given[0] + "meld"


def test_a_variant_that_the_task_has_not():
    config = check_overrides("evaluate", ["task=covost2", "task.variant=fr", "system.model=x", "name=x"])
    with pytest.raises(UserError, match="none of ar, de"):
        plain_config(config)


def test_evaluate_short_forms_become_full_overrides(tmp_path):
    assert full_arguments([f"system={tmp_path}", "a=1"]) == [
        "system=diva",
        f"system.model='{tmp_path}'",
        "a=1",
    ]
    assert full_arguments(["system=WillHeld/DiVA"]) == ["system=diva", "system.model='WillHeld/DiVA'"]
    assert full_arguments(["system=teacher"]) == ["system=teacher"]
    assert full_arguments(["predictions=x"]) == ["predictions=x", "system=predictions"]
    assert full_arguments(["predictions=x", "system=teacher"]) == ["predictions=x", "system=teacher"]
