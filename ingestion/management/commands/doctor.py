"""doctor: is the deployment sound?"""

import dataclasses
from typing import Any

from ingestion.management.base import Exit, OperatorCommand
from ingestion.management.presentation import printable
from ingestion.services.operations import doctor

_MARKS = {"ok": "ok      ", "warning": "warning ", "problem": "PROBLEM "}


class Command(OperatorCommand):
    help = (
        "Check what the service stands on (database, migrations, clocks, encryption keys, broker, "
        "workers of all queues, beat, archive storage, settings), and whether its sources are up "
        "to date. Ends with 1 where there is a problem; warnings alone end with 0."
    )
    example = (
        "manage.py doctor\nmanage.py doctor --json | jq '.findings[] | select(.state != \"ok\")'"
    )

    def perform(self, options: dict[str, Any]) -> Exit:
        del options
        findings = []
        for finding in doctor.examine():
            findings.append(finding)
            if not self.as_json:
                self._show(finding)
        problems = sum(1 for finding in findings if finding.state == "problem")
        document = {
            "ok": not problems,
            "findings": [dataclasses.asdict(finding) for finding in findings],
        }
        words = "1 problem." if problems == 1 else f"{problems} problems."
        self.report(document, words if problems else "All is well.")
        return Exit.PROBLEM if problems else Exit.OK

    def _show(self, finding: doctor.Finding) -> None:
        self.stdout.write(
            f"{_MARKS[finding.state]} {finding.name + ':':<15} {printable(finding.message)}"
        )
        if finding.advice:
            self.stdout.write(f"{'':25} {finding.advice}")
        self.stdout.flush()
