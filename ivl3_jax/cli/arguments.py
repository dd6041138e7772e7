"""Command lines and YAML recipes, typed by a dataclass or a function, through jsonargparse.

jsonargparse reads, converts and builds. What it does not do is here: a mistake names the file or option, the place in
it, the value found, and what would be valid.
"""

import dataclasses
import difflib
import enum
import inspect
import json
import re
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser, get_loader

from ivl3_jax.cli import UsageError

T = TypeVar("T")

CONFIGS = Path(__file__).parent.parent / "configs"

_PLAIN: dict[Any, str] = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "text",
    type(None): "null",
    Path: "a path",
}


class _Parser(ArgumentParser):
    def format_help(self, *formatter: Any) -> str:
        """The help, in which options have dashes."""
        return re.sub(r"--\w[\w.]*", lambda option: option[0].replace("_", "-"), super().format_help(*formatter))


def parse(target: Any, argv: Sequence[str], *, prog: str, description: str = "", example: str = "") -> Any:
    """Reads a command line for `target`.

    Names of options may have dashes for underscores, and have them in the help; files and messages have the setting's
    own name. Settings come from the defaults, then from every `--config FILE.yaml` and every dotted option
    (`--optimizer.learning-rate 1e-4`) in the order given. `--print-config` prints what they add up to.

    Args:
        target: a dataclass, whose fields (nested by dots) become options; or a function, whose required parameters
            become positional arguments and the others options.
        argv: the arguments after the command's name.
        prog: the command as typed, for messages. description, example: for `--help`.

    Returns:
        An instance of the dataclass; for a function a namespace of its arguments, `target(**vars(it))`.

    Raises:
        UsageError: a name that does not exist, a value of the wrong type, something missing, an unreadable file.
    """
    is_class = dataclasses.is_dataclass(target)
    parser = _Parser(
        prog=prog,
        description=description,
        epilog=f"example: {example}" if example else None,
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        action="config",
        help=f"YAML file with any of these settings{_offered(target, ', or a shipped one: ')}; may be repeated, the "
        "later wins",
    )
    add = parser.add_class_arguments if is_class else parser.add_function_arguments
    add(target, as_positional=not is_class)

    argv = _with_shipped(target, _spell_out(target, argv))
    files = [text for name, text in _options(argv) if name == "config"]
    for file in files:
        _check_file(target, file)
    try:
        settings = parser.parse_args(list(argv))
    except ArgumentError as error:
        for name, text in _options(argv):
            _check_option(target, name, text)
        raise UsageError(_tidy(str(error))) from error
    try:
        values = parser.instantiate(settings)
        arguments = {name: values[name] for name in _settings(target)}
        return target(**arguments) if is_class else types.SimpleNamespace(**arguments)
    except ValueError as error:
        message = _tidy(str(error))
        fault = re.match(r"\w+\.(\w+) is ([^;]*)", message)
        typed = fault and any(
            name.rpartition(".")[2] == fault[1] and _same(text, fault[2]) for name, text in _options(argv)
        )
        where = f"{', '.join(files)}: " if files and not typed else ""
        raise UsageError(f"{where}{message}") from error


def read(kind: type[T], file: str | Path | Iterable[str | Path] = (), overrides: Mapping[str, Any] | None = None) -> T:
    """Reads a dataclass from YAML.

    Args:
        kind: the dataclass.
        file: one YAML file or several, of which the later wins.
        overrides: dotted name -> value, for example `{"optimizer.learning_rate": 1e-4}`; wins over the files.

    Raises:
        UsageError: as `parse`.
    """
    files = [file] if isinstance(file, str | Path) else file
    argv = [f"--config={path}" for path in files]
    for name, value in (overrides or {}).items():
        argv.append(f"--{name}={value if isinstance(value, str) else json.dumps(value)}")
    return parse(kind, argv, prog=kind.__name__)


def _same(typed: str, shown: str) -> bool:
    """Whether the text of an option is the value that a message shows."""
    try:
        return float(typed) == float(shown)
    except ValueError:
        return typed == shown.strip("'\"")


def _spell_out(target: Any, argv: Sequence[str]) -> list[str]:
    """The command line with settings by their own names, and `--flag` as `--flag=true` where a bool stands alone."""
    argv, spelled = [_underscored(target, token) for token in argv], []
    for token, following in pairwise([*argv, ""]):
        alone = token.startswith("--") and "=" not in token and following.lower() not in ("true", "false", "null")
        spelled.append(f"{token}=true" if alone and _kind(target, token[2:]) is bool else token)
    return spelled


def _with_shipped(target: Any, argv: list[str]) -> list[str]:
    """The command line with the files of shipped configs for their names, where there is no such file."""
    spelled, is_config = [], False
    there = shipped(target)

    def found(name: str) -> str:
        return str(there[name]) if name in there and not Path(name).exists() else name

    for token in argv:
        option, equals, text = token.partition("=")
        if is_config:
            token = found(token)
        elif option == "--config" and equals:
            token = f"--config={found(text)}"
        is_config = token == "--config"
        spelled.append(token)
    return spelled


def shipped(target: Any) -> dict[str, Path]:
    """The files of shipped configs by their names, such as `sft` or `sft-8b`: those that set what `target` has."""
    found = (file for file in CONFIGS.rglob("*.yaml") if file.parent.name != "sharding")
    files = sorted(found, key=lambda file: file.stem)
    return {file.stem: file for file in files if _fits(target, yaml.safe_load(file.read_text(encoding="utf-8")))}


def _fits(kind: Any, tree: Any) -> bool:
    """Whether all names of a tree are settings of a type, or of a function."""
    nested = kind if inspect.isfunction(kind) else _nested(kind)
    if not isinstance(tree, dict):
        return True
    if nested is None:
        return any(get_origin(member) in (dict, Mapping) for member in _members(kind))
    allowed = _settings(nested)
    return all(name in allowed and _fits(allowed[name], value) for name, value in tree.items())


def _offered(target: Any, before: str) -> str:
    """The names of the shipped configs behind some words; nothing where there are none."""
    names = ", ".join(shipped(target))
    return before + names if names else ""


def _underscored(target: Any, token: str) -> str:
    """An option with underscores for dashes in its name, as far as that makes it a setting's; else as it is."""
    name, equals, text = token.partition("=")
    if not name.startswith("--"):
        return token
    parts: list[str] = []
    for part in name[2:].split("."):
        own, allowed = part.replace("-", "_"), {} if target is None else _settings(target)
        known = own.removesuffix("+") in allowed or own == "print_config"
        parts.append(own if known else part)
        target = _nested(allowed.get(own))
    return f"--{'.'.join(parts)}{equals}{text}"


def _kind(target: Any, name: str) -> Any:
    """The type of a dotted setting, or None where there is none of that name."""
    *outer, last = name.split(".")
    for part in outer:
        target = _nested(_settings(target).get(part))
        if target is None:
            return None
    return _settings(target).get(last)


def _options(argv: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The (name, text) pairs of a command line."""
    for i, token in enumerate(argv):
        name, equals, text = token.removeprefix("--").partition("=")
        if token.startswith("--") and (equals or i + 1 < len(argv)):
            yield name, text if equals else argv[i + 1]


def _check_file(target: Any, file: str) -> None:
    try:
        tree = get_loader("yaml")(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        others = _offered(target, "; shipped are ") + _guess(file, shipped(target)) if missing else ""
        raise UsageError(f"{file}: {error.strerror}{others}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{file}: is not UTF-8 text") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UsageError(f"{file}: not valid YAML{line}: {getattr(error, 'problem', error)}") from error
    if not isinstance(tree, dict):
        found = "is empty" if tree is None else f"holds {_show(tree)}"
        raise UsageError(f"{file}: {found}; it must map names to values: {', '.join(_settings(target))}")
    for name, value in tree.items():
        _check_name(target, name, "", f"{file}: ")
        _check(_settings(target)[name], value, name, f"{file}: ")


def _check_option(target: Any, name: str, text: str) -> None:
    """Raises a UsageError if `--name text` is at fault by itself."""
    if name in ("config", "print_config") or name.endswith("help"):
        return
    place, outer, kind = "", target, None
    for part in name.removesuffix("+").split("."):
        _check_name(outer, part, place, "option --")
        place = f"{place}.{part}".lstrip(".")
        kind = _settings(outer)[part]
        outer = _nested(kind)
    if outer is not None and Path(text).is_file():
        _check_file(outer, text)
    elif outer is None and not name.endswith("+"):
        _check_leaf(kind, text, place, "option --")


def _check_name(target: Any, name: str, place: str, source: str) -> None:
    allowed = [] if target is None else list(_settings(target))
    if name not in allowed:
        full = f"{place}.{name}".lstrip(".")
        if not allowed:
            raise UsageError(f"{source}{full} is not a setting; {place} is a single value")
        where = f" in {place}" if place else ""
        raise UsageError(
            f"{source}{full} is not a setting; allowed{where}: {', '.join(allowed)}{_guess(name, allowed)}"
        )


def _check(kind: Any, value: Any, place: str, source: str) -> None:
    """Raises a UsageError for the first name or value below `place` that `kind` does not allow."""
    nested, arguments = _nested(kind), get_args(kind)
    sequence = get_origin(kind) in (list, tuple, Sequence) and isinstance(value, list)
    if nested is not None and (isinstance(value, dict) or nested is kind):
        if not isinstance(value, dict):
            raise UsageError(f"{source}{place} is {_show(value)}; it must be {_describe(kind)}")
        for name, item in value.items():
            _check_name(nested, name, place, source)
            _check(_settings(nested)[name], item, f"{place}.{name}", source)
    elif sequence and (len(arguments) == 1 or arguments[-1] is Ellipsis):
        for i, item in enumerate(value):
            _check(arguments[0], item, f"{place}[{i}]", source)
    elif sequence and len(arguments) == len(value):
        for i, (item_kind, item) in enumerate(zip(arguments, value, strict=True)):
            _check(item_kind, item, f"{place}[{i}]", source)
    elif get_origin(kind) in (dict, Mapping) and isinstance(value, dict):
        for name, item in value.items():
            _check(arguments[1], item, f"{place}.{name}", source)
    else:
        _check_leaf(kind, value, place, source)


def _check_leaf(kind: Any, value: Any, place: str, source: str) -> None:
    """Asks jsonargparse whether `value`, an object from YAML or the text of an option, converts to `kind`."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=kind)
    # jsonargparse takes a null for "not given", whatever the type.
    accepted = value is not None or kind in (Any, None) or type(None) in get_args(kind)
    try:
        if source.startswith("option"):
            parser.parse_args([f"--value={value}"])
        else:
            parser.parse_object({"value": value})
    except ArgumentError:
        accepted = False
    if not accepted:
        choices = [choice for choice in _choices(kind) if isinstance(choice, str)]
        guess = _guess(value, choices) if isinstance(value, str) else ""
        raise UsageError(f"{source}{place} is {_show(value)}; it must be {_describe(kind)}{guess}")


def _settings(target: Any) -> dict[str, Any]:
    """The names that a dataclass or a function takes, with their types."""
    hints = get_type_hints(target)
    if dataclasses.is_dataclass(target):
        names = [field.name for field in dataclasses.fields(target) if field.init]
    else:
        names = list(inspect.signature(target).parameters)
    return {name: hints.get(name, Any) for name in names}


def _members(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _nested(kind: Any) -> Any:
    """The dataclass that `kind` is or may be (as in `Decoder | None`), or None."""
    return next((member for member in _members(kind) if dataclasses.is_dataclass(member)), None)


def _choices(kind: Any) -> list[Any]:
    choices: list[Any] = []
    for member in _members(kind):
        if get_origin(member) is Literal:
            choices += get_args(member)
        elif isinstance(member, type) and issubclass(member, enum.Enum):
            choices += member.__members__
    return choices


def _describe(kind: Any) -> str:
    """What a value of `kind` looks like in YAML."""
    origin, arguments = get_origin(kind), get_args(kind)
    if len(_members(kind)) > 1:
        return " or ".join(_describe(member) for member in _members(kind))
    if _choices(kind):
        return f"one of {', '.join(map(str, _choices(kind)))}"
    if dataclasses.is_dataclass(kind):
        return f"a mapping with {', '.join(_settings(kind))}"
    if origin is tuple and arguments[-1] is not Ellipsis:
        return f"a list of {len(arguments)}: {', '.join(map(_describe, arguments))}"
    if origin in (list, tuple, Sequence):
        return f"a list, each {_describe(arguments[0])}"
    if origin in (dict, Mapping):
        return f"a mapping, each value {_describe(arguments[1])}"
    return _PLAIN.get(kind, getattr(kind, "__name__", str(kind)))


def _show(value: Any) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _guess(name: Any, allowed: Iterable[str]) -> str:
    initials = [word for word in allowed if "".join(part[:1] for part in word.split("_")) == name]
    nearest = initials or difflib.get_close_matches(str(name), list(allowed), n=1, cutoff=0.5)
    return f" (did you mean {nearest[0]}?)" if nearest else ""


def _tidy(message: str) -> str:
    """One line of a message from jsonargparse or from a dataclass that it builds."""
    if found := re.search(r"arguments are required: (.+)", message):
        return f"{found[1]} must be given, on the command line or in a --config file"
    if found := re.search(r"^ *- (?!Expected a )(.+)$", message, re.MULTILINE):  # the telling member of a union
        return found[1]
    return " ".join(message.split())
