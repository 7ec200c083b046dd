"""The deployment: its diagnosis, its keys, who may sign in, and the audit of people.

Touches neither mail nor the state of a source.
"""
