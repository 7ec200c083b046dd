"""Reads backups back, without restoring anything: every byte of what they list."""

import dataclasses
from collections.abc import Callable

from ingestion.errors import Corrupt, NotAllowedNow
from ingestion.services.operations import copying
from ingestion.services.operations.backup import dumps
from ingestion.services.operations.backup.place import Place
from ingestion.services.operations.inventory import Inventory, Listed


@dataclasses.dataclass(slots=True)
class Checking:
    """What was read so far, and what is wrong with it, in words."""

    stage: str = "Reading dumps"
    total_bytes: int = 0
    backups: int = 0
    packs: int = 0
    size_bytes: int = 0
    problems: list[str] = dataclasses.field(default_factory=list)


def check(place: Place, *, on_progress: Callable[[Checking], None] = lambda _: None) -> Checking:
    """Read all backups of a directory. Raises NotAllowedNow where there is none, and
    ArchiveUnavailable where it can't be asked."""
    done, listed = Checking(), Inventory()
    with copying.told_in_words(str(place.root), "Mend it, and run this again."):
        found = place.manifests(on_damage=lambda error: done.problems.append(str(error)))
        if not found:
            place.chosen()  # which says so
        for manifest in found:
            try:
                dump = place.dump(manifest)
                dumps.read_through(dump, manifest.postgres, lambda: on_progress(done))
                listed.add(
                    one
                    for one in place.listed(manifest)
                    if str(one.pack_id) not in manifest.differing  # it may have been mended since
                )
                dumps.require_fits(dump, manifest.postgres)
            except NotAllowedNow as error:
                done.problems.append(str(error))
            done.problems += [
                f"pack {lost} was missing or damaged in the archive when {manifest.name} was made."
                for lost in manifest.lost
            ] + [
                f"pack {differing} had other bytes in the backup than in the archive when"
                f" {manifest.name} was made."
                for differing in manifest.differing
            ]
            done.backups += 1
        done.stage = "Reading packs"
        _, done.total_bytes = listed.totals()
        for one, problem in copying.at_once(lambda one: (one, _wrong(place, one)), listed):
            done.packs += 1
            done.size_bytes += one.size_bytes
            if problem:
                done.problems.append(problem)
            on_progress(done)
    return done


def _wrong(place: Place, one: Listed) -> str:
    name = f"pack {one.pack_id} of source {one.source_id}"
    try:
        if place.packs.sha256(one.source_id, one.pack_id) == one.sha256:
            return ""
    except FileNotFoundError:
        return f"{name} is not in the backup. The next backup copies it again."
    except Corrupt:
        pass
    return f"{name} is damaged in the backup. Remove it there: the next backup copies it again."
