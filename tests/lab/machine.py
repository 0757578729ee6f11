"""The lab host as a machine: the one QEMU command line, for real and for virtual time.

Owns which devices there are and in which order, which is what names them inside: /dev/pmem0, 1, 2 and /dev/vport3p1, 2, 3.
Does not start it.
"""

# Address space, not memory: the disks are mapped above the RAM.
DISK_SPACE_MIB = 16384

# Nothing of the outside may reach a run in virtual time, so that it repeats to the digit: one instruction is one
# nanosecond, idle time is skipped, the clock starts at a fixed date, and the random instructions have a fixed seed.
VIRTUAL_TIME = ["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off", "-rtc", "base=2026-01-01,clock=vm", "-seed", "1"]
# More than one processor is for what needs it: QEMU's emulated AMD-V then loses and invents interrupts (helper_vmrun and
# cpu_vmexit change interrupt_request without a lock). About one start in a hundred ends in a triple fault with
# thread=multi, and one in seven never ends with thread=single.
REAL_TIME = ["-accel", "tcg,thread=multi"]

KERNEL_OPTIONS = "quiet console=ttyS0 root=/dev/pmem0 rootfstype=erofs ro rootwait init=/lab/init panic=-1 reboot=t"
# The kernel measures its clock again after a second, and may find a thousandth more. KVM has promised guests the first measure, has
# no way to scale, and would then let the clock that it sets their timers by stand still: so it takes the two for equal.
# With one processor, one in a million interrupts is still lost. If it is the timer's, a kernel without a regular tick waits for it
# for ever.
REAL_TIME_OPTIONS = " nohz=off highres=off kvm.tsc_tolerance_ppm=10000"


def disk(index, path):
    """A file as memory of the machine. Reading it never waits for this machine's disk or threads, as any other disk would."""
    return ["-object", f"memory-backend-file,id=disk{index},mem-path={path},size={path.stat().st_size},share=on,readonly=on",
            "-device", f"virtio-pmem-pci,memdev=disk{index}"]


def port(number, name, fd, kind="virtserialport"):
    return ["-chardev", f"socket,id={name},fd={fd}", "-device", f"{kind},nr={number},chardev={name},name={name}"]


def command(args, kernel, disks, streams, log):
    line = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-machine", "q35", "-cpu", "max,+svm,+npt", "-smp", str(args.cpus),
            "-m", f"{args.memory}M,maxmem={args.memory + DISK_SPACE_MIB}M"]
    line += VIRTUAL_TIME if args.virtual_time else REAL_TIME
    line += ["-kernel", str(kernel), "-append", KERNEL_OPTIONS + ("" if args.virtual_time else REAL_TIME_OPTIONS)]
    line += ["-chardev", f"file,id=log,path={log}", "-serial", "chardev:log"]
    for index, path in enumerate(disks):
        line += disk(index, path)
    # Without ioeventfd a write is taken at once by the thread that runs the guest, not at some time by another.
    line += ["-device", "virtio-serial-pci,ioeventfd=off"]
    line += port(0, "terminal", streams.terminal.inside, "virtconsole")
    line += port(1, "control", streams.control.inside)
    line += port(2, "out", streams.out.inside)
    line += port(3, "err", streams.err.inside)
    return line
