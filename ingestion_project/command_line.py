"""`ingestion` and `manage.py`: Django's command line, with an overview and completion of its own.

An overview needs no settings, so it is there where the service can't start. Which commands there
are, a test compares with it.
"""

import gc
import io
import os
import sys
from pathlib import Path

#: Title of a group -> command -> what it does, as the overview says it.
OVERVIEW = {
    "Sources": {
        "add_source": "connect an account, a Workspace domain, a tenant",
        "add_sources": "make many, from a CSV file",
        "update_source": "change its name, credentials or options",
        "verify_source": "check its credentials now",
        "sign_in_source": "grant access by typing in a code",
        "pause_source": "stop all work of it",
        "resume_source": "go on",
        "delete_source": "delete it and all that it archived",
    },
    "Copying mail": {
        "import_source": "copy all mail of a source",
        "sync_source": "look for new mail now",
        "retry_failed": "try messages again that could not be had",
        "reconcile_source": "compare the server with the archive",
    },
    "Looking": {
        "source_status": "up to when sources are archived, and what is left out",
        "mailboxes": "what mailboxes a source has",
        "runs": "its imports and syncs",
        "failures": "its messages that could not be had",
        "find": "search the archive",
        "export": "take mail out: mbox, Maildir, .eml, another mailbox",
    },
    "The service": {
        "doctor": "tell whether the service and its sources are well",
        "backup": "back up the database and the archive",
        "restore": "put a backup back, on an empty machine",
        "verify_archive": "re-hash every archived message",
        "rebuild_archive_index": "make the database's rows again from the archive",
        "move_archive": "move the archive to another directory or bucket",
        "reindex": "make archived mail findable again",
        "create_api_key": "make a key for a program",
        "list_keys": "which keys there are",
        "revoke_key": "refuse one from now on",
        "reset_second_step": "let somebody in who lost phone and recovery codes",
        "rotate_credentials_key": "encrypt stored credentials with the newest key",
        "completion": "have your shell complete all of this by Tab",
    },
    "Django's own, of most use": {
        "migrate": "bring the database up to date",
        "createsuperuser": "make an administrator",
        "changepassword": "set somebody's password",
    },
}


def main() -> None:
    """Run the command that the arguments name. Ctrl-C at any time ends it without a word more."""
    # A name, or a sign of ours, that the terminal's locale lacks is written by its number.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        _run()
    except KeyboardInterrupt:  # of what is under way, a command says more itself
        sys.exit(130)


def _run() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "ingestion_project.settings")
    if "_ARGCOMPLETE" in os.environ:  # a shell asks what may stand where the cursor is
        from ingestion_project import completion  # noqa: PLC0415 - only then

        completion.answer(
            {name: about for group in OVERVIEW.values() for name, about in group.items()}
        )
        return
    if sys.argv[1:] in ([], ["help"], ["--help"], ["-h"]):
        print(overview(Path(sys.argv[0]).name))
        return
    # What is imported stays: to look through it for garbage, again and again and once more at the
    # end, takes a quarter of a second.
    gc.disable()
    import django  # noqa: PLC0415 - the overview needs none of it
    from django.conf import settings  # noqa: PLC0415 - as above
    from django.core.exceptions import ImproperlyConfigured  # noqa: PLC0415 - as above
    from django.core.management import execute_from_command_line  # noqa: PLC0415 - as above

    no_service = ""
    try:
        # Read here: Django takes bad settings for unknown commands.
        no_service = settings.NO_SERVICE
        django.setup()
        gc.freeze()
        gc.enable()
        execute_from_command_line(sys.argv)
    except ImproperlyConfigured as error:
        sys.exit(no_service or f"The settings are not complete: {error}")
    except PermissionError as error:
        sys.exit(f"This user may not use {error.filename}. Run this as the service's user.")


def overview(program: str) -> str:
    """Return what `ingestion --help` prints."""
    width = max(len(name) for group in OVERVIEW.values() for name in group)
    lines = ["Copies whole mailboxes into an archive of its own, and follows them.", ""]
    lines += [f"usage: {program} COMMAND [options]", f"       {program} COMMAND --help"]
    for title, commands in OVERVIEW.items():
        lines += ["", f"{title}:"]
        lines += [f"  {name:<{width}}  {about}" for name, about in commands.items()]
    lines += ["", f"{program} help --commands lists all, Django's included.", ""]
    lines += ["The service is that of VAR_DIR, or of DATABASE_URL; README.md has the settings."]
    return "\n".join(lines)
