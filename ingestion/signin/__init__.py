"""Signing in, and one's own account: the pages are django-allauth's, the rules are ours.

`own` has the password, `second_step` codes and security keys, `single` the sign-in at an OpenID
Connect provider, `clothes` the pages that say what went wrong. One brake is for all of it
(`services.operations.signing_in`), one audit (`services.operations.people`). Nobody makes their own
account. API keys are not concerned.
"""
