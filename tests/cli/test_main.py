import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import ivl3_jax
from ivl3_jax.cli import UsageError, main

ROOT = Path(__file__).parents[2]

GREET = '''"""A command for these tests."""

HELP = """Greets somebody.
ivl3 greet Ada"""


def run(argv):
    print("hello", *argv)
    return len(argv)
'''


@pytest.fixture
def greet(tmp_path, monkeypatch):
    """Installs the command `greet` and returns a function that replaces what it does."""
    (tmp_path / "ivl3_greet.py").write_text(GREET)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "ivl3_greet", raising=False)
    monkeypatch.setattr(main, "COMMANDS", {"greet": "ivl3_greet"})

    def fails(error):
        import ivl3_greet

        def run(argv):
            raise error

        monkeypatch.setattr(ivl3_greet, "run", run)

    return fails


def test_a_command_runs_and_gives_its_exit_code(greet, capsys):
    assert main.main(["greet", "Ada", "Bob"]) == 2
    assert capsys.readouterr().out == "hello Ada Bob\n"


def test_help_lists_commands_with_examples_and_imports_none(greet, capsys):
    assert main.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "greet    Greets somebody." in text
    assert "example: ivl3 greet Ada" in text
    assert "ivl3_greet" not in sys.modules


def test_no_command_is_wrong_usage(greet, capsys):
    assert main.main([]) == 2
    assert "usage: ivl3 COMMAND" in capsys.readouterr().err


def test_version(capsys):
    assert main.main(["--version"]) == 0
    assert capsys.readouterr().out == f"ivl3 {ivl3_jax.__version__}\n"


def test_unknown_command_names_the_valid_and_the_nearest(capsys):
    assert main.main(["trian"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("ivl3: error: 'trian' is not a command; there are chat, ")
    assert error.endswith("Did you mean train?\n")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UsageError("a.yaml: steps is 'x'"), 2, "a.yaml: steps is 'x'"),
        (ValueError("bad value"), 1, "bad value"),
        (FileNotFoundError(2, "No such file or directory", "a/config.json"), 1,
         "a/config.json: No such file or directory"),
        (ModuleNotFoundError("x", name="torch.nn"), 1,
         "this needs torch, which is not installed: it comes with the extra 'parity' of ivl3-jax"),
    ],
)  # fmt: skip
def test_a_users_mistake_is_one_line(greet, capsys, error, code, message):
    greet(error)
    assert main.main(["greet"]) == code
    assert capsys.readouterr().err == f"ivl3: error: {message}\n"


def test_debug_shows_the_traceback(greet, monkeypatch):
    greet(ValueError("bad"))
    monkeypatch.setenv("IVL3_DEBUG", "1")
    with pytest.raises(ValueError, match="bad"):
        main.main(["greet"])


@pytest.mark.parametrize("error", [TypeError("a bug"), ModuleNotFoundError("x", name="nosuch")])
def test_a_fault_of_the_program_keeps_its_traceback(greet, error):
    greet(error)
    with pytest.raises(type(error)):
        main.main(["greet"])


def test_a_warning_is_one_line(greet, capsys, monkeypatch):
    import ivl3_greet

    monkeypatch.setattr(ivl3_greet, "run", lambda argv: warnings.warn("half of it\n is missing", stacklevel=2) or 0)
    assert main.main(["greet"]) == 0
    assert capsys.readouterr().err == "ivl3: warning: half of it is missing\n"
    monkeypatch.setenv("IVL3_DEBUG", "1")
    with pytest.warns(UserWarning, match="half of it"):
        main.main(["greet"])


def test_interrupt_is_quiet(greet, capsys):
    greet(KeyboardInterrupt())
    assert main.main(["greet"]) == 130
    assert capsys.readouterr().err == ""


def test_a_closed_pipe_is_quiet(tmp_path):
    (tmp_path / "ivl3_greet.py").write_text(GREET.replace('"hello"', '"hello\\n" * 100_000'))
    code = "from ivl3_jax.cli.main import COMMANDS, main; COMMANDS['greet'] = 'ivl3_greet'; exit(main(['greet']))"
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=60) == 141
    assert process.stderr.read() == b""
    process.stderr.close()


@pytest.mark.parametrize("name", main.COMMANDS)
def test_every_command_has_help_with_an_example(name):
    summary, example = main._help(main.COMMANDS[name]).strip().splitlines()[:2]
    assert summary.endswith(".")
    assert example.strip().startswith(f"ivl3 {name} ")


def test_listing_commands_imports_no_jax():
    code = "import sys; from ivl3_jax.cli import main; main.main(['--help']); sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).returncode == 0


@pytest.mark.parametrize(
    ("libtpu", "devices", "expected"),
    [
        (False, (), None),
        (True, (), "cpu"),
        (True, ("/dev/accel[0-9]*",), None),
        (True, ("/dev/vfio/[0-9]*",), None),
        (True, ("/dev/nvidia[0-9]*",), None),
    ],
)
def test_platform_defaults(monkeypatch, libtpu, devices, expected):
    monkeypatch.setattr(main, "find_spec", lambda name: object() if libtpu else None)
    monkeypatch.setattr(main, "glob", lambda pattern: [pattern] if pattern in devices else [])
    environ: dict[str, str] = {}
    main.set_platform_defaults(environ)
    assert environ.get("JAX_PLATFORMS") == expected
    quiet = libtpu and not any(pattern in main.TPU_DEVICES for pattern in devices)
    assert ("TPU_SKIP_MDS_QUERY" in environ) == quiet


def test_platform_defaults_leave_a_users_setting(monkeypatch):
    monkeypatch.setattr(main, "find_spec", lambda name: object())
    monkeypatch.setattr(main, "glob", lambda pattern: [])
    environ = {"JAX_PLATFORMS": "tpu", "TPU_WORKER_ID": "3"}
    main.set_platform_defaults(environ)
    assert (environ["JAX_PLATFORMS"], environ["TPU_WORKER_ID"]) == ("tpu", "3")
