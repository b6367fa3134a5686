"""A filter of system calls for the sandbox of bubblewrap, as the kernel reads it (classic BPF).

It refuses with EPERM what could start a process or a thread, open a socket, or reach the wide and
often faulty interfaces of the kernel. Everything else is decided by the namespaces.
"""

import struct
from collections.abc import Mapping

_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050001  # the latter is ERRNO with EPERM
_X32 = 0x40000000

# Numbers of clone, fork, vfork and clone3; socket and socketpair; ptrace, process_vm_readv and
# process_vm_writev; unshare, setns, mount, umount2, pivot_root and chroot; bpf, perf_event_open,
# userfaultfd and io_uring_setup; add_key, request_key and keyctl; init_module, finit_module and
# kexec_load.
_REFUSED: Mapping[str, tuple[int, tuple[int, ...]]] = {
    "x86_64": (
        0xC000003E,
        (
            *(56, 57, 58, 435, 41, 53, 101, 310, 311, 272, 308, 165, 166, 155, 161),
            *(321, 298, 323, 425, 248, 249, 250, 175, 313, 246),
        ),
    ),
    "aarch64": (  # it has no fork and no vfork
        0xC00000B7,
        (
            *(220, 435, 198, 199, 117, 270, 271, 97, 268, 40, 39, 41, 51),
            *(280, 241, 282, 425, 217, 218, 219, 105, 273, 104),
        ),
    ),
}


def filter_program(machine: str) -> bytes:
    """Returns the filter for a kind of processor.

    Args:
      machine: as `platform.machine()` names it.

    Raises:
      ValueError: if its system calls are not known here.
    """
    if machine not in _REFUSED:
        known = ", ".join(_REFUSED)
        raise ValueError(f"sandbox 'bwrap' must run on one of {known}, got {machine!r}; use monty")
    architecture, numbers = _REFUSED[machine]
    tests = [(_AT_LEAST, _X32), *((_EQUAL, number) for number in numbers)]
    steps = [
        (_LOAD, 0, 0, 4),  # the architecture
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _REFUSE),
        (_LOAD, 0, 0, 0),  # the number of the call
        *((test, len(tests) - place, 0, value) for place, (test, value) in enumerate(tests)),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _REFUSE),
    ]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)
