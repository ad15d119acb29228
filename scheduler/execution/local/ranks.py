"""Starts one process of a gang, so that it cannot outlive its launcher unseen.

Part of the launcher: standard library only, single threaded (it forks).
"""

from __future__ import annotations

import errno
import os
import resource
import signal

from scheduler.execution.local import process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

_MESSAGE_BYTES_MAX = 4096
_USERS_FAULT = frozenset(
    {
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EACCES,
        errno.EPERM,
        errno.ENOEXEC,
        errno.E2BIG,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.EISDIR,
        errno.EINVAL,
    }
)
_DEFAULTED = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
"""All that can be: what is ignored stays so across exec (Python ignores SIGPIPE; a shell that
starts the daemon in the background SIGINT and SIGQUIT), and a shell script cannot trap it then."""


class StartError(Exception):
    """A rank could not be started.

    Attributes:
        users_fault: the order names what cannot be executed; trying elsewhere will not help.
    """

    def __init__(self, message: str, *, users_fault: bool) -> None:
        super().__init__(message)
        self.users_fault = users_fault


def start_rank(
    argv: list[str], env: dict[str, str], workdir: str, output: int, open_files_max: int
) -> int:
    """Start one rank in a session of its own and answer its pid.

    Args:
        argv: argument vector; `argv[0]` is looked up in the PATH of `env`.
        env: complete environment.
        workdir: where it starts.
        output: descriptor that becomes its stdout and stderr.
        open_files_max: its RLIMIT_NOFILE, as far as our own hard limit allows.

    Raises:
        StartError: it does not run, and no process of it is left.
    """
    told, tell = os.pipe()
    parent = os.getpid()
    try:
        pid = os.fork()
    except OSError as error:
        os.close(told)
        os.close(tell)
        raise StartError(f"cannot start a process: {error.strerror}", users_fault=False) from error
    if pid == 0:
        _become_rank(parent, argv, env, workdir, output, tell, open_files_max)
    os.close(tell)
    with open(told, "rb") as file:  # noqa: PTH123 - a descriptor; exec closes the other end
        problem = file.read(_MESSAGE_BYTES_MAX)
    if problem:
        os.waitpid(pid, 0)
        stage, number, detail = problem.decode(errors="replace").split("\0", 2)
        raise _start_error(stage, int(number), detail, argv, env, workdir)
    return pid


def _start_error(
    stage: str, number: int, detail: str, argv: list[str], env: dict[str, str], workdir: str
) -> StartError:
    if stage == "workdir":
        message = f"cannot enter the working directory {workdir}: {detail}"
    elif number == errno.ENOENT:
        message = f"command not found: {argv[0]} (PATH={env.get('PATH', '')})"
    elif number == errno.ENOEXEC:
        message = f"cannot execute {argv[0]}: not a program, and no #! line"
    else:
        message = f"cannot execute {argv[0]}: {detail}"
    return StartError(message, users_fault=stage != "prepare" and number in _USERS_FAULT)


def _become_rank(
    parent: int,
    argv: list[str],
    env: dict[str, str],
    workdir: str,
    output: int,
    tell: int,
    open_files_max: int,
) -> NoReturn:
    stage = "prepare"
    try:
        os.setsid()
        process.die_with_parent(parent)
        process.forbid_new_privileges()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        limit = open_files_max if hard == resource.RLIM_INFINITY else min(open_files_max, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.closerange(3, tell)
        os.closerange(tell + 1, os.sysconf("SC_OPEN_MAX"))
        for ignored in _DEFAULTED:
            signal.signal(ignored, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        stage = "workdir"
        os.chdir(workdir)
        stage = "execute"
        os.execvpe(argv[0], argv, env)  # noqa: S606 - running the user's command is the purpose
    except OSError as error:
        number, detail = error.errno or 0, error.strerror or str(error)
    except ValueError as error:  # a NUL byte in an argument or a variable
        number, detail = errno.EINVAL, str(error)
    try:
        told = f"{stage}\0{number}\0{detail}".encode(errors="replace")
        os.write(tell, told[:_MESSAGE_BYTES_MAX])
    finally:
        os._exit(127)  # never back into the launcher's own code
