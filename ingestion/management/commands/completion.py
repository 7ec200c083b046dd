"""completion: have a shell complete what is typed after `ingestion`."""

from argparse import ArgumentParser
from typing import Any

from argcomplete.shell_integration import shellcode

from ingestion.management.base import Exit, OperatorCommand


class Command(OperatorCommand):
    help = (
        "Print what has your shell complete commands, options and the names of sources when Tab "
        "is pressed. Load it in the file that the shell reads when it starts."
    )
    example = (
        "echo 'eval \"$(manage.py completion bash)\"' >> ~/.bashrc\n"
        "echo 'eval \"$(manage.py completion zsh)\"' >> ~/.zshrc    # after compinit\n"
        "manage.py completion fish > ~/.config/fish/completions/ingestion.fish"
    )
    reports = False
    asks_service = False

    def add_own_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("shell", choices=["bash", "zsh", "fish"], help="which shell")

    def perform(self, options: dict[str, Any]) -> Exit:
        self.stdout.write(shellcode(["ingestion"], shell=options["shell"]))
        return Exit.OK
