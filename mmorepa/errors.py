"""Errors that are the user's to mend, and how they are put into one line."""

import contextlib
import traceback
from collections.abc import Iterator
from pathlib import Path

#: The file of MMEngine in which objects are built from configs.
BUILDING = 'mmengine/registry/build_functions.py'
#: What is wrong with a config if a wrong value stops other files of the libraries.
CULPRITS = {
    'mmengine/evaluator/evaluator.py': 'has an evaluator that fails',
    'data_preprocessor.py': 'has batches that its data_preprocessor does not take, end the '
    "pipeline with the library's Pack...Inputs",
}
#: The file of MMEngine in which a training or a test is prepared, and the one in which it runs.
RUNNER, LOOPS = 'mmengine/runner/runner.py', 'mmengine/runner/loops.py'
#: The file of torch in which an optimizer takes up its state.
OPTIMIZER = 'torch/optim/optimizer.py'
#: The errors of values that are not what a program expects.
WRONG_VALUES = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)


class UserError(ValueError):
    """Something the user gave is wrong. The message is one line: found, wanted, what to do."""


def first_line(error: Exception) -> str:
    """The first line of what an exception says; its type if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextlib.contextmanager
def explained_building(source: str) -> Iterator[None]:
    """Turn what a config is to blame for into a :class:`UserError`.

    A wrong type, an unknown argument, a value that a class does not take, a data set that is not
    there, an evaluator or a pipeline that does not fit: the message names the config, the first
    line of what was wrong, and where that line alone says too little, the code that raised it.
    Errors of anything else pass, above all those that this package's own code raises.

    Args:
        source (str): The config, for the message.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        blame = _blame(error, frames)
        if blame is None:
            raise
        raise UserError(
            f'{source} {blame}: {_in_words(error, frames)}: change the config, or that field with '
            '--cfg-options'
        ) from error


def _blame(error: Exception, frames: traceback.StackSummary) -> str | None:
    """What is wrong with a config, None if an error is not the config's."""
    files = [Path(frame.filename).as_posix() for frame in frames]
    if any(file.endswith(BUILDING) for file in files):
        return 'does not build'
    if not isinstance(error, WRONG_VALUES):
        return None
    if any(
        file.endswith(OPTIMIZER) and f.name == 'load_state_dict' for file, f in zip(files, frames)
    ):
        return 'has another optimizer than the checkpoint to resume from'
    for culprit, blame in CULPRITS.items():
        if any(file.endswith(culprit) for file in files):
            return blame
    is_running = any(
        file.endswith(LOOPS) and frame.name != '__init__' for file, frame in zip(files, frames)
    )
    is_own = Path(__file__).parent in Path(files[-1]).parents
    if '/mmengine/hooks/' in files[-1]:
        return 'has a hook that fails'
    is_prepared = any(file.endswith(RUNNER) for file in files)
    return 'does not build' if is_prepared and not is_running and not is_own else None


def _in_words(error: Exception, frames: traceback.StackSummary) -> str:
    said = first_line(error)
    kind = type(error).__name__
    if isinstance(error, (KeyError, AssertionError)) and ' ' in said:
        return said
    if isinstance(error, ValueError) or not isinstance(error, WRONG_VALUES):
        return f'{kind}: {said}'
    code = next((frame.line for frame in reversed(frames) if frame.line), '')
    said = '' if said == kind else f': {said}'
    return f'{kind}{said}' + ('' if code.startswith('raise') else f' in `{code}`')
