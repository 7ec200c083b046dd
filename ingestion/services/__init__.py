"""The verbs: the only code that writes. Interfaces (API, admin, commands, tasks) call these.

    sources     what people do with a source: make, change, check, pause, delete it
    engine      what workers do: find due work, hold a mailbox, copy it, make it durable and visible
    archive     what is done to mail that is there: prove, rebuild, compare, clear up
    operations  what is done to the deployment: diagnosis, keys, who may sign in

Common ground beneath the rooms: `audit` (who did what) and `transactions` (again after a deadlock).

Every function says whether it opens its own transaction; none of them enqueues a task: work is a
row with a due time, which `engine.due_work` finds.
"""
