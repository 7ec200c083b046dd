"""Users with the password "the-{name}-of-the-tests".

A hash takes 0.2 s of processor, so each is computed once a run. Who never logs in needs none:
`User.objects.create_user(name)`.
"""

import functools

from django.contrib.auth.hashers import get_hasher, make_password
from django.contrib.auth.models import Permission, User
from django.db import connection, transaction


def user(name: str, *, is_staff: bool = False, is_superuser: bool = False) -> User:
    return User.objects.create(
        username=name,
        password=_hashed(f"the-{name}-of-the-tests", get_hasher().algorithm),
        is_staff=is_staff,
        is_superuser=is_superuser,
    )


def superuser(name: str) -> User:
    return user(name, is_staff=True, is_superuser=True)


def staff(name: str, *permissions: str) -> User:
    """Make a member of the staff with these permissions, such as "view_message"."""
    made = user(name, is_staff=True)
    made.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    return made


@functools.cache
def _hashed(password: str, algorithm: str) -> str:
    return make_password(password, hasher=algorithm)


def forget_all() -> None:
    """Empty the audit, which its triggers refuse to everybody who has not the whole database."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET LOCAL session_replication_role = replica")
        cursor.execute("DELETE FROM ingestion_auditevent")
        cursor.execute("SET LOCAL session_replication_role = DEFAULT")
