import enum
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from ivl3_jax.cli import UsageError
from ivl3_jax.cli.arguments import parse, read


class Policy(enum.Enum):
    stop = 1
    skip = 2


@dataclass(frozen=True)
class Optimizer:
    """How weights move.

    Attributes:
        learning_rate: at the peak.
        betas: decay of the two moments.
        kind: which optimizer.
        warmup: steps, or none.
    """

    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    kind: Literal["adamw", "sgd"] = "adamw"
    warmup: int | None = None

    def __post_init__(self):
        if self.learning_rate <= 0:
            raise ValueError(f"Optimizer.learning_rate is {self.learning_rate}; it must be positive")


@dataclass(frozen=True)
class Source:
    path: Path
    weight: float = 1.0


@dataclass(frozen=True)
class Recipe:
    """A run.

    Attributes:
        model: the directory to start from.
    """

    model: str
    optimizer: Optimizer = Optimizer()
    second: Optimizer | None = None
    sources: tuple[Source, ...] = ()
    names: list[str] = field(default_factory=list)
    rules: dict[str, tuple[str, ...]] = field(default_factory=dict)
    policy: Policy = Policy.stop
    remat: bool = True
    steps: int = 10


def run(*argv: str) -> Recipe:
    return parse(Recipe, argv, prog="ivl3 train", example="ivl3 train --config recipe.yaml")


def mistake(*argv: str) -> str:
    with pytest.raises(UsageError) as caught:
        run(*argv)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a file into the working directory and returns its name."""
    monkeypatch.chdir(tmp_path)

    def write(text: str, name: str = "recipe.yaml") -> str:
        Path(name).write_text(text)
        return name

    return write


def test_defaults_and_options():
    assert run("--model", "m") == Recipe("m")
    assert run("--model=m", "--optimizer.learning_rate", "1e-4").optimizer == Optimizer(1e-4)
    assert run("--model=m", "--optimizer.betas", "[0.8, 1]").optimizer.betas == (0.8, 1.0)
    assert run("--model=m", "--names", "[a, b]", "--names+", "c").names == ["a", "b", "c"]
    assert run("--model=m", "--policy", "skip", "--remat", "false") == Recipe("m", policy=Policy.skip, remat=False)
    assert run("--model=m", "--second.kind", "sgd").second == Optimizer(kind="sgd")
    assert run("--model=m", "--optimizer.warmup", "5").optimizer.warmup == 5


def test_files_are_typed_and_the_later_wins(write):
    first = write("model: m\noptimizer: {learning_rate: 1e-4, kind: sgd}\nsteps: 3\n", "first.yaml")
    then = write(
        "optimizer: {learning_rate: 2}\nsources: [{path: a}, {path: b, weight: 2}]\nrules: {mlp: [x, y]}\n", "b.yaml"
    )
    recipe = run("--config", first, "--config", then, "--steps", "7")
    assert recipe.optimizer == Optimizer(2.0, kind="sgd")
    assert recipe.sources == (Source(Path("a")), Source(Path("b"), 2.0))
    assert recipe.rules == {"mlp": ("x", "y")}
    assert recipe.steps == 7
    assert run("--steps", "7", "--config", first).steps == 3


def test_read_from_python(write):
    first, then = write("model: m\nsteps: 3\n", "first.yaml"), write("steps: 4\n", "then.yaml")
    assert read(Recipe, first).steps == 3
    assert read(Recipe, Path(first), {"optimizer.learning_rate": 1e-4, "names": ["a"]}) == Recipe(
        "m", Optimizer(1e-4), names=["a"], steps=3
    )
    assert read(Recipe, [first, then], {"second": None, "model": "n"}) == Recipe("n", steps=4)
    with pytest.raises(UsageError, match=r"option --optimizer\.kind is 'x'; it must be one of adamw, sgd"):
        read(Recipe, first, {"optimizer.kind": "x"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stps: 3", "recipe.yaml: stps is not a setting; allowed: model, optimizer, second, sources, names, rules, "
                    "policy, remat, steps (did you mean steps?)"),
        ("optimizer: {lr: 1}", "recipe.yaml: optimizer.lr is not a setting; allowed in optimizer: learning_rate, "
                               "betas, kind, warmup (did you mean learning_rate?)"),
        ("second: {kin: sgd}", "recipe.yaml: second.kin is not a setting; allowed in second: learning_rate, betas, "
                               "kind, warmup (did you mean kind?)"),
        ("sources: [{path: a}, {file: b}]", "recipe.yaml: sources[1].file is not a setting; allowed in sources[1]: "
                                            "path, weight"),
        ("optimizer: {learning_rate: fast}", "recipe.yaml: optimizer.learning_rate is 'fast'; it must be a number"),
        ("optimizer: {kind: adam}", "recipe.yaml: optimizer.kind is 'adam'; it must be one of adamw, sgd "
                                    "(did you mean adamw?)"),
        ("optimizer: {betas: [1, a]}", "recipe.yaml: optimizer.betas[1] is 'a'; it must be a number"),
        ("optimizer: {betas: [1]}", "recipe.yaml: optimizer.betas is [1]; it must be a list of 2: a number, a number"),
        ("optimizer: {warmup: 1.5}", "recipe.yaml: optimizer.warmup is 1.5; it must be an integer or null"),
        ("optimizer: 3", "recipe.yaml: optimizer is 3; it must be a mapping with learning_rate, betas, kind, warmup"),
        ("names: a", "recipe.yaml: names is 'a'; it must be a list, each text"),
        ("names: [a, 1]", "recipe.yaml: names[1] is 1; it must be text"),
        ("rules: {mlp: [x, 2]}", "recipe.yaml: rules.mlp[1] is 2; it must be text"),
        ("policy: skp", "recipe.yaml: policy is 'skp'; it must be one of stop, skip (did you mean skip?)"),
        ("remat: 3", "recipe.yaml: remat is 3; it must be true or false"),
        ("steps: null", "recipe.yaml: steps is null; it must be an integer"),
        ("steps: true", "recipe.yaml: steps is True; it must be an integer"),
        ("model: m\noptimizer: {learning_rate: -1}",
         "recipe.yaml: Optimizer.learning_rate is -1.0; it must be positive"),
        ("model: m\nsecond: {learning_rate: -1}", "recipe.yaml: Optimizer.learning_rate is -1.0; it must be positive"),
        ("steps: 3", "model must be given, on the command line or in a --config file"),
        ("- 1", "recipe.yaml: holds [1]; it must map names to values: model, optimizer, second, sources, names, "
                "rules, policy, remat, steps"),
        ("", "recipe.yaml: is empty; it must map names to values: model, optimizer, second, sources, names, rules, "
             "policy, remat, steps"),
    ],
)  # fmt: skip
def test_mistakes_in_a_file(write, text, message):
    assert mistake("--config", write(text)) == message


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--optimizer.lr", "1"], "option --optimizer.lr is not a setting; allowed in optimizer: learning_rate, betas, "
                                  "kind, warmup (did you mean learning_rate?)"),
        (["--optimizer.learning_rate=fast"], "option --optimizer.learning_rate is 'fast'; it must be a number"),
        (["--optimizer.kind", "sdg"], "option --optimizer.kind is 'sdg'; it must be one of adamw, sgd "
                                      "(did you mean sgd?)"),
        (["--steps", "1.5"], "option --steps is '1.5'; it must be an integer"),
        (["--steps.more", "1"], "option --steps.more is not a setting; steps is a single value"),
        (["--optimizer.betas", "[1]"], "option --optimizer.betas is '[1]'; it must be a list of 2: a number, a number"),
        (["--config", "no.yaml"], "no.yaml: No such file or directory"),
        (["--config", "."], ".: Is a directory"),
        (["--steps"], "argument --steps: expected one argument"),
        (["stray"], "unrecognized arguments: stray"),
        (["--mode", "m"], "option --mode is not a setting; allowed: model, optimizer, second, sources, names, rules, "
                          "policy, remat, steps (did you mean model?)"),
    ],
)  # fmt: skip
def test_mistakes_in_options(argv, message):
    assert mistake("--model", "m", *argv) == message


def test_a_value_that_was_typed_is_not_put_down_to_a_file(write):
    message = mistake("--config", write("model: m"), "--optimizer.learning-rate", "-1")
    assert message == "Optimizer.learning_rate is -1.0; it must be positive"
    odd = mistake("--config", write("model: m"), "--model", "@m", "--optimizer.learning-rate", "-1")  # "@" is no YAML
    assert odd == message
    wrong = write("model: m\nsecond: {learning_rate: -1}")
    message = mistake("--config", wrong, "--optimizer.learning-rate", "2")
    assert message == "recipe.yaml: Optimizer.learning_rate is -1.0; it must be positive"


def test_a_file_for_a_part(write):
    assert run("--model", "m", "--optimizer", write("kind: sgd")).optimizer == Optimizer(kind="sgd")
    assert mistake("--model", "m", "--optimizer", write("lr: 1")).startswith("recipe.yaml: lr is not a setting")


def test_yaml_syntax_names_the_line(write):
    message = mistake("--config", write("model: m\nsteps: 1: 2\n"))
    assert message.startswith("recipe.yaml: not valid YAML at line 2, column 9: mapping values are not allowed")


def test_binary_file(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    assert mistake("--config", str(tmp_path / "a.yaml")).endswith("a.yaml: is not UTF-8 text")


def test_printed_config_reads_back(write, capsys):
    with pytest.raises(SystemExit) as stop:
        run("--model", "m", "--optimizer.learning_rate", "1e-5", "--policy", "skip", "--print_config")
    assert stop.value.code == 0
    assert run("--config", write(capsys.readouterr().out)) == Recipe("m", Optimizer(1e-5), policy=Policy.skip)


def test_help_has_types_and_an_example(capsys):
    with pytest.raises(SystemExit) as stop:
        run("--help")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "--optimizer.kind {adamw,sgd}" in text
    assert "the directory to start from" in text
    assert "example: ivl3 train --config recipe.yaml" in text


def test_a_function():
    def look(directory: Path, images: tuple[str, ...] = (), tokens: int = 3):
        """Looks.

        Args:
            directory: where.
            images: what.
            tokens: how many.
        """
        return directory, images, tokens

    found = parse(look, ["d", "--tokens", "4", "--images", "[a, b]"], prog="ivl3 look")
    assert look(**vars(found)) == (Path("d"), ("a", "b"), 4)
    with pytest.raises(UsageError, match="directory must be given"):
        parse(look, [], prog="ivl3 look")
    with pytest.raises(UsageError, match=r"option --token is not a setting; allowed: directory, images, tokens"):
        parse(look, ["d", "--token", "4"], prog="ivl3 look")


def test_a_flag_may_stand_alone():
    def settings(directory: str, *, gradients: bool = False, seed: int = 0) -> None: ...

    for argv in (["d", "--gradients"], ["--gradients", "d"][::-1], ["d", "--gradients", "--seed", "3"]):
        assert parse(settings, argv, prog="x").gradients is True
    assert parse(settings, ["d", "--gradients", "false"], prog="x").gradients is False


@pytest.mark.parametrize(
    "option", ["--optimizer.learning-rate=1e-4", "--optimizer.learning_rate=1e-4", "--second.learning-rate=1e-4"]
)
def test_dashes_stand_for_underscores(option):
    found = run("--model", "m-_x", option)
    assert found.model == "m-_x" and Optimizer(1e-4) in (found.optimizer, found.second)


def test_dashes_elsewhere_stay(write):
    def settings(directory: str, *, with_gradients: bool = False, own_rules: dict[str, int] | None = None) -> None: ...

    def parsed(*argv):
        return vars(parse(settings, argv, prog="x"))

    assert parsed("d-d", "--with-gradients")["with_gradients"] is True
    assert parsed("d-d", "--own-rules.a-b=3")["own_rules"] == {"a-b": 3}
    with pytest.raises(UsageError, match=r"--with-gradient is not a setting; .* \(did you mean with_gradients\?"):
        parsed("d", "--with-gradient=true")
    with pytest.raises(UsageError, match="option --with_gradients is 'x'; it must be true or false"):
        parsed("d", "--with-gradients=x")


def test_help_has_dashes_only(capsys):
    for argv in (["--help"], ["--print-config", "--model=m"]):
        with pytest.raises(SystemExit) as stop:
            run(*argv)
        assert stop.value.code == 0
    told, config = capsys.readouterr().out.split("example: ivl3 train")
    assert "--optimizer.learning-rate" in told and "--print-config" in told
    assert "learning_rate:" in config and not re.search(r"--[\w.]*_", told)


def test_dashes_and_underscores_are_one():
    def settings(directory: str, *, max_shard_gb: float = 5.0) -> None: ...

    for argv in (["a-b", "--max-shard-gb", "2"], ["a-b", "--max_shard_gb=2"], ["--max-shard-gb=2", "a-b"]):
        found = parse(settings, argv, prog="x")
        assert (found.directory, found.max_shard_gb) == ("a-b", 2)
