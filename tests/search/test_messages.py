"""What a worker says, into a result of Ray Tune's and out of it again."""

import math

import pytest

from search.backends.messages import EpochDone, Failed, Finished, Message, from_tune, to_tune

MESSAGES = (
    EpochDone(3, 12, {"loss": 0.1, "accuracy": 1 / 3, "nll": math.inf}, {"parameters": 1180.0}),
    Finished(
        {"accuracy": 1 / 3, "macs": 2.0},
        [{"recipe": {"seed": 0}, "measurements": {"nll": 0.5}, "seconds": 0.1, "files": {}}],
        {"student.json": "00"},
        1.5,
    ),
    Failed("KeyError: 'a/b'", again=False),
)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_comes_back_as_it_was_among_what_tune_adds(message: Message) -> None:
    result = {**to_tune(message), "trial_id": "1", "config/trial": 0, "done": True}
    assert from_tune(result) == message
    assert all("/" not in name and isinstance(value, str) for name, value in to_tune(message).items())


def test_a_number_that_is_none_comes_back_as_such() -> None:
    message = from_tune(to_tune(EpochDone(1, 1, {"loss": math.nan}, {})))
    assert isinstance(message, EpochDone)
    assert math.isnan(message.metrics["loss"])


def test_what_tune_says_by_itself_is_no_message() -> None:
    assert from_tune(None) is from_tune({}) is from_tune({"done": True, "time_total_s": 1.0}) is None
