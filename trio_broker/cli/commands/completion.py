"""``trio-broker completion``: shell completion of commands, options and values."""

from __future__ import annotations

from typing import Final

import click
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

_SHELLS: Final[dict[str, type[ShellComplete]]] = {
    "bash": BashComplete,
    "zsh": ZshComplete,
    "fish": FishComplete,
}


@click.command()
@click.argument("shell", type=click.Choice(list(_SHELLS)))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the completion script for a shell.

    \b
    To install it for new shells:
      bash   trio-broker completion bash > \\
               ~/.local/share/bash-completion/completions/trio-broker
      zsh    trio-broker completion zsh > ~/.zfunc/_trio-broker
      fish   trio-broker completion fish > \\
               ~/.config/fish/completions/trio-broker.fish

    The folder must exist. Bash needs the package bash-completion; zsh needs the folder in its
    fpath before compinit: "fpath+=~/.zfunc". For the current shell only, in bash or zsh:

    \b
      eval "$(trio-broker completion bash)"
    """  # noqa: D301 - click's mark for lines that are not wrapped
    root = ctx.find_root()
    name = root.info_name or ""
    # Click reads this variable when the program starts.
    variable = f"_{name}_COMPLETE".replace("-", "_").upper()
    script = _SHELLS[shell](root.command, {}, name, variable).source()
    click.echo(script, nl=False)
