"""Sources as people and programs handle them: configuration, credentials, verbs, status, deletion.

Owns the rows of sources and which mailboxes they have. Moves no mail: that is the engine's.
"""
