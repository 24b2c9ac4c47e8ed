"""`mtf ...`: every step of the loop by hand. Each command calls the function that its DAG task calls.

Exit codes: 0 done; 1 failure; 2 wrong usage; 3 a verdict that is not a pass, or a critical validation (the result is
written all the same).
"""

from __future__ import annotations

import importlib
import sys

import click

from mtf.errors import MtfError

# command -> "module:attribute"; a module is imported only when its command runs, so that `mtf --help` is quick
COMMANDS = {
    "demo": "mtf.commands.platform:demo",
    "up": "mtf.commands.platform:up",
    "down": "mtf.commands.platform:down",
    "status": "mtf.commands.platform:status",
    "doctor": "mtf.commands.platform:doctor",
    "clean": "mtf.commands.platform:clean",
    "verify": "mtf.commands.platform:verify",
    "world": "mtf.commands.world:world",
    "simulate": "mtf.commands.world:simulate",
    "traffic": "mtf.commands.world:traffic",
    "serve": "mtf.commands.serve:serve",
    "seal": "mtf.commands.logs:seal",
    "logs": "mtf.commands.logs:logs",
    "validate": "mtf.commands.quality:validate",
    "quarantine": "mtf.commands.quality:quarantine",
    "transitions": "mtf.commands.transitions:transitions",
    "data": "mtf.commands.data:data",
    "train": "mtf.commands.learn:train",
    "power": "mtf.commands.evaluate:power",
    "evaluate": "mtf.commands.evaluate:evaluate",
    "explore": "mtf.commands.explore:explore",
    "rollout": "mtf.commands.rollout:rollout",
}
SUMMARIES = {
    "demo": "The whole loop, several rounds, in real Airflow.",
    "up": "Start the platform and leave it running.",
    "down": "Stop all of it.",
    "status": "What runs, where, and how it is.",
    "doctor": "What is missing on this machine, and how to mend it.",
    "clean": "Delete the state folder.",
    "verify": "Recompute every number of a demo's summary.",
    "world": "Make, fit and describe simulated worlds.",
    "simulate": "Serve simulated users in-process; writes a sealed day.",
    "traffic": "Play simulated users against a running server.",
    "serve": "Run the fusion server.",
    "seal": "Seal a day of the spool.",
    "logs": "Bring other people's logs; list sealed days.",
    "validate": "Check sealed days against the expectations.",
    "quarantine": "List and replay rows that were set aside.",
    "transitions": "Build transitions from logs.",
    "data": "Version datasets: version, log, checkout.",
    "train": "Train a policy bundle.",
    "power": "The smallest lift that data at hand can detect.",
    "evaluate": "Evaluate a policy off-policy; the gate's verdict.",
    "explore": "Refresh the exploration box.",
    "rollout": "The rollout controller and its intents.",
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name].split(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, SUMMARIES[name]) for name in COMMANDS])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="mtf")
def app() -> None:
    """Multi-task fusion for feed ranking, learned by offline RL: the whole loop, step by step.

    \b
    A first tour, without servers:
      mtf world make --out var/world
      mtf simulate --world var/world --policy bootstrap --box 0.3 --users 20000 --dt 2026-01-01 --seed 1 --out var/tour/logs
      mtf validate --logs var/tour/logs --out var/tour/quality
      mtf transitions build --logs var/tour/logs --out var/tour/transitions
      mtf train --transitions var/tour/transitions --algorithm slate_replay --baseline bootstrap --out var/tour/policy
      mtf evaluate --transitions var/tour/transitions --policy var/tour/policy --baseline bootstrap --out var/tour/report
    """


def main() -> None:
    """Entry point: errors meant for the user print as one line and exit 1."""
    try:
        # without standalone mode click hands the code of a raised Exit back as the result
        code = app(prog_name="mtf", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        click.echo("aborted", err=True)
        sys.exit(1)
    except (MtfError, OSError) as error:
        # a file that cannot be read or written names itself; only a mistake of the program is a traceback
        click.echo(f"mtf: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
