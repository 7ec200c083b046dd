"""`make bench`: the service beside its peers, all in one run on this machine.

mail.py       what is on the server: messages, and Maildirs written directly
processes.py  CPU seconds and peak memory of processes, from /proc
native.py     floor.c and proxy.c, compiled in the run
service.py    the real service under measure, on a VAR_DIR of its own
peers.py      mbsync, offlineimap, and the floor
scenarios.py  what is measured, and what must be reached; limits.py has those beside speed
report.py     the table, the JSON of all single figures; document.py docs/benchmarks.md
chart.py      the SVG
"""
