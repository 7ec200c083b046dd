"""One machine: due work is found, a mailbox is leased, its folders are followed, messages captured.

Owns runs, leases, folders, placements and failures, and the one transaction that makes messages
visible (`commit`). Decides nothing about a source: it tells `sources` what happened.
"""
