"""`make bench`: the service beside its peers, all in one run on this machine.

- `scenarios`: what is measured for speed, and what must be reached; `limits`: what must stay small;
  `beats` measures dispatching, in a process of its own
- `stage`: what every scenario stands on; `mail`: messages, and Maildirs that are written directly
- `service`: the real service under measure; `peers`: mbsync, offlineimap and the floor
- `native`: floor.c and proxy.c, compiled in the run; `processes`: CPU and memory, from /proc
- `results`: samples, rows, checks; `report`: the table; `page` and `chart`: docs/benchmarks
- `corpus`: an archive of a million generated messages, for the database; `generated`: that mail;
  `archive`: its rows
- `searching`: search in it, beside notmuch and ILIKE; `asked`: the questions; `finding` measures
  them, in a process of its own
- `header_fields`: what reading them costs
- `profile`: where an import's time goes
"""
