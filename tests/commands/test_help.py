"""Every --help teaches: what the command does, what each option means, and an example where there is something to type."""

import click
import pytest

from mtf.cli import COMMANDS, SUMMARIES, app


def every_command():
    """(name, command) of all commands, those of groups by their full name."""
    found = []
    context = click.Context(app)
    for name in COMMANDS:
        command = app.get_command(context, name)
        if isinstance(command, click.Group):
            found += [(f"{name} {sub}", inner) for sub, inner in command.commands.items()]
        found.append((name, command))
    return found


EVERY = every_command()


@pytest.mark.parametrize(("name", "command"), EVERY, ids=[name for name, _ in EVERY])
def test_it_says_what_it_does_and_what_its_options_mean(name, command):
    assert command.help, name
    assert len(command.help.split()) >= 4
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"mtf {name} {parameter.opts[0]}: no help"
    needed = [p for p in command.params if p.required]
    if needed and not isinstance(command, click.Group):
        assert f"mtf {name} " in command.help, f"mtf {name}: no example"
        for option in (p for p in needed if isinstance(p, click.Option)):
            assert option.opts[0] in command.help, f"mtf {name}: its example lacks {option.opts[0]}"


@pytest.mark.parametrize("name", [name for name, _ in EVERY])
def test_help_is_shown_and_fits_a_screen(mtf, name):
    done = mtf(*name.split(), "--help")
    assert done.code == 0
    assert f"mtf {name}" in done.out
    # a choice's names stand in one line, whatever their number
    assert max(len(line) for line in done.out.splitlines() if "|" not in line) <= 130


def test_the_overview_lists_every_command_with_a_sentence(mtf):
    done = mtf("--help")
    assert done.code == 0
    for name in COMMANDS:
        assert name in done.out
        assert SUMMARIES[name] in done.out
    assert list(SUMMARIES) == list(COMMANDS)
    assert mtf("--version").out.startswith("mtf")


@pytest.mark.parametrize(
    "arguments",
    [
        ["nothing"],
        ["train"],
        ["train", "--nothing"],
        ["world"],
        ["world", "nothing"],
        ["simulate", "--world", "/nowhere", "--users", "1", "--dt", "2026-01-01", "--out", "x"],
        ["train", "--transitions", "x", "--algorithm", "magic", "--out", "y"],
        ["train", "--transitions", "x", "--algorithm", "bc", "--out", "y", "--set", "kappa"],
        ["serve", "--port", "70000"],
        ["seal"],
        ["rollout", "start"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_code_2(mtf, arguments):
    done = mtf(*arguments)
    assert done.code == 2
    assert "Usage: mtf" in done.err
