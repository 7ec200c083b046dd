"""Backups of the whole service, and what comes back of them.

    <directory>/packs/…               all packs, each copied once: they never change
    <directory>/databases/<time>.dump     the database, by pg_dump, custom format
                          <time>.packs    which packs belong to it, with the SHA-256 of each
                          <time>.json     what it is, written last: without it there is no backup

`place` knows the files, `dumps` PostgreSQL's programs, `making`, `checking` and `restoring` are the
verbs. The keys are never among these files: who has both has every credential.
"""
