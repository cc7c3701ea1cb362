//! How a run is made adversarial, and what device it pretends to be.

use moe_kernels::cuda::driver::DeviceProperties;

/// How much is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Checks {
    /// Values and protocols only; the fastest.
    None,
    /// Happens-before checks on what instruction wrappers do.
    Async,
    /// These, and on every plain load and store.
    #[default]
    Full,
}

/// An edit of PTX text at decoding, for tests of the emulator itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextEdit {
    /// What to replace, wherever it occurs.
    pub from: String,
    /// By what.
    pub to: String,
}

/// How kernels are run.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Options {
    /// 0: in plain order, asynchronous work done at once. Others choose schedules and timings.
    pub seed: u64,
    /// What is checked.
    pub checks: Checks,
    /// Clusters in flight together; `None`: chosen by the seed within the device's limits.
    pub resident: Option<u32>,
    /// Collect bank conflicts and sectors per source line; see [`EmulatedDriver::lint_report`](crate::EmulatedDriver::lint_report).
    pub lint: bool,
    /// The deliberate fault `FAULT(n)` of a self-test kernel; 0 for none.
    pub fault: i32,
    /// An edit of PTX text.
    pub edit: Option<TextEdit>,
}
impl Options {
    /// Full checks under this seed.
    #[must_use]
    pub fn checked(seed: u64) -> Self {
        Self { seed, ..Self::default() }
    }
    /// Values and protocols only, under this seed.
    #[must_use]
    pub fn plain(seed: u64) -> Self {
        Self { seed, checks: Checks::None, ..Self::default() }
    }
}

/// Counts of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Stats {
    /// Fiber switches.
    pub switches: u64,
    /// Pieces of asynchronous work.
    pub async_steps: u64,
    /// wgmma instructions, counted per warp.
    pub wgmmas: u64,
    /// Checked accesses.
    pub checks: u64,
    /// Blocks run.
    pub blocks: u64,
}

/// A device to pretend to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// Its properties, as the driver reports them.
    pub properties: DeviceProperties,
}
impl Profile {
    /// A small device of a compute capability. The counts of multiprocessors are small on purpose: few
    /// blocks are in flight, so that a kernel which assumes more of them is found out.
    fn new(capability: u32, max_shared: u32, shared_per_sm: u32) -> Self {
        Self {
            properties: DeviceProperties {
                name: format!("emulated sm_{capability}"),
                compute_capability: capability,
                sm_count: 4,
                max_shared_per_block: max_shared,
                max_shared_per_sm: shared_per_sm,
                l2_bytes: 32 << 20,
                memory_bytes: 8 << 30,
            },
        }
    }
    /// Data-centre Ampere: 163 KB of shared memory for a block.
    #[must_use]
    pub fn sm_80() -> Self {
        Self::new(80, 163 << 10, 164 << 10)
    }
    /// Consumer Ampere: 99 KB.
    #[must_use]
    pub fn sm_86() -> Self {
        Self::new(86, 99 << 10, 100 << 10)
    }
    /// Ada: 99 KB, fp8 mma.
    #[must_use]
    pub fn sm_89() -> Self {
        Self::new(89, 99 << 10, 100 << 10)
    }
    /// Hopper: 227 KB, TMA, wgmma, clusters.
    #[must_use]
    pub fn sm_90() -> Self {
        Self::new(90, 227 << 10, 228 << 10)
    }
    /// Data-centre Blackwell: 227 KB; it lacks the instructions that belong to sm_90a alone.
    #[must_use]
    pub fn sm_100() -> Self {
        Self::new(100, 227 << 10, 228 << 10)
    }
    /// Consumer Blackwell: 99 KB.
    #[must_use]
    pub fn sm_120() -> Self {
        Self::new(120, 99 << 10, 100 << 10)
    }
    /// With another number of multiprocessors.
    #[must_use]
    pub fn with_sm_count(mut self, count: u32) -> Self {
        self.properties.sm_count = count.max(1);
        self
    }
}
