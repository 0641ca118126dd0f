"""A method outside the project: named by its module and class, searched and run as ours are."""

import sys
from pathlib import Path

import pytest

from search import StudyFile
from search.preparation import needs_of
from spaces import BadInput, Recipe
from trainers import Knowledge, Task, run_trial
from trainers.transfer import method_of

MODULE = '''
import torch.nn.functional as F
from pydantic import Field
from trainers.transfer import Method, Needs, Options, Paper

class MyOptions(Options):
    alpha: float = Field(default=0.5, ge=0.0)

class LogitMatching(Method):
    """L = CE + alpha mean (z_S - z_T)^2."""

    name = "logit_matching"
    abbreviation = "LM"
    paper = Paper("Me", "Mine", "2026", "")
    Options = MyOptions

    def __init__(self, options, shapes):
        super().__init__(options, shapes)
        self.alpha = options.alpha

    @classmethod
    def needs(cls, options):
        return Needs(logits=True)

    def forward(self, student, teacher, labels):
        return F.cross_entropy(student.logits, labels) + self.alpha * F.mse_loss(student.logits, teacher.logits)

class Half(Method):
    name = "half"

something = 3
'''
OWN = "my_transfer.methods:LogitMatching"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With the user's package in it; not yet where modules are looked for."""
    (tmp_path / "my_transfer").mkdir()
    (tmp_path / "my_transfer" / "methods.py").write_text(MODULE)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("my_transfer", "my_transfer.methods"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def test_it_is_found_with_its_options_and_its_errors_bear_its_whole_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(folder)
    recipe = Recipe.from_flat({"transfer": OWN, f"{OWN}.alpha": 0.25})
    method, options = method_of(recipe)
    assert (method.__name__, options.model_dump()) == ("LogitMatching", {"alpha": 0.25})
    assert Recipe.from_json(recipe.to_json()) == recipe
    with pytest.raises(BadInput, match=rf"`{OWN}\.alpha` should be greater than or equal to 0"):
        method_of(Recipe.from_flat({"transfer": OWN, f"{OWN}.alpha": -1.0}))


def test_it_is_searched_from_a_module_beside_the_study_file(folder: Path) -> None:
    (folder / "study.yaml").write_text(
        f"name: own\nspace:\n  transfer: [kd, '{OWN}']\n  '{OWN}.alpha': {{low: 0.1, high: 1.0}}\n"
    )
    study = StudyFile.read(folder / "study.yaml")
    assert study.space.methods == ("kd", OWN)
    assert [needs.logits for needs in needs_of(study.space, OWN)] == [True]
    assert StudyFile.from_json(study.to_json()) == study
    (folder / "study.yaml").write_text(f"name: own\nspace:\n  transfer: '{OWN}'\n  '{OWN}.alpha': [0.1, -1.0]\n")
    with pytest.raises(BadInput, match=r"LogitMatching\.alpha` should be greater than or equal to 0"):
        StudyFile.read(folder / "study.yaml")


def test_it_is_carried_out_in_a_trial(folder: Path, monkeypatch: pytest.MonkeyPatch, plain_task: Task) -> None:
    monkeypatch.syspath_prepend(folder)
    flat = {"student.width": 0.25, "training.epochs": 1, "transfer": OWN}
    one, other = (
        run_trial(Recipe.from_flat({**flat, f"{OWN}.alpha": alpha}), plain_task, Knowledge(plain_task))
        for alpha in (0.0, 0.5)
    )
    assert one.measurements["nll"] != other.measurements["nll"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_transfer.nothing:X", "must be something that can be imported, but ModuleNotFoundError: .*PYTHONPATH"),
        ("my_transfer.methods:X", "must be something that can be imported, but AttributeError.*; try it in Python"),
        ("my_transfer.methods:something", r"must be a trainers\.transfer\.Method with `needs`.* but is 3"),
        ("my_transfer.methods:Half", r"must be a trainers\.transfer\.Method with `needs`"),
        ("my_transfer.methods:MyOptions", r"must be a trainers\.transfer\.Method"),
    ],
)
def test_what_is_not_a_method_is_refused(name: str, message: str, folder: Path) -> None:
    with pytest.raises(BadInput, match=f"`transfer: {name}` {message}"):
        StudyFile.from_mapping({"name": "own", "space": {"transfer": [name]}}, folder)


def test_what_names_nothing_is_refused(folder: Path) -> None:
    with pytest.raises(BadInput, match=r"`transfer` must be `package.module:name`, but got ':X'"):
        StudyFile.from_mapping({"name": "own", "space": {"transfer": [":X"]}}, folder)
