//! Takes all figures once, in the lab, and prints them as JSON. `benches/virtual` runs it there, in virtual time.
//! It owns what is measured and in which order. Whether that is good enough, the judge says.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use argh::FromArgs;
use benches::figures::{Figure, Run};
use benches::product::Product;
use benches::timer::{self, SAMPLES, SHORT_SAMPLES, median, sample_median};
use benches::{phases, resident};

const SMALL: &str = "512m";
const SMALL_MIB: u64 = 512;
const LARGE: &str = "8g";

/// The baseline's command line: the smallest machine that QEMU has, without the devices that this guest does not need.
const MICROVM: &[&str] = &[
    "-machine",
    "microvm,accel=kvm,acpi=off,pic=off,pit=off,rtc=off,isa-serial=off,x-option-roms=off",
    "-cpu",
    "host",
    "-smp",
    "1",
    "-m",
    "512",
    "-nodefaults",
    "-no-user-config",
    "-display",
    "none",
    "-no-reboot",
    "-append",
    "quiet panic=-1 reboot=t tsc=reliable rdinit=/init",
];

/// Measure Coracle's start-up figures, and QEMU's beside them.
#[derive(FromArgs)]
struct Args {
    /// folder with QEMU, its libraries and its firmware, as benches/virtual packs it
    #[argh(option)]
    qemu: PathBuf,
    /// guest kernel of both
    #[argh(option)]
    kernel: PathBuf,
}

fn main() -> Result<()> {
    let args: Args = argh::from_env();
    timer::adopt_orphans()?;
    let product = Product::find()?;
    let mut run = Run { phases: cold_phases(&product)?, ..Run::default() };
    run.figures = cold_figures(&product)?;
    run.figures.extend(session_figures(&product)?);
    run.figures.push(Figure::new("binary_kib", fs::metadata(&product.program)?.len() as f64 / 1024.0));
    run.baseline.push(Figure::new("qemu_microvm_512_ms", microvm(&args)?));
    println!("{}", serde_json::to_string(&run)?);
    Ok(())
}

fn cold_figures(product: &Product) -> Result<Vec<Figure>> {
    let small = sample_median(SAMPLES, || product.cold_run(SMALL))?;
    let large = sample_median(SAMPLES, || product.cold_run(LARGE))?;
    Ok(vec![
        Figure::new("run_true_512_ms", small),
        Figure::new("run_true_8g_ms", large),
        Figure::new("run_true_8g_ratio", large / small),
    ])
}

/// The median of each phase. They are of runs of their own, as printing them takes time too.
fn cold_phases(product: &Product) -> Result<Vec<Figure>> {
    product.cold_marks(SMALL)?;
    let runs: Vec<_> = (0..SAMPLES).map(|_| product.cold_marks(SMALL)).collect::<Result<_>>()?;
    let name_to_median = |name: &str| {
        let values = runs.iter().flat_map(|marks| phases::phases(marks)).filter(|(phase, _)| *phase == name);
        Figure::new(name, median(values.map(|(_, ms)| ms).collect()))
    };
    Ok(phases::phases(&runs[0]).map(|(name, _)| name_to_median(name)).collect())
}

/// What is measured while a sandbox is running.
fn session_figures(product: &Product) -> Result<Vec<Figure>> {
    let running = product.running(SMALL)?;
    let session = sample_median(SHORT_SAMPLES, || running.session())?;
    let resident_kib = resident::beyond_guest_kib(running.vmm()?, SMALL_MIB)?;
    Ok(vec![
        Figure::new("exec_true_ms", session),
        Figure::new("ls_ms", sample_median(SHORT_SAMPLES, || product.plain(&["ls"]))?),
        Figure::new("help_ms", sample_median(SHORT_SAMPLES, || product.plain(&["help"]))?),
        Figure::new("vmm_resident_kib", resident_kib as f64),
    ])
}

/// QEMU with the same kernel, from exec to exit, with an init that ends the machine at once.
fn microvm(args: &Args) -> Result<f64> {
    // By its own loader: the lab's libraries are others.
    let file = |name: &str| args.qemu.join(name);
    let mut command = Command::new(file("lib/loader"));
    command.arg("--library-path").arg(file("lib")).arg(file("qemu")).arg("-L").arg(file("firmware"));
    command.args(MICROVM).arg("-kernel").arg(&args.kernel).arg("-initrd").arg(file("null.cpio"));
    check(&args.kernel)?;
    sample_median(SAMPLES, || Ok(timer::time(&mut command)?.time)).context("measure the baseline")
}

fn check(kernel: &Path) -> Result<()> {
    fs::metadata(kernel).map(drop).with_context(|| format!("find the guest kernel, {}", kernel.display()))
}
