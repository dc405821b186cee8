"""A folder belongs to one process, or one group of them, while they write it: a run, a cache, a study, a report.

The lock is a file in the folder, made exclusively, that tells who holds it and is touched while they live. Where the
system can lock files its own lock is held on it, too: that ends with the process however it ends, so that what a killed
process left behind is told from a live one without doubt. Reading takes no lock.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spheregen.distributed import World
from spheregen.errors import SphereGenError
from spheregen.files import parse_json

LOCK = ".spheregen-lock"
"""The name of the lock in a folder."""
_HEARTBEAT_SECONDS, _SILENT_SECONDS = 20.0, 120.0
_PATIENCE_SECONDS = 2.0  # so long a lock may be without its owner's name: it is being made
_held: dict[Path, int] = {}  # folders that this process holds, each by one of its threads
_mutex = threading.Lock()


@contextlib.contextmanager
def locked_folder(folder: Path, world: World | None = None) -> Iterator[None]:
    """Make a folder and hold it; all processes of a world are one owner, and calls of one thread may be nested.

    What had to be made of the folder and holds nothing at the end is removed again.

    Raises:
        SphereGenError: another process holds it, or may do so on another machine; or it cannot be made or written to.
    """
    world = world or World()
    with contextlib.ExitStack() as stack:
        problem = ""
        if world.is_first:
            try:
                stack.enter_context(_held_folder(folder))
            except SphereGenError as error:
                problem = str(error)
        if problem := world.gather_objects(problem)[0]:
            raise SphereGenError(problem)
        yield


@contextlib.contextmanager
def _held_folder(folder: Path) -> Iterator[None]:
    place, thread = folder.resolve(), threading.get_ident()
    with _mutex:
        nested = place in _held
        if _held.setdefault(place, thread) != thread:
            raise SphereGenError(f"{folder} is in use by another thread of this process; choose another folder")
    if nested:
        yield
        return
    made: list[Path] = []
    try:
        try:
            made = [path for path in (folder, *folder.parents) if not path.exists()]
            folder.mkdir(parents=True, exist_ok=True)
            handle = _acquire(folder)
        except OSError as error:
            reason = "it is a file" if folder.exists() and not folder.is_dir() else error.strerror or error
            raise SphereGenError(f"cannot write to the folder {folder}: {reason}; choose another place") from error
        ended = threading.Event()
        threading.Thread(target=_beat, args=(folder / LOCK, ended), daemon=True).start()
        try:
            yield
        finally:
            ended.set()
            _release(folder / LOCK, handle)
    finally:
        with _mutex:
            del _held[place]
        with contextlib.suppress(OSError):  # it is not empty
            for path in made:
                path.rmdir()


def _acquire(folder: Path) -> int:
    """Make the lock, or take it over from a process that is dead; return its open file, which holds it."""
    path, patience = folder / LOCK, time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            handle, found = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), False
        except FileExistsError:
            try:
                handle, found = os.open(path, os.O_RDWR), True
            except FileNotFoundError:
                continue
        try:
            free = _system_lock(handle)
            owner = _owner(handle)
            if free is False:
                raise SphereGenError(_in_use(folder, owner, handle))
            if _is_file(handle, path) and (owner or not found or time.monotonic() > patience):
                if found and owner and not _is_dead(owner, handle, certain=bool(free)):
                    raise SphereGenError(_in_use(folder, owner, handle))
                mine = json.dumps(_this_process()).encode()
                os.ftruncate(handle, 0)
                os.lseek(handle, 0, os.SEEK_SET)
                os.write(handle, mine)
                if free is None and found:  # others may have taken it over at the same time: the last one has it
                    time.sleep(1)
                    if _owner(handle) != json.loads(mine):
                        raise SphereGenError(_in_use(folder, _owner(handle), handle))
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # it was removed meanwhile, or is being made
        time.sleep(0.05)


def _release(path: Path, handle: int) -> None:
    with contextlib.suppress(OSError):
        if sys.platform != "win32" and _is_file(handle, path):
            path.unlink()
    os.close(handle)
    if sys.platform == "win32":  # where an open file cannot be removed
        with contextlib.suppress(OSError):
            path.unlink()


def _system_lock(handle: int) -> bool | None:
    """Lock an open file; False where another process has it, None where this storage knows no locks.

    Locks of POSIX: unlike those of BSD they are not handed to workers, which may outlive a process that was killed.
    """
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(handle, 1 << 20, os.SEEK_SET)  # behind the text, which others read
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return None
    return True


def _owner(handle: int) -> dict[str, Any]:
    """Read who holds a lock; empty where it does not tell."""
    os.lseek(handle, 0, os.SEEK_SET)
    with contextlib.suppress(OSError, ValueError):
        found = parse_json(os.read(handle, 4096))
        return found if isinstance(found, dict) else {}
    return {}


def _this_process() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "machine": _machine(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _machine() -> str:
    """Return what tells this machine, since it was started, from others: containers of one machine share it."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return socket.gethostname()


def _started(pid: int) -> str | None:
    """Return what tells a process of this machine from an earlier one of the same number; None if there is none."""
    try:
        if Path("/proc/self/stat").exists():
            return (
                Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
            )
        os.kill(pid, 0)
    except PermissionError:
        return ""
    except (OSError, ValueError):
        return None
    return ""


def _is_dead(owner: dict[str, Any], handle: int, *, certain: bool) -> bool:
    """Tell whether the owner of a lock has ended; `certain`: the system says that none on this machine holds it."""
    if owner.get("machine") == _machine():
        return certain or _started(int(owner.get("pid", 0))) != owner.get("started")
    return owner.get("host") == socket.gethostname() and _silence(handle) > _SILENT_SECONDS  # it was started anew


def _silence(handle: int) -> float:
    return time.time() - os.fstat(handle).st_mtime


def _in_use(folder: Path, owner: dict[str, Any], handle: int) -> str:
    who = f"process {owner.get('pid', '?')}"
    if owner.get("machine", _machine()) == _machine():
        since = f" since {owner['since']}" if "since" in owner else ""
        return f"{folder} is in use by {who}{since}; let it end, stop it, or choose another folder with --out"
    who, silence = f"{who} on {owner.get('host')}", _silence(handle)
    if silence < _SILENT_SECONDS:
        return (
            f"{folder} is in use by {who}, alive {silence:.0f} s ago; let it end, or choose another folder with --out"
        )
    return (
        f"{folder} was in use by {who}, which has been silent for {silence / 60:.0f} minutes; if it runs no more, "
        f"remove {folder / LOCK} and start again, or choose another folder with --out"
    )


def _is_file(handle: int, path: Path) -> bool:
    """Tell whether the open file still is the one of this name."""
    with contextlib.suppress(OSError):
        return os.path.samestat(os.fstat(handle), path.stat())
    return False


def _beat(path: Path, ended: threading.Event) -> None:
    while not ended.wait(_HEARTBEAT_SECONDS):
        with contextlib.suppress(OSError):
            os.utime(path)
