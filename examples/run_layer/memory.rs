//! Whether a layer fits, before anything of it is allocated.

use std::fs;

use anyhow::{Result, bail};
use moe_kernels::Backend;
use moe_kernels::element::Float;
use moe_kernels::layer::WeightFormat;

use crate::source::Source;

/// Refuses a layer that the machine's free memory cannot hold, or that the crate cannot run yet,
/// with the bytes that it needs.
pub fn ensure_fits<B: Backend, T: Float>(
    source: &Source,
    num_tokens: usize,
    memory_bytes: Option<u64>,
) -> Result<()> {
    let config = source.config();
    let format = match source.quantisation() {
        None => WeightFormat::dense::<T>(),
        Some(format) => WeightFormat::quantised::<T>(format),
    };
    let memory = config.memory::<B, T>(format, num_tokens)?;
    let weights = memory.weights() as u64;
    // While experts are repacked, the one at hand is there twice.
    let packing = weights / config.num_experts as u64;
    let needed = memory.total() as u64 + packing;

    let summary = format!(
        "{} with {num_tokens} tokens in {} needs {needed} bytes ({:.1} GB, of which weights {:.1})",
        source.model().unwrap_or(source.family()),
        T::DTYPE,
        needed as f64 / 1e9,
        weights as f64 / 1e9,
    );
    if let Some(available) = memory_bytes.or_else(available)
        && needed > available
    {
        let (place, kind) = if memory_bytes.is_some() { ("GPU", "") } else { ("machine", " free") };
        bail!("{summary}; the {place} has {:.1} GB{kind}", available as f64 / 1e9);
    }
    Ok(())
}

/// Bytes that can be allocated without swapping, and that a container may have; known on Linux.
fn available() -> Option<u64> {
    let container = fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let limit = container.and_then(|limit| limit.trim().parse().ok()).unwrap_or(u64::MAX);
    Some(free_memory()?.min(limit))
}

fn free_memory() -> Option<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
