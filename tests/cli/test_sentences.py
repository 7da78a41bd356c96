"""What a user reads when something is wrong: one sentence, with the key; bugs keep their traceback."""

import errno
import json

import pytest

from relay_lightning.commands.sentences import condense_parser_message, user_sentence
from relay_lightning.evaluation.bootstrap import bootstrap_interval


def raised(function, *arguments) -> BaseException:
    with pytest.raises(Exception) as caught:
        function(*arguments)
    return caught.value


def test_sentence_is_the_message_when_own_code_raised_it():
    assert user_sentence(raised(bootstrap_interval, [])) == "A confidence interval needs at least one value."


def test_sentence_is_found_when_another_library_wrapped_the_error():
    def wrap():
        try:
            bootstrap_interval([])
        except ValueError as error:
            raise ValueError("Does not validate against any of the Union subtypes\nmany lines") from error

    assert user_sentence(raised(wrap)) == "A confidence interval needs at least one value."


def test_bugs_have_no_sentence():
    assert user_sentence(raised(json.loads, "{")) is None
    assert user_sentence(raised(bootstrap_interval, ["x"])) is None  # a ValueError of torch


def test_full_disk_has_a_sentence_wherever_it_is_met():
    def write():
        raise OSError(errno.ENOSPC, "No space left on device", "runs/grpo/rollouts.jsonl")

    assert "rollouts.jsonl" in user_sentence(raised(write))


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOTDIR])
def test_file_that_cannot_be_used_has_a_sentence_wherever_it_is_met(number):
    def write():
        raise OSError(number, "not here", "runs/grpo/rollouts.jsonl")

    assert user_sentence(raised(write)) == "runs/grpo/rollouts.jsonl cannot be used: not here."


NESTED = """Parser key "model":
  Does not validate against any of the Union subtypes
  Subtypes: [<class 'LightningModule'>, <class 'NoneType'>]
  Errors:
    - Problem with given class_path 'relay_lightning.modules.grpo.GRPOModule':
        Parser key "group_size":
          Expected a <class 'int'>. Got value: x
    - Expected a <class 'NoneType'>
  Given value type: <class 'jsonargparse._util.NestedArg'>
  Given value: NestedArg(key='group_size', val='x')"""


def test_parser_message_becomes_one_line_with_the_full_key():
    assert condense_parser_message(NESTED) == "model.group_size: expected int, got 'x'"


def test_unknown_key_comes_with_the_most_similar_one():
    message = NESTED.replace(
        "Parser key \"group_size\":\n          Expected a <class 'int'>. Got value: x",
        "Option 'group_siz' is not accepted",
    )
    assert condense_parser_message(message, ["group_size", "loss_type"]) == (
        "model: there is no key 'group_siz'; did you mean 'group_size'?"
    )
    assert condense_parser_message("unrecognized arguments: --trainr.max_steps 1", ["trainer.max_steps"]) == (
        "there is no key 'trainr.max_steps'; did you mean 'trainer.max_steps'?"
    )
    assert condense_parser_message("Subcommand 'fit' does not accept option 'modle'", ["model", "data"]) == (
        "there is no key 'modle'; did you mean 'model'?"
    )


def test_choices_and_unknown_classes_read_as_a_sentence():
    choice = "Parser key \"loss_type\":\n  Expected a typing.Literal['grpo', 'dapo']. Got value: foo"
    assert condense_parser_message(choice) == "loss_type: expected one of 'grpo', 'dapo', got 'foo'"
    unknown = """Parser key "model":

  - Expected a path but Nope either not accessible or invalid
  - Does not validate against any of the Union subtypes
  Subtypes: [<class 'LightningModule'>, <class 'NoneType'>]
  Errors:
    - Expected a dot import path string: Nope
    - Expected a <class 'NoneType'>
  Given value type: <class 'str'>
  Given value: Nope"""
    assert condense_parser_message(unknown) == "model: 'Nope' cannot be used here"
