"""A bad study file ends in one line, before anything is started or written; a good one is what it says."""

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from processes import run
from running import TINY, Said

from search.study_file import StudyFile
from spaces import BadInput, Float, Int, Space

EXAMPLES = Path(__file__).parents[2] / "examples"

SPACE_FUNCTIONS = """
import optuna
import spaces
from time import sleep

nothing = None

class Raises(optuna.samplers.RandomSampler):
    def __init__(self):
        raises()

def good():
    return {"student.width": {"low": 0.25, "high": 1.0}, "transfer": ["none", "kd"]}

def good_space():
    return spaces.Space.from_mapping(good())

def raises():
    return {}["no such key"]

def leaves():
    raise SystemExit(3)

def takes(an_argument):
    return {}

def number():
    return 5

def misspelt():
    return {"student.widht": [1.0]}
"""

BAD: dict[str, tuple[str, str]] = {
    # what is no study at all
    "empty": ("", "must describe a study, but is empty; `dux init` writes"),
    "blank": ("\n# nothing but a remark\n", "but is empty; `dux init` writes"),
    "list": ("[1, 2]", r"must be a mapping with `name`, `task` and `space`, but got \[1, 2\]"),
    "text": ("only words", "must be a mapping .* but got 'only words'"),
    "not YAML": ("name: a\n b: c\n: d", "must be YAML, but ScannerError: mapping values are not allowed.*line 2"),
    "tab": ("name: a\n\tspace: {}", r"must be YAML, but ScannerError.*'\\t' that cannot start any token.*line 2"),
    "two documents": ("name: a\n---\nname: b", "must be YAML, but ComposerError: expected a single document"),
    "python object": ("name: !!python/object:os.system {}", "must have no tag, but `!!python/object:os.system`"),
    "a tag of YAML": (
        "name: a\nspace: !!timestamp x",
        "must have no tag, but `!!timestamp` stands in line 2; leave it",
    ),
    "bytes": ("name: a\nspace: {seed: !!binary Ynl0ZXM=}", "must have no tag, but `!!binary` stands in line 2"),
    "a tag nobody knows": ("name: !mine a\nspace: {}", "must have no tag, but `!mine` stands in line 1"),
    "huge number": (f"name: a\nsearch: {{trials: {'9' * 5000}}}", "at most 40 characters, but one in line 2 has 5,000"),
    "huge hexadecimal": (
        f"name: 0x{'f' * 5000}",
        "a number must have at most 40 characters, but one in line 1 has 5,002",
    ),
    "huge text": (
        f"name: {'a' * 5000}",
        "a string must have at most 4,000 characters, but one in line 1 has 5,000; shorten",
    ),
    "huge key": (f"{'a' * 500}: 1", "a key must have at most 200 characters, but one in line 1 has 500; shorten it"),
    "huge file": ("name: a\n" + "# a remark\n" * 10_000, "must have at most 100,000 bytes, but .*study.yaml has more"),
    "many values": (f"name: [{'a,' * 11_000}]", "at most 10,000 keys and values, anchors written out, but has more"),
    "anchors without end": (
        "\n".join(f"x-{n}: &a{n} [{', '.join([f'*a{n - 1}' if n else 'l'] * 9)}]" for n in range(12)),
        "at most 10,000 keys and values, anchors written out, but has more by line",
    ),
    "anchor in itself": ("name: &a [*a]", "an anchor must not hold itself, but `\\*a` in line 1 does; remove it"),
    "deep": ("name: a\nspace: " + "[" * 3000, "must be nested at most 20 deep, but are deeper in line 2"),
    "deep by anchors": (
        "x-0: &a0 [l]\n" + "\n".join(f"x-{n}: &a{n} [*a{n - 1}]" for n in range(1, 40)),
        "must be nested at most 20 deep, but are deeper in line",
    ),
    "key twice": ("name: a\nname: b\nspace: {}", "key `name` appears twice.*line 2"),
    "key twice below": ("name: a\nspace: {seed: 1, transfer: kd, seed: 2}", "key `seed` appears twice"),
    "key a list": (
        "name: a\nspace: {}\n? [a, b]\n: 3",
        "a key must be a string, but a list or a mapping is one in line 3",
    ),
    "key a number": ("name: a\nspace: {}\n1: 2", "keys of a study file must be texts, but got 1"),
    # top level
    "no space": ("name: a", "`space` must be given, but is missing; add it"),
    "no name": ("space: {}", "`name` must be given, but is missing; add it"),
    "unknown key": (
        "name: a\nspace: {}\ntasks: {}",
        "`tasks` is not a known key; did you mean `task`.* known: .*search",
    ),
    "name with a slash": ("name: a/b\nspace: {}", "`name` must be 1 to 63 letters, digits.*, but got 'a/b'"),
    "name that climbs": ("name: ../a\nspace: {}", "`name` must be 1 to 63 letters, digits.*, but got '../a'"),
    "name with a space": ("name: my study\nspace: {}", "`name` must be 1 to 63 letters.*, but got 'my study'"),
    "name a number": ("name: 5\nspace: {}", "`name` should be a valid string, but got 5"),
    "long name": (f"name: {'a' * 64}\nspace: {{}}", "`name` must be 1 to 63 letters"),
    # task
    "task a list": (
        "name: a\nspace: {}\ntask: [digits]",
        r"`task` should be a valid dictionary .*but got \['digits'\]",
    ),
    "task nothing": ("name: a\nspace: {}\ntask:", "`task` should be a valid dictionary .*but got None"),
    "task key": (
        "name: a\nspace: {}\ntask: {datset: digits}",
        "`task.datset` is not a known key; did you mean `dataset`",
    ),
    "task key a number": ("name: a\nspace: {}\ntask: {1: 2}", "`task.1` Keys should be strings, but got 1"),
    "data set": (
        "name: a\nspace: {}\ntask: {dataset: digitz}",
        "dataset must be one of cifar10, .*digits.*, but got 'digitz'; did you mean digits",
    ),
    "no root": ("name: a\nspace: {}\ntask: {dataset: cifar10}", "cifar10 needs task.root.*but got none; set it"),
    "missing folder": (
        "name: a\nspace: {}\ntask: {dataset: cifar100, root: not/here}",
        "root must be a folder that exists, but got .*not/here; correct it",
    ),
    "empty folder": (
        "name: a\nspace: {}\ntask: {dataset: imagefolder, root: .}",
        "root must hold train/CLASS/IMAGE.*is not there; move the images",
    ),
    "root of digits": ("name: a\nspace: {}\ntask: {root: .}", "digits takes no task.root, but got .*; leave it out"),
    **{
        f"size {size}": (
            f"name: a\nspace: {{}}\ntask: {{dataset: imagefolder, image_size: {size}}}",
            "`task.image_size` must be a side or .height, width., of 1 to 4096 pixels, but got .*; leave it out for",
        )
        for size in ("0", "4097", "8.0", "true", "'8'", "[8]", "[8, 8, 8]", "[8, 0]", "[8, a]", "{height: 8}")
    },
    "size of digits": ("name: a\nspace: {}\ntask: {image_size: 8}", "digits takes no task.image_size, but got 8"),
    "download a text": ("name: a\nspace: {}\ntask: {download: please}", "`task.download` should be a valid boolean"),
    "train_limit 0": ("name: a\nspace: {}\ntask: {train_limit: 0}", "`task.train_limit` .*or equal to 1, but got 0"),
    "train_limit 9": ("name: a\nspace: {}\ntask: {train_limit: 9}", "10 <= task.train_limit <= 1067 .* but got 9"),
    "train_limit 5000": ("name: a\nspace: {}\ntask: {train_limit: 5000}", "<= 1067 .*but got 5000; leave it out"),
    "augment": (
        "name: a\nspace: {}\ntask: {augment: mirror}",
        "`task.augment` must be a known policy, but got 'mirror'; known: color, crop, crop_color, ",
    ),
    **{
        f"augment {steps}": (
            f"name: a\nspace: {{}}\ntask: {{augment: {steps}}}",
            "`task.augment` must be `none`, or a list of some of `crop` or `resized_crop`, `flip`, `color`, but got "
            ".*; leave it out for the default$",
        )
        for steps in ("[]", "[none]", "[crop, flop]", "[crop, crop]", "[crop, resized_crop]", "[[crop]]", "[1]")
    },
    "class weights": (
        "name: a\nspace: {}\ntask: {class_weights: balance}",
        "`task.class_weights` should be 'none' or 'balanced', but got 'balance'; leave it out for 'none'",
    ),
    # teacher
    "teacher key": (
        "name: a\nspace: {}\ntask: {teacher: {famly: mlp}}",
        "`task.teacher.famly` is not a known key; did you mean `family`",
    ),
    "teacher family": (
        "name: a\nspace: {}\ntask: {teacher: {family: resnt}}",
        "must be a known one, but got .resnt.; did you mean `resnet`. known: mlp, mobilenetv2, resnet, shufflenetv2",
    ),
    "teacher depth": ("name: a\nspace: {}\ntask: {teacher: {depth: 9}}", r"must be 6n\+2.*but got 9; the nearest is 8"),
    "teacher members": ("name: a\nspace: {}\ntask: {teacher: {members: 0}}", "members` .*equal to 1, but got 0"),
    "fast weights": (
        "name: a\nspace: {student.fast_weights: uniform}",
        "`student.fast_weights` should be 'normal' or 'signs', but got 'uniform'",
    ),
    "bool for a number": (
        "name: a\nspace: {}\ntask: {teacher: {epochs: yes}}",
        r"epochs` .*, but got 'yes' \(a string: write true\)",
    ),
    "half an epoch": ("name: a\nspace: {}\ntask: {teacher: {epochs: 2.5}}", "epochs` .*integer, but got 2.5"),
    "text for a number": ("name: a\nspace: {}\ntask: {teacher: {epochs: many}}", "epochs` .*but got 'many'; leave it"),
    "NaN": ("name: a\nspace: {}\ntask: {teacher: {width: .nan}}", "width` should be a finite number, but got nan"),
    "infinite": ("name: a\nspace: {}\ntask: {teacher: {learning_rate: .inf}}", "rate` should be a finite number"),
    # space
    "space nothing": ("name: a\nspace:", "`space` must be a mapping of parameters, or `package.module:function`"),
    "space a number": ("name: a\nspace: 5", "`space` must be a mapping of parameters.*, but got 5"),
    "parameter": (
        "name: a\nspace: {student.widht: 1.0}",
        "`space.student.widht` is not a parameter of this space.*; did you mean `student.width`",
    ),
    "parameter a number": ("name: a\nspace: {1: 2}", "names in `space` must be strings, but got 1; write it like"),
    "low above high": (
        "name: a\nspace: {student.width: {low: 1.0, high: 0.5}}",
        "`space.student.width` must have low <= high, but got low 1.0, high 0.5; swap them$",
    ),
    "no high": ("name: a\nspace: {student.width: {low: 0.5}}", "must have both low and high, but got .*; add high$"),
    "unknown end": ("name: a\nspace: {student.width: {low: 0.5, hihg: 1}}", "width.hihg` is not .*did you mean `high`"),
    "low a text": (
        "name: a\nspace: {student.width: {low: '1', high: 2}}",
        r"low` must be a finite number, but got '1' \(a string: write it without quotes\)$",
    ),
    "low a bool": (
        "name: a\nspace: {student.width: {low: no, high: 2}}",
        r"low` must be a finite number, but got 'no' \(a string: write false\)$",
    ),
    "low NaN": ("name: a\nspace: {student.width: {low: .nan, high: 2}}", "low` must be a finite number, but got nan"),
    "log from 0": (
        "name: a\nspace: {student.width: {low: 0, high: 1, log: true}}",
        "must have low > 0 with log: true, but got 0; raise low or drop log$",
    ),
    "log and step": (
        "name: a\nspace: {student.width: {low: 0.1, high: 1, log: true, step: 0.1}}",
        "takes log or step, not both, but got step 0.1 with log: true; drop one$",
    ),
    "log a number": (
        "name: a\nspace: {student.width: {low: 1, high: 2, log: 1}}",
        "log` must be true or false, but got 1",
    ),
    "step 0": ("name: a\nspace: {student.width: {low: 1, high: 2, step: 0}}", "step` must be above 0, but got 0; drop"),
    "high out of reach": (
        "name: a\nspace: {student.width: {low: 0.5, high: 1.0, step: 0.3}}",
        "high` must be low plus whole steps, but got 1.0; the last step ends at 0.8$",
    ),
    "no choice": (
        "name: a\nspace: {student.width: []}",
        r"must have at least one choice, but got \[\]; list its values",
    ),
    "choice twice": ("name: a\nspace: {student.width: [1, 1]}", r"must differ, but got \[1, 1\]; write each once"),
    "choice of nothing": (
        "name: a\nspace: {student.width: [1, null]}",
        "must be finite numbers .*, strings or .*got None",
    ),
    "width below 0": ("name: a\nspace: {student.width: {low: -1.0, high: 1}}", "student.width` .*than 0, but got -1.0"),
    "all is cut": (
        "name: a\nspace: {pruning.fraction: {low: 0, high: 1}}",
        "pruning.fraction` .*less than 1, but got 1",
    ),
    "half epochs": (
        "name: a\nspace: {training.epochs: {low: 1, high: 2.5}}",
        "training.epochs` .*integer, but got 1.0",
    ),
    "large seed": ("name: a\nspace: {seed: [5000000000]}", "`seed` should be less than 2147483648, but got 5000000000"),
    "depth": ("name: a\nspace: {student.depth: [8, 9]}", r"must be 6n\+2.*, but got 9; the nearest is 8"),
    "depths between": ("name: a\nspace: {student.depth: {low: 8, high: 14}}", r"6n\+2.*, but got 9; the nearest is 8"),
    "family": ("name: a\nspace: {student.family: [mpl]}", "must be a known one, but got 'mpl'; did you mean `mlp`"),
    # methods
    "method": (
        "name: a\nspace: {transfer: [none, factr]}",
        "must be a known method, but got 'factr'; did you .* `factor`",
    ),
    "method a number": ("name: a\nspace: {transfer: 1}", "`transfer` should be a valid string, but got 1"),
    "option of another": (
        "name: a\nspace: {transfer: [none], kd.temperature: 4.0}",
        r"`space.kd.temperature` is not a parameter of this space \(methods drawn: none\)",
    ),
    "option": (
        "name: a\nspace: {transfer: kd, kd.temprature: 4.0}",
        "`kd.temprature` is not a known key; did you mean `temperature`",
    ),
    "option out of range": ("name: a\nspace: {transfer: kd, kd.weight: 2.0}", "`kd.weight` .*equal to 1, but got 2.0"),
    "option's range": (
        "name: a\nspace: {transfer: kd, kd.temperature: {low: 0.0, high: 8.0}}",
        "`kd.temperature` should be greater than 0, but got 0.0; leave it out for 4.0",
    ),
    "option between": (
        "name: a\nspace: {transfer: factor, factor.p: {low: 1, high: 2}}",
        "`factor.p` should be 1 or 2, but got 1.5",
    ),
    # space by a function
    "no colon": ("name: a\nspace: functions", "must be a mapping or `package.module:function`, but got 'functions'$"),
    "no module": (
        "name: a\nspace: nowhere.at_all:good",
        "must be something that can be imported, but ModuleNotFoundError: .*nowhere",
    ),
    "no function": (
        "name: a\nspace: space_functions:bad",
        "AttributeError: .*has no attribute 'bad'; try it in Python$",
    ),
    "not callable": (
        "name: a\nspace: space_functions:nothing",
        "must be a function .* written in Python, but is None$",
    ),
    "function raises": ("name: a\nspace: space_functions:raises", "that runs, but KeyError: 'no such key'; try it"),
    "function leaves": ("name: a\nspace: space_functions:leaves", "that runs, but SystemExit: 3; try it in Python$"),
    "function asks": ("name: a\nspace: space_functions:takes", "that runs, but TypeError: .*an_argument.*; try it"),
    "function's number": (
        "name: a\nspace: space_functions:number",
        "must return a spaces.Space or a mapping, but got 5$",
    ),
    "function's space": ("name: a\nspace: space_functions:misspelt", "did you mean `student.width`"),
    # objectives
    "no objectives": (
        "name: a\nspace: {}\nobjectives: {}",
        "`objectives` .*at least 1 item.*, but got {}; leave it out",
    ),
    "objective": ("name: a\nspace: {}\nobjectives: {acuracy: max}", "must be a measurement; did you mean `accuracy`"),
    "direction": (
        "name: a\nspace: {}\nobjectives: {accuracy: min}",
        "`objectives.accuracy` must be max, since that is better, but got min; write max",
    ),
    "direction's word": ("name: a\nspace: {}\nobjectives: {accuracy: up}", "should be 'min' or 'max', but got 'up'"),
    "objectives a list": ("name: a\nspace: {}\nobjectives: [accuracy]", "`objectives` should be a valid dictionary"),
    "objective a number": ("name: a\nspace: {}\nobjectives: {1: max}", "should be a valid string, but got 1"),
    # constraints
    "constraint": (
        "name: a\nspace: {}\nconstraints: {paramters: {max: 5}}",
        "`constraints.paramters` must be a measurement; did you mean `parameters`",
    ),
    "constraint's end": (
        "name: a\nspace: {}\nconstraints: {parameters: {maximum: 5}}",
        "`constraints.parameters.maximum` is not a known key; did you mean `max`",
    ),
    "comma for a point": ("name: a\nspace: {student.width: 0,5}", "`0,5` stands in line 2; write 0.5"),
    "comma in a range": (
        "name: a\nspace:\n  student.width: {low: 0,25, high: 1}",
        "`0,25` stands in line 3; write 0.25",
    ),
    "comma in a limit": (
        "name: a\nspace: {}\nconstraints:\n  accuracy:\n    min: 0,9",
        r"`constraints.accuracy.min` must be a number.*because of the comma: write 0.9\)",
    ),
    "accuracy above 1": (
        "name: a\nspace: {}\nconstraints: {accuracy: {min: 1.5}}",
        "`constraints.accuracy.min` must be at most 1, since no student of this space has more, but got 1.5; lower it",
    ),
    "error below 0": (
        "name: a\nspace: {}\nconstraints: {calibrated_ece: {max: -0.1}}",
        "`constraints.calibrated_ece.max` must be at least 0, since no student has less, but got -0.1; raise it",
    ),
    "no parameters": (
        "name: a\nspace: {}\nconstraints: {parameters: {max: 0}}",
        "`constraints.parameters.max` must be at least 1, since no student has less, but got 0; raise it",
    ),
    "diversity of one": (
        "name: a\nspace: {}\nconstraints: {diversity: {min: 0.1}}",
        "`constraints.diversity.min` must be at most 0, since no student of this space has more, but got 0.1",
    ),
    "constraint a number": ("name: a\nspace: {}\nconstraints: {parameters: 5}", "`constraints.parameters` .*but got 5"),
    "constraint of nothing": (
        "name: a\nspace: {}\nconstraints: {parameters: {}}",
        "`constraints.parameters` must have a min or a max, but got {}",
    ),
    "constraint nobody keeps": (
        "name: a\nspace: {}\nconstraints: {accuracy: {min: 0.9, max: 0.8}}",
        "`constraints.accuracy` must have min <= max, but got {'min': 0.9, 'max': 0.8}",
    ),
    "constraint a word": (
        "name: a\nspace: {}\nconstraints: {parameters: {max: few}}",
        "`constraints.parameters.max` must be a number, such as 0.9, 50k, 1.5M or 2G, but got 'few'",
    ),
    "constraint NaN": ("name: a\nspace: {}\nconstraints: {nll: {max: .nan}}", "nll.max` should be a finite number"),
    "constraint true": (
        "name: a\nspace: {}\nconstraints: {nll: {max: yes}}",
        "nll.max` must be a number, .*, but got 'yes'",
    ),
    # search
    "search key": (
        "name: a\nspace: {}\nsearch: {trails: 3}",
        "`search.trails` is not a known key; did you mean `trials`",
    ),
    "negative trials": ("name: a\nspace: {}\nsearch: {trials: -1}", "`search.trials` .*equal to 1, but got -1; leave"),
    "no trials": ("name: a\nspace: {}\nsearch: {trials: 0}", "`search.trials` .*equal to 1, but got 0; leave it out"),
    "trials a text": ("name: a\nspace: {}\nsearch: {trials: '9'}", "`search.trials` .*integer, but got '9'"),
    "trials a bool": ("name: a\nspace: {}\nsearch: {trials: true}", "`search.trials` .*integer, but got True"),
    "concurrent 0": ("name: a\nspace: {}\nsearch: {concurrent: 0}", "`search.concurrent` .*equal to 1, but got 0"),
    "sampler": (
        "name: a\nspace: {}\nsearch: {sampler: tpee}",
        "`search.sampler` must be a known sampler, but got 'tpee'; did you mean `tpe`. known: gp, .*tpe, or `",
    ),
    "stopping": (
        "name: a\nspace: {}\nsearch: {stopping: asha}",
        "`search.stopping` should be 'none' or 'pareto', but got 'asha'; leave it out for 'none'",
    ),
    "no reduction": ("name: a\nspace: {}\nsearch: {reduction: 1}", "`search.reduction` .*equal to 2, but got 1"),
    "no epochs": ("name: a\nspace: {}\nsearch: {min_epochs: 0}", "`search.min_epochs` .*equal to 1, but got 0"),
    "sampler in capitals": (
        "name: a\nspace: {}\nsearch: {sampler: TPE}",
        "must be a known sampler, but got 'TPE'; did you mean `tpe`",
    ),
    "number with a comma": (
        "name: a\nspace: {}\ntask: {teacher: {width: '0,5'}}",
        r"width` .*valid number, but got '0,5' \(a string, because of the comma: write 0.5\)",
    ),
    "number with a comma in a list": (
        "name: a\nspace:\n  student.width: 0,5",
        r"student.width` .*, but got '0,5' \(a string, because of the comma: write 0.5\)",
    ),
    "number with a comma in an interval": (
        "name: a\nspace: {student.width: {low: 0,5, high: 1}}",
        "a number must have a point and no comma, but `0,5` stands in line 2; write 0.5",
    ),
    "number with a colon": (
        "name: a\nspace: {training.epochs: 1:30}",
        r"epochs` .*integer, but got '1:30' \(a string, because of the colon: write one number\)",
    ),
    "number with underlines": (
        "name: a\nspace: {training.epochs: 1_000}",
        r"epochs` .*integer, but got '1_000' \(a string, because of the `_`: write 1000\)",
    ),
    # more than anybody waits for
    "number of a hundred digits": (
        f"name: a\nspace: {{student.depth: 1{'0' * 30}}}",
        "numbers .at most 1e.15.*, but got",
    ),
    "wide": (
        "name: a\nspace: {student.width: 6000}",
        "student.width` should be less than or equal to 64, but got 6000",
    ),
    "deep network": ("name: a\nspace: {student.depth: 6002}", "depth of a resnet must be .* at most .*, but got 6002"),
    "deeper network": ("name: a\nspace: {student.depth: 6000002}", "student.depth` .*less than or equal to 10000"),
    "deep teacher": ("name: a\nspace: {}\ntask: {teacher: {depth: 6000002}}", "depth` .*less than or equal to 10000"),
    "tiny step": (
        "name: a\nspace: {pruning.fraction: {low: 0, high: 0.5, step: 1.0e-9}}",
        r"must have at most 100,000 steps, but 1e-09 makes 5e\+08; widen the step",
    ),
    "many fractions": (
        "name: a\nspace: {pruning.fraction: {low: 0, high: 0.5, step: 0.0001}}",
        "`space.pruning.fraction` must have at most 100 values with `search.curve`.*, but has 5,001",
    ),
    "many choices": (f"name: a\nspace: {{seed: {[*range(2000)]}}}", "at most 1,000 choices, but has 2,000; list fewer"),
    "many combinations": (
        f"name: a\nspace: {{transfer: factor, factor.paraphraser_steps: {[*range(1, 300)]}, "
        f"factor.weight: {[n / 100 for n in range(1, 300)]}}}",
        "`factor`'s own parameters must have at most 10,000 combinations, but have 89,401",
    ),
    "many first": (f"name: a\nspace: {{}}\nsearch: {{first: [{'{},' * 2000}]}}", "`search.first` .*at most 1000 items"),
    "many seeds": ("name: a\nspace: {}\nsearch: {seeds: 1000000000}", "search.seeds` .*or equal to 100, but got 10000"),
    "many trials": ("name: a\nspace: {}\nsearch: {trials: 1000000000}", "search.trials` .*or equal to 1000000, but"),
    # names that lead to Python's own
    "aborts": ("name: z\nspace: 'os:abort'", "must be in a module of your own, but `os` is Python's"),
    "breaks": ("name: z\nspace: 'builtins:breakpoint'", "must be in a module of your own, but `builtins` is Python's"),
    "sleeps": ("name: z\nspace: 'space_functions:sleep'", "must be a function .* written in Python, but is <built-in"),
    "Dux itself": ("name: z\nspace: 'dux:main'", "must be in a module of your own, but `dux` is Dux's"),
    "a sampler that aborts": ("name: z\nspace: {}\nsearch: {sampler: 'os:abort'}", "`os` is Python's; if yours has"),
    "a method that aborts": ("name: z\nspace: {transfer: 'os:abort'}", "but `os` is Python's; if yours has"),
    "no names at all": ("name: z\nspace: 'a b:c'", "`space` must be `package.module:name`, but got 'a b:c'"),
    "a name twice": (
        "name: z\nspace: {student: {width: 0.5}, student.width: 1}",
        "`space.student.width` must appear once, but appears twice; remove one",
    ),
    "sampler of no module": (
        "name: a\nspace: {}\nsearch: {sampler: 'nowhere:Sampler'}",
        "`search.sampler: nowhere:Sampler` must be something that can be imported, but ModuleNotFoundError: .*; mod",
    ),
    "sampler of no class": (
        "name: a\nspace: {}\nsearch: {sampler: 'space_functions:good'}",
        "`search.sampler: space_functions:good` must be a class of optuna.samplers.BaseSampler, but is <",
    ),
    "sampler that raises": (
        "name: a\nspace: {}\nsearch: {sampler: 'space_functions:Raises'}",
        "must be a class that can be created, but KeyError: 'no such key'; try it in Python",
    ),
    "grid without a step": (
        "name: a\nspace: {student.width: {low: 0.5, high: 1.0}}\nsearch: {sampler: grid}",
        "`space.student.width` must be a list or have a step to be searched by grid, but is {'low': 0.5, 'high': 1.0}",
    ),
    "grid without an end": (
        "name: a\nspace: {seed: {low: 0, high: 1000000}}\nsearch: {sampler: grid}",
        "a grid must have at most 100,000 recipes, but this space has 1,000,001; list fewer values",
    ),
    "first a mapping": ("name: a\nspace: {}\nsearch: {first: {transfer: kd}}", "`search.first` .*valid list, but got"),
    "first by a name": (
        "name: a\nspace: {transfer: [kd, none]}\nsearch: {first: [{}, {transfr: kd}]}",
        "`search.first.1`: `transfr` must be a parameter of the space; did you mean `transfer`",
    ),
    "first elsewhere": (
        "name: a\nspace: {student.width: [0.5, 1.0]}\nsearch: {first: [{student.width: 0.75}]}",
        r"`search.first.0`: `student.width` must be in the space, but got 0.75; it has \[0.5, 1.0\]",
    ),
    "first of another method": (
        "name: a\nspace: {transfer: [kd, none], kd.temperature: [2.0, 4.0]}\nsearch: {first: [{kd.temperature: 2.0}]}",
        "`search.first.0`: `kd.temperature` must appear with `transfer: kd`, but appears with none",
    ),
    "no time": ("name: a\nspace: {}\nsearch: {trial_timeout: 0}", "`search.trial_timeout` .*greater than 0, but got 0"),
    "negative retries": ("name: a\nspace: {}\nsearch: {retries: -1}", "`search.retries` .*equal to 0, but got -1"),
    "negative seed": ("name: a\nspace: {}\nsearch: {seed: -1}", "`search.seed` .*equal to 0, but got -1"),
    "GPUs not a number": ("name: a\nspace: {}\nsearch: {gpus: .nan}", "`search.gpus` should be a finite number"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the study file lies, with a module of space functions beside it."""
    (tmp_path / "space_functions.py").write_text(SPACE_FUNCTIONS)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "space_functions", raising=False)
    return tmp_path


def assert_refused(said: Said, message: str, home: Path) -> None:
    """One line of error, nothing else, exit code 2, nothing written."""
    code, out, err = said
    assert (code, out) == (2, "")
    assert err.startswith("dux: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert "Traceback" not in err
    assert re.search(message, err), err
    assert not home.exists()


@pytest.mark.parametrize("case", BAD)
def test_a_bad_study_file_ends_in_one_line_before_anything_is_written(
    case: str, folder: Path, dux: Callable[..., Said]
) -> None:
    text, message = BAD[case]
    (folder / "study.yaml").write_text(text)
    assert_refused(dux("search", folder / "study.yaml", "--home", folder / "home"), message, folder / "home")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", "must be text in UTF-8, but UnicodeDecodeError.*is it a YAML file"),
        ("name: ä".encode("latin-1"), "must be text in UTF-8, but UnicodeDecodeError"),
        ("name: a".encode("utf-16"), "must be text in UTF-8, but UnicodeDecodeError"),
        (b"name: \x00\x07", "must be YAML, but ReaderError: unacceptable character"),
    ],
    ids=["picture", "latin-1", "utf-16", "control characters"],
)
def test_a_binary_file_ends_in_one_line(content: bytes, message: str, folder: Path, dux: Callable[..., Said]) -> None:
    (folder / "study.yaml").write_bytes(content)
    assert_refused(dux("search", folder / "study.yaml", "--home", folder / "home"), message, folder / "home")


def test_a_file_that_is_not_there_is_told_with_those_that_are(folder: Path, dux: Callable[..., Said]) -> None:
    (folder / "digits.yaml").write_text("name: a")
    said = dux("search", folder / "digit.yaml", "--home", folder / "home")
    assert_refused(said, "must exist, but .*digit.yaml does not; there is .*digits.yaml", folder / "home")


def test_neither_is_there_a_folder_for_it(folder: Path, dux: Callable[..., Said]) -> None:
    said = dux("search", folder / "nowhere" / "digits.yaml", "--home", folder / "home")
    assert_refused(said, "must exist, but .*digits.yaml does not; check the path", folder / "home")


def test_a_folder_is_no_study_file(folder: Path, dux: Callable[..., Said]) -> None:
    said = dux("search", folder, "--home", folder / "home")
    assert_refused(said, "must be a file, but .* is a folder; name a .yaml file in it", folder / "home")


def test_a_file_is_no_folder_of_study_files(folder: Path, dux: Callable[..., Said]) -> None:
    (folder / "study.yaml").write_text(TINY)
    said = dux("search", folder / "study.yaml" / "digits.yaml", "--home", folder / "home")
    assert_refused(said, "NotADirectoryError", folder / "home")


@pytest.mark.parametrize(("command", "case"), [("search", "low above high"), ("check", "not YAML")])
def test_the_real_command_refuses_in_one_line_too(command: str, case: str, folder: Path) -> None:
    text, message = BAD[case]
    (folder / "study.yaml").write_text(text)
    home = ["--home", str(folder / "home")] if command == "search" else []
    done = run(command, "study.yaml", *home, folder=folder)
    assert_refused((done.returncode, done.stdout, done.stderr), message, folder / "home")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--trials", "0"), "trials"),
        (("--trials", "many"), "trials"),
        (("--concurrent", "0"), "concurrent"),
        (("--seed", "-1"), "seed"),
        (("--seed", "2147483648"), "seed"),
        (("--tirals", "3"), "No such option: --tirals"),
    ],
)
def test_a_bad_option_ends_in_one_line_as_well(
    option: tuple[str, str], message: str, folder: Path, dux: Callable[..., Said]
) -> None:
    (folder / "study.yaml").write_text(TINY)
    said = dux("search", folder / "study.yaml", "--home", folder / "home", *option)
    assert_refused(said, message, folder / "home")


def test_a_broken_image_is_told_before_anything_is_written(folder: Path, dux: Callable[..., Said]) -> None:
    for name in ("train/a/1.png", "train/b/1.png", "val/a/1.png", "val/b/1.png", "test/a/1.png", "test/b/1.png"):
        (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "images" / name).write_bytes(b"no picture")
    (folder / "study.yaml").write_text("name: a\nspace: {}\ntask: {dataset: imagefolder, root: images}")
    said = dux("search", folder / "study.yaml", "--home", folder / "home")
    assert_refused(said, r"\.png", folder / "home")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_example_is_a_study(path: Path) -> None:
    raw = yaml.safe_load(path.read_text())
    if raw["task"].get("dataset") == "fashion_mnist" and "root" not in raw["task"]:
        raw["task"]["dataset"] = "digits"  # its files may not be on this machine
    study = StudyFile.from_mapping(raw)
    assert study.name == path.stem
    expected = {"none", "kd", "factor"} if study.task.teacher.members == 1 else {"kd", "ensemble"}
    assert expected <= set(study.space.methods)


def test_there_are_examples() -> None:
    assert {"digits", "fashion_mnist"} <= {path.stem for path in EXAMPLES.glob("*.yaml")}


def test_numbers_are_those_of_yaml_1_2(folder: Path) -> None:
    (folder / "study.yaml").write_text(
        """
name: 2024-13-45
x-shared: &shared {training.learning_rate: 1e-3}
x-yes: yes
task: {train_limit: 0o144, teacher: {epochs: 010}}
space:
  <<: *shared
  student: {width: {low: 25e-2, high: 1}, depth: 8}
  training: {weight_decay: [5E-4, 0.]}
search: {first: [{student: {width: 0.5}}]}
"""
    )
    study = StudyFile.read(folder / "study.yaml")
    assert (study.name, study.task.train_limit, study.task.teacher.epochs) == ("2024-13-45", 100, 10)
    assert study.space.to_mapping() == {
        "training.learning_rate": [1e-3],
        "student.width": {"low": 0.25, "high": 1.0},
        "student.depth": [8],
        "training.weight_decay": [5e-4, 0.0],
    }
    assert study.search.first == [{"student.width": 0.5}]


def test_what_a_study_file_is_read_from_is_a_file(folder: Path, dux: Callable[..., Said]) -> None:
    os.mkfifo(folder / "study.yaml")
    for path in (folder / "study.yaml", Path("/dev/zero")):
        said = dux("search", path, "--home", folder / "home")
        assert_refused(said, "must be a regular file, but .* is not; write it to one", folder / "home")


@pytest.mark.parametrize("function", ["good", "good_space"])
def test_a_python_function_gives_the_same_study_as_the_file_that_says_so(function: str, folder: Path) -> None:
    (folder / "by_function.yaml").write_text(f"name: a\nspace: space_functions:{function}")
    (folder / "by_mapping.yaml").write_text(
        "name: a\nspace: {student.width: {low: 0.25, high: 1.0}, transfer: [none, kd]}"
    )
    actual = StudyFile.read(folder / "by_function.yaml")
    assert actual == StudyFile.read(folder / "by_mapping.yaml")
    assert actual.space.methods == ("none", "kd")


def test_a_study_is_equal_to_itself_after_json() -> None:
    everything = """
name: all
task: {dataset: digits, augment: crop, train_limit: 100, teacher: {family: mlp, depth: 3, width: 0.5, seed: 4}}
space:
  student.family: [resnet]
  student.depth: {low: 8, high: 20, step: 6}
  student.width: {low: 0.125, high: 1, step: 0.125}
  transfer: [kd, factor]
  kd.temperature: {low: 1, high: 8}
  kd.weight: 1
  factor.weight: {low: 0.03, high: 1.0, log: true}
  factor.paraphraser_steps: {low: 100, high: 300, step: 100}
  factor.p: [1, 2]
  training.epochs: {low: 2, high: 64, log: true}
  training.learning_rate: {low: 0.01, high: 0.2, log: true}
objectives: {nll: min, macs: min, size_bytes: min}
constraints: {parameters: {max: 200k}, accuracy: {min: 0.5, max: 1}}
search:
  {trials: 3, concurrent: 1, sampler: random, seed: 7, cpus: 2, gpus: 0.5, stopping: pareto, retries: 0,
   trial_timeout: 60, first: [{transfer: kd, kd.temperature: 2}, {factor.p: 1, transfer: factor}], start_from: a}
"""
    for text in (everything, TINY, "name: least\nspace: {}"):
        study = StudyFile.from_mapping(yaml.safe_load(text))
        again = StudyFile.from_json(study.to_json())
        assert again == study
        assert list(again.objectives.items()) == list(study.objectives.items())  # the first is the most important
        assert again.to_json() == study.to_json()
    assert study.objectives == {"accuracy": "max", "parameters": "min"}
    kinds = StudyFile.from_mapping(yaml.safe_load(everything)).space.parameters
    assert isinstance(kinds["factor.paraphraser_steps"], Int)
    assert isinstance(kinds["training.epochs"], Int)
    assert isinstance(kinds["kd.temperature"], Float)


def test_a_space_object_is_taken_as_it_is() -> None:
    space = Space.from_mapping({"student.width": {"low": 0.5, "high": 1.0}})
    assert StudyFile.from_mapping({"name": "a", "space": space}).space == space


def test_a_relative_root_starts_at_the_study_file(folder: Path) -> None:
    for name in ("train/a", "train/b"):
        (folder / "images" / name).mkdir(parents=True)
        (folder / "images" / name / "1.png").write_bytes(b"not looked at yet")
    (folder / "study.yaml").write_text("name: a\nspace: {}\ntask: {dataset: imagefolder, root: images}")
    assert StudyFile.read(folder / "study.yaml").task.root == str((folder / "images").resolve())


def test_a_bad_mapping_from_python_is_refused_with_the_same_words() -> None:
    with pytest.raises(BadInput, match=r"`search\.sampler` must be a known sampler, but got 'gird'"):
        StudyFile.from_mapping({"name": "a", "space": {}, "search": {"sampler": "gird"}})


@pytest.mark.parametrize(
    ("search", "message"),
    [
        (
            "{cpus: 9999}",
            "`search.cpus` must be at most the \\d+ that this process may use here, but got 9999; lower it",
        ),
        ("{gpus: 1}", "`search.gpus` must be 0 on a machine without a GPU"),
    ],
)
def test_more_than_this_machine_has_is_refused_before_anything_is_written(
    search: str, message: str, folder: Path, dux: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (folder / "study.yaml").write_text(f"name: greedy\nspace: {{}}\nsearch: {search}")
    assert_refused(dux("search", folder / "study.yaml", "--home", folder / "home"), message, folder / "home")


@pytest.mark.parametrize(
    ("space", "teachers", "message"),
    [
        (
            {"transfer": ["kd", "attention"], "student.family": ["resnet", "mlp"], "student.depth": 8},
            1,
            "space: with a student that is an mlp of depth 8: `attention` must have maps of more than one pixel",
        ),
        (
            {"transfer": "fsp", "student.family": "mlp", "student.depth": {"low": 2, "high": 4}},
            1,
            "space: with a student that is an mlp of depth 2: `fsp` must have two features or more on both sides",
        ),
        (
            {"transfer": ["kd", "fitnet"]},
            2,
            "`fitnet` learns the features of one network, but `task.teacher.members` is 2; use `ensemble`, or",
        ),
        (
            {"transfer": "ensemble", "student.members": [2, 4]},
            2,
            "`student.members` must be at most `task.teacher.members`, 2, but got 4; train more teachers",
        ),
    ],
)
def test_a_method_that_cannot_work_with_a_student_is_refused_once_the_images_are_known(
    space: dict[str, Any], teachers: int, message: str
) -> None:
    study = StudyFile.from_mapping({"name": "pairs", "space": space, "task": {"teacher": {"members": teachers}}})
    with pytest.raises(BadInput, match=re.escape(message)):
        study.check_pairs(study.task.load_data())


def test_pairs_that_can_work_are_let_pass() -> None:
    study = StudyFile.read(Path(__file__).parents[2] / "examples" / "methods.yaml")
    study.check_pairs(study.task.load_data())
