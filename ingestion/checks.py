"""System checks of our own settings, part of `manage.py check`."""
