"""What all programs share: how options are given (recipe < file < command line), how a program starts and how it ends.

A program's ``command.py`` builds a :class:`Parser`, reads options by :func:`parse_options`, and runs its work under
:func:`run_program`, which turns an error that the user can correct into one message and exit code 2.
"""

import argparse
import dataclasses
import difflib
import json
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, TypeAlias, Union, get_args, get_origin, get_type_hints

from listwise_preference.errors import DataError, Stopped, UserError, shortened
from listwise_preference.files import parse_json, parse_yaml, read_text

logger = logging.getLogger("listwise_preference")


def is_main_process() -> bool:
    """Whether this process speaks for all that ``accelerate launch`` or ``torchrun`` started."""
    return os.environ.get("RANK", "0") == "0"


def program() -> str:
    """The name of the running program, for messages."""
    return Path(sys.argv[0]).name


def run_program(work: Callable[[], object], *, stopped: str = "stopped") -> None:
    """Do a program's work; its messages go to standard error, from one process.

    Exits with code 2 on a :class:`UserError`, 130 when interrupted; ``stopped`` says what happens to the work then.
    """
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logger.setLevel(logging.INFO if is_main_process() else logging.ERROR)
    try:
        work()
    except UserError as error:
        if error.of_one_process and not is_main_process():
            print(f"{program()}: process {os.environ['RANK']}: error: {error}", file=sys.stderr)
        else:
            _say(f"{program()}: error: {error}")
        sys.exit(2)
    except Stopped as end:
        _say(f"{program()}: {end}")
        sys.exit(end.status)
    except KeyboardInterrupt:
        _say(f"\n{program()}: {stopped}")
        sys.exit(130)
    except BrokenPipeError:  # the reader, head say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(message: str) -> None:
    if is_main_process():
        print(message, file=sys.stderr)


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Descriptions keep their lines; one spelling and one value name per option, and only defaults that say something.

    The usage line is short: that of 200 options would bury the rest.
    """

    def _get_help_string(self, action: argparse.Action) -> str | None:
        says_nothing = action.default in (None, False, "", argparse.SUPPRESS) or action.default == []
        return action.help if says_nothing else super()._get_help_string(action)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        spelling = action.option_strings[-1 if action.dest == "help" else 0]
        return f"{spelling} {self._format_args(action, 'VALUE')}".rstrip() if action.nargs != 0 else spelling


# Share of equal letters from which on an unknown option is taken as a misspelled one: learnin_rate has 0.96 of
# learning_rate, but rpo_alpha 0.74 of lora_alpha.
_NEAR = 0.8


class Parser(argparse.ArgumentParser):
    """Options in groups; an error is one line, once, however many processes were started."""

    def __init__(self, description: str | None = None, **settings: Any) -> None:
        super().__init__(description=description, formatter_class=_Help, allow_abbrev=False, **settings)
        # argparse takes -1e-3 for an option: it knows no exponents.
        self._negative_number_matcher = re.compile(r"^-(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$")
        # What options of other programs are called here, for users who know those, by their names.
        self.known_elsewhere: Mapping[str, str] = {}

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """argparse's, which says unknown options as :func:`parse_options` does."""
        options, rest = self.parse_known_args(args, namespace)
        if rest:
            self.unknown(rest[0])
        return options

    def unknown(self, token: str) -> NoReturn:
        """Refuse what no option takes."""
        wrong = token.partition("=")[0]
        if not token.startswith("-"):
            self.error(f"{wrong}: belongs to no option")
        self.error(f"unknown option {wrong}" + self.hint(wrong))

    def hint(self, wrong: str) -> str:
        """``; did you mean --this?`` where an option is spelled almost like the wrong one, or what another program's is
        here."""
        name = wrong.lstrip("-").replace("-", "_")
        if name in self.known_elsewhere:
            return f"; {self.known_elsewhere[name]}"
        names = [action.dest for action in self._actions]
        close = difflib.get_close_matches(name, names, n=1, cutoff=_NEAR)
        return f"; did you mean --{close[0]}?" if close else ""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2 and one line."""
        self.exit(2, f"{self.prog}: error: {shortened(message)} (see --help)\n" if is_main_process() else None)

    def group(self, title: str, description: str | None = None) -> Callable[..., argparse.Action]:
        """``add_argument`` of a new group."""
        return self.add_argument_group(title, description).add_argument


Subcommands: TypeAlias = "argparse._SubParsersAction[Parser]"


def parse_options(
    parser: Parser, recipe: Mapping[str, Any], argv: Sequence[str] | None = None
) -> tuple[argparse.Namespace, frozenset[str]]:
    """The options of a run: the recipe's, over them those of ``--config FILE``, over both the command line's.

    Returns the options, and the names of those that the file or the command line gave. Exits with code 2 and one line
    on an unknown option or a wrong value.

    Raises:
        ValueError: the recipe sets an option that there is none of.
    """
    parser.add_argument("--config", metavar="FILE", help="YAML file of options; the command line goes over it")
    names = {action.dest for action in parser._actions}
    if unknown := set(recipe) - names:
        raise ValueError(f"the recipe sets unknown options: {', '.join(sorted(unknown))}")
    parser.set_defaults(**recipe)
    command_line = list(sys.argv[1:] if argv is None else argv)
    given = parser.parse_args(command_line)
    if given.config is not None:
        command_line = _file_options(parser, Path(given.config), names) + command_line
        given = parser.parse_args(command_line)
    explicit = {name for name in names if any(_is_option(token, name) for token in command_line)}
    return given, frozenset(explicit)


def _is_option(token: str, name: str) -> bool:
    spelled = token.partition("=")[0].replace("-", "_")
    return token.startswith("--") and spelled in (f"__{name}", f"__no_{name}")


def _file_options(parser: Parser, file: Path, names: set[str]) -> list[str]:
    """A YAML mapping as command-line tokens, so that both are checked by the same rules."""
    try:
        content = parse_yaml(read_text(file), file)
    except DataError as error:
        parser.error(f"--config {error}")
    if not isinstance(content, dict):
        parser.error(f"--config {file} must hold option: value lines")
    actions = {action.dest: action for action in parser._actions}
    tokens = []
    for name, value in content.items():
        if name not in names or name in ("config", "help"):
            parser.error(f"--config {file}: unknown option {name}" + parser.hint(str(name)))
        if value is None:
            parser.error(f"--config {file}: {name} has no value")
        if isinstance(value, list):
            tokens += [f"--{name}", *map(str, value)]
        elif isinstance(value, dict):
            tokens.append(f"--{name}={json.dumps(value)}")
        elif actions[name].nargs == 0:
            if not isinstance(value, bool):
                parser.error(f"--config {file}: {name} must be true or false")
            spelled = f"--{name}" if value else f"--no-{name}"
            tokens += [spelled] if spelled in actions[name].option_strings else []
        elif value is False and "no" in (actions[name].choices or ()):
            tokens.append(f"--{name}=no")  # YAML reads a bare no as false
        else:
            tokens.append(f"--{name}={value}")
    return tokens


# ---- options as the fields of a dataclass ----


def option(
    default: Any, help: str, choices: Collection[str] | None = None, read: Callable[[str], Any] | None = None
) -> Any:
    """A field of a dataclass that :func:`add_options` makes an option of; ``read`` makes its value of a text."""
    # argparse formats help texts with %, so that a literal one is doubled.
    about = {"help": help.replace("%", "%%"), "choices": choices, "type": read}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=about)
    return dataclasses.field(default=default, metadata=about)


def add_options(parser: Parser, title: str, group: type) -> None:
    """Options in a group of their own, one for each field of a dataclass, read as transformers' HfArgumentParser does.

    ``--a_field`` may also be spelled ``--a-field``. A bool takes true or false and is true alone; where true is its
    default there is ``--no_a_field`` too. A list takes several values, a dict JSON or the name of a file.
    """
    add = parser.group(title)
    hints = get_type_hints(group)
    for field in dataclasses.fields(group):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        settings = {name: value for name, value in field.metadata.items() if value is not None}
        settings = _how_to_read(hints[field.name]) | settings
        add(*_spellings(field.name), default=default, **settings)
        if settings.get("type") is boolean and default is True:
            no = {"dest": field.name, "action": "store_false", "default": argparse.SUPPRESS}
            add(*_spellings(f"no_{field.name}"), help=f"the same as --{field.name} false", **no)


def _spellings(name: str) -> list[str]:
    return list(dict.fromkeys([f"--{name}", f"--{name.replace('_', '-')}"]))


def _how_to_read(hint: Any) -> dict[str, Any]:
    """``add_argument``'s settings for values of a type; of a union its first type counts."""
    if get_origin(hint) in (Union, UnionType):
        kinds = [kind for kind in get_args(hint) if kind is not NoneType]
        if kinds == [bool, str]:
            return {"type": str, "nargs": "?", "const": True}
        hint = kinds[0]
    if get_origin(hint) is list:
        return _how_to_read(get_args(hint)[0]) | {"nargs": "+"}
    if get_origin(hint) is Literal:
        return {"choices": get_args(hint)}
    if get_origin(hint) is dict:
        return {"type": json_or_file}
    return {"type": boolean, "nargs": "?", "const": True} if hint is bool else {"type": hint}


# ---- values ----


def count(text: str) -> int:
    """A whole number, 1 or more."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number, 1 or more")
    return value


def share(text: str) -> float:
    """A number from 0 to 1."""
    value = _number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text}: must be a number from 0 to 1")
    return value


def positive(text: str) -> float:
    """A finite number above 0."""
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: must be a number above 0")
    return value


def boolean(text: str) -> bool:
    """true or false, as transformers reads them."""
    lower = text.lower()
    if lower in ("yes", "true", "t", "y", "1"):
        return True
    if lower in ("no", "false", "f", "n", "0"):
        return False
    raise argparse.ArgumentTypeError(f"{text}: must be true or false")


def json_or_file(text: str) -> str:
    """A JSON object, checked, or the name of a file, unchanged."""
    if text.startswith("{"):
        try:
            parse_json(text, text)
        except DataError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
    return text


def json_object(text: str) -> dict[str, Any]:
    """A JSON object."""
    try:
        value = parse_json(text, text)
    except DataError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f'{text}: must be a JSON object, {{"name": value}}')
    return value


def folder(text: str) -> Path:
    """A folder that is there or can be made: neither it nor what it would lie in is a file."""
    path = Path(text)
    there = next(one for one in (path, *path.parents) if one.exists())
    if not there.is_dir():
        raise argparse.ArgumentTypeError(f"{there} is a file; name a folder")
    return path


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
