//! A virtual machine from its configuration to its end.
//! It owns the order in which everything is built, which decides how long a start takes, and the event loop.
//! It is the only file that knows all the others.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::thread;

use kvm_bindings::{KVM_CAP_SPLIT_IRQCHIP, KVM_MAX_CPUID_ENTRIES, kvm_enable_cap};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::boot::{self, Payload};
use crate::config::{self, Config};
use crate::event_loop::{self, EventLoop};
use crate::ioapic::IoApic;
use crate::machine::{Devices, Exit, Machine};
use crate::marks::{self, Mark};
use crate::memory::{self, Memory};
use crate::virtio::balloon::Balloon;
use crate::virtio::blk::{self, Blk};
use crate::virtio::fs::Fs;
use crate::virtio::mmio::Mmio;
use crate::virtio::rng::Rng;
use crate::virtio::vsock::{self, Vsock};
use crate::virtio::{Device, Interrupt};
use crate::{layout, vcpu};

/// Why a machine could not be built or run; all of it is the host's or the configuration's fault.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Config(#[from] config::Error),
    #[error("open /dev/kvm")]
    OpenKvm(#[source] kvm_ioctls::Error),
    #[error("{operation}")]
    Kvm { operation: &'static str, source: kvm_ioctls::Error },
    #[error(transparent)]
    Memory(#[from] memory::Error),
    #[error(transparent)]
    Boot(#[from] boot::Error),
    #[error("disk {index}")]
    Disk { index: usize, source: blk::Error },
    #[error("share {tag:?}")]
    Share { tag: String, source: io::Error },
    #[error(
        "the template has {mib} MiB; with {memory_mib} MiB of memory a sandbox can use at most {max_mib} MiB"
    )]
    Layers { mib: u64, memory_mib: u64, max_mib: u64 },
    #[error("vsock")]
    Vsock(#[source] vsock::Error),
    #[error("{operation}")]
    Os { operation: &'static str, source: io::Error },
    #[error(transparent)]
    EventLoop(#[from] event_loop::Error),
}

/// What is left of a machine.
#[derive(Debug)]
pub struct End {
    pub exit: Exit,
    /// Nothing writes to its disks any more, even if a thread of it hangs in a share's file system: another machine may
    /// have them.
    pub at_rest: bool,
}

/// A machine that is ready to run.
pub struct Vm {
    machine: Arc<Machine>,
    vcpus: Vec<VcpuFd>,
    ended: EventFd,
    /// KVM's descriptor goes last, after all that uses it.
    _vm: Arc<VmFd>,
}

impl Vm {
    /// Builds the machine: memory before anything in the kernel that would wait for it, then the interrupt
    /// controller, vCPUs, devices, and at last what is in memory.
    pub fn new(config: Config) -> Result<Self, Error> {
        config.validate()?;
        let slots = config.slots();
        let marks = config.marks;
        marks::record(&marks, Mark::VmmStart, marks::now_ns());
        let kvm = Kvm::new().map_err(Error::OpenKvm)?;
        let vm = Arc::new(kvm.create_vm().map_err(kvm_error("create a virtual machine"))?);
        let memory_size = u64::from(config.memory_mib) << 20;
        let layers = place_layers(memory_size, &config.layers)?;
        let memory = memory::map(memory_size, &layers)?;
        for (file, &(start, length)) in config.layers.iter().zip(&layers) {
            memory::map_file(&memory, start, file, 0, length)?;
        }
        memory::register(&vm, &memory)?;
        split_irqchip(&vm)?;
        let vcpus = create_vcpus(&kvm, &vm, config.cpus)?;
        let ioapic = Arc::new(io_apic(&vm, layout::pins(slots)));
        let devices = build_devices(config.vsock, config.disks, config.shares, &memory, &ioapic)?;
        let payload = Payload {
            kernel: &config.kernel,
            initramfs: &config.initramfs,
            boot_file: &config.boot_file,
            verbose_console: config.verbose_console,
            cpus: config.cpus,
            slots,
            layers: &layers,
            memory_size,
        };
        let entry = boot::load(&memory, &payload)?;
        boot::cpu::set_registers(&vcpus[0], entry).map_err(kvm_error("set registers"))?;
        let ended = EventFd::new(EFD_NONBLOCK).map_err(os_error("create an eventfd"))?;
        let signal = ended.try_clone().map_err(os_error("clone an eventfd"))?;
        let machine = Arc::new(Machine::new(devices, ioapic, config.console, marks, signal));
        machine.record(Mark::VmCreated);
        Ok(Self { machine, vcpus, ended, _vm: vm })
    }

    /// Runs the machine to its end. A vCPU thread that is in the guest at that moment is left there: it ends with
    /// the process, or at its next exit.
    pub fn run(self) -> Result<End, Error> {
        let mut event_loop = EventLoop::new(&self.machine, self.ended, event_loop::BOOT_TIMEOUT)?;
        self.machine.record(Mark::FirstRun);
        for (id, vcpu) in self.vcpus.into_iter().enumerate() {
            let machine = Arc::clone(&self.machine);
            thread::Builder::new()
                .name(format!("vcpu{id}"))
                .spawn(move || vcpu::run(vcpu, &machine))
                .map_err(os_error("start a vCPU thread"))?;
        }
        loop {
            event_loop.turn()?;
            if let Some(exit) = self.machine.exit() {
                return Ok(End { exit: exit.clone(), at_rest: self.machine.take_devices_away() });
            }
        }
    }
}

fn kvm_error(operation: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Error {
    move |source| Error::Kvm { operation, source }
}

fn os_error(operation: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Os { operation, source }
}

/// Local APICs in KVM, the IO-APIC here, and no legacy interrupt controller or timer: each of those would wait
/// for RCU grace periods when the machine is made and when it ends.
pub(crate) fn split_irqchip(vm: &VmFd) -> Result<(), Error> {
    let mut cap = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..Default::default() };
    cap.args[0] = u64::from(layout::IOAPIC_PINS);
    vm.enable_cap(&cap).map_err(kvm_error("split the interrupt controller"))
}

/// vCPUs with what the kernel needs to know of their processor; without CPUID there is not even 64-bit mode.
pub(crate) fn create_vcpus(kvm: &Kvm, vm: &VmFd, cpus: u8) -> Result<Vec<VcpuFd>, Error> {
    let supported =
        kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(kvm_error("read the supported CPUID"))?;
    (0..cpus)
        .map(|id| {
            let vcpu = vm.create_vcpu(u64::from(id)).map_err(kvm_error("create a vCPU"))?;
            let mut cpuid = supported.clone();
            boot::cpu::adapt_cpuid(&mut cpuid, id, cpus);
            vcpu.set_cpuid2(&cpuid).map_err(kvm_error("set CPUID"))?;
            Ok(vcpu)
        })
        .collect()
}

fn io_apic(vm: &Arc<VmFd>, pins: u8) -> IoApic {
    let vm = Arc::clone(vm);
    // A message to an APIC that is not there is lost, as on real hardware.
    IoApic::new(pins, move |message| {
        let _ = vm.signal_msi(message);
    })
}

fn place_layers(memory_size: u64, files: &[File]) -> Result<Vec<(u64, u64)>, Error> {
    let lengths = files.iter().map(|file| Ok(file.metadata()?.len())).collect::<io::Result<Vec<_>>>();
    let lengths = lengths.map_err(os_error("read the size of a layer"))?;
    let (length, max) = (lengths.iter().sum::<u64>(), layout::layers_max(memory_size));
    if length > max {
        return Err(Error::Layers { mib: length >> 20, memory_mib: memory_size >> 20, max_mib: max >> 20 });
    }
    Ok(layout::layers(memory_size, lengths))
}

/// Builds the devices in the order of their slots. The guest names disks by that order.
fn build_devices(
    vsock: config::Vsock,
    disks: Vec<config::Disk>,
    shares: Vec<config::Share>,
    memory: &Memory,
    ioapic: &Arc<IoApic>,
) -> Result<Devices, Error> {
    let interrupt = |slot: usize| {
        let (_, irq) = layout::slot(u8::try_from(slot).expect("the configuration limits their number"));
        let ioapic = Arc::clone(ioapic);
        Interrupt::new(move || ioapic.raise(irq))
    };
    let mut vsock = Vsock::new(vsock).map_err(Error::Vsock)?;
    let mut boxed: Vec<Box<dyn Device>> = Vec::with_capacity(disks.len() + shares.len() + 2);
    // In layout::LATE_SLOT.
    boxed.push(Box::new(Balloon::default()));
    for (index, disk) in disks.into_iter().enumerate() {
        boxed.push(Box::new(Blk::new(disk).map_err(|source| Error::Disk { index, source })?));
    }
    boxed.push(Box::new(Rng::default()));
    let mut settlers = Vec::with_capacity(shares.len());
    for share in shares {
        let tag = share.tag.clone();
        let fs = Fs::new(share).map_err(|source| Error::Share { tag, source })?;
        settlers.push(fs.settler());
        boxed.push(Box::new(fs));
    }
    // Who is told of a change by a program of the host finds it in the share.
    vsock.before_delivery(move || settlers.iter().for_each(|settle| settle()));
    let others = boxed.into_iter().zip(1..);
    Ok(Devices {
        vsock: Mmio::new(Box::new(vsock), Memory::clone(memory), interrupt(0)),
        others: others.map(|(device, n)| Mmio::new(device, Memory::clone(memory), interrupt(n))).collect(),
    })
}
