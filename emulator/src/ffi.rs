//! The boundary to the C++ models; all unsafe code of the crate is here.
#![expect(unsafe_code, reason = "calls into the C++ models")]

use crate::fault::{Fault, FaultKind, Unavailable};
use crate::options::{Checks, Options, Profile, Stats};
use moe_kernels::cuda::driver::{KernelArg, LaunchConfig, TensorMap, TensorMapDesc};

/// A kernel of the registry: its two variants and what is known of both.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    pub(crate) name: String,
    pub(crate) max_threads: u32,
    pub(crate) min_blocks: u32,
    pub(crate) param_sizes: Vec<u32>,
    plain: usize,
    checked: usize,
}

/// The arguments of a launch, copied: each in 64-byte aligned storage, as kernels want their tensor maps.
#[derive(Clone, Debug)]
pub(crate) struct Args {
    storage: Vec<Chunk>,
    offsets: Vec<usize>,
}
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
struct Chunk([std::mem::MaybeUninit<u8>; 64]);

impl Args {
    pub(crate) fn copy(args: &[KernelArg<'_>]) -> Self {
        let mut storage = Vec::new();
        let mut offsets = Vec::new();
        for arg in args {
            offsets.push(storage.len());
            for at in (0..arg.size().max(1)).step_by(64) {
                let mut chunk = Chunk([std::mem::MaybeUninit::uninit(); 64]);
                let n = (arg.size() - at).min(64);
                // SAFETY: `KernelArg` borrows `size()` bytes at `as_ptr()`, of which n lie from `at` on;
                // the chunk holds 64. Padding is copied as uninitialised bytes, never read here.
                unsafe {
                    let from = arg.as_ptr().cast::<std::mem::MaybeUninit<u8>>().add(at);
                    std::ptr::copy_nonoverlapping(from, chunk.0.as_mut_ptr(), n);
                }
                storage.push(chunk);
            }
        }
        Self { storage, offsets }
    }
    #[cfg_attr(no_cxx, allow(dead_code))]
    fn pointers(&self) -> Vec<*const std::ffi::c_void> {
        self.offsets.iter().map(|&i| (&raw const self.storage[i]).cast()).collect()
    }
}

/// One launch of a chain.
#[derive(Clone, Debug)]
pub(crate) struct LaunchOp {
    pub(crate) kernel: Kernel,
    pub(crate) config: LaunchConfig,
    pub(crate) args: Args,
    pub(crate) options: Options,
}

#[cfg(not(no_cxx))]
mod models {
    use super::*;
    use moe_kernels::cuda::driver::{Dim3, TensorElement};
    use std::ffi::{CStr, CString, c_char, c_int, c_void};
    use std::ptr::NonNull;

    #[repr(C)]
    struct RawDevice {
        _opaque: [u8; 0],
    }
    #[repr(C)]
    struct RawProfile {
        arch: u32,
        sm_count: u32,
        max_shared_bytes: u32,
    }
    #[repr(C)]
    struct RawDim3 {
        x: u32,
        y: u32,
        z: u32,
    }
    #[repr(C)]
    struct RawLaunch {
        kernel: *const c_void,
        grid: RawDim3,
        block: RawDim3,
        cluster: RawDim3,
        shared_bytes: u32,
        overlaps_previous: u32,
        args: *const *const c_void,
    }
    #[repr(C)]
    struct RawOptions {
        seed: u64,
        check: u32,
        lint: u32,
        resident: u32,
        fault: i32,
        edit_from: *const c_char,
        edit_to: *const c_char,
    }
    #[repr(C)]
    #[derive(Default)]
    struct RawStats {
        switches: u64,
        async_steps: u64,
        wgmmas: u64,
        checks: u64,
        blocks: u64,
    }
    #[repr(C)]
    struct RawTensorMap {
        element: u32,
        element_bytes: u32,
        rank: u32,
        swizzle_bytes: u32,
        base: u64,
        dims: [u64; 5],
        strides: [u64; 4],
        box_dims: [u32; 5],
    }
    // SAFETY: the declarations repeat cpp/emulator.h; `abi_sizes` in the tests below compares the structs.
    unsafe extern "C" {
        fn emu_device_new(profile: *const RawProfile) -> *mut RawDevice;
        fn emu_device_free(device: *mut RawDevice);
        fn emu_alloc(device: *mut RawDevice, bytes: usize) -> *mut c_void;
        fn emu_free(device: *mut RawDevice, ptr: *mut c_void) -> c_int;
        fn emu_contains(device: *mut RawDevice, ptr: *const c_void, bytes: usize) -> c_int;
        fn emu_find_kernel(name: *const c_char, checked: c_int) -> *const c_void;
        fn emu_kernel_params(kernel: *const c_void, sizes: *mut *const u32) -> u32;
        fn emu_kernel_bounds(kernel: *const c_void, max_threads: *mut u32, min_blocks: *mut u32);
        fn emu_kernel_at(index: usize) -> *const c_char;
        fn emu_tensor_map(
            map: *mut c_void,
            args: *const RawTensorMap,
            err: *mut c_char,
            err_len: usize,
        ) -> c_int;
        fn emu_run(
            device: *mut RawDevice,
            chain: *const RawLaunch,
            n: usize,
            options: *const RawOptions,
            stats: *mut RawStats,
            report: *mut c_char,
            report_len: usize,
        ) -> c_int;
    }

    /// An emulated GPU's memory and limits.
    pub(crate) struct Device(NonNull<RawDevice>);
    // SAFETY: a RawDevice has no thread affinity: its state is plain memory, and methods that change it
    // take `&mut self`.
    unsafe impl Send for Device {}

    impl Device {
        pub(crate) fn new(profile: &Profile) -> Result<Self, Unavailable> {
            let p = &profile.properties;
            let raw = RawProfile {
                arch: p.compute_capability,
                sm_count: p.sm_count,
                max_shared_bytes: p.max_shared_per_block,
            };
            // SAFETY: the profile is read during the call only; the result is owned by `Device`.
            Ok(Self(
                NonNull::new(unsafe { emu_device_new(&raw) })
                    .expect("operator new does not return null"),
            ))
        }
        pub(crate) fn alloc(&mut self, bytes: usize) -> Option<u64> {
            // SAFETY: the device lives as long as self.
            let p = unsafe { emu_alloc(self.0.as_ptr(), bytes) };
            (!p.is_null()).then_some(p as u64)
        }
        pub(crate) fn free(&mut self, ptr: u64) -> bool {
            // SAFETY: the device lives as long as self; it checks that ptr is an allocation of its own.
            unsafe { emu_free(self.0.as_ptr(), ptr as *mut c_void) == 0 }
        }
        pub(crate) fn contains(&mut self, ptr: u64, bytes: usize) -> bool {
            // SAFETY: the device lives as long as self; the range is compared, not accessed.
            unsafe { emu_contains(self.0.as_ptr(), ptr as *const c_void, bytes) == 1 }
        }
        pub(crate) fn write(&mut self, ptr: u64, bytes: &[u8]) {
            assert!(self.contains(ptr, bytes.len()), "checked by the caller");
            // SAFETY: the range lies in a live allocation of this device, which nothing else accesses: `&mut self`.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), ptr as *mut u8, bytes.len()) }
        }
        pub(crate) fn read(&mut self, ptr: u64, bytes: &mut [u8]) {
            assert!(self.contains(ptr, bytes.len()), "checked by the caller");
            // SAFETY: as in `write`; device memory is initialised (with poison) when it is allocated.
            unsafe {
                std::ptr::copy_nonoverlapping(ptr as *const u8, bytes.as_mut_ptr(), bytes.len())
            }
        }
        pub(crate) fn copy(&mut self, dst: u64, src: u64, bytes: usize) {
            assert!(
                self.contains(dst, bytes) && self.contains(src, bytes),
                "checked by the caller"
            );
            // SAFETY: both ranges lie in live allocations of this device; they may overlap.
            unsafe { std::ptr::copy(src as *const u8, dst as *mut u8, bytes) }
        }
        pub(crate) fn fill(&mut self, dst: u64, value: u8, bytes: usize) {
            assert!(self.contains(dst, bytes), "checked by the caller");
            // SAFETY: the range lies in a live allocation of this device.
            unsafe { std::ptr::write_bytes(dst as *mut u8, value, bytes) }
        }
        /// Runs a chain; gives the counts and the lint report.
        pub(crate) fn run(&mut self, chain: &[LaunchOp]) -> Result<(Stats, String), Fault> {
            let options = &chain[0].options;
            let checked = options.checks == Checks::Full || options.lint;
            let pointers: Vec<_> = chain.iter().map(|l| l.args.pointers()).collect();
            let dim = |d: Dim3| RawDim3 { x: d.x, y: d.y, z: d.z };
            let raw: Vec<_> = chain
                .iter()
                .zip(&pointers)
                .map(|(l, args)| RawLaunch {
                    kernel: (if checked { l.kernel.checked } else { l.kernel.plain })
                        as *const c_void,
                    grid: dim(l.config.grid),
                    block: dim(l.config.block),
                    cluster: dim(l.config.cluster),
                    shared_bytes: l.config.shared_bytes,
                    overlaps_previous: l.config.programmatic.into(),
                    args: args.as_ptr(),
                })
                .collect();
            let text = |s: &str| CString::new(s).expect("PTX text has no zero byte");
            let edit = options.edit.as_ref().map(|e| (text(&e.from), text(&e.to)));
            let raw_options = RawOptions {
                seed: options.seed,
                check: (options.checks != Checks::None).into(),
                lint: options.lint.into(),
                resident: options.resident.unwrap_or(0),
                fault: options.fault,
                edit_from: edit.as_ref().map_or(std::ptr::null(), |e| e.0.as_ptr()),
                edit_to: edit.as_ref().map_or(std::ptr::null(), |e| e.1.as_ptr()),
            };
            let mut stats = RawStats::default();
            let mut report = vec![0_u8; 1 << 14];
            // SAFETY: the chain, its arguments, the options and the report outlive the call. Kernel
            // addresses come from emu_find_kernel. What the kernels do with their arguments is what the
            // caller of `Driver::launch` vouched for.
            let code = unsafe {
                emu_run(
                    self.0.as_ptr(),
                    raw.as_ptr(),
                    raw.len(),
                    &raw_options,
                    &mut stats,
                    report.as_mut_ptr().cast(),
                    report.len(),
                )
            };
            let report = CStr::from_bytes_until_nul(&report)
                .map(|s| s.to_string_lossy().into_owned())
                .unwrap_or_default();
            if code != 0 {
                return Err(Fault { kind: FaultKind::from_code(code), report });
            }
            let RawStats { switches, async_steps, wgmmas, checks, blocks } = stats;
            Ok((Stats { switches, async_steps, wgmmas, checks, blocks }, report))
        }
    }
    impl Drop for Device {
        fn drop(&mut self) {
            // SAFETY: the pointer came from emu_device_new and is freed once.
            unsafe { emu_device_free(self.0.as_ptr()) }
        }
    }

    pub(crate) fn find_kernel(name: &str) -> Option<Kernel> {
        let c = CString::new(name).ok()?;
        // SAFETY: the name is a C string; entries of the registry are static.
        let (plain, checked) =
            unsafe { (emu_find_kernel(c.as_ptr(), 0), emu_find_kernel(c.as_ptr(), 1)) };
        if plain.is_null() || checked.is_null() {
            return None;
        }
        let (mut sizes, mut max_threads, mut min_blocks) = (std::ptr::null(), 0, 0);
        // SAFETY: `plain` is an entry of the registry, whose sizes are a static array of the returned length.
        let param_sizes = unsafe {
            emu_kernel_bounds(plain, &mut max_threads, &mut min_blocks);
            let n = emu_kernel_params(plain, &mut sizes);
            std::slice::from_raw_parts(sizes, n as usize).to_vec()
        };
        Some(Kernel {
            name: name.to_owned(),
            max_threads,
            min_blocks,
            param_sizes,
            plain: plain as usize,
            checked: checked as usize,
        })
    }

    pub(crate) fn kernel_names() -> Vec<String> {
        // SAFETY: names of the registry are static C strings; null ends the list.
        let at = |i| unsafe {
            let p = emu_kernel_at(i);
            (!p.is_null()).then(|| CStr::from_ptr(p).to_string_lossy().into_owned())
        };
        (0..).map_while(at).collect()
    }

    pub(crate) fn encode_tensor_map(desc: &TensorMapDesc) -> Result<TensorMap, String> {
        let mut raw = RawTensorMap {
            element: match desc.element {
                TensorElement::U8 => 0,
                TensorElement::Bf16 => 1,
                TensorElement::F16 => 2,
                TensorElement::F32 => 3,
                TensorElement::I32 => 4,
            },
            element_bytes: desc.element.bytes(),
            rank: u32::try_from(desc.dims.len()).unwrap_or(u32::MAX),
            swizzle_bytes: desc.swizzle.span(),
            base: desc.base.0,
            dims: [0; 5],
            strides: [0; 4],
            box_dims: [0; 5],
        };
        if desc.dims.is_empty()
            || desc.dims.len() > 5
            || desc.box_dims.len() != desc.dims.len()
            || desc.strides.len() + 1 != desc.dims.len()
        {
            return Err(format!(
                "{} dimensions, {} strides and {} box dimensions do not fit together",
                desc.dims.len(),
                desc.strides.len(),
                desc.box_dims.len()
            ));
        }
        raw.dims[..desc.dims.len()].copy_from_slice(&desc.dims);
        raw.strides[..desc.strides.len()].copy_from_slice(&desc.strides);
        raw.box_dims[..desc.box_dims.len()].copy_from_slice(&desc.box_dims);
        let mut map = TensorMap([0; 16]);
        let mut err = [0_u8; 256];
        // SAFETY: the map has 128 bytes, and the message buffer the given length.
        let code = unsafe {
            emu_tensor_map((&raw mut map).cast(), &raw, err.as_mut_ptr().cast(), err.len())
        };
        if code == 0 {
            return Ok(map);
        }
        Err(CStr::from_bytes_until_nul(&err)
            .map(|s| s.to_string_lossy().into_owned())
            .unwrap_or_default())
    }

    #[cfg(test)]
    #[test]
    fn abi_sizes() {
        // As g++ lays out the structs of cpp/emulator.h on 64-bit machines (static_asserts in core/abi.cpp).
        assert_eq!(size_of::<RawLaunch>(), 64);
        assert_eq!(size_of::<RawOptions>(), 40);
        assert_eq!(size_of::<RawStats>(), 40);
        assert_eq!(size_of::<RawTensorMap>(), 120);
        assert_eq!(size_of::<RawProfile>(), 12);
    }
}

#[cfg(no_cxx)]
mod models {
    use super::*;

    /// No device can be made, so that the methods are never reached.
    pub(crate) enum Device {}
    impl Device {
        pub(crate) fn new(_: &Profile) -> Result<Self, Unavailable> {
            Err(Unavailable)
        }
        pub(crate) fn alloc(&mut self, _: usize) -> Option<u64> {
            match *self {}
        }
        pub(crate) fn free(&mut self, _: u64) -> bool {
            match *self {}
        }
        pub(crate) fn contains(&mut self, _: u64, _: usize) -> bool {
            match *self {}
        }
        pub(crate) fn write(&mut self, _: u64, _: &[u8]) {
            match *self {}
        }
        pub(crate) fn read(&mut self, _: u64, _: &mut [u8]) {
            match *self {}
        }
        pub(crate) fn copy(&mut self, _: u64, _: u64, _: usize) {
            match *self {}
        }
        pub(crate) fn fill(&mut self, _: u64, _: u8, _: usize) {
            match *self {}
        }
        pub(crate) fn run(&mut self, _: &[LaunchOp]) -> Result<(Stats, String), Fault> {
            match *self {}
        }
    }
    pub(crate) fn find_kernel(_: &str) -> Option<Kernel> {
        None
    }
    pub(crate) fn kernel_names() -> Vec<String> {
        Vec::new()
    }
    pub(crate) fn encode_tensor_map(_: &TensorMapDesc) -> Result<TensorMap, String> {
        Err(Unavailable.to_string())
    }
}

pub(crate) use models::{Device, encode_tensor_map, find_kernel, kernel_names};
