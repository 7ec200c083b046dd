"""What a reader gives up before it meets mail, where the kernel has the means.

It needs no file but Python's own modules, no network and no other program. Without its environment
it still runs as the user of this service, who may read the archive and the environment of others:
what a parser could be made to do ends here. A kernel, or a container's rules, that have not got one
of the means leave the other and the limits.
"""

import contextlib
import ctypes
import os
import stat
import struct
import sys
from collections.abc import Iterable

_libc = ctypes.CDLL(None, use_errno=True)

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2

# -- files: linux/landlock.h, since Linux 5.13 -----------------------------------------------------

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
#: How many rights there are to files, by version; and what else is denied: TCP, other processes.
_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_TCP, _PROCESSES = 0b11, 0b11
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache")


def confine() -> None:
    """Give up what reading mail doesn't need, in this process and for good."""
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    # The first path is where the service is: beside its modules lie its data and its settings.
    service = sys.path[0]
    _open_only(path for path in (*sys.path, *_LIBRARIES) if path != service)
    _refuse_calls()


def _open_only(paths: Iterable[str]) -> None:
    """Deny all of the file system but reading what is in some paths."""
    version = _libc.syscall(_CREATE_RULESET, None, 0, 1)
    if version < 1:
        return
    rights = (1 << _RIGHTS.get(version, 16)) - 1
    attributes = struct.pack("QQQ", rights, _TCP, _PROCESSES)
    size = 8 if version < 4 else 16 if version < 6 else 24
    rules = _libc.syscall(_CREATE_RULESET, attributes, size, 0)
    if rules < 0:
        return
    for path in paths:
        with contextlib.suppress(OSError):  # it isn't there, or nobody may read it
            descriptor = os.open(path, os.O_PATH)
            is_directory = stat.S_ISDIR(os.fstat(descriptor).st_mode)
            allowed = _READ_FILE | _READ_DIR if is_directory else _READ_FILE
            _libc.syscall(_ADD_RULE, rules, 1, struct.pack("=Qi", allowed, descriptor), 0)
            os.close(descriptor)
    _libc.syscall(_RESTRICT_SELF, rules, 0)
    os.close(rules)


# -- calls: linux/seccomp.h, linux/filter.h --------------------------------------------------------

#: By machine: its number (linux/audit.h), and those of socket, socketpair, connect, bind, ptrace,
#: process_vm_readv, process_vm_writev, execve, execveat, io_uring_setup (which opens sockets too).
_CALLS = {
    "x86_64": (0xC000003E, (41, 53, 42, 49, 101, 310, 311, 59, 322, 425)),
    "aarch64": (0xC00000B7, (198, 199, 203, 200, 117, 270, 271, 221, 281, 425)),
}
_OTHER_NUMBERS = 0x40000000  # x86_64 has another table of calls above
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | 1  # EPERM


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("steps", ctypes.c_char_p)]


def _refuse_calls() -> None:
    """Have the kernel refuse calls that open a way to elsewhere."""
    machine, calls = _CALLS.get(os.uname().machine, (0, ()))
    if not calls:
        return
    refusals = [(_AT_LEAST, len(calls) + 1, 0, _OTHER_NUMBERS)]
    refusals += [(_EQUAL, len(calls) - at, 0, call) for at, call in enumerate(calls)]
    steps = [
        (_LOAD, 0, 0, 4),  # the machine whose call it is
        (_EQUAL, 0, len(refusals) + 2, machine),
        (_LOAD, 0, 0, 0),  # its number
        *refusals,
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _REFUSE),
    ]
    program = _Program(len(steps), b"".join(struct.pack("HBBI", *step) for step in steps))
    _libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0)
