"""Mail that is archived: proved, compared with the provider, rebuilt, fetched again, cleared up.

Owns no row and no pack of a running import: what the engine has not committed is not looked at.
"""
