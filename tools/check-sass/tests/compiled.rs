//! The check can fail: kernels with each of the faults, compiled by nvcc. Where there is none, this says
//! that it skips.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

const HEAD: &str =
    "#include \"common/types.cuh\"\n#include \"ptx/tma.cuh\"\n#include \"ptx/wgmma.cuh\"\n";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Whether the check passes for a kernel source, and what it prints; `None`, said aloud, without nvcc.
fn check(name: &str, source: &str) -> Option<(bool, String)> {
    let nvcc = root().join(".cuda/bin/nvcc");
    if !nvcc.is_file() {
        // Past the test harness, which keeps the output of a passing test to itself.
        let _ = writeln!(std::io::stderr(), "SKIPPED: no nvcc; tools/cuda-toolkit.sh installs one");
        return None;
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (text, fatbin) = (folder.join(format!("{name}.cu")), folder.join(format!("{name}.fatbin")));
    fs::write(&text, format!("{HEAD}{source}")).unwrap();
    let compiled = Command::new(nvcc)
        .args(["--fatbin", "-std=c++20", "-O3", "--compress-mode=size"])
        .args(["-gencode", "arch=compute_90a,code=sm_90a"])
        .arg("-I")
        .arg(root().join("kernels"))
        .args(["-o".as_ref(), fatbin.as_os_str(), text.as_os_str()])
        .output()
        .unwrap();
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    let checked = Command::new(env!("CARGO_BIN_EXE_check-sass")).arg(fatbin).output().unwrap();
    let said = [checked.stdout, checked.stderr].concat();
    Some((checked.status.success(), String::from_utf8(said).unwrap()))
}

#[track_caller]
fn refused(name: &str, source: &str, why: &str) {
    let Some((passed, said)) = check(name, source) else { return };
    assert!(!passed && said.contains(why), "{said}");
}

/// One product with TMA loads; A in shared memory.
const PRODUCT: &str = "
KERNEL(product, 128, 1, const __grid_constant__ TensorMap map, float* out) {
  auto& shared = shared_storage<bf16[4096]>();
  const uint32_t tile = shared_address(shared);
  if (threadIdx.x == 0) ptx::tma_load_2d(tile, &map, 0, 0, tile + 8192);
  float d[32];
  ptx::wgmma_fence();
  ptx::wgmma_bf16(d, ptx::k_major_128b(tile), ptx::k_major_128b(tile), 0);
  ptx::wgmma_commit();
  ptx::wgmma_wait<0>();
  for (int i = 0; i < 32; i++) out[i * 128 + threadIdx.x] = d[i];
}";

#[test]
fn a_good_kernel_passes() {
    let Some((passed, said)) = check("good_sm90", PRODUCT) else { return };
    assert!(passed && said.contains("| product | - | 1024 | 90a: "), "{said}");
}

#[test]
fn local_memory_is_refused() {
    let indexed = "
KERNEL(indexed, 128, 1, const int* in, int* out) {
  int v[64];
  for (int i = 0; i < 64; i++) v[i] = in[i];
  for (int i = 0; i < 64; i++) v[in[i + 64] & 63] += i;
  out[threadIdx.x] = v[threadIdx.x & 63];
}";
    refused("local", indexed, "bytes of stack and local memory");
    refused("local", indexed, "accesses of local memory, the first `STL");
}

#[test]
fn a_hopper_kernel_without_tma_or_wgmma_is_refused() {
    let plain = "KERNEL(plain, 128, 1, int* out) { out[threadIdx.x] = 1; }";
    refused("plain_sm90", plain, "plain for sm_90a: no wgmma");
    refused("plain_sm90", plain, "plain for sm_90a: no TMA load");
    let Some((passed, said)) = check("plain", plain) else { return };
    assert!(passed, "not in a file for Hopper: {said}");
}

/// Real code with A in registers has no hazard, and would have some if waits did not count.
#[test]
fn register_operands_are_followed_through_real_code() {
    let source = "
KERNEL(from_registers, 128, 1, const uint32_t* in, float* out, int steps) {
  auto& shared = shared_storage<bf16[4096]>();
  const uint64_t b = ptx::k_major_128b(shared_address(shared));
  float d[32];
  for (int i = 0; i < steps; i++) {
    uint32_t a[4];
    for (int j = 0; j < 4; j++) a[j] = in[(i * 4 + j) * 128 + threadIdx.x] * 3;
    ptx::wgmma_fence();
    ptx::wgmma_bf16_ra(d, a, b, i != 0);
    ptx::wgmma_commit();
    ptx::wgmma_wait<0>();
  }
  for (int i = 0; i < 32; i++) out[i * 128 + threadIdx.x] = d[i];
}";
    let Some((passed, said)) = check("registers", source) else { return };
    assert!(passed && said.contains("1 would have register hazards if no wait counted"), "{said}");
}
