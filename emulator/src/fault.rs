//! What the emulator found.

use std::fmt;

/// The emulator has no models: the crate was built without a C++20 compiler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("moe-emulator was built without a C++ compiler: no kernel can run")]
pub struct Unavailable;

/// Kinds of faults, as `emu_fault_kind` in `cpp/emulator.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FaultKind {
    /// Two accesses that nothing orders.
    Race,
    /// A generic-proxy write that the async proxy may not see yet.
    Proxy,
    /// All threads wait.
    Deadlock,
    /// Threads spin without progress.
    Watchdog,
    /// An access outside its buffer.
    OutOfBounds,
    /// An address that the instruction does not accept.
    Misaligned,
    /// A read of shared memory that was never written.
    Uninitialised,
    /// A value computed from unwritten or unfinished memory reached global memory.
    Taint,
    /// Misuse of a barrier.
    Barrier,
    /// Lanes of a warp in different collective operations.
    Divergence,
    /// Misuse of asynchronous copies: byte counts, phases, missing waits.
    Async,
    /// Misuse of wgmma.
    Wgmma,
    /// PTX text that does not decode or has no model.
    Ptx,
    /// A tensor map that cannot be used so.
    TensorMap,
    /// Register reallocation that does not add up.
    Registers,
    /// Misuse of clusters or distributed shared memory.
    Cluster,
    /// The kernel trapped.
    Trap,
    /// A launch that the device refuses.
    Launch,
    /// Something that the device lacks or the emulator does not model.
    Unsupported,
}
impl FaultKind {
    pub(crate) fn from_code(code: i32) -> Self {
        use FaultKind::*;
        const KINDS: [FaultKind; 19] = [
            Race,
            Proxy,
            Deadlock,
            Watchdog,
            OutOfBounds,
            Misaligned,
            Uninitialised,
            Taint,
            Barrier,
            Divergence,
            Async,
            Wgmma,
            Ptx,
            TensorMap,
            Registers,
            Cluster,
            Trap,
            Launch,
            Unsupported,
        ];
        usize::try_from(code - 1).ok().and_then(|i| KINDS.get(i)).copied().unwrap_or(Unsupported)
    }
}

/// One fault with its report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What kind it is.
    pub kind: FaultKind,
    /// What happened, where, and who else took part; several lines.
    pub report: String,
}
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.report)
    }
}
impl std::error::Error for Fault {}
