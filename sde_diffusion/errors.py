"""The exceptions that are meant for the user, and the checks that raise them.

A message says what is wrong, the rule and the remedy in one line; the command line prints it and exits with 2 where the
input cannot work, with 1 where a run failed.
"""

import math
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import TypeGuard


class InputError(ValueError):
    """Input that cannot work: a bad value, file, name or combination. The message is meant for the user."""


class UnknownKeyError(InputError):
    """A key that a section of a config does not have.

    Attributes:
        key: Its dotted path.
        owner: The row whose section it is, if it is one's.
        known: The keys that there are.
    """

    def __init__(self, message: str, *, key: str, owner: str | None, known: Iterable[str]) -> None:
        super().__init__(message)
        self.key, self.owner, self.known = key, owner, tuple(known)


class SolveError(InputError):
    """A solve that had to stop: which, for which samples, why, what to do, and at what time where that is known.

    Attributes:
        t: The time; None where only the end was looked at.
        samples: Indices of the samples in their batch; none where the solver cannot tell.
    """

    def __init__(
        self, what: str, reason: str, *, t: float | None = None, samples: Sequence[int] = (), start: int = 0
    ) -> None:
        more = f" and {len(samples) - 1} more" if len(samples) > 1 else ""
        who = f" for sample {start + samples[0]}{more}" if samples else ""
        when = "" if t is None else f" at t = {t:.6g}"
        super().__init__(f"{what} stopped{when}{who}: {reason}")
        self.t, self.samples = t, tuple(samples)
        self._what, self._reason = what, reason

    def counted_from(self, start: int) -> "SolveError":
        """The same of a batch whose first sample is number `start` of a run."""
        return SolveError(self._what, self._reason, t=self.t, samples=self.samples, start=start)

    def of_examples(self, examples: Sequence[int]) -> "SolveError":
        """The same of a batch whose samples are these examples of the data."""
        return SolveError(self._what, self._reason, t=self.t, samples=[examples[sample] for sample in self.samples])


class RunError(RuntimeError):
    """A run that had to stop although its input was sound, e.g. at a non-finite loss. The message is for the user."""


class ToldError(Exception):
    """The end of a process among several, for a reason that another of them has told the user.

    Attributes:
        code: The exit code.
    """

    def __init__(self, code: int) -> None:
        super().__init__("told by another rank")
        self.code = code


def require(condition: bool, message: str) -> None:
    """Raise `InputError(message)` unless `condition` holds."""
    if not condition:
        raise InputError(message)


def require_positive(**values: float) -> None:
    """Raise `InputError` unless every keyword's value is a finite number above zero."""
    for name, value in values.items():
        require(is_number(value) and math.isfinite(value) and value > 0, f"`{name}` must be > 0, got {value!r}")


def require_whole(**values: int) -> None:
    """Raise `InputError` unless every keyword's value is a whole number above zero."""
    for name, value in values.items():
        require(is_whole(value) and value > 0, f"`{name}` must be a whole number > 0, got {value!r}")


def require_one_of(name: str, value: str, known: Iterable[str]) -> None:
    """Raise `InputError` unless `value` is one of `known`."""
    known = list(known)
    require(value in known, f"`{name}` must be one of {', '.join(known)}, got {value!r}")


def require_kind(name: str, value: object, kind: type, example: str) -> None:
    """Raise `InputError` unless `value` is an object of the class `kind`; `example` shows the reader one."""
    if not isinstance(value, kind):
        raise InputError(f"`{name}` must be a {kind.__name__} such as {example}, got {shown_type(value)}")


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a real number, which True is not."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_whole(value: object) -> TypeGuard[int]:
    """Whether a value is a whole number, which True is not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def shown_type(value: object) -> str:
    """What a value is, for a message: a class by its name, any other value by that of its class."""
    if isinstance(value, type):
        return f"the class {value.__name__}; add ()"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"
