"""A process's own confinement, without privileges: Landlock for files and TCP, seccomp for system calls.

A `Policy` says what the process may still do. `landlock` and `seccomp` turn it into rules and a program, as values;
`kernel` alone makes system calls, through ctypes, and knows nothing of what the policy is for. `apply` cannot be
undone, and everything the process starts afterwards is confined with it. Here does not belong who gets which policy.
"""

from fedfleet_sandbox.kernel import Abilities, Applied, Threaded, apply, hide_memory, probe, refuse_privileges
from fedfleet_sandbox.policy import Policy, python_folders

__all__ = [
    "Abilities",
    "Applied",
    "Policy",
    "Threaded",
    "apply",
    "hide_memory",
    "probe",
    "python_folders",
    "refuse_privileges",
]
