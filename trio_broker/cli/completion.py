"""``trio-broker completion``: what makes a shell complete commands, options and values."""

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
    """Print the script that makes a shell complete this command.

    \b
    For every new shell:
      bash   trio-broker completion bash > \\
               ~/.local/share/bash-completion/completions/trio-broker
      zsh    trio-broker completion zsh > ~/.zfunc/_trio-broker
      fish   trio-broker completion fish > \\
               ~/.config/fish/completions/trio-broker.fish

    The folder must be there. Bash needs the package bash-completion; zsh needs the folder in its
    fpath before compinit: "fpath+=~/.zfunc". For one shell only, in bash or zsh:

    \b
      eval "$(trio-broker completion bash)"
    """  # noqa: D301 - click's mark for lines that stay as they are
    root = ctx.find_root()
    name = root.info_name or ""
    # click's own name for it, which the program itself looks for when it begins.
    variable = f"_{name}_COMPLETE".replace("-", "_").upper()
    script = _SHELLS[shell](root.command, {}, name, variable).source()
    click.echo(script, nl=False)
