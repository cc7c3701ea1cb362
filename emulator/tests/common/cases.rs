//! The standard kernels on the shapes that find mistakes, compared with naive references.

use super::*;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// One case; it says what went wrong.
pub struct Case {
    pub name: &'static str,
    pub run: fn(&Rig) -> Outcome,
}
pub const CASES: &[Case] = &[
    Case { name: "router 33x8 k2", run: |r| router(r, 33, 8, 2, 1) },
    Case { name: "router 17x64 k6", run: |r| router(r, 17, 64, 6, 0) },
    Case { name: "router 9x200 k8", run: |r| router(r, 9, 200, 8, 1) },
    Case { name: "permute 100x2 E8", run: |r| permute(r, 100, 2, 8, 64) },
    Case { name: "permute 333x3 E65", run: |r| permute(r, 333, 3, 65, 40) },
    Case { name: "permute 90x8 E256", run: |r| permute(r, 90, 8, 256, 8) },
    Case {
        name: "gemm ragged n128",
        run: |r| gemm(r, &[5, 0, 130, 63, 0, 1, 127], 96, 200, 128, 3),
    },
    Case {
        name: "gemm ragged n256",
        run: |r| gemm(r, &[5, 0, 130, 64, 0, 1, 70], 200, 136, 256, 2),
    },
    Case { name: "gemm full tiles n128", run: |r| gemm(r, &[128, 256], 64, 64, 128, 1) },
    Case { name: "gemm deep K n128", run: |r| gemm(r, &[100, 28], 128, 776, 128, 2) },
    Case { name: "mma 70x90x72", run: |r| mma(r, 70, 90, 72) },
    Case { name: "mma 64x64x8", run: |r| mma(r, 64, 64, 8) },
    Case { name: "mma 65x3x200", run: |r| mma(r, 65, 3, 200) },
    Case { name: "wgmma transposed", run: wgmma_transposed },
];

fn expect(ok: bool, what: impl FnOnce() -> String) -> Outcome {
    if ok { Ok(()) } else { Err(format!("wrong result: {}", what())) }
}
fn close(got: f32, want: f64, absolute: f64, relative: f64) -> bool {
    (f64::from(got) - want).abs() <= absolute + relative * want.abs()
}

pub fn router(r: &Rig, tokens: i32, experts: i32, k: i32, renormalise: i32) -> Outcome {
    let mut rand = Rand((tokens * 31 + experts) as u64);
    let (t, e, top) = (tokens as usize, experts as usize, k as usize);
    let mut logits: Vec<f32> = (0..t * e).map(|_| rand.unit() * 4.0).collect();
    // Ties: of two lanes, and of one.
    logits[1] = logits[2];
    if e > 35 {
        [3, 35].map(|i| logits[5 * e + i] = 5.0);
    }
    let x = r.upload(&logits);
    let (ids, weights) = (r.alloc::<i32>(t * top), r.alloc::<f32>(t * top));
    let kernel = if e <= 64 { "test_router_64" } else { "test_router_256" };
    let args = [
        KernelArg::new(&x.0),
        KernelArg::new(&tokens),
        KernelArg::new(&experts),
        KernelArg::new(&k),
        KernelArg::new(&renormalise),
        KernelArg::new(&ids.0),
        KernelArg::new(&weights.0),
    ];
    r.run(kernel, LaunchConfig::linear((tokens as u32).div_ceil(4), 128), &args)?;
    let (ids, weights) = (r.download::<i32>(ids, t * top)?, r.download::<f32>(weights, t * top)?);
    for token in 0..t {
        let row = &logits[token * e..][..e];
        let mut order: Vec<usize> = (0..e).collect();
        order.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
        let most = f64::from(row[order[0]]);
        let exp = |i: usize| (f64::from(row[i]) - most).exp();
        let total: f64 = if renormalise == 1 {
            order[..top].iter().map(|&i| exp(i)).sum()
        } else {
            (0..e).map(exp).sum()
        };
        for j in 0..top {
            let (id, w) = (ids[token * top + j], weights[token * top + j]);
            expect(id as usize == order[j], || {
                format!("token {token} pick {j}: expert {id}, not {}", order[j])
            })?;
            expect(close(w, exp(order[j]) / total, 1e-5, 0.0), || {
                format!("token {token} pick {j}: weight {w}")
            })?;
        }
    }
    Ok(())
}

pub fn permute(r: &Rig, tokens: usize, k: i32, experts: i32, columns: i32) -> Outcome {
    let n = tokens * k as usize;
    let (e_count, c) = (experts as usize, columns as usize);
    let mut rand = Rand(n as u64 + 5);
    let expert: Vec<i32> = (0..n)
        .map(|_| {
            if !rand.next().is_multiple_of(3) {
                (rand.next() % experts as u32) as i32
            } else {
                experts / 2
            }
        })
        .collect();
    let blocks = n.div_ceil(256) as i32;
    let count = n as i32;
    let (expert_p, offsets, rows_p, row_of) =
        (r.upload(&expert), r.alloc::<i32>(e_count + 1), r.alloc::<i32>(n), r.alloc::<i32>(n));
    let blocks_p = r.alloc::<i32>(blocks as usize * e_count);
    let grid = |g: i32| LaunchConfig::linear(g as u32, 256);
    r.run(
        "test_histogram",
        grid(blocks).with_shared(1024),
        &[
            KernelArg::new(&expert_p.0),
            KernelArg::new(&count),
            KernelArg::new(&experts),
            KernelArg::new(&blocks_p.0),
        ],
    )?;
    r.run(
        "test_scan",
        grid(1).with_shared(32),
        &[
            KernelArg::new(&blocks_p.0),
            KernelArg::new(&blocks),
            KernelArg::new(&experts),
            KernelArg::new(&offsets.0),
        ],
    )?;
    r.run(
        "test_scatter",
        grid(blocks).with_shared(8192),
        &[
            KernelArg::new(&expert_p.0),
            KernelArg::new(&count),
            KernelArg::new(&experts),
            KernelArg::new(&blocks_p.0),
            KernelArg::new(&rows_p.0),
            KernelArg::new(&row_of.0),
        ],
    )?;
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by_key(|&i| expert[i]);
    let (off, rows, back) = (
        r.download::<i32>(offsets, e_count + 1)?,
        r.download::<i32>(rows_p, n)?,
        r.download::<i32>(row_of, n)?,
    );
    for (e, &offset) in off.iter().enumerate() {
        let want = expert.iter().filter(|&&x| (x as usize) < e).count();
        expect(offset as usize == want, || format!("offset of expert {e}: {} not {want}", offset))?;
    }
    for i in 0..n {
        expect(rows[i] as usize == order[i] && back[order[i]] as usize == i, || {
            format!("row {i}: assignment {}, not {}", rows[i], order[i])
        })?;
    }
    let x: Vec<u16> = (0..tokens * c).map(|i| i as u16).collect();
    let (x_p, out) = (r.upload(&x), r.alloc::<u16>(n * c));
    r.run(
        "test_gather",
        LaunchConfig::linear(n as u32, 128),
        &[
            KernelArg::new(&x_p.0),
            KernelArg::new(&rows_p.0),
            KernelArg::new(&k),
            KernelArg::new(&columns),
            KernelArg::new(&out.0),
        ],
    )?;
    let out = r.download::<u16>(out, n * c)?;
    for i in 0..n {
        let token = order[i] / k as usize;
        expect(out[i * c..][..c] == x[token * c..][..c], || format!("gathered row {i}"))?;
    }
    Ok(())
}

#[repr(C)]
#[derive(Clone, Copy)]
struct GemmParams {
    out: u64,
    offsets: u64,
    experts: i32,
    i: i32,
    k: i32,
}
pub fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}
pub fn dot(a: &[u16], b: &[u16]) -> f64 {
    a.iter().zip(b).map(|(&x, &y)| f64::from(bf16(x)) * f64::from(bf16(y))).sum()
}
/// The inputs and the launch of one grouped GEMM, kept apart from its check so that the launch can be timed.
pub struct Gemm {
    rows: Vec<usize>,
    i: usize,
    k: usize,
    a: Vec<u16>,
    b: Vec<u16>,
    offsets: Vec<i32>,
    out: DevicePtr,
    maps: [TensorMap; 3],
    params: GemmParams,
    columns: u32,
    grid: u32,
}
impl Gemm {
    pub fn new(r: &Rig, rows: &[usize], i: usize, k: usize, columns: u32, grid: u32) -> Self {
        let (e, m) = (rows.len(), rows.iter().sum::<usize>());
        let mut rand = Rand((m * 7 + i) as u64);
        let (a, b) = (rand.bf16s(m * k, 1.0), rand.bf16s(e * 2 * i * k, 0.25));
        let mut offsets = vec![0];
        rows.iter().for_each(|n| offsets.push(offsets.last().unwrap() + *n as i32));
        let (pa, pb, out, off) =
            (r.upload(&a), r.upload(&b), r.alloc::<u16>(m * i), r.upload(&offsets));
        let (t, s) = (TensorElement::Bf16, TensorSwizzle::B128);
        let maps = [
            r.map(pa, t, &[k as u64, m as u64], &[64, 128], s),
            r.map(pb, t, &[k as u64, 2 * i as u64, e as u64], &[64, columns / 2, 1], s),
            r.map(out, t, &[i as u64, m as u64], &[64, 64], s),
        ];
        let params =
            GemmParams { out: out.0, offsets: off.0, experts: e as i32, i: i as i32, k: k as i32 };
        Self { rows: rows.to_vec(), i, k, a, b, offsets, out, maps, params, columns, grid }
    }
    pub fn run(&self, r: &Rig) -> Outcome {
        let n = self.columns;
        let shared =
            (4 * (128 * 64 * 2 + n * 64 * 2) + 2 * 64 * (n / 2) * 2 + 64).next_multiple_of(1024);
        let [a, b, o] = &self.maps;
        let kernel = if n == 128 { "test_gemm_n128" } else { "test_gemm_n256" };
        r.run(
            kernel,
            LaunchConfig::linear(self.grid, 384).with_shared(shared),
            &[
                KernelArg::new(a),
                KernelArg::new(b),
                KernelArg::new(o),
                KernelArg::new(&self.params),
            ],
        )
    }
    pub fn check(&self, r: &Rig) -> Outcome {
        let out = r.download::<u16>(self.out, self.a.len() / self.k * self.i)?;
        for (at, (got, want)) in out.iter().map(|&x| bf16(x)).zip(self.truth().iter()).enumerate() {
            expect(close(got, *want, 1e-3, 0.01), || {
                format!("row {} column {}: {got}, not {want}", at / self.i, at % self.i)
            })?;
        }
        Ok(())
    }
    /// [M, I]; kept, because the same shapes run under many seeds.
    fn truth(&self) -> Arc<Vec<f64>> {
        type Truths = BTreeMap<(Vec<usize>, usize, usize), Arc<Vec<f64>>>;
        static KNOWN: Mutex<Truths> = Mutex::new(BTreeMap::new());
        let (i, k) = (self.i, self.k);
        let key = (self.rows.clone(), i, k);
        if let Some(t) = KNOWN.lock().unwrap().get(&key) {
            return t.clone();
        }
        let mut want = Vec::new();
        for e in 0..self.rows.len() {
            for m in self.offsets[e] as usize..self.offsets[e + 1] as usize {
                let a = &self.a[m * k..][..k];
                let row = |n: usize| &self.b[(e * 2 * i + n) * k..][..k];
                want.extend((0..i).map(|n| silu(dot(a, row(n))) * dot(a, row(i + n))));
            }
        }
        let want = Arc::new(want);
        KNOWN.lock().unwrap().insert(key, want.clone());
        want
    }
}
pub fn gemm(r: &Rig, rows: &[usize], i: usize, k: usize, columns: u32, grid: u32) -> Outcome {
    let g = Gemm::new(r, rows, i, k, columns, grid);
    g.run(r)?;
    g.check(r)
}

pub fn mma(r: &Rig, m: usize, n: usize, k: usize) -> Outcome {
    let mut rand = Rand((m + n) as u64);
    let (a, b) = (rand.bf16s(m * k, 1.0), rand.bf16s(n * k, 1.0));
    let (pa, pb, pc) = (r.upload(&a), r.upload(&b), r.alloc::<f32>(m * n));
    let (mi, ni, ki) = (m as i32, n as i32, k as i32);
    let mut config =
        LaunchConfig::linear(n.div_ceil(64) as u32, 128).with_shared(2 * 3 * 64 * 40 * 2);
    config.grid.y = m.div_ceil(64) as u32;
    r.run(
        "test_mma_gemm",
        config,
        &[
            KernelArg::new(&pa.0),
            KernelArg::new(&pb.0),
            KernelArg::new(&pc.0),
            KernelArg::new(&mi),
            KernelArg::new(&ni),
            KernelArg::new(&ki),
        ],
    )?;
    let c = r.download::<f32>(pc, m * n)?;
    for x in 0..m {
        for y in 0..n {
            let want = dot(&a[x * k..][..k], &b[y * k..][..k]);
            expect(close(c[x * n + y], want, 1e-3, 1e-4), || {
                format!("row {x} column {y}: {}, not {want}", c[x * n + y])
            })?;
        }
    }
    Ok(())
}

pub fn wgmma_transposed(r: &Rig) -> Outcome {
    let mut rand = Rand(9);
    let (a, b) = (rand.bf16s(64 * 64, 1.0), rand.bf16s(64 * 128, 1.0));
    let (pa, pb, pc) = (r.upload(&a), r.upload(&b), r.alloc::<f32>(64 * 128));
    let (t, s) = (TensorElement::Bf16, TensorSwizzle::B128);
    let (ma, mb) = (r.map(pa, t, &[64, 64], &[64, 64], s), r.map(pb, t, &[128, 64], &[64, 64], s));
    r.run(
        "test_wgmma_transposed",
        LaunchConfig::linear(1, 128).with_shared(3 * 8192 + 1024),
        &[KernelArg::new(&ma), KernelArg::new(&mb), KernelArg::new(&pc.0)],
    )?;
    let c = r.download::<f32>(pc, 64 * 128)?;
    for m in 0..64 {
        for n in 0..128 {
            let want: f64 = (0..64)
                .map(|k| f64::from(bf16(a[k * 64 + m])) * f64::from(bf16(b[k * 128 + n])))
                .sum();
            expect(close(c[m * 128 + n], want, 1e-3, 0.0), || {
                format!("row {m} column {n}: {}, not {want}", c[m * 128 + n])
            })?;
        }
    }
    Ok(())
}
