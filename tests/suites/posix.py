"""What programs do with files beyond reading and writing, done once each in the current directory, by the guest's user.

  posix.py check    prints the name of each check that holds; one that does not ends the script with its traceback
  posix.py look     prints what the file system says of all that is in the directory, a line each

The tests that run it let guest and host look at what the checks have left, and compare.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import socket
import struct
import sys
import threading

LIBC = ctypes.CDLL(None, use_errno=True)
PAGE = mmap.PAGESIZE
AT_FDCWD, AT_SYMLINK_FOLLOW = -100, 0x400
FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE = 1, 2
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


def write(name, data=b""):
    with open(name, "wb") as file:
        file.write(data)


def read(name):
    with open(name, "rb") as file:
        return file.read()


def c(result):
    """The result of a call of libc, or its error as an exception."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def fails(number, function, *args, **named):
    try:
        function(*args, **named)
    except OSError as error:
        assert error.errno == number, error
    else:
        raise AssertionError(f"{function.__name__}{args} did not fail")


def in_child(function):
    """Runs it in a process of its own, which must end well."""
    pid = os.fork()
    if pid == 0:
        try:
            function()
            os._exit(0)
        except BaseException as error:
            print(f"in the child: {error!r}", flush=True)
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def renameat2(old, new, flags):
    c(LIBC.renameat2(AT_FDCWD, old.encode(), AT_FDCWD, new.encode(), flags))


def fallocate(fd, mode, offset, length):
    c(LIBC.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)))


@check
def shared_mappings_are_the_file_and_private_ones_are_not():
    write("mapped", b"0" * (3 * PAGE))
    with open("mapped", "r+b") as file:
        shared = mmap.mmap(file.fileno(), 0)
        private = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        shared[PAGE:PAGE + 6] = b"shared"
        private[0:7] = b"private"
        assert os.pread(file.fileno(), 6, PAGE) == b"shared" and private[PAGE:PAGE + 6] == b"shared"
        os.pwrite(file.fileno(), b"written", 2 * PAGE)
        assert shared[2 * PAGE:2 * PAGE + 7] == b"written" and shared[:7] == b"0" * 7
        in_child(lambda: shared.__setitem__(slice(0, 5), b"child"))
        assert shared[:5] == b"child" and private[:7] == b"private"
        shared.flush()
    assert read("mapped").startswith(b"child00") and len(read("mapped")) == 3 * PAGE


@check
def direct_io_goes_past_the_cache():
    fd = os.open("direct", os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o644)
    page = mmap.mmap(-1, PAGE)
    for number in range(4):
        page[:] = bytes([number]) * PAGE
        assert os.pwritev(fd, [page], number * PAGE) == PAGE
    assert read("direct")[2 * PAGE:3 * PAGE] == b"\2" * PAGE
    with open("direct", "r+b") as buffered:
        buffered.write(b"x")
    assert os.preadv(fd, [page], 0) == PAGE and page[:2] == b"x\0"
    os.close(fd)


@check
def flocks_hold_between_processes():
    write("locked")
    with open("locked") as file:
        fcntl.flock(file, fcntl.LOCK_EX)

        def other():
            with open("locked") as again:
                fails(errno.EWOULDBLOCK, fcntl.flock, again, fcntl.LOCK_SH | fcntl.LOCK_NB)
        in_child(other)
        fcntl.flock(file, fcntl.LOCK_SH)
        in_child(lambda: fcntl.flock(open("locked"), fcntl.LOCK_SH | fcntl.LOCK_NB))


@check
def posix_locks_hold_ranges_and_are_waited_for():
    ready, go = os.pipe(), os.pipe()
    with open("locked", "r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX, 10, 0)
        pid = os.fork()
        if pid == 0:
            with open("locked", "r+b") as again:
                fails(errno.EAGAIN, fcntl.lockf, again, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 9)
                fcntl.lockf(again, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 10)
                os.write(ready[1], b"r")
                fcntl.lockf(again, fcntl.LOCK_EX, 1, 9)
                os.write(go[1], b"got")
            os._exit(0)
        assert os.read(ready[0], 1) == b"r"
        fcntl.lockf(file, fcntl.LOCK_UN, 10, 0)
        assert os.read(go[0], 3) == b"got" and os.waitpid(pid, 0)[1] == 0


@check
def ofd_locks_belong_to_the_open_file():
    lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    with open("locked", "r+b") as one, open("locked", "r+b") as other:
        fcntl.fcntl(one, fcntl.F_OFD_SETLK, lock)
        fails(errno.EAGAIN, fcntl.fcntl, other, fcntl.F_OFD_SETLK, lock)
    with open("locked", "r+b") as other:
        fcntl.fcntl(other, fcntl.F_OFD_SETLK, lock)


@check
def room_is_taken_and_given_back():
    fd = os.open("holes", os.O_RDWR | os.O_CREAT, 0o644)
    os.posix_fallocate(fd, 0, 64 * PAGE)
    full = os.fstat(fd)
    assert full.st_size == 64 * PAGE and full.st_blocks * 512 >= 64 * PAGE
    os.pwrite(fd, b"x" * (64 * PAGE), 0)
    fallocate(fd, FALLOC_KEEP_SIZE | FALLOC_PUNCH_HOLE, 8 * PAGE, 32 * PAGE)
    punched = os.fstat(fd)
    assert punched.st_size == full.st_size and punched.st_blocks * 512 <= 40 * PAGE
    assert os.pread(fd, 2, 8 * PAGE - 1) == b"x\0" and os.pread(fd, 2, 40 * PAGE - 1) == b"\0x"
    assert os.lseek(fd, 0, os.SEEK_HOLE) == 8 * PAGE and os.lseek(fd, 8 * PAGE, os.SEEK_DATA) == 40 * PAGE
    fails(errno.ENXIO, os.lseek, fd, 64 * PAGE, os.SEEK_DATA)
    os.close(fd)


@check
def a_sparse_file_takes_no_room():
    with open("sparse", "wb") as file:
        file.truncate(1 << 30)
        file.seek(1 << 29)
        file.write(b"data")
    stat = os.stat("sparse")
    assert stat.st_size == 1 << 30 and stat.st_blocks < 1 << 10


@check
def ranges_are_copied_between_files():
    write("source", bytes(range(256)) * 64)
    with open("source", "rb") as source, open("copy", "wb") as copy:
        assert os.copy_file_range(source.fileno(), copy.fileno(), 5000, 7, 100) == 5000
    assert read("copy") == b"\0" * 100 + read("source")[7:5007]


@check
def user_attributes_are_kept_and_others_refused():
    write("attributes")
    os.setxattr("attributes", "user.note", b"\0binary\xff")
    fails(errno.EEXIST, os.setxattr, "attributes", "user.note", b"", os.XATTR_CREATE)
    assert os.getxattr("attributes", "user.note") == b"\0binary\xff" and os.listxattr("attributes") == ["user.note"]
    os.setxattr("attributes", "user.gone", b"x")
    os.removexattr("attributes", "user.gone")
    fails(errno.ENODATA, os.getxattr, "attributes", "user.gone")
    for name in ["security.x", "trusted.x"]:
        try:
            os.setxattr("attributes", name, b"x")
        except OSError as error:
            assert error.errno in (errno.EPERM, errno.EOPNOTSUPP), error
        else:
            raise AssertionError(f"{name} was set")


@check
def renames_exchange_and_do_not_replace():
    write("one", b"1")
    os.mkdir("two")
    renameat2("one", "two", RENAME_EXCHANGE)
    assert read("two") == b"1" and os.path.isdir("one")
    fails(errno.EEXIST, renameat2, "two", "one", RENAME_NOREPLACE)
    renameat2("two", "three", RENAME_NOREPLACE)
    assert read("three") == b"1" and not os.path.exists("two")


@check
def an_unnamed_file_gets_a_name():
    fd = os.open(".", os.O_TMPFILE | os.O_RDWR, 0o640)
    os.write(fd, b"unnamed")
    assert os.fstat(fd).st_nlink == 0
    c(LIBC.linkat(AT_FDCWD, f"/proc/self/fd/{fd}".encode(), AT_FDCWD, b"named", AT_SYMLINK_FOLLOW))
    assert read("named") == b"unnamed" and os.fstat(fd).st_nlink == 1
    os.close(fd)


@check
def an_open_file_outlives_its_name():
    file = open("gone", "w+b")
    file.write(b"kept")
    file.flush()
    os.unlink("gone")
    os.ftruncate(file.fileno(), 3)
    assert os.pread(file.fileno(), 9, 0) == b"kep" and os.fstat(file.fileno()).st_nlink == 0
    os.mkdir("gone")
    os.rmdir("gone")
    file.close()


@check
def names_are_as_long_as_linux_allows():
    write("n" * 255, b"long")
    assert read("n" * 255) == b"long"
    fails(errno.ENAMETOOLONG, open, "n" * 256, "wb")
    os.symlink("t" * 4095, "far")
    assert os.readlink("far") == "t" * 4095


@check
def links_share_what_they_name():
    write("linked", b"text")
    os.link("linked", "hard")
    os.symlink("linked", "soft")
    one, other = os.stat("linked"), os.stat("hard")
    assert (one.st_ino, one.st_dev, other.st_nlink) == (other.st_ino, other.st_dev, 2)
    with open("soft", "ab") as file:
        file.write(b" more")
    assert read("hard") == b"text more" and os.lstat("soft").st_size == 6


@check
def fifos_and_sockets_connect_processes():
    os.mkfifo("fifo")
    in_background = threading.Thread(target=write, args=("fifo", b"through"))
    in_background.start()
    assert read("fifo") == b"through"
    in_background.join()
    server = socket.socket(socket.AF_UNIX)
    server.bind("socket")
    server.listen()
    client = socket.socket(socket.AF_UNIX)
    client.connect("socket")
    client.send(b"through")
    assert server.accept()[0].recv(7) == b"through"


@check
def times_are_kept_to_the_nanosecond():
    write("times")
    os.utime("times", ns=(1_111_111_111_123_456_789, 999_999_999_987_654_321))
    stat = os.stat("times")
    assert (stat.st_atime_ns, stat.st_mtime_ns) == (1_111_111_111_123_456_789, 999_999_999_987_654_321)
    os.utime("soft", ns=(1, 2_000_000_003), follow_symlinks=False)
    assert os.lstat("soft").st_mtime_ns == 2_000_000_003


@check
def modes_are_kept_but_for_set_id():
    for mode in [0o000, 0o111, 0o640, 0o777, 0o1777]:
        write(f"mode-{mode:o}")
        os.chmod(f"mode-{mode:o}", mode)
        assert os.stat(f"mode-{mode:o}").st_mode & 0o7777 == mode
    write("set-id")
    os.chmod("set-id", 0o6755)
    assert os.stat("set-id").st_mode & 0o7777 == 0o755
    fails(errno.EPERM, os.mknod, "device", 0o666 | 0o020000, os.makedev(1, 3))


@check
def the_file_system_tells_its_size():
    stat = os.statvfs(".")
    assert stat.f_namemax == 255 and 0 < stat.f_bavail <= stat.f_blocks and stat.f_frsize > 0


def make_checks():
    os.umask(0o022)
    for function in CHECKS:
        function()
        print(function.__name__, flush=True)


def look():
    for name in sorted(os.listdir(".")):
        stat = os.lstat(name)
        print(name, oct(stat.st_mode), stat.st_nlink, stat.st_size, stat.st_blocks, stat.st_mtime_ns, stat.st_ino)
    stat = os.statvfs(".")
    print("in all", stat.f_blocks, stat.f_frsize, stat.f_bsize)


{"check": make_checks, "look": look}[sys.argv[1]]()
