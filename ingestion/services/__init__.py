"""The verbs: the only code that writes. Interfaces (API, admin, commands, tasks) call these.

Every function says whether it opens its own transaction; none of them enqueues a task: work is a
row with a due time, which `services.dispatch` finds.
"""
